"""Who may use the bot: those whom settings and admins name, and those who bring a code. Closed to all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rolecall.bus import Bus

Rank = Literal["admin", "user", "guest", "stranger"]
Redeemed = Literal["admin", "user", "guest", "KNOWN", "WRONG", "TOO_MANY"]
Pace = Literal["OK", "TELL", "SILENT"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a person is to the bot. Budgets of a day (USER_TOKENS_PER_DAY, USER_COST_PER_DAY) do not bind admins, and
    guests have half of them."""

    user: int
    rank: Rank

    @property
    def allowed(self) -> bool:
        """Whether the bot serves this person."""
        return self.rank != "stranger"

    @property
    def meta(self) -> dict[str, Any]:
        """What the envelopes of this person carry in ``meta``, so that models know the share of the budgets."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Member:
    """Someone let in by a code or an admin, or shut out by one (``rank`` stranger); ``since`` in ms."""

    user: int
    rank: Rank
    since: int
    name: str


class Access:
    """The gate of the bot behind ``front``. What admins decide is kept in the server, for all processes."""

    def __init__(self, bus: Bus, front: str = "telegram") -> None: ...

    async def look(self, user: int, chat: int = 0) -> Standing:
        """What ``user`` is, writing in ``chat``: in a group of TELEGRAM_ALLOWED everyone is at least a guest."""
        raise NotImplementedError

    async def pace(self, standing: Standing) -> Pace:
        """Count a message. TELL: it is the first beyond what a minute allows, say so; SILENT: it was said."""
        raise NotImplementedError

    async def first_refusal(self, user: int) -> bool:
        """Whether a stranger is to be answered now; then not again for an hour."""
        raise NotImplementedError

    async def start_code(self) -> str | None:
        """A new one-time code that makes whoever brings it the first admin; None when there is an admin."""
        raise NotImplementedError

    async def invite(self, rank: Rank = "user", days: float = 7) -> str:
        """A new one-time code that lets in whoever brings it. Only its SHA-256 is kept."""
        raise NotImplementedError

    async def redeem(self, user: int, name: str, code: str) -> Redeemed:
        """Let ``user`` in for ``code``, once; TELEGRAM_INVITE_CODE makes guests. Tries are limited."""
        raise NotImplementedError

    async def allow(self, user: int, rank: Rank = "user", name: str = "") -> None:
        """Let ``user`` in."""
        raise NotImplementedError

    async def deny(self, user: int) -> bool:
        """Shut ``user`` out, whatever TELEGRAM_ALLOWED says; False for one of TELEGRAM_ADMINS."""
        raise NotImplementedError

    async def members(self) -> list[Member]:
        """All whom the server knows, oldest first."""
        raise NotImplementedError
