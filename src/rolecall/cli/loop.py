"""Running a verb: event loop, signals, the terminal's foreground."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_loop(work: Coroutine[Any, Any, int | None], *, foreground: bool = False) -> int | None:
    """Run ``work`` on uvloop where it is installed. ``foreground``: see own_foreground."""
    with own_foreground() if foreground else nullcontext(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop


@contextmanager
def own_foreground() -> Iterator[None]:
    """Make this process the terminal's foreground group for as long: a Ctrl-C then reaches it alone, and a `make`
    that started it does not report an error of its own."""
    if not (os.isatty(0) and hasattr(os, "tcsetpgrp")):
        yield
        return
    before = os.tcgetpgrp(0)
    ttou = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpgrp())
        yield
    finally:
        with suppress(OSError):
            os.tcsetpgrp(0, before)
        signal.signal(signal.SIGTTOU, ttou)


@asynccontextmanager
async def stop_requested() -> AsyncIterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one ends the process at once."""
    loop, wanted = asyncio.get_running_loop(), asyncio.Event()

    def ask() -> None:
        if wanted.is_set():
            print("rolecall: ended without waiting", file=sys.stderr)
            os._exit(130)
        wanted.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, ask)
    try:
        yield wanted
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
