"""The configuration of an application: config.py, overridden by ``.env``, overridden by the environment."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import tzinfo
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, SecretStr, ValidationError, model_validator

from rolecall.agent.mcp import ToolServer
from rolecall.agent.policies import Policy, all_policies
from rolecall.agent.prompts import PLACE, Prompts, load_prompts
from rolecall.agent.role import MAX_INSTANCES as MAX_INSTANCES
from rolecall.agent.role import Instances, check_agent
from rolecall.agent.role import Role as Role
from rolecall.agent.tools import Toolbox, ToolLimits
from rolecall.bus.conversation import FOLLOWED, TELEGRAM_ID
from rolecall.bus.envelope import ROLE_NAME
from rolecall.environment import Environment, application_directory, explained
from rolecall.errors import ConfigError
from rolecall.models.registry import AUTO, PROVIDERS, Providers, all_providers, models_by_key, open_model
from rolecall.models.vectors import embedding_model
from rolecall.serving.external import ModelAt
from rolecall.serving.spec import ModelCommand
from rolecall.settings import FORMER_NAMES, Settings, Terms, time_zone
from rolecall.version import plugins

if TYPE_CHECKING:
    from rolecall.models.model import Model
    from rolecall.serving.launcher import Launcher

Servers = dict[str, tuple[ModelAt, ...] | ModelAt | ModelCommand]
logger = logging.getLogger(__name__)
APP_MODULES = ("config", "agents")
MODEL_NAME = re.compile(r"[^\s@][^\s]*@[a-z][a-z0-9_-]*")
NEARLY = 0.8
"""How alike, of 1, a name and the one that was meant are."""
PROVIDER_ALIASES = {"google": "gemini"}
NO_KEY = "no key is set"
"""Why ``auto`` stands for what it does where no setting decided it."""


class Config(Settings):
    """A deployment as one typed value: its roles; ``terms``, the limits and prices of models by full name; ``tools``,
    the functions that ``rolecall tools`` serves; ``tool_servers``, the MCP servers its agents use, by name;
    ``servers``, where models ``name@served`` run; and every field of Settings that differs from its default."""

    roles: tuple[Role, ...]
    terms: dict[str, Terms] = Field(default_factory=dict)
    tools: tuple[Any, ...] = ()
    tool_servers: dict[str, ToolServer] = Field(default_factory=dict)
    servers: Servers = Field(default_factory=dict)
    providers: dict[str, Any] = Field(default_factory=dict)
    """Additional model providers: classes or ``"module:Class"``, by the name after the ``@``."""
    frontends: tuple[Callable[..., Any], ...] = ()
    """Front end classes to run in ``rolecall up``; see frontends/front.py."""
    policies: tuple[Any, ...] = ()
    """Functions that wrap every handler, inside the built-in policies; see agent/policies.py."""

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, given: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return build(given)
        except ValidationError as error:
            raise ConfigError(explained(error)) from None


OWN = {*Config.model_fields} - {*Settings.model_fields}
"""Fields of Config that are not in Settings."""


@dataclass(frozen=True)
class Application:
    """A loaded application directory: its roles with instance counts and models resolved, and its settings.
    ``sources`` tells where each value other than a default came from, by environment name and ``<role> models``;
    ``terms`` are by full model name; ``servers`` and ``commands`` are where models ``name@served`` come from."""

    directory: Path
    roles: tuple[Role, ...]
    settings: Settings
    sources: Mapping[str, str]
    terms: Mapping[str, Terms] = field(default_factory=dict)
    tools: Toolbox = field(default_factory=Toolbox)
    tool_servers: Mapping[str, ToolServer] = field(default_factory=dict)
    servers: Mapping[str, tuple[ModelAt, ...]] = field(default_factory=dict)
    commands: Mapping[str, ModelCommand] = field(default_factory=dict)
    providers: Providers = field(default_factory=lambda: dict(PROVIDERS))
    frontends: tuple[Any, ...] = ()
    policies: tuple[Policy, ...] = ()

    def role(self, name: str) -> Role | None:
        """The role called ``name``, or None."""
        return next((role for role in self.roles if role.name == name), None)

    @property
    def front_names(self) -> frozenset[str]:
        """The names of the front ends that it or an installed package adds. Raises ConfigError."""
        own = (*plugins("rolecall.frontends", "front end").values(), *self.frontends)
        return frozenset(getattr(kind, "name", "") for kind in own)

    def front_of(self, conversation: str, others: frozenset[str] = frozenset()) -> str:
        """The front end that ``conversation`` belongs to by its ID, one of its own, the built-in or the ``others``;
        empty if there is none, as for those of programs. Raises ConfigError for an ID that Telegram cannot have."""
        name, _, place = conversation.partition(":")
        names = FOLLOWED | self.front_names | others
        if TELEGRAM_ID.fullmatch(conversation) or (place and name in names):
            return name
        if name == "telegram":
            shown = conversation[:60]
            raise ConfigError(
                f"{shown!r} is not a Telegram conversation: expected telegram:CHAT or telegram:CHAT:TOPIC"
            )
        return ""

    @property
    def answering_roles(self) -> list[Role]:
        """The roles to offer to people: those to which config.py gives a prefix or models. GEN_MODEL gives models to
        all others as well, but most of these only help: they find the language, transcribe, count."""
        given = {role.name: self.sources.get(f"{role.name} models", "config.py") for role in self.roles}
        named = {name for name, origin in given.items() if origin == "config.py" or origin.startswith("auto: ")}
        return [role for role in self.roles if role.match or (role.models and role.name in named)]

    @property
    def role_names(self) -> list[str]:
        """The roles by name."""
        return [role.name for role in self.roles]

    @property
    def model_names(self) -> list[str]:
        """The models of all roles, without duplicates."""
        return list(dict.fromkeys(name for role in self.roles for name in role.models))

    def gives_logprobs(self, model: str) -> bool:
        """Whether the provider of ``model`` may give the log probabilities of its tokens."""
        return bool(getattr(self.providers.get(model.rpartition("@")[2]), "logprobs", False))

    def open_model(self, name: str, launcher: Launcher | None) -> Model:
        """The model ``name``, from a command in config.py or from its provider; ``launcher`` starts servers on this
        machine. Raises ConfigError."""
        if command := self.commands.get(name):
            from rolecall.models.providers.local import commanded  # imports an SDK

            return commanded(name, command, self.settings, launcher)
        return open_model(name, self.settings, self.state_dir, launcher, self.providers)

    @property
    def embedding_model(self) -> str:
        """The model of vectors."""
        return embedding_model(self.settings)

    def count(self, role: Role) -> int:
        """The number of instances of ``role`` by config and environment; for "auto", what its local model server can
        handle concurrently once it is loaded."""
        if role.instances != "auto":
            return role.instances
        return self.settings.local_slots if any(name.endswith("@local") for name in role.models) else 1

    @property
    def counts(self) -> dict[str, int]:
        """``count`` of every role, by name."""
        return {role.name: self.count(role) for role in self.roles}

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts in agents/prompts, read and checked on first use. Raises ConfigError, see Prompts."""
        return load_prompts(self.directory / PLACE)

    @property
    def name(self) -> str:
        """APP_NAME, else the name of the directory: what tells it from others on the same server."""
        return self.settings.app_name or self.directory.name

    @property
    def state_dir(self) -> Path:
        """Directory of internal files: server data, weights, locks."""
        return self.directory / ".rolecall"

    @property
    def log_dir(self) -> Path:
        """The directory of the transcripts."""
        return self.directory / self.settings.log_dir

    @property
    def tz(self) -> tzinfo | None:
        """The time zone of the transcripts: TZ, or None for the system's. Raises ConfigError for an unknown one."""
        name = self.settings.tz
        return None if name is None else time_zone(name)


def load(given: str | os.PathLike[str] | None = None) -> Application:
    """Load the application in ``given`` (see application_directory). Raises ConfigError with what to do."""
    directory = application_directory(given)
    return resolve(_import_config(directory), directory)


def resolve(config: Config, directory: Path) -> Application:
    """``config`` with the environment and ``.env`` of ``directory`` applied. Raises ConfigError with what to do."""
    directory = directory.resolve()
    environment = Environment.read(directory)
    names, own = (
        environment.names,
        config.model_dump(exclude=OWN, exclude_unset=True),
    )
    settings = environment.settings(own)
    for former, name in FORMER_NAMES.items():
        if former in names:
            logger.warning("%s still works, but is called %s now: rename it", former, name)
    for line in environment.skipped:
        logger.warning("%s, line %d is ignored: expected NAME=value", directory / ".env", line)
    roles = tuple(_resolve(role, names, settings) for role in config.roles)
    sources = _sources(config, settings, environment.origins(own))
    _check_roles(roles, settings)
    servers = {name: server.resolved(name, names) for name, server in config.tool_servers.items()}
    tools = Toolbox(config.tools, ToolLimits.of(settings))
    return Application(
        directory, roles, settings, sources, _terms(config.terms), tools, servers, _servers(config.servers, names),
        _commands(config.servers), all_providers(config.providers), config.frontends, all_policies(config.policies),
    )  # fmt: skip


def standalone(url: str, given: str | os.PathLike[str] | None = None) -> Application:
    """An application without roles, for a program that only uses the server at ``url``: the settings of the environment
    and of ``.env`` in ``given`` (see application_directory)."""
    directory = application_directory(given)
    settings = Environment.read(directory).settings().model_copy(update={"redis_url": SecretStr(url)})
    return Application(directory, (), settings, {})


def _import_config(directory: Path) -> Config:
    if not (directory / "config.py").is_file():
        raise ConfigError(
            f"no config.py in {directory}: go to an application directory, name one with --app DIR "
            "or ROLECALL_APP, or make one with `rolecall new DIR`"
        )
    sys.path[:] = [str(directory), *(path for path in sys.path if path != str(directory))]
    try:
        module = importlib.import_module("config")
    except ConfigError as error:
        raise ConfigError(f"{directory / 'config.py'}: {error}") from None
    except Exception as error:  # the boundary: config.py and what it imports are the user's own code
        _check_origin(directory)
        raise ConfigError(f"{directory / 'config.py'} cannot be loaded: {type(error).__name__}: {error}") from error
    _check_origin(directory)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ConfigError(f"{directory / 'config.py'} must define `config = Config(roles=(…))`")
    return config


def _check_origin(directory: Path) -> None:
    for name in APP_MODULES:
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
        if origin and not Path(origin).resolve().is_relative_to(directory):
            raise ConfigError(
                f"{name!r} was imported from {origin}, not from {directory}: another package of that name is "
                "installed or was imported first; uninstall it or use a virtual environment without it"
            )


def misspelt(application: Application) -> dict[str, str]:
    """Names in ``.env`` that are no setting, but nearly one that is not there → that one. A name with a word more, such
    as ``AZURE_OPENAI_API_KEY``, is another program's."""
    known = [name.upper() for name in Settings.model_fields]
    known += [f"{name}_FILE" for name in known] + [role.variable for role in application.roles] + [*FORMER_NAMES]
    given = Environment.read(application.directory).dotenv
    missing = [name for name in known if name not in given]
    found = {}
    for name in (name for name in given if name not in known):
        for close in difflib.get_close_matches(name, missing, 1, NEARLY):
            if not {*close.split("_")} < {*name.split("_")}:
                found[name] = close
    return found


def _resolve(role: Role, environ: Mapping[str, str], settings: Settings) -> Role:
    check_agent(role.agent)
    instances = _instances(role.variable, role.instances, environ)
    chosen, _ = models_by_key(settings)
    own = (role.models,) if isinstance(role.models, str) else role.models
    models = []
    for name in own or ((AUTO,) if settings.gen_model else ()):
        if name == AUTO:
            models += [_model(one, "GEN_MODEL=") for one in chosen]
        else:
            models.append(_model(name, f"config.py, role {role.name}: model "))
    return Role(role.agent, instances, tuple(dict.fromkeys(models)), role.match)


def _instances(variable: str, configured: Instances, environ: Mapping[str, str]) -> Instances:
    given: Any = environ.get(variable) or configured
    if given == "auto":
        return "auto"
    try:
        count = -1 if isinstance(given, float | bool) else int(given)
    except (TypeError, ValueError):
        count = -1
    if not 0 <= count <= MAX_INSTANCES:
        raise ConfigError(f"{variable}={given} is invalid: expected an integer from 0 to {MAX_INSTANCES}, or auto")
    return count


def _model(name: str, where: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"{where}{name} is invalid: expected name@provider, such as smollm2@local")
    model, _, provider = name.rpartition("@")
    return f"{model}@{PROVIDER_ALIASES.get(provider, provider)}"


def _terms(given: Mapping[str, Terms]) -> dict[str, Terms]:
    for name, terms in given.items():
        for limit, value in asdict(terms).items():
            least = 0 if limit.startswith("price") else 1
            if value is not None and value < least:
                raise ConfigError(f"config.py, terms of {name}: {limit}={value} is invalid: expected {least} or more")
    return {_model(name, "config.py, terms of "): terms for name, terms in given.items()}


def _servers(given: Servers, environ: Mapping[str, str]) -> dict[str, tuple[ModelAt, ...]]:
    for name, places in given.items():
        if not (MODEL_NAME.fullmatch(name) and name.endswith("@served") and places):
            expected = "expected name@served with one or more ModelAt(url), or a ModelCommand"
            raise ConfigError(f"config.py, servers of {name}: {expected}")
    found = {name: places for name, places in given.items() if not isinstance(places, ModelCommand)}
    several = {name: (places,) if isinstance(places, ModelAt) else places for name, places in found.items()}
    return {name: tuple(place.resolved(name, environ) for place in places) for name, places in several.items()}


def _commands(given: Servers) -> dict[str, ModelCommand]:
    return {name: command.checked(name) for name, command in given.items() if isinstance(command, ModelCommand)}


def _check_roles(roles: tuple[Role, ...], settings: Settings) -> None:
    names = [role.name for role in roles]
    for name in names:
        if not ROLE_NAME.fullmatch(name):
            raise ConfigError(f"role {name!r} is invalid: expected up to 40 characters of a-z 0-9 _ -")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"role {twice[0]!r} is configured twice: list it once")
    if "manager" not in names:
        raise ConfigError("no role 'manager': every turn begins there, so config.py needs Role(ManagerAgent)")
    total = sum(role.instances for role in roles if role.instances != "auto")
    if total > settings.total_instances:
        raise ConfigError(f"{total} instances are configured, more than TOTAL_INSTANCES={settings.total_instances}")


def _sources(config: Config, settings: Settings, origins: Mapping[str, str]) -> dict[str, str]:
    names = [name.upper() for name in Settings.model_fields] + [role.variable for role in config.roles]
    sources = {name: origins[name] for name in names if name in origins}
    _, deciding = models_by_key(settings)
    chosen = "; ".join(f"{name}, {origins.get(name, 'config.py')}" for name in deciding)
    for role in config.roles:
        if AUTO in role.models:
            sources[f"{role.name} models"] = f"auto: {chosen or NO_KEY}"
        else:
            sources[f"{role.name} models"] = "config.py" if role.models else chosen if settings.gen_model else ""
    return sources
