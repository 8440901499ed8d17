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
from types import MappingProxyType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from dotenv.parser import Binding, parse_stream
from pydantic import Field, ModelWrapValidatorHandler, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from rolecall.agent.mcp import ToolServer
from rolecall.agent.policies import Policy, all_policies
from rolecall.agent.prompts import PLACE, Prompts, load_prompts
from rolecall.agent.role import MAX_INSTANCES as MAX_INSTANCES
from rolecall.agent.role import Instances, check_agent
from rolecall.agent.role import Role as Role
from rolecall.agent.tools import Toolbox, ToolLimits
from rolecall.bus.conversation import FOLLOWED, TELEGRAM_ID
from rolecall.bus.envelope import ROLE_NAME
from rolecall.errors import ConfigError
from rolecall.models.registry import AUTO, PROVIDERS, Providers, all_providers, models_by_key
from rolecall.models.vectors import embedding_model
from rolecall.serving.external import ModelAt
from rolecall.serving.spec import ModelCommand
from rolecall.settings import FORMER_NAMES, Settings, Terms, time_zone
from rolecall.version import plugins

Servers = dict[str, tuple[ModelAt, ...] | ModelAt | ModelCommand]
logger = logging.getLogger(__name__)
APP_MODULES = ("config", "agents")
MODEL_NAME = re.compile(r"[^\s@][^\s]*@[a-z][a-z0-9_-]*")
OWN = frozenset({"roles", "terms", "tools", "tool_servers", "servers", "providers", "frontends", "policies"})
"""Fields of Config that are not in Settings."""
NEARLY = 0.9
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
            raise ConfigError(_explain(error)) from None


class _Environment(Settings, BaseSettings):
    model_config = SettingsConfigDict(extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given = _by_field(_without_blanks(os.environ))
        return InitSettingsSource(settings_cls, given), init_settings


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
                f"{shown!r} is no conversation of Telegram: expected telegram:CHAT or telegram:CHAT:TOPIC"
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
    def model_names(self) -> list[str]:
        """The models of all roles, without duplicates."""
        return list(dict.fromkeys(name for role in self.roles for name in role.models))

    def gives_logprobs(self, model: str) -> bool:
        """Whether the provider of ``model`` may give the log probabilities of its tokens."""
        return bool(getattr(self.providers.get(model.rpartition("@")[2]), "logprobs", False))

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


def application_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """``given``, else ROLECALL_APP, else the current directory."""
    return Path(given or os.environ.get("ROLECALL_APP") or ".").resolve()


def runtime_directory() -> Path | None:
    """The user's private directory for sockets (XDG_RUNTIME_DIR), or None."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    return Path(given) if given and Path(given).is_dir() else None


def user_language() -> str:
    """The language of the user of this terminal, such as ``pt-BR``, as the C library finds it; empty if none is set."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    code = re.split(r"[.@]", locale)[0]
    return "" if code in ("C", "POSIX") else code.replace("_", "-")


def load(given: str | os.PathLike[str] | None = None) -> Application:
    """Load the application in ``given`` (see application_directory). Raises ConfigError with what to do."""
    directory = application_directory(given)
    return resolve(_import_config(directory), directory)


def resolve(config: Config, directory: Path) -> Application:
    """``config`` with the environment and ``.env`` of ``directory`` applied. Raises ConfigError with what to do."""
    directory = directory.resolve()
    environ = _environ(_dotenv(directory))
    settings = read_settings(directory, config)
    for former, name in FORMER_NAMES.items():
        if environ.get(former):
            logger.warning("%s still works, but is called %s now: rename it", former, name)
    for line in (binding.original.line for binding in _bindings(directory) if binding.error):
        logger.warning("%s, line %d is ignored: expected NAME=value", directory / ".env", line)
    roles = tuple(_resolve(role, environ, settings) for role in config.roles)
    sources = _sources(directory, config, settings)
    _check_roles(roles, settings)
    servers = {name: server.resolved(name, environ) for name, server in config.tool_servers.items()}
    tools = Toolbox(config.tools, ToolLimits.of(settings))
    return Application(
        directory, roles, settings, sources, _terms(config.terms), tools, servers,
        _servers(config.servers, environ), _commands(config.servers), all_providers(config.providers), config.frontends,
        all_policies(config.policies),
    )  # fmt: skip


def standalone(url: str, given: str | os.PathLike[str] | None = None) -> Application:
    """An application without roles, for a program that only uses the server at ``url``: the settings of the environment
    and of ``.env`` in ``given`` (see application_directory)."""
    directory = application_directory(given)
    settings = read_settings(directory).model_copy(update={"redis_url": SecretStr(url)})
    return Application(directory, (), settings, {})


def read_settings(directory: Path, config: Config | None = None) -> Settings:
    """The settings in force in ``directory``: environment over ``.env`` over files with one secret each
    (``<NAME>_FILE``) over ``config`` over the defaults."""
    own = config.model_dump(exclude=set(OWN), exclude_unset=True) if config else {}
    dotenv = _dotenv(directory)
    try:
        return _Environment(**{**own, **_secrets_in_files(_environ(dotenv)), **_by_field(dotenv)})
    except ValidationError as error:
        raise ConfigError(_explain(error, _origins(directory, config))) from None


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
    """Names in ``.env`` that are no setting, but nearly one → that one."""
    known = [name.upper() for name in Settings.model_fields]
    known += [f"{name}_FILE" for name in known] + [role.variable for role in application.roles] + [*FORMER_NAMES]
    unknown = [name for name in _dotenv(application.directory) if name not in known]
    return {name: close for name in unknown for close in difflib.get_close_matches(name, known, 1, NEARLY)}


def _dotenv(directory: Path) -> dict[str, str]:
    found = {binding.key: binding.value for binding in _bindings(directory) if binding.key}
    return {name.upper(): value for name, value in _without_blanks(found).items()}


def _without_blanks(given: Mapping[str, str | None]) -> dict[str, str]:
    """What ``given`` sets: a value that is empty or only white space counts as not set, and hides no other."""
    return {name: value for name, value in given.items() if value and not value.isspace()}


def _environ(dotenv: Mapping[str, str]) -> dict[str, str]:
    """What the environment sets, over ``dotenv``."""
    return {**dotenv, **_without_blanks(os.environ)}


def _by_field(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings in ``environ``, by the names of their fields; a former name counts where the new one is not set."""
    former = {FORMER_NAMES[name].lower(): value for name, value in environ.items() if name in FORMER_NAMES}
    return former | {name.lower(): value for name, value in environ.items() if name.lower() in Settings.model_fields}


def _bindings(directory: Path) -> list[Binding]:
    """What ``.env`` says, value by value, with its errors. Raises ConfigError."""
    try:
        with open(directory / ".env", encoding="utf-8-sig") as file:
            return list(parse_stream(file))
    except (FileNotFoundError, IsADirectoryError):  # a directory of that name may be a virtual environment
        return []
    except OSError as error:
        raise ConfigError(f"{directory / '.env'} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{directory / '.env'} is not UTF-8 text") from None


def _secrets_in_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets in files named by ``<NAME>_FILE``, by setting. Raises ConfigError."""
    found = {}
    for name, setting in Settings.model_fields.items():
        variable = f"{name.upper()}_FILE"
        if SecretStr not in _types(setting) or not (path := environ.get(variable)):
            continue
        try:
            found[name] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(
                f"{variable}={path} is invalid: {why}; expected a file that contains {name.upper()}"
            ) from None
        if not found[name]:
            raise ConfigError(
                f"{variable}={path} is invalid: the file is empty; expected one that contains {name.upper()}"
            )
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
        raise ConfigError(f"role {twice[0]!r} is configured twice; each role is stated once")
    if "manager" not in names:
        raise ConfigError("no role 'manager': every turn begins there, so config.py needs Role(ManagerAgent)")
    total = sum(role.instances for role in roles if role.instances != "auto")
    if total > settings.total_instances:
        raise ConfigError(f"{total} instances are configured, more than TOTAL_INSTANCES={settings.total_instances}")


def _explain(error: ValidationError, origins: Mapping[str, str] = MappingProxyType({})) -> str:
    """One line for people: the first error, the value unless it may be a secret, and what is expected."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    if name in OWN:
        return f"{name}: {message[:1].lower()}{message[1:]}"
    field = Settings.model_fields.get(name)
    if field is None:
        close = difflib.get_close_matches(name, Settings.model_fields, 1)
        return f"{name}: there is no such setting{f'; did you mean {close[0]}?' if close else ''}"
    value = "(secret)" if SecretStr in _types(field) else first.get("input")
    origin = origins.get(name.upper())
    return f"{name.upper()}={value}{f' from {origin}' if origin else ''} is invalid: expected {_expected(field)}"


def _expected(field: FieldInfo) -> str:
    choices = [choice for kind in _types(field) if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return " or ".join(choices)
    if bool in _types(field):
        return "true or false"
    words = ("gt", "ge", "le", "max_length")
    limits = {word: getattr(rule, word) for rule in field.metadata for word in words if hasattr(rule, word)}
    kind = "an integer" if int in _types(field) else "a number" if float in _types(field) else "text"
    if field.examples:
        return f"{kind} such as {field.examples[0]}"
    most = limits.get("le")
    if "gt" in limits:
        return f"{kind} over {limits['gt']}{'' if most is None else f' and up to {most}'}"
    if "ge" in limits:
        return f"{kind} of {limits['ge']} or more" if most is None else f"{kind} from {limits['ge']} to {most}"
    return f"{kind} of up to {limits['max_length']} characters" if "max_length" in limits else kind


def _types(field: FieldInfo) -> tuple[Any, ...]:
    kind = field.annotation
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _origins(directory: Path, config: Config | None) -> dict[str, str]:
    """Where each setting without its default value is set; the strongest source wins."""
    own = config.model_fields_set - OWN if config else ()
    dotenv, environ = _dotenv(directory), map(str.upper, _without_blanks(os.environ))
    files = _secrets_in_files(_environ(dotenv))
    origins = {
        **{name.upper(): "config.py" for name in own},
        **{name.upper(): f"{name.upper()}_FILE" for name in files},
        **dict.fromkeys(dotenv, ".env"),
        **dict.fromkeys(environ, "environment"),
    }
    former = {FORMER_NAMES[name]: origin for name, origin in origins.items() if name in FORMER_NAMES}
    return {**former, **origins}


def _sources(directory: Path, config: Config, settings: Settings) -> dict[str, str]:
    origins = _origins(directory, config)
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
