"""The command line: one file per verb group, imported when its verb is called."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from copy import copy
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rolecall.errors import ConfigError, RolecallError, cause_of

if TYPE_CHECKING:
    from typer import Typer

GC_THRESHOLD = 50_000
"""New objects before the cyclic garbage collector runs. What is imported stays and has hardly any cycles; with Python's
own threshold, looking for some takes a tenth of the time of a start."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 130
"""The exit status of a verb that a Ctrl-C kept from its end, as a shell gives it."""
SERVING = ("up", "worker", "telegram", "http", "tools")
"""The verbs that run until they are told to stop."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Why nothing more can be written."""


def main() -> None:
    """Run the command line. Exit status 2 for a wrong call or configuration, 1 for any other failure; 0 for a stop of a
    verb that serves, wherever it comes."""
    _open_standard_files()
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # the collection at the end would take a tenth to a quarter of a short command's time
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if words and words[0] in SERVING:
        for number in STOP_SIGNALS:
            signal.signal(number, _leave)
    try:
        try:
            _run(words)
        finally:
            sys.stdout.flush()
    except (RolecallError, BaseExceptionGroup) as error:
        cause = cause_of(error)
        if not isinstance(cause, RolecallError):
            raise
        _end(str(cause), 2 if isinstance(cause, ConfigError) else 1)
    except KeyboardInterrupt:  # before Typer is there to hear of it
        sys.exit(STOPPED)
    except BrokenPipeError:  # its reader, such as head, has enough
        _drop_output()
        sys.exit(1 if words[:1] == ["check"] else 0)  # a check that could not tell what it found has not passed
    except OSError as error:
        if error.errno not in FULL:
            raise
        _drop_output()
        _end(f"cannot write the output: {error.strerror}", 1)


def _open_standard_files() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed, as by ``>&-``. Otherwise the loop's first file or socket
    gets that number, for which uvloop aborts the process."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))  # it gets the lowest number


def _run(words: Sequence[str]) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # bars and other people's letters, on a terminal that has none
    for given in sys.argv[1:]:
        if not given.isprintable() and _is_no_text(given):
            _end(f"{given!r} is no UTF-8 text: check the encoding of the terminal or script", 2)
    from rolecall.cli.main import app

    called(app, words)()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun yet. A container's first process does not hear a signal that it has no handler
    for."""
    os._exit(0)


def called(app: Typer, words: Sequence[str]) -> Typer:
    """``app`` with the options of the verb that ``words`` begin with, but not those of other verbs: Typer takes a third
    of a short command's time to make those of all."""
    name, rest = (words[0], words[1:]) if words else ("", ())
    needed = copy(app)
    needed.registered_commands = [copy(verb) for verb in app.registered_commands]
    for verb in needed.registered_commands:
        if verb.callback and (verb.name or verb.callback.__name__) != name:
            verb.callback = _without_options(verb.callback)
    needed.registered_groups = [copy(group) for group in app.registered_groups]
    for group in needed.registered_groups:
        if group.typer_instance:
            group.typer_instance = called(group.typer_instance, rest if group.name == name else ())
    return needed


def _without_options(verb: Callable[..., Any]) -> Callable[[], None]:
    def shown() -> None: ...

    shown.__name__, shown.__doc__ = verb.__name__, verb.__doc__
    return shown


def _is_no_text(given: str) -> bool:
    """Whether an argument has bytes that are no UTF-8, and is not the path of a file either."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return not Path(given.rpartition("=")[2]).exists()
    return False


def _drop_output() -> None:
    """Write what is still buffered to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(message: str, status: int) -> None:
    print(f"rolecall: {message}", file=sys.stderr)
    sys.exit(status)
