"""A deployment's roles, and how its settings are read: config.py under ``.env`` under the environment."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rolecall.agent import Agent
from rolecall.envelope import ROLE_NAME
from rolecall.errors import ConfigError
from rolecall.settings import Settings

Instances = int | Literal["auto"]
MAX_INSTANCES = 1024
APP_MODULES = ("config", "agents")
MODEL_NAME = re.compile(r"[^\s@][^\s]*@[a-z][a-z0-9_-]*")
PROVIDER_ALIASES = {"google": "gemini"}


@dataclass(frozen=True)
class Role:
    """One role of a deployment: its agent class, how many instances per worker process, its models in fallback
    order, and the prefix of the messages the manager sends it (``match="/weather"``)."""

    agent: type[Agent]
    instances: Instances = 1
    models: tuple[str, ...] = ()
    match: str | None = None

    @property
    def name(self) -> str:
        """The role's name: the class's ``role``, else its name less ``Agent`` in lower case."""
        return self.agent.role


class Config(Settings):
    """This deployment as one typed value: its roles, and any setting it wants other than the default."""

    roles: tuple[Role, ...]


class _Environment(Settings, BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True, env_file_encoding="utf-8"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, dotenv_settings, init_settings


@dataclass(frozen=True)
class Application:
    """An application directory as loaded: its roles with counts and models resolved, its settings, and where
    each value that is not a default came from (``sources``, by environment name)."""

    directory: Path
    roles: tuple[Role, ...]
    settings: Settings
    sources: Mapping[str, str]

    def role(self, name: str) -> Role | None:
        """The role of that name, if this deployment has it."""
        return next((role for role in self.roles if role.name == name), None)

    @property
    def state_dir(self) -> Path:
        """Where this application keeps what is not for people: server data, weights, locks."""
        return self.directory / ".rolecall"

    @property
    def log_dir(self) -> Path:
        """Where the transcripts lie."""
        return self.directory / self.settings.log_dir


def application_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """``given``, else ROLECALL_APP, else the current directory."""
    return Path(given or os.environ.get("ROLECALL_APP") or ".").resolve()


def load(given: str | os.PathLike[str] | None = None) -> Application:
    """Load the application in ``given`` (see application_directory). Raises ConfigError with what to do."""
    directory = application_directory(given)
    config = _import_config(directory)
    environ = {**_dotenv(directory), **os.environ}
    settings = read_settings(directory, config)
    roles = tuple(_resolve(role, environ, settings) for role in config.roles)
    _check_roles(roles, settings)
    return Application(directory, roles, settings, _sources(directory, config, roles))


def read_settings(directory: Path, config: Config | None = None) -> Settings:
    """The settings in force in ``directory``: environment over ``.env`` over ``config`` over the defaults."""
    own = config.model_dump(exclude={"roles"}, exclude_unset=True) if config else {}
    try:
        return _Environment(_env_file=directory / ".env", **own)  # type: ignore[call-arg]  # pydantic-settings' own
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{directory / '.env'} is not UTF-8 text") from None


def _import_config(directory: Path) -> Config:
    if not (directory / "config.py").is_file():
        raise ConfigError(
            f"no config.py in {directory}: go to an application directory, name one with --app DIR "
            "or ROLECALL_APP, or make one with `rolecall new DIR`"
        )
    _first_on_path(str(directory))
    try:
        module = importlib.import_module("config")
    except ValidationError as error:
        raise ConfigError(f"{directory / 'config.py'}: {_explain(error)}") from None
    except (ImportError, SyntaxError, TypeError, NameError, AttributeError) as error:
        _check_origin(directory)
        raise ConfigError(f"{directory / 'config.py'} cannot be loaded: {error}") from error
    _check_origin(directory)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ConfigError(f"{directory / 'config.py'} must define `config = Config(roles=(…))`")
    return config


def _first_on_path(directory: str) -> None:
    if directory in sys.path:
        sys.path.remove(directory)
    sys.path.insert(0, directory)


def _check_origin(directory: Path) -> None:
    for name in APP_MODULES:
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
        if origin and not Path(origin).resolve().is_relative_to(directory):
            raise ConfigError(
                f"{name!r} was imported from {origin}, not from {directory}: another package of that name is "
                "installed or was imported first; uninstall it or use a virtual environment without it"
            )


def _dotenv(directory: Path) -> dict[str, str]:
    return {name.upper(): value for name, value in dotenv_values(directory / ".env").items() if value}


def _resolve(role: Role, environ: Mapping[str, str], settings: Settings) -> Role:
    instances = _instances(f"{role.name}_INSTANCES".upper().replace("-", "_"), role.instances, environ)
    general = tuple(part.strip() for part in (settings.gen_model or "").split(",") if part.strip())
    models = tuple(_model(name, role.name) for name in role.models or general)
    return Role(role.agent, instances, models, role.match)


def _instances(variable: str, configured: Instances, environ: Mapping[str, str]) -> Instances:
    given: Any = environ.get(variable) or configured
    if given == "auto":
        return "auto"
    try:
        count = int(given)
    except (TypeError, ValueError):
        count = -1
    if not 0 <= count <= MAX_INSTANCES:
        raise ConfigError(f"{variable}={given}: a whole number from 0 to {MAX_INSTANCES} or auto is allowed")
    return count


def _model(name: str, role: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"model {name!r} of role {role}: name@provider is allowed, such as smollm2@local")
    model, _, provider = name.rpartition("@")
    return f"{model}@{PROVIDER_ALIASES.get(provider, provider)}"


def _check_roles(roles: tuple[Role, ...], settings: Settings) -> None:
    names = [role.name for role in roles]
    for name in names:
        if not ROLE_NAME.fullmatch(name):
            raise ConfigError(f"role {name!r}: a-z 0-9 _ - are allowed, up to 40 characters")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"role {twice[0]!r} is configured twice; each role is stated once")
    if "manager" not in names:
        raise ConfigError("no role 'manager': every turn begins there, so config.py needs Role(ManagerAgent)")
    total = sum(role.instances for role in roles if role.instances != "auto")
    if total > settings.total_instances:
        raise ConfigError(
            f"{total} instances are configured; TOTAL_INSTANCES={settings.total_instances} are allowed"
        )


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]).upper()
    if not name:
        return str(first["msg"]).removeprefix("Value error, ")
    field = Settings.model_fields.get(name.lower())
    secret = field is not None and "SecretStr" in str(field.annotation)
    value = "(secret)" if secret else repr(first.get("input"))
    return f"{name}={value}: {first['msg'].lower()}"


def _sources(directory: Path, config: Config, roles: tuple[Role, ...]) -> dict[str, str]:
    names = [name.upper() for name in Settings.model_fields]
    names += [f"{role.name}_INSTANCES".upper().replace("-", "_") for role in roles]
    dotenv, own = _dotenv(directory), {name.upper() for name in config.model_fields_set}
    environ = {name.upper() for name, value in os.environ.items() if value}
    sources = {name: "config.py" for name in names if name in own}
    sources |= {name: ".env" for name in names if name in dotenv}
    return sources | {name: "environment" for name in names if name in environ}
