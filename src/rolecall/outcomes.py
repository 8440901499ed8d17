"""What goes into the bus's verbs and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["RUN", "WAIT", "MERGED", "DUP", "CONFLICT", "FULL", "BUSY"]
Verdict = Literal["OK", "FENCED", "STALE", "CONTROL"]


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a message: RUN and WAIT are accepted, MERGED is a part of ``turn``, which had not begun; DUP was
    accepted before as ``turn``; CONFLICT is the same idempotency key with another body; FULL and BUSY wrote nothing
    (FULL with a ``turn``: that one takes no more parts). ``place`` counts from 1 in the mailbox,
    ``at`` is the server's clock in ms, ``event`` the id of the turn's first event where this call made it."""

    outcome: Outcome
    turn: str
    place: int
    at: int = 0
    event: str = ""

    @property
    def before(self) -> str:
        """The event id to follow the turn after: nothing of it comes before."""
        if not self.event:
            return "0-0"
        ms, _, number = self.event.partition("-")
        return f"{ms}-{int(number) - 1}" if number != "0" else f"{int(ms) - 1}-{2**64 - 1}"

    @property
    def accepted(self) -> bool:
        """Whether there is a turn to wait for."""
        return self.outcome in ("RUN", "WAIT", "MERGED", "DUP")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a turn stands; ``final`` is its final event once finished and ``final_id`` its id, ``last`` the newest
    event id of the conversation."""

    state: Literal["finished", "running", "waiting", "gone", "unknown"]
    place: int
    final: dict[str, Any] | None
    last: str
    final_id: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a process would take for one role: free slots, and whether one may be on its last delivery."""

    role: str
    free: int
    last_ok: bool = True
