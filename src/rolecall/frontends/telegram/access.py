"""Access control: settings, admins and invitation codes decide who may use the bot; everybody else is refused. In a
group, its admins decide what concerns all.

A code has 128 random bits and works once; the server stores only its SHA-256. Wrong codes are rate-limited.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from telegram import Bot
from telegram.error import TelegramError

from rolecall.bus.bus import Bus
from rolecall.bus.members import (
    Member,
    Rank,
    Tries,
    count_within,
    enrol,
    find_member,
    list_members,
    moved_chats,
    record_move,
    redeem,
    store_code,
)
from rolecall.bus.schedule.schedules import unschedule_user
from rolecall.frontends.telegram.bot import explain
from rolecall.frontends.telegram.message import Address, principal_of

logger = logging.getLogger(__name__)
Redeemed = Literal["admin", "user", "guest", "KNOWN", "WRONG", "TOO_MANY"]
Pace = Literal["OK", "TELL", "SILENT"]

RANKS: tuple[Rank, ...] = ("stranger", "guest", "user", "admin")
EVERYONE = "*"
GUEST_SHARE = 0.5
TRIES = Tries(user=5, all=100, seconds=3600.0)
"""Wrong codes per hour, of one user and of all users: TELEGRAM_INVITE_CODE may be guessable."""
REFUSAL_SECONDS = 3600.0
MINUTE = 60.0
START_DAYS = 7.0
NAME_CHARS = 64
ADMIN_SECONDS = 60.0
REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class UserStatus:
    """A user and their rank. The daily budgets (USER_TOKENS_PER_DAY, USER_COST_PER_DAY) do not apply to admins; guests
    get half of them."""

    user: int
    rank: Rank
    denied: bool = False
    """Whether an admin denied this user or this group access."""

    @property
    def allowed(self) -> bool:
        """Whether the bot answers this user."""
        return self.rank != "stranger"

    @property
    def meta(self) -> dict[str, Any]:
        """The ``meta`` of this user's envelopes: their share of the daily budgets."""
        return {"admin": {"share": 0.0}, "guest": {"share": GUEST_SHARE}}.get(self.rank, {})


class Access:
    """Access control for the bot of ``front``. Decisions of admins are stored in the server, for all processes."""

    def __init__(self, bus: Bus, front: str = "telegram") -> None:
        self.bus = bus
        self.front = front
        self.admins = _numbers(bus.settings.telegram_admins)
        self.listed = _numbers(bus.settings.telegram_allowed)
        self.open = EVERYONE in bus.settings.telegram_allowed
        self._moves: dict[int, int] | None = None

    async def status_of(self, user: int, chat: int = 0) -> UserStatus:
        """The status of ``user`` in ``chat``. In an allowed group everyone is at least a guest, except users whom an
        admin denied; an anonymous admin is the group itself. A group is allowed by TELEGRAM_ALLOWED or by an admin,
        under its present id or the one before it became a supergroup."""
        if user in self.admins:
            return UserStatus(user, "admin")
        member = await find_member(self.bus, self.front, user) if user != chat or user > 0 else None
        if member is not None and member.rank == "stranger":
            return UserStatus(user, "stranger", denied=True)
        known: Rank = "stranger" if member is None else member.rank
        group = await self._group_rank(chat) if chat < 0 else "stranger"
        rank = max(known, group or "stranger", self._by_settings(user), key=RANKS.index)
        return UserStatus(user, rank, denied=group is None)

    async def _group_rank(self, chat: int) -> Rank | None:
        """What everyone is in the group ``chat``; None if an admin denied it."""
        moves = await self.moves()
        ids = {chat, *(new for new, old in moves.items() if old == chat), moves.get(chat, chat)}
        decided = [one for number in ids if (one := await find_member(self.bus, self.front, number)) is not None]
        if any(one.rank == "stranger" for one in decided):
            return None
        return "guest" if decided or self.open or ids & self.listed else "stranger"

    async def moves(self, *, reread: bool = False) -> dict[int, int]:
        """The groups that became supergroups: the id before by the id now. With ``reread``, also those that another
        process has noted."""
        if self._moves is None or reread:
            self._moves = await moved_chats(self.bus, self.front)
        return self._moves

    async def move(self, old: int, new: int) -> None:
        """The group ``old`` goes on as the supergroup ``new``. Idempotent."""
        moves = await self.moves()
        if new not in moves:
            await record_move(self.bus, self.front, new, old)
            moves[new] = old

    async def home(self, address: Address) -> Address:
        """The address that names the conversation: that of the group before it became a supergroup."""
        old = (await self.moves()).get(address.chat) if address.chat < 0 else None
        return address if old is None else replace(address, chat=old)

    async def pace(self, status: UserStatus) -> Pace:
        """Count a message towards the user's limit per minute. TELL: it is the first one over the limit, so tell the
        user; SILENT: the user was told. Admins have no limit."""
        if status.rank == "admin":
            return "OK"
        over = await self.tally(f"pace:{status.user}", MINUTE) - self.bus.settings.telegram_per_minute
        return "OK" if over <= 0 else "TELL" if over == 1 else "SILENT"

    async def first_refusal(self, user: int, what: str = "refused") -> bool:
        """Whether to tell a stranger about the refusal; at most once an hour for each reason ``what``."""
        return await self.first_refusal_within(f"{what}:{user}", REFUSAL_SECONDS)

    async def first_refusal_within(self, counter: str, seconds: float) -> bool:
        """Whether this is the first of its kind within ``seconds``."""
        return await self.tally(counter, seconds) == 1

    async def start_code(self) -> str | None:
        """A new one-time code that makes the user who redeems it the first admin; None if there is an admin. All these
        codes become invalid once there is one."""
        if self.admins or any(member.rank == "admin" for member in await self.members()):
            return None
        return await self._code("start", START_DAYS)

    async def invite(self, rank: Rank = "user", days: float = 7) -> str:
        """A new one-time code, valid for ``days``, that gives the user who redeems it ``rank``."""
        return await self._code(rank, days)

    async def redeem(self, user: int, name: str, code: str) -> Redeemed:
        """Redeem ``code`` for ``user``, atomically: of two users with the same code, one gets in.

        TELEGRAM_INVITE_CODE makes guests any number of times. Returns the new rank; KNOWN if the code gives nothing new
        and stays valid; WRONG, also for every code of a denied user; TOO_MANY after too many wrong codes, when even a
        valid one is refused until the hour is over.
        """
        given = self.bus.settings.telegram_invite_code
        shared = given is not None and hmac.compare_digest(given.get_secret_value().encode(), code.encode())
        return await redeem(
            self.bus, self.front, user, name[:NAME_CHARS], _digest(code), rank=self._by_settings(user),
            shared="guest" if shared else "", has_admin=bool(self.admins), tries=TRIES,
        )  # fmt: skip

    async def allow(self, user: int, rank: Rank = "user", name: str = "") -> None:
        """Give ``user`` access with ``rank``."""
        await enrol(self.bus, self.front, user, rank, name[:NAME_CHARS])

    async def deny(self, user: int) -> bool:
        """Deny ``user`` access to this bot, whatever TELEGRAM_ALLOWED says, and remove their reminders; False for one
        of TELEGRAM_ADMINS. A denied group has no reminders either."""
        if user in self.admins:
            return False
        known = {member.user: member.name for member in await self.members()}
        await enrol(self.bus, self.front, user, "stranger", known.get(user, ""))
        place = await self.home(Address(user, None, self.front))
        instance = f"{self.front}:access:0"
        await unschedule_user(self.bus, self.front, principal_of(user), place.conversation, instance=instance)
        return True

    async def members(self) -> list[Member]:
        """All members, oldest first."""
        return await list_members(self.bus, self.front)

    def _by_settings(self, user: int) -> Rank:
        if user in self.admins:
            return "admin"
        if user in self.listed and user > 0:
            return "user"
        return "guest" if self.open else "stranger"

    async def _code(self, rank: str, days: float) -> str:
        code = secrets.token_urlsafe(16)
        await store_code(self.bus, self.front, _digest(code), rank, days)
        return code

    async def tally(self, counter: str, seconds: float) -> int:
        """Count one more under ``counter`` in a window of ``seconds``; returns the count."""
        return await count_within(self.bus, self.front, counter, seconds)


class GroupAdmins:
    """Who may decide for a group: its admins, as Telegram says, and those of the bot. In a private chat it is the
    user. What Telegram says is remembered for ADMIN_SECONDS."""

    def __init__(self, bot: Bot, current: Callable[[int], int]) -> None:
        self.bot = bot
        self._current = current
        self._known: dict[tuple[int, int], tuple[float, bool]] = {}

    async def include(self, status: UserStatus, address: Address, *, anonymous: bool = False) -> bool:
        """Whether the user may decide for the chat of ``address``. An ``anonymous`` sender is an admin of the group."""
        if address.private or anonymous or status.rank == "admin":
            return True
        key, now = (self._current(address.chat), status.user), time.monotonic()
        until, known = self._known.get(key, (0.0, False))
        if until < now:
            known = await self._ask(*key)
            if len(self._known) > REMEMBERED:
                self._known.clear()
            self._known[key] = (now + ADMIN_SECONDS, known)
        return known

    async def _ask(self, chat: int, user: int) -> bool:
        try:
            member = await self.bot.get_chat_member(chat, user)
        except TelegramError as error:
            logger.info("cannot tell whether %d is an admin of %d: %s", user, chat, explain(error))
            return False
        return member.status in ("creator", "administrator")


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _numbers(listed: str) -> frozenset[int]:
    """The user and chat ids of a setting; ``*`` is not one."""
    return frozenset(int(number) for number in listed.replace(EVERYONE, "").split(",") if number.strip())
