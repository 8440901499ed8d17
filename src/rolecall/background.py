"""Work that goes on while nobody awaits it: kept alive until it ends, never failing in silence, and never ended by one
of the many it serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

from rolecall.errors import ServerError, ServerUnavailable, cause_of

logger = logging.getLogger(__name__)
TRIES = 5
"""How often a loop tries an item that fails, before it sets the item aside."""
MAX_FAILING = 1000
"""Items whose failures a boundary counts at a time."""
QUIET_SECONDS = 60.0
T = TypeVar("T")


class Attempt(Enum):
    """How an attempt at an item ended."""

    DONE = "done"
    FAILED = "failed"
    """It may be tried again."""
    EXHAUSTED = "exhausted"
    """It failed for the last time: set it aside."""


class Boundary:
    """Where a loop that serves many survives what one of them does to it, whatever that is.

    ``name`` names the loop in the log and for ``count``, which is called with it at every failure (see
    ``bus.count_soon``). ``error`` is what the last failure was.
    """

    def __init__(self, name: str, *, tries: int = TRIES, count: Callable[[str], object] | None = None) -> None:
        self.name = name
        self.error: BaseException | None = None
        self._tries = tries
        self._count = count
        self._failures: dict[str, int] = {}

    async def attempt(self, item: str, work: Awaitable[object]) -> Attempt:
        """Await ``work`` on ``item``, an id for people. Any exception of it is logged with that id and counted, and
        says how the attempt ended. Raises only what is not the item's fault: ServerUnavailable, and the cancellation of
        the calling task."""
        try:
            await work
        except BaseException as raised:
            error = cause_of(raised)
            if isinstance(error, ServerUnavailable):
                raise error from None
            if isinstance(raised, asyncio.CancelledError) and is_cancelled():
                raise
            return self.failed(item, error)
        self._failures.pop(item, None)
        return Attempt.DONE

    def failed(self, item: str, error: BaseException) -> Attempt:
        """Log and count a failure of ``item``; FAILED, or EXHAUSTED if it was the last try."""
        self.error, failures = error, self._failures.pop(item, 0) + 1
        logger.error("%s: %s failed, try %d of %d", self.name, item, failures, self._tries, exc_info=error)
        if self._count is not None:
            self._count(self.name)
        if failures >= self._tries:
            return Attempt.EXHAUSTED
        if len(self._failures) >= MAX_FAILING:
            del self._failures[next(iter(self._failures))]
        self._failures[item] = failures
        return Attempt.FAILED


class Rarely:
    """Logs a warning that may repeat a thousand times: at once, then at most one line every ``seconds``, which says how
    many were left out."""

    def __init__(self, seconds: float = QUIET_SECONDS) -> None:
        self._seconds = seconds
        self._quiet_until = 0.0
        self._left_out = 0

    def warn(self, log: logging.Logger, text: str, *args: object) -> None:
        """Log ``text % args`` unless that was done lately."""
        if (now := time.monotonic()) < self._quiet_until:
            self._left_out += 1
            return
        more = f" (and {self._left_out} more like it)" if self._left_out else ""
        log.warning(text + more, *args)
        self._quiet_until, self._left_out = now + self._seconds, 0


def is_cancelled() -> bool:
    """Whether the current task was cancelled from outside, rather than by a CancelledError of its own making."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class BackgroundTasks:
    """A set of tasks whose failures are logged instead of raised.

    An outage of the server is not logged here, because its connections do so once for all; what else the server did is
    logged without a traceback, and any other exception with one.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[Any]:
        """Run ``work`` as a task; ``name`` names it in the log. The task needs no awaiting."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def attempt(self, work: Awaitable[object], name: str) -> None:
        """Await ``work``; log what it raises."""
        try:
            await work
        except Exception as error:  # the boundary: background work must not end what it accompanies
            self._report(error, name)

    async def repeat(
        self, step: Callable[[], Awaitable[object]], seconds: float, name: str, *, delay: float = 0
    ) -> None:
        """Wait ``delay``, then ``attempt`` the step every ``seconds`` until cancelled."""
        await asyncio.sleep(delay)
        while True:
            await self.attempt(step(), name)
            await asyncio.sleep(seconds)

    def cancel(self) -> None:
        """Cancel every task that is running."""
        for task in self._tasks:
            task.cancel()

    async def drain(self, seconds: float | None = None) -> None:
        """Wait until all tasks have ended; after ``seconds``, if given, cancel those that are left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            self._report(error, task.get_name())

    def _report(self, error: Exception, name: str) -> None:
        if not isinstance(error, ServerError):
            logger.error("%s failed", name, exc_info=error)
            return
        logger.log(log_level(error), "%s: %s", name, error)


def log_level(error: ServerError) -> int:
    """The level to log ``error`` at: DEBUG for an outage, which the connections tell once for all that wait for its
    end, else WARNING."""
    return logging.DEBUG if isinstance(error, ServerUnavailable) else logging.WARNING


def heeded(future: asyncio.Future[Any]) -> None:
    """Mark the failure of ``future``, which nobody awaits, as retrieved; for ``add_done_callback``."""
    if not future.cancelled():
        future.exception()


async def finish(work: Coroutine[Any, Any, object], name: str, seconds: float) -> None:
    """Await ``work`` for up to ``seconds``, however often the calling task is cancelled meanwhile, and log what it
    raises; for what a task that was cancelled has to do before it ends."""
    tasks, give_up = BackgroundTasks(), time.monotonic() + seconds
    tasks.start(work, name)
    while tasks and (left := give_up - time.monotonic()) > 0:
        with suppress(asyncio.CancelledError):
            await tasks.drain(left)
    tasks.cancel()


async def uninterrupted(
    work: Coroutine[Any, Any, T], name: str, wake: Callable[[], Awaitable[None]] | None = None
) -> T:
    """Await ``work`` to its end even when cancelled; ``wake`` makes it end early, then the cancellation goes on. For a
    read whose reply must not stay on its connection, and a write that must not outlive a lock."""
    task = asyncio.create_task(work, name=name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if wake is not None:
            await wake()
        await asyncio.wait([task])
        heeded(task)
        raise


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` until they have ended. On Python 3.11, wait_for, which redis-py sends with, may swallow a
    cancel."""
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=0.2)
