"""Time: this host's clock, and the server's as a process knows it: one reading, and what has passed since.

A step of the server's clock, forward or back, is noticed at the next reading.
"""

from __future__ import annotations

import time

from rolecall.redis.scripts import script

NOW = script("rolecall.redis", "now", names="clock")
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that keeps counting while the machine sleeps; on Linux the monotonic clock does not."""
STEP_MS = 2000
"""A smaller difference is none: leases last many times as long."""


class ServerClock:
    """The clock of the server that holds a shard. ``steps`` are the steps forward that it has made: what it showed
    before, and by how many ms. ``step`` is the one that was noticed and is not accepted yet: ms, negative for back, 0
    without one."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.step = 0.0
        self._reading: tuple[float, float] | None = None
        self._after_step: tuple[float, float] | None = None

    def now(self) -> float:
        """Ms since the epoch as the server's clock would show them without the step that is not accepted yet; 0 before
        the first reading."""
        return 0.0 if self._reading is None else self._expected(seconds())

    def earlier(self, now_ms: float) -> float:
        """The earlier of ``now_ms``, as the server's clock was read elsewhere, and ``now``."""
        return min(now_ms, self.now() or now_ms)

    def note(self, asked: float, shown: float) -> None:
        """Learn that a script that was sent at ``asked``, by ``seconds``, and has just replied read ``shown``."""
        replied, self.step = seconds(), 0.0
        if self._reading is not None:
            if (ahead := shown - self._expected(replied)) > STEP_MS:
                self.step = ahead
            elif (behind := shown - self._expected(asked)) < -STEP_MS:
                self.step = behind
        if self.step:
            self._after_step = (replied, shown)
        else:
            self._reading = (replied, shown)

    def accept(self) -> None:
        """Go by what the clock shows since its step."""
        self._reading, self._after_step, self.step = self._after_step or self._reading, None, 0.0

    def age(self, received: float, age: float) -> float:
        """The seconds since ``received``, a time of the server's clock that it called ``age`` seconds ago, whatever
        steps it made since. Never too old, and never negative."""
        own = (self.now() - received) / 1000 if self._reading is not None else age
        skipped = sum(shift for before, shift in self.steps if received <= before)
        return max(0.0, min(age - skipped / 1000, own))

    def _expected(self, at: float) -> float:
        assert self._reading is not None
        return self._reading[1] + (at - self._reading[0]) * 1000


def seconds() -> float:
    """The time of this host by which leases and readings are judged; it runs while the host sleeps."""
    return time.clock_gettime(CLOCK)
