"""Running a verb: event loop, signals, the terminal's foreground."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, Literal, TypeVar

from rolecall.background import cancel_and_wait
from rolecall.cli import STOP_SIGNALS, STOPPED
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.config import Application, load

HANG_UP = getattr(signal, "SIGHUP", None)
"""The terminal was closed; Windows has no such signal."""
LEAVE_SECONDS = 1.0
"""How long what outlasts a verb may take to end before the process ends all the same."""
STOP_GRACE_SECONDS = 4.0
"""How much longer than DRAIN_SECONDS stopping may take."""
logger = logging.getLogger(__name__)
T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, int | None], *, foreground: bool = False) -> int | None:
    """Run ``work`` on uvloop where it is installed; returns its exit status. ``foreground``: see own_foreground.

    Tasks and threads that outlast ``work`` end with the process after LEAVE_SECONDS, whatever they do: an agent's
    handler may swallow its cancellation.
    """
    with (
        ExitStack() as leaving,
        own_foreground() if foreground else nullcontext(),
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        status: int | None = 1
        try:
            status = _run(runner, work)
        except StoppedEarly as stopped:
            print(f"rolecall: {stopped}", file=sys.stderr)
            status = stopped.status
        finally:
            timer = _deadline(LEAVE_SECONDS, "some work did not end", status or 0)
            leaving.callback(timer.cancel)
            timer.start()
        return status


def _run(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``. asyncio leaves its loop when *any* task calls sys.exit() or stops the loop, such as one that an
    agent's handler started: the loop is entered again, for this is no reason to end a worker."""
    task: asyncio.Task[T] | None = None

    async def ended() -> T:
        nonlocal task
        task = task or asyncio.create_task(work)  # only now: a Ctrl-C while it is being started cancels both
        return await task

    while True:
        try:
            return runner.run(ended())
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:  # RuntimeError: the loop was stopped
            if task is None or task.done() or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise  # the verb itself ended, or the user pressed Ctrl-C
            logger.error("a task ended with %s; the process goes on", type(error).__name__, exc_info=error)


def _deadline(seconds: float, reason: str, status: int = 1) -> threading.Timer:
    """A timer that ends this process with ``status``: for work that does not stop when it is told to."""

    def end() -> None:
        print(f"rolecall: ended without waiting: {reason} within {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    return timer


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop


@contextmanager
def own_foreground() -> Iterator[None]:
    """Make this process the terminal's foreground group for as long: a Ctrl-C then reaches only this process, and a
    `make` that started it does not report an error of its own."""
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


def restart(reason: str) -> None:
    """Start the command of this process again in its place, under its process ID. Does not return; what runs is lost as
    if the process had been killed. The log has said the ``reason``."""
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class StoppedEarly(Exception):
    """Raised by a verb that was stopped before its start was over, with the exit ``status`` for this."""

    def __init__(self, status: int) -> None:
        super().__init__("stopped before the start was over")
        self.status = status


class Stop(asyncio.Event):
    """Set when the process is to stop. Until somebody waits for it, ``verb`` is still starting, and is cancelled."""

    def __init__(self, verb: asyncio.Task[Any] | None) -> None:
        super().__init__()
        self._verb = verb
        self._awaited = False
        self.too_early = False
        """Whether it was requested, and the verb cancelled, before the start was over."""

    def wait(self) -> Coroutine[Any, Any, Literal[True]]:
        """See asyncio.Event. The start is over with this call, even if a task is still to wait."""
        self._awaited = True
        return super().wait()

    def request(self) -> None:
        """Set it."""
        self.set()
        if not self._awaited and self._verb is not None:
            self.too_early = True
            self._verb.cancel()


@asynccontextmanager
async def stop_requested(drain_seconds: float = 20, *, status: int = 0) -> AsyncIterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, or the end of the terminal unless the process was started with
    nohup. The process ends at once after a second one, and at the latest STOP_GRACE_SECONDS after ``drain_seconds``,
    which handlers have to finish. A verb that is still starting, as while it waits for the server, is cancelled. Raises
    StoppedEarly with ``status`` then: 0 suits what serves until it is stopped."""
    loop, wanted = asyncio.get_running_loop(), Stop(asyncio.current_task())
    deadline = _deadline(drain_seconds + STOP_GRACE_SECONDS, "stopping was not done")
    asked, requests = list[int](), SimpleQueue[bool]()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == HANG_UP:  # a closing terminal may send it twice
            return
        if asked:
            print("rolecall: ended without waiting", file=sys.stderr)
            os._exit(STOPPED)
        asked.append(number)
        requests.put(True)  # a thread is not started here: a signal handler must not wait for a lock
        loop.call_soon_threadsafe(wanted.request)

    def limit() -> None:
        if requests.get():
            deadline.start()
            requests.get()
            deadline.cancel()

    # Not loop.add_signal_handler: a handler that blocks the loop must not keep the process from being stopped.
    hang_up = [HANG_UP] if HANG_UP and signal.getsignal(HANG_UP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, ask) for number in (*STOP_SIGNALS, *hang_up)}
    threading.Thread(target=limit, name="rolecall stop limit", daemon=True).start()
    try:
        yield wanted
    except asyncio.CancelledError:
        if not wanted.too_early:
            raise
        raise StoppedEarly(status) from None
    finally:
        requests.put(False)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reader_watched(wanted: asyncio.Event) -> Iterator[None]:
    """Set ``wanted`` when the reader of a pipe that is standard output has enough, as ``head`` has: what waits for a
    next line would learn it only with that line."""
    output, loop = sys.stdout.fileno(), asyncio.get_running_loop()
    if not stat.S_ISFIFO(os.fstat(output).st_mode):
        yield
        return
    loop.add_reader(output, wanted.set)  # nothing can be read there: it is called when the other end is closed
    try:
        yield
    finally:
        loop.remove_reader(output)


async def until_stopped(work: asyncio.Task[T], wanted: asyncio.Event, *, cancel: bool = True) -> T | None:
    """Wait until ``work`` ends or ``wanted`` is set, whichever is first; return the result of the work and raise what
    it raised. A stop cancels the work, waits for its end and returns None; with ``cancel`` False the work goes on."""
    stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
    await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if cancel:
        await cancel_and_wait(work)
    return None if not work.done() or work.cancelled() else work.result()


def load_quietly(app_dir: Path | None) -> Application:
    """The application, with only warnings on stderr unless LOG_LEVEL is set. Raises ConfigError."""
    application = load(app_dir)
    quiet = "LOG_LEVEL" not in application.sources
    log_to_stderr(application.settings.model_copy(update={"log_level": "WARNING"}) if quiet else application.settings)
    return application
