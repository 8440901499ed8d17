"""How many requests one caller has open in this process, and how fast more may follow."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

CALLERS = 4096
"""Remembered at most; idle ones are forgotten first."""


@dataclass
class _Caller:
    open: int = 0
    tokens: float = 0.0
    at: float = 0.0


class Pace:
    """Lets each caller have ``at_once`` requests open and ``per_minute`` begun, in bursts of up to a tenth of that."""

    def __init__(self, at_once: int, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._rate = per_minute / 60
        self._burst = max(1.0, per_minute / 10)
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def enter(self, who: str) -> int | None:
        """Begin a request of ``who``; or the seconds after which it may try again, when that is too much now."""
        caller, now = self._caller(who), self._clock()
        caller.tokens = min(self._burst, caller.tokens + (now - caller.at) * self._rate)
        caller.at = now
        if caller.open >= self._at_once:
            return 1
        if caller.tokens < 1:
            return max(1, math.ceil((1 - caller.tokens) / self._rate))
        caller.tokens -= 1
        caller.open += 1
        return None

    def leave(self, who: str) -> None:
        """End a request that was let in."""
        self._caller(who).open -= 1

    def _caller(self, who: str) -> _Caller:
        name = hashlib.sha256(who.encode("utf-8", "surrogatepass")).hexdigest()
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(0, self._burst, self._clock())
            self._forget()
        self._callers.move_to_end(name)
        return caller

    def _forget(self) -> None:
        if len(self._callers) <= CALLERS:
            return
        idle = next((name for name, caller in self._callers.items() if not caller.open), None)
        if idle is not None:
            del self._callers[idle]
