"""What the environment says: where the application is, and its settings. The environment is over ``.env``, over files
with one secret each, over config.py."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rolecall.errors import ConfigError
from rolecall.settings import FORMER_NAMES, Settings

VARIABLE = re.compile(r"\$\{(\w+)\}")
SECRETS = tuple(name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation))
"""The fields of Settings that hold a secret."""


class _InForce(Settings, BaseSettings):
    """Settings with the values of an Environment alone, which says where each one came from."""

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
        return (init_settings,)


@dataclass(frozen=True)
class Environment:
    """What the environment and the ``.env`` of ``directory`` set, by name; ``skipped`` are the lines of the latter that
    are no NAME=value. A value that is empty or only white space counts as not set, and hides no other."""

    directory: Path
    dotenv: Mapping[str, str]
    variables: Mapping[str, str]
    skipped: tuple[int, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> Environment:
        """Read them. Raises ConfigError for a ``.env`` that cannot be read."""
        dotenv, skipped = dict[str, str | None](), list[int]()
        try:
            with open(directory / ".env", encoding="utf-8-sig") as file:
                for binding in parse_stream(file):
                    if binding.error:
                        skipped.append(binding.original.line)
                    elif binding.key:
                        dotenv[binding.key] = binding.value
        except (FileNotFoundError, IsADirectoryError):  # a directory of that name may be a virtual environment
            pass
        except OSError as error:
            raise ConfigError(f"{directory / '.env'} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{directory / '.env'} is not UTF-8 text") from None
        named = {name.upper(): value for name, value in _without_blanks(dotenv).items()}
        return cls(directory, named, _without_blanks(os.environ), tuple(skipped))

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What is set, the environment over ``.env``."""
        return {**self.dotenv, **self.variables}

    @cached_property
    def secrets(self) -> Mapping[str, str]:
        """The secrets in files named by ``<NAME>_FILE``, by field of Settings. Raises ConfigError."""
        found = {}
        for name in SECRETS:
            variable = f"{name.upper()}_FILE"
            if not (path := self.names.get(variable)):
                continue
            expected = f"expected a file that contains {name.upper()}"
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise ConfigError(f"{variable}={path} is invalid: {why}; {expected}") from None
            if not found[name]:
                raise ConfigError(f"{variable}={path} is invalid: the file is empty; {expected}")
        return found

    def settings(self, own: Mapping[str, Any] = MappingProxyType({})) -> Settings:
        """The settings in force; ``own`` are those of config.py. Raises ConfigError with what to do."""
        given = {**own, **self.secrets, **_by_field(self.dotenv), **_by_field(self.variables)}
        try:
            return _InForce(**given)
        except ValidationError as error:
            raise ConfigError(explained(error, self.origins(own))) from None

    def origins(self, own: Collection[str] = ()) -> dict[str, str]:
        """Where each name that is set is set; the strongest source wins. ``own`` are the fields that config.py sets."""
        origins = {
            **{name.upper(): "config.py" for name in own},
            **{name.upper(): f"{name.upper()}_FILE" for name in self.secrets},
            **dict.fromkeys(self.dotenv, ".env"),
            **dict.fromkeys(map(str.upper, self.variables), "environment"),
        }
        former = {FORMER_NAMES[name]: origin for name, origin in origins.items() if name in FORMER_NAMES}
        return {**former, **origins}


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


def filled(text: str, names: Mapping[str, str], where: str) -> str:
    """``text`` with what ``names`` has for each ``${NAME}``. Raises ConfigError, which tells ``where`` it is needed."""
    for name in VARIABLE.findall(text):
        if not names.get(name):
            raise ConfigError(f"{where} needs {name}: set it in the environment or in .env")
    return VARIABLE.sub(lambda found: names[found[1]], text)


def explained(error: ValidationError, origins: Mapping[str, str] = MappingProxyType({})) -> str:
    """One line for people: the first error, the value unless it may be a secret, and what is expected."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, Settings.model_fields, 1)
        return f"{name}: there is no such setting{f'; did you mean {close[0]}?' if close else ''}"
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{name}: {message[:1].lower()}{message[1:]}"
    value = "(secret)" if name in SECRETS else first.get("input")
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


def _without_blanks(given: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in given.items() if value and not value.isspace()}


def _by_field(names: Mapping[str, str]) -> dict[str, str]:
    """The settings among ``names``, by their fields; a former name counts where the new one is not set."""
    former = {FORMER_NAMES[name].lower(): value for name, value in names.items() if name in FORMER_NAMES}
    return former | {name.lower(): value for name, value in names.items() if name.lower() in Settings.model_fields}
