"""Counts and times of the work, over all processes: gathered in each, and told to the server once a second.

Fields of one hash: ``<name> <part> <label> …``, where part is ``n`` for a count, and for times a bucket's number or
``us``, their sum. There are as many as names, roles and models make, however many turns there were. What a process
had not told yet when it was killed is missing; what it told as the server went away may be there twice.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from rolecall import keys
from rolecall.redis_client import Server

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds; one bucket more has the rest."""
TELL_SECONDS = 1.0


class Measures:
    """This process's, since it last told the server. Labels have no white space."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._times: dict[tuple[str, ...], list[float]] = {}

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Count something."""
        self._counts[name, "n", *labels] += by

    def time(self, name: str, seconds: float, *labels: str) -> None:
        """Note how long something took."""
        row = self._times.get((name, *labels))
        if row is None:
            row = self._times[name, *labels] = [0.0] * (len(BUCKETS) + 2)
        row[bisect_left(BUCKETS, seconds)] += 1
        row[-1] += seconds

    async def tell(self, server: Server) -> None:
        """Add what was gathered to the server's. Raises redis-py's errors, and then tells it the next time."""
        told, self._counts = self._gathered(), Counter()
        adding = [server.send("HINCRBY", keys.METRICS, " ".join(name), by) for name, by in told.items()]
        replies = await asyncio.gather(*adding, return_exceptions=True)
        failed = [reply for reply in replies if isinstance(reply, BaseException)]
        for (name, by), reply in zip(told.items(), replies, strict=True):
            if isinstance(reply, BaseException):
                self._counts[name] += by
        if failed:
            raise failed[0]

    def _gathered(self) -> Counter[tuple[str, ...]]:
        times, self._times = self._times, {}
        for (name, *labels), (*buckets, seconds) in times.items():
            for number, count in enumerate(buckets):
                if count:
                    self._counts[name, str(number), *labels] += int(count)
            self._counts[name, "us", *labels] += round(seconds * 1_000_000)
        return self._counts


@dataclass
class Times:
    """All that was noted of one thing under the same labels: how many fell into each bucket, the last for the rest,
    and the sum in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.buckets)


@dataclass
class Measured:
    """What all processes told since the server was first used, by name and labels."""

    counts: dict[str, dict[tuple[str, ...], int]] = field(default_factory=dict)
    times: dict[str, dict[tuple[str, ...], Times]] = field(default_factory=dict)


async def measured(server: Server) -> Measured:
    """Read it. Raises redis-py's errors and ServerUnavailable."""
    found, flat = Measured(), await server.fetch("HGETALL", keys.METRICS)
    for raw, value in zip(flat[::2], flat[1::2], strict=True):
        name, part, *labels = raw.decode().split(" ")
        if part == "n":
            found.counts.setdefault(name, {})[tuple(labels)] = int(value)
            continue
        times = found.times.setdefault(name, {}).setdefault(tuple(labels), Times())
        if part == "us":
            times.seconds = int(value) / 1_000_000
        elif int(part) < len(times.buckets):
            times.buckets[int(part)] = int(value)
    return found
