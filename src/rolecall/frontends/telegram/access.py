"""Who may use the bot: those whom settings and admins name, and those who bring a code. Closed to all others.

A code is 128 random bits, good once; the server keeps its SHA-256 alone. A wrong one is a try, and tries are few.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from rolecall.bus.bus import Bus
from rolecall.bus.members import Member, Rank, Tries, count_within, enrol, find_member, list_members, redeem, store_code

Redeemed = Literal["admin", "user", "guest", "KNOWN", "WRONG", "TOO_MANY"]
Pace = Literal["OK", "TELL", "SILENT"]

RANKS: tuple[Rank, ...] = ("stranger", "guest", "user", "admin")
EVERYONE = "*"
GUEST_SHARE = 0.5
TRIES = Tries(user=5, all=100, seconds=3600.0)
"""Wrong codes in an hour: of one user, and of all together, for what TELEGRAM_INVITE_CODE says may be guessable."""
REFUSAL_SECONDS = 3600.0
MINUTE = 60.0
START_DAYS = 7.0
NAME_CHARS = 64


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
        return {"admin": {"share": 0.0}, "guest": {"share": GUEST_SHARE}}.get(self.rank, {})


class Access:
    """The gate of the bot behind ``front``. What admins decide is kept in the server, for all processes."""

    def __init__(self, bus: Bus, front: str = "telegram") -> None:
        self.bus = bus
        self.front = front
        self.admins = _numbers(bus.settings.telegram_admins)
        self.listed = _numbers(bus.settings.telegram_allowed)
        self.open = bus.settings.telegram_allowed.strip() == EVERYONE

    async def look(self, user: int, chat: int = 0) -> Standing:
        """What ``user`` is, writing in ``chat``: in a group of TELEGRAM_ALLOWED everyone is at least a guest, unless
        an admin shut that one out."""
        if user in self.admins:
            return Standing(user, "admin")
        member = await find_member(self.bus, self.front, user)
        if member is not None and member.rank == "stranger":
            return Standing(user, "stranger")
        known: Rank = "stranger" if member is None else member.rank
        return Standing(user, max(known, self._by_settings(user, chat), key=RANKS.index))

    async def pace(self, standing: Standing) -> Pace:
        """Count a message. TELL: it is the first beyond what a minute allows, say so; SILENT: it was said. Admins may
        write as fast as they like."""
        if standing.rank == "admin":
            return "OK"
        over = await self._tally(f"pace:{standing.user}", MINUTE) - self.bus.settings.telegram_per_minute
        return "OK" if over <= 0 else "TELL" if over == 1 else "SILENT"

    async def first_refusal(self, user: int, what: str = "refused") -> bool:
        """Whether a stranger is to be told now that he is refused; then not again for an hour. ``what`` names the
        reason: each is told once."""
        return await self._tally(f"{what}:{user}", REFUSAL_SECONDS) == 1

    async def start_code(self) -> str | None:
        """A new one-time code that makes whoever brings it the first admin; None when there is an admin. All such codes
        are void once there is one."""
        if self.admins or any(member.rank == "admin" for member in await self.members()):
            return None
        return await self._code("start", START_DAYS)

    async def invite(self, rank: Rank = "user", days: float = 7) -> str:
        """A new one-time code that makes whoever brings it a ``rank`` for good."""
        return await self._code(rank, days)

    async def redeem(self, user: int, name: str, code: str) -> Redeemed:
        """Let ``user`` in for ``code``, atomically: of two who bring a code one is let in. TELEGRAM_INVITE_CODE makes
        guests, again and again. KNOWN: nothing to gain by it, the code stays good. Of those whom an admin shut out
        every code is WRONG. TOO_MANY: even a right one is not looked at until the hour is over."""
        given = self.bus.settings.telegram_invite_code
        shared = given is not None and hmac.compare_digest(given.get_secret_value().encode(), code.encode())
        return await redeem(
            self.bus, self.front, user, name[:NAME_CHARS], _digest(code), rank=self._by_settings(user),
            shared="guest" if shared else "", has_admin=bool(self.admins), tries=TRIES,
        )  # fmt: skip

    async def allow(self, user: int, rank: Rank = "user", name: str = "") -> None:
        """Let ``user`` in."""
        await self._enrol(user, rank, name)

    async def deny(self, user: int) -> bool:
        """Shut ``user`` out, whatever TELEGRAM_ALLOWED says; False for one of TELEGRAM_ADMINS."""
        if user in self.admins:
            return False
        known = {member.user: member.name for member in await self.members()}
        await self._enrol(user, "stranger", known.get(user, ""))
        return True

    async def members(self) -> list[Member]:
        """All members, oldest first."""
        return await list_members(self.bus, self.front)

    def _by_settings(self, user: int, chat: int = 0) -> Rank:
        if user in self.admins:
            return "admin"
        if user in self.listed:
            return "user"
        return "guest" if self.open or (chat != user and chat in self.listed) else "stranger"

    async def _enrol(self, user: int, rank: Rank, name: str) -> None:
        await enrol(self.bus, self.front, user, rank, name[:NAME_CHARS])

    async def _code(self, rank: str, days: float) -> str:
        code = secrets.token_urlsafe(16)
        await store_code(self.bus, self.front, _digest(code), rank, days)
        return code

    async def _tally(self, counter: str, seconds: float) -> int:
        return await count_within(self.bus, self.front, counter, seconds)


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _numbers(listed: str) -> frozenset[int]:
    """The numbers of a setting; ``*`` is none."""
    return frozenset(int(number) for number in listed.replace(EVERYONE, "").split(",") if number.strip())
