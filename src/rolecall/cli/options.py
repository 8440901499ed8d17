"""What verbs share: options, the console and the run."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

App = Annotated[
    Path | None, typer.Option("--app", metavar="DIR", help="application directory (default: ROLECALL_APP or .)")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, one object a line")]
Dev = Annotated[bool, typer.Option("--dev", help="reload the agents when their files change")]


def _front_name(name: str) -> str:
    if not re.fullmatch(r"telegram[a-z0-9_-]{0,20}", name, re.ASCII):
        raise typer.BadParameter("expected telegram, or a name such as telegram2 for a second bot")
    return name


FrontName = Annotated[
    str, typer.Option("--name", metavar="NAME", callback=_front_name, help="front end name, one per bot")
]
Conversation = Annotated[str, typer.Option("--conversation", metavar="ID", help="continue this conversation")]


def run_verb(work: Coroutine[Any, Any, int | None], foreground: bool = False) -> None:
    """Run a verb and exit with its status."""
    from rolecall.cli.runner import run_loop

    try:
        status = run_loop(work, foreground=foreground)
    except BrokenPipeError:
        raise BrokenPipeError from None  # without its number, by which Click would end with status 1
    raise typer.Exit(status or 0)


def open_console(stderr: bool = False) -> Console:
    """The console for a verb's output, or for its errors."""
    from rolecall.cli.output import PipedConsole

    return PipedConsole(stderr=stderr)
