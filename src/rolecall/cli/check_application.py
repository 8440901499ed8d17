"""Whether an application directory is fit to run."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

from pydantic import SecretStr

from rolecall.cli.finding import Finding
from rolecall.cli.run import time_zone
from rolecall.commands import COMMANDS
from rolecall.config import Application, Role
from rolecall.errors import ConfigError
from rolecall.prompts import PLACE
from rolecall.settings import Settings


def look_at_application(application: Application) -> list[Finding]:
    """Its roles, prompts, directories, ``.env`` and time zone."""
    names = ", ".join(role.name for role in application.roles)
    return [
        Finding("passed", "config.py", f"{len(application.roles)} roles: {names}"),
        *_matches(application.roles),
        _prompts(application),
        _writable("log directory", application.log_dir, "LOG_DIR"),
        _writable("state directory", application.state_dir, "--app"),
        _private(application),
        _time_zone(application),
    ]


def _matches(roles: tuple[Role, ...]) -> list[Finding]:
    given = [role for role in roles if role.match]
    words = [(role.match or "").lower() for role in given]
    problems = []
    for role, word in zip(given, words, strict=True):
        if words.count(word) > 1:
            problems.append((role.name, f"match={role.match!r} is another role's too: the first of them gets it all"))
        elif any(word == f"/{command.name}" for command in COMMANDS):
            problems.append((role.name, f"match={role.match!r} is a built-in command, which comes first"))
    remedy = "give each role a match of its own in config.py"
    return [Finding("failed", f"role {name}", text, remedy) for name, text in problems]


def _prompts(application: Application) -> Finding:
    try:
        names = application.prompts.names
    except ConfigError as error:
        return Finding("failed", "prompts", str(error), "put this right: until then nothing starts")
    if not names:
        return Finding("not set up", "prompts", f"no file in {PLACE}; an agent that asks for one is refused")
    return Finding("passed", "prompts", f"{len(names)} in {PLACE}: {', '.join(names)}")


def _writable(name: str, directory: Path, setting: str) -> Finding:
    """Tried with a file in it, or where it would be made."""
    place = directory
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        remedy = f"give this user the right to write there, or choose another place with {setting}"
        return Finding("failed", name, f"{place}: {error.strerror}", remedy)
    return Finding("passed", name, f"{directory} can be written" + ("" if place == directory else ", not made yet"))


def _private(application: Application) -> Finding:
    path = application.directory / ".env"
    if not path.exists():
        return Finding("not set up", ".env", "there is none: keys come from the environment alone")
    mode = path.stat().st_mode
    open_to = [who for who, bits in (("the group", stat.S_IRWXG), ("others", stat.S_IRWXO)) if mode & bits]
    if open_to and any(application.sources.get(name) == ".env" for name in _secret_names()):
        text = f"holds keys, and {' and '.join(open_to)} may use it (mode {stat.S_IMODE(mode):o})"
        return Finding("failed", ".env", text, f"chmod 600 {path}")
    return Finding("passed", ".env", f"mode {stat.S_IMODE(mode):o}{'' if open_to else ', this user alone'}")


def _secret_names() -> list[str]:
    return [
        name.upper() for name, field in Settings.model_fields.items() if SecretStr.__name__ in str(field.annotation)
    ]


def _time_zone(application: Application) -> Finding:
    try:
        zone = time_zone(application)
    except ConfigError as error:
        return Finding("failed", "time zone", str(error), "set TZ to such a name, or leave it out for the system's")
    return Finding("passed", "time zone", f"transcripts use {zone or 'that of this machine'}")
