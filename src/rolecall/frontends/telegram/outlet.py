"""A chat's way out: what is sent there goes one after the other, when Telegram lets it, until that has answered."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from telegram.error import BadRequest, ChatMigrated, Forbidden, TelegramError, TimedOut

from rolecall.frontends.telegram.bot import Wait

T = TypeVar("T")
Outcome = Literal["OK", "GONE", "TOO_OLD", "REFUSED", "BLOCKED", "DROPPED"]
"""What became of an edit. GONE: the message is not there any more; TOO_OLD: it cannot be edited any more; REFUSED:
Telegram does not take what should be written; BLOCKED: nothing can be written there (see ``Chats.reason`` for both);
DROPPED: it was not wanted any more, and nothing was sent."""

LONGEST_WAIT = 5.0
LATE_SECONDS = 1.0
REMEMBERED = 512
OUTLETS = 5000
LARGE = -1_000_000_000_000
"""Ids of large groups are below."""
GONE = ("message to edit not found", "message_id_invalid", "message not found")
TOO_OLD = ("message can't be edited", "no text in the message to edit")
BLOCKED = (
    "chat not found", "thread not found", "topic_closed", "topic_deleted", "not enough rights", "have no rights",
    "administrator rights", "chat_write_forbidden", "chat_restricted", "peer_id_invalid", "user is deactivated",
    "user not found", "kicked", "chat_admin_required",
)  # fmt: skip
TOO_LARGE = re.compile(r"\(4\d\d\)|request entity too large", re.IGNORECASE)
"""What python-telegram-bot takes for a fault of the network, and is none."""


class Unwanted(Exception):
    """What was to be sent is not wanted any more."""


@dataclass
class Box:
    """Messages that Telegram counts together: those of all private chats and small groups, or those of one large group.
    ``newest`` is the highest id seen, ``known`` the last ones, ``sending`` how many are being sent."""

    newest: int = 0
    known: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    sending: int = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """While a message is being sent."""
        self.sending += 1
        try:
            yield
        finally:
            self.sending -= 1


@dataclass
class Outlet:
    """``lock`` is held by whoever sends. Times are monotonic seconds: nothing is sent before ``free``; ``edited`` is
    when the last edit was answered. ``newest`` is the highest id of a message that was seen in the chat; ``tried`` are
    those it was found out of that they are not ours, or not there."""

    box: Box = field(default_factory=Box)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    free: float = 0.0
    edited: float = float("-inf")
    newest: int = 0
    tried: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    reason: str = ""
    telling: int = 0

    def note(self, message_id: int) -> None:
        """Remember that this message is there."""
        self.newest = max(self.newest, message_id)
        self.box.newest = max(self.box.newest, message_id)
        self.box.known.append(message_id)

    def knows(self, message_id: int) -> bool:
        """Whether it is known what this message is."""
        return message_id in self.box.known or message_id in self.tried

    def penalise(self, error: Wait) -> None:
        """Telegram lets this chat wait."""
        self.free = max(self.free, time.monotonic() + error.seconds)

    async def patiently(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        gap: float = 0.0,
        wanted: Callable[[], bool] | None = None,
        once: bool = False,
    ) -> T:
        """The result of ``call``, tried until Telegram answers it; with ``once`` one time. An edit has a ``gap``: the
        seconds since the last one. Raises what Telegram says for good, and Unwanted."""
        for tries in itertools.count():
            await self._clear(gap)
            if wanted is not None and not wanted():
                raise Unwanted
            try:
                return await call()
            except Wait as error:
                self.penalise(error)
            except (BadRequest, Forbidden, ChatMigrated):
                raise
            except TelegramError as error:
                if TOO_LARGE.search(str(error)):
                    raise
                # What timed out may still be done, later than it should: nothing must be overtaken by it.
                late = LATE_SECONDS if isinstance(error, TimedOut) else 0.1
                self.free = time.monotonic() + min(late * 2 ** min(tries, 6), LONGEST_WAIT)
            finally:
                if gap:
                    self.edited = time.monotonic()
            if once:
                raise Unwanted
        raise AssertionError  # it counts for ever

    async def in_passing(self, call: Callable[[], Awaitable[Any]]) -> bool:
        """Whether ``call`` went well. It waits for nothing, and is left out while nothing may be sent."""
        if self.free > time.monotonic():
            return False
        try:
            await call()
        except Wait as error:
            self.penalise(error)
        except TelegramError as error:
            self.reason = str(error)
        else:
            return True
        return False

    async def _clear(self, gap: float) -> None:
        while (left := max(self.free, self.edited + gap if gap else 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(left)


class Outlets:
    """The outlets of a bot's chats."""

    def __init__(self) -> None:
        self._outlets: OrderedDict[int, Outlet] = OrderedDict()
        self._account = Box()

    def of(self, chat: int) -> Outlet:
        """The outlet of a chat."""
        outlet = self._outlets.get(chat)
        if outlet is None:
            outlet = self._outlets[chat] = Outlet(Box() if chat < LARGE else self._account)
            for idle in list(self._idle()) if len(self._outlets) > OUTLETS else ():
                del self._outlets[idle]
        self._outlets.move_to_end(chat)
        return outlet

    def _idle(self) -> Iterator[int]:
        """Some chats of those longest unused, which nothing has to be known of any more."""
        now = time.monotonic()
        for chat, outlet in itertools.islice(self._outlets.items(), OUTLETS // 10):
            if not outlet.lock.locked() and max(outlet.free, outlet.edited + 60) < now:
                yield chat


def is_blocked(error: TelegramError) -> bool:
    """Whether nothing can be written there."""
    return isinstance(error, Forbidden) or any(words in str(error).lower() for words in BLOCKED)


def outcome_of(error: TelegramError) -> Outcome | None:
    """What an edit's error means; None when it is about what should be written."""
    words = str(error).lower()
    if "not modified" in words:
        return "OK"
    if any(one in words for one in GONE):
        return "GONE"
    if any(one in words for one in TOO_OLD):
        return "TOO_OLD"
    return "BLOCKED" if is_blocked(error) else None
