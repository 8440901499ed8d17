"""The command line: one file per verb group, imported when its verb is called."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path

from rolecall.errors import ConfigError, RolecallError


def main() -> None:
    """Run the command line. Exit status 2 for a wrong call or configuration, 1 for any other failure."""
    from rolecall.cli.main import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # bars and other people's letters, on a terminal that has none
    for given in sys.argv[1:]:
        if not given.isprintable() and _is_no_text(given):
            _end(f"{given!r} is no UTF-8 text: check the encoding of the terminal or script", 2)
    try:
        app()
    except (RolecallError, BaseExceptionGroup) as error:
        cause = _first(error)
        if not isinstance(cause, RolecallError):
            raise
        _end(str(cause), 2 if isinstance(cause, ConfigError) else 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _is_no_text(given: str) -> bool:
    """Whether an argument has bytes that are no UTF-8, and is not the path of a file either."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return not Path(given.rpartition("=")[2]).exists()
    return False


def _first(error: BaseException) -> BaseException:
    """What went wrong, out of the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end(message: str, status: int) -> None:
    print(f"rolecall: {message}", file=sys.stderr)
    sys.exit(status)
