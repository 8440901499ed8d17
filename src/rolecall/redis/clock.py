"""The server's clock as a process knows it: one reading, and the time that has passed since.

A step of the server's clock, forward or back, is noticed at the next reading.
"""

from __future__ import annotations

import time

from rolecall.redis.leader import CLOCK
from rolecall.redis.scripts import script
from rolecall.redis.server import Server

NOW = script("rolecall.redis", "now", names="clock")
STEP_MS = 2000
"""A smaller difference is none: leases last many times as long."""


class ServerClock:
    """The clock of the server that holds ``key``. ``steps`` are the steps forward that it has made: what it showed
    before, and by how many ms."""

    def __init__(self, server: Server, key: str) -> None:
        self.steps: list[tuple[float, float]] = []
        self._server = server
        self._key = key
        self._reading: tuple[float, float] | None = None

    def now(self) -> float:
        """Ms since the epoch as the server's clock would show them if it had not stepped since the last reading; 0
        before the first."""
        return 0.0 if self._reading is None else self._expected(_seconds())

    def earlier(self, now_ms: float) -> float:
        """The earlier of ``now_ms``, as the server's clock was read elsewhere, and ``now``."""
        return min(now_ms, self.now() or now_ms)

    async def read(self) -> float:
        """Read the server's clock. Returns by how many ms it has stepped since the last reading, negative for back, 0
        if it has not. Raises ServerError."""
        asked = _seconds()
        shown = int(await self._server.run(NOW, clock=self._key))
        replied, step = _seconds(), 0.0
        if self._reading is not None:
            if (ahead := shown - self._expected(replied)) > STEP_MS:
                step = ahead
            elif (behind := shown - self._expected(asked)) < -STEP_MS:
                step = behind
        self._reading = (replied, shown)
        return step

    def age(self, received: float, age: float) -> float:
        """The seconds since ``received``, a time of the server's clock that it called ``age`` seconds ago, whatever
        steps it made since. Never too old, and never negative."""
        own = (self.now() - received) / 1000 if self._reading is not None else age
        skipped = sum(shift for before, shift in self.steps if received <= before)
        return max(0.0, min(age - skipped / 1000, own))

    def _expected(self, at: float) -> float:
        assert self._reading is not None
        return self._reading[1] + (at - self._reading[0]) * 1000


def _seconds() -> float:
    return time.clock_gettime(CLOCK)
