"""The pieces of an answer in the making, on their way to those who follow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from rolecall.bus import Bus, emit
from rolecall.delivery import Delivery
from rolecall.errors import ServerUnavailable

logger = logging.getLogger(__name__)
INTERVAL = 0.05
SLOW_INTERVAL = 0.25
SLOW_AFTER = 10.0


class DeltaStream:
    """Joins pieces so that they leave at most every 50 ms, every 250 ms after ten seconds; never holds the handler up.

    ``lost`` is called when the bus says that the envelope is not this instance's any more.
    """

    def __init__(self, bus: Bus, delivery: Delivery, lost: Callable[[], None]) -> None:
        self._bus = bus
        self._delivery = delivery
        self._lost = lost
        self._pieces: list[str] = []
        self._position = 0
        self._began = time.monotonic()
        self._sent = 0.0
        self._task: asyncio.Task[None] | None = None

    async def publish(self, position: int, text: str) -> None:
        """Queue ``text``, which stands at ``position`` characters in the answer."""
        if not self._pieces:
            self._position = position
        self._pieces.append(text)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="rolecall deltas")

    def close(self) -> None:
        """Send nothing more: the final event carries the whole answer."""
        self._pieces.clear()
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        while self._pieces:
            interval = SLOW_INTERVAL if time.monotonic() - self._began > SLOW_AFTER else INTERVAL
            await asyncio.sleep(max(0.0, self._sent + interval - time.monotonic()))
            position, text = self._position, "".join(self._pieces)
            self._pieces.clear()
            self._sent = time.monotonic()
            if not await self._emit(position, text):
                self._lost()
                return
            self._position = position + len(text)

    async def _emit(self, position: int, text: str) -> bool:
        """False when the envelope is not this instance's any more. A piece that cannot be sent is left out: followers
        see the gap and have the whole answer at the end."""
        try:
            return not text or await emit(self._bus, self._delivery, position, text) == "OK"
        except (RedisError, OSError, ServerUnavailable) as error:
            logger.debug("a piece of an answer was left out: %s", error)
            return True
