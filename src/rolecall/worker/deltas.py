"""The pieces of an answer, on their way to those who follow the turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, emit
from rolecall.errors import ServerError

logger = logging.getLogger(__name__)
INTERVAL = 0.05
"""Seconds between two deltas, and SLOW_INTERVAL once an answer takes longer than SLOW_AFTER."""
SLOW_INTERVAL = 0.25
SLOW_AFTER = 10.0


class DeltaStream:
    """Batches the pieces of an answer: sends every 50 ms, after ten seconds every 250 ms, and never blocks the handler.

    ``lost`` is called once the instance has lost its lease.
    """

    def __init__(self, bus: Bus, delivery: Delivery, lost: Callable[[], None]) -> None:
        self._bus = bus
        self._delivery = delivery
        self._lost = lost
        self._pieces: list[str] = []
        self._position = 0
        self._began = time.monotonic()
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[bool] | None = None

    async def publish(self, position: int, text: str) -> None:
        """Queue ``text``, the piece at ``position`` characters of the answer."""
        if not self._pieces:
            self._position = position
        self._pieces.append(text)
        if self._timer is None and self._sending is None:
            self._wait()

    async def drain(self) -> None:
        """Send now what was published, and wait until it is sent."""
        while self._timer is not None or self._sending is not None:
            if self._timer is not None:
                self._timer.cancel()
                self._send()
            if self._sending is not None:
                await asyncio.wait((self._sending,))

    def close(self) -> None:
        """Send nothing more; the final event has the whole answer."""
        self._pieces.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sending is not None:
            self._sending.cancel()

    def _wait(self) -> None:
        now = time.monotonic()
        interval = SLOW_INTERVAL if now - self._began > SLOW_AFTER else INTERVAL
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._sent + interval - now), self._send)

    def _send(self) -> None:
        position, text = self._position, "".join(self._pieces)
        self._pieces.clear()
        self._timer, self._sent = None, time.monotonic()
        self._sending = asyncio.create_task(self._emit(position, text), name="rolecall deltas")
        self._sending.add_done_callback(self._emitted)

    def _emitted(self, sending: asyncio.Task[bool]) -> None:
        self._sending = None
        if sending.cancelled():
            return
        if not sending.result():
            self._lost()
        elif self._pieces:
            self._wait()

    async def _emit(self, position: int, text: str) -> bool:
        """False once the lease is lost. A piece that cannot be sent is left out: followers notice the gap and get the
        whole answer at the end."""
        try:
            return not text or await emit(self._bus, self._delivery, position, text) == "OK"
        except ServerError as error:
            logger.debug("a piece of an answer was left out: %s", error)
            return True
