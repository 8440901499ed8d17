"""Work that goes on while nobody awaits it: kept alive until it ends, and never failing in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from rolecall.errors import ServerError, ServerUnavailable

logger = logging.getLogger(__name__)


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


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` until they have ended. On Python 3.11, wait_for, which redis-py sends with, may swallow a
    cancel."""
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=0.2)
