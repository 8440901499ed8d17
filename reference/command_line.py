"""The command line: every verb with its arguments and options, from the typer application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from reference.markdown import code, table
from rolecall.cli.main import app

HEAD = """\
# Command line

Generated from the code. `rolecall VERB --help` prints the same. Every verb takes `--help` and ends with status 0, 2 for
a wrong call or configuration, or 1 for any other failure, with one line on stderr.
"""


def page() -> str:
    """The page."""
    lines = [HEAD]
    for name, command in commands():
        lines += [f"## rolecall {name}", "", *(command.help or "").splitlines(), ""]
        lines += ["```", usage(name, command), "```"]
        lines += table(("argument", "meaning"), [(code(p.shown_name()), p.text()) for p in shown(command)])
    return "\n".join(lines).rstrip() + "\n"


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """The full name and the command of each verb, in the order of the help."""
    found: Any = group or typer.main.get_command(app)
    for name, command in found.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        elif not command.hidden:
            yield f"{before}{name}", command


class Parameter:
    """An argument or option as the page shows it."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def shown_name(self) -> str:
        """Such as ``--since TEXT`` or ``DIR``."""
        found, names = self.found, ", ".join([*self.found.opts, *self.found.secondary_opts])
        if found.param_type_name == "argument":
            return str(found.metavar or found.name.upper())
        value = "" if found.is_flag else f" {found.metavar or found.name.upper()}"
        return f"{names}{value}"

    def in_usage(self) -> str:
        """Such as ``DIR``, or ``[ID]...`` for an argument that may be left out or repeated."""
        name = self.shown_name() if self.found.required else f"[{self.shown_name()}]"
        return f"{name}..." if self.found.nargs == -1 else name

    def text(self) -> str:
        """The help, and the default if the help does not tell."""
        found, default = self.found, self.found.default
        if found.param_type_name == "argument" and not found.help:
            return ""
        plain = isinstance(default, (int, float, str)) and not isinstance(default, bool) and default != ""
        least, most = getattr(found, "min", None), getattr(found, "max", None)
        limits = f", {least:g} to {most:g}" if least is not None and most is not None else ""
        return f"{found.help or ''}{limits}{f' (default: `{default}`)' if plain else ''}"


def shown(command: Any) -> list[Parameter]:
    """The parameters that the help shows, without ``--help``."""
    return [Parameter(found) for found in command.params if not getattr(found, "hidden", False)]


def usage(name: str, command: Any) -> str:
    """The call in one line."""
    arguments = [p for p in shown(command) if p.found.param_type_name == "argument"]
    return " ".join(["rolecall", name, "[OPTIONS]", *(p.in_usage() for p in arguments)])
