"""The outlet of a chat: calls to Telegram run one after the other, respect its rate limits, and are retried."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from telegram.error import BadRequest, ChatMigrated, Forbidden, TelegramError, TimedOut

from rolecall.frontends.telegram.bot import FloodWait

T = TypeVar("T")
SendOutcome = Literal["OK", "GONE", "TOO_OLD", "REFUSED", "BLOCKED", "FAILING", "DROPPED", "LATER"]
"""The result of an edit. GONE: the message no longer exists; TOO_OLD: it can no longer be edited; REFUSED: Telegram
rejects the content; BLOCKED: the bot cannot write to the chat (``Chats.reason`` tells why for both); FAILING: Telegram
failed TRIES times in a row; DROPPED: it was no longer wanted, so nothing was sent; LATER: the chat is not free for a
partial text."""
ANSWER, MESSAGE, COSMETIC = range(3)
"""Who is served first when several wait for a chat: answers, other messages, then what can be left out."""

LONGEST_WAIT = 5.0
TRIES = 6
"""Failures in a row, without an answer or with a server error, after which a request is given up."""
GROUP_REQUESTS, GROUP_SECONDS = 12, 60.0
"""Telegram accepts 20 messages and edits a minute in a group. Beyond 12, partial texts wait, so that the rest is left
for answers."""
TIMEOUT_SECONDS = 1.0
REMEMBERED = 512
OUTLETS = 5000
LARGE = -1_000_000_000_000
"""Ids of supergroups are below this one."""
GONE = ("message to edit not found", "message_id_invalid", "message not found")
TOO_OLD = ("message can't be edited", "no text in the message to edit")
BLOCKED = (
    "chat not found", "thread not found", "topic_closed", "topic_deleted", "not enough rights", "have no rights",
    "administrator rights", "chat_write_forbidden", "chat_restricted", "peer_id_invalid", "user is deactivated",
    "user not found", "kicked", "chat_admin_required",
)  # fmt: skip
LOST = ("forbidden:", "chat not found", "thread not found", "topic_deleted", "peer_id_invalid", "user not found")
"""Refusals that a chat, or a topic of it, does not recover from: the user has blocked the bot, a group removed it."""
NO_FILES = re.compile(r"not enough rights to send (?!text|messages|a message)", re.IGNORECASE)
"""Refusals of a group that takes texts but no photos or documents."""
TOO_LARGE = re.compile(r"\(4\d\d\)|request entity too large", re.IGNORECASE)
"""Refusals that python-telegram-bot reports as network errors."""


class Unwanted(Exception):
    """A call that is no longer wanted."""


class NotFree(Exception):
    """A chat that is not free for a call that does not wait."""


class Failing(Exception):
    """A call that failed TRIES times in a row, although Telegram did not refuse it."""


class ChatLock:
    """A lock that serves those who wait by priority, and within one priority in their order."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._locked = False

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._locked

    def awaited(self, priority: int) -> bool:
        """Whether somebody of this ``priority`` or a more urgent one waits."""
        return any(urgency <= priority and not future.done() for urgency, _, future in self._waiting)

    @asynccontextmanager
    async def hold(self, priority: int) -> AsyncIterator[None]:
        """Hold the lock until the block is left."""
        if self._locked:
            await self._turn(priority)
        self._locked = True
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, priority: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this one's turn already
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                return turn.set_result(None)
        self._locked = False


@dataclass
class IdSpace:
    """Chats whose messages share one sequence of ids: all private chats and small groups, or one supergroup.

    ``newest`` is the highest id seen, ``known`` the ids seen last, ``sending`` how many messages are being sent.
    """

    newest: int = 0
    known: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    sending: int = 0

    @contextmanager
    def sending_one(self) -> Iterator[None]:
        """Count a message as being sent until the block is left."""
        self.sending += 1
        try:
            yield
        finally:
            self.sending -= 1


@dataclass
class Outlet:
    """The state of one chat. ``lock`` serialises calls; ``reason`` is Telegram's last refusal.

    In monotonic seconds, nothing is sent before ``free``, the last edit ended at ``edited``, and a place in the queue
    was last updated at ``placed``; ``recent`` are the last requests. ``newest`` is the highest message id seen in the
    chat; ``tried`` are ids that turned out to be foreign or missing messages.
    """

    ids: IdSpace = field(default_factory=IdSpace)
    lock: ChatLock = field(default_factory=ChatLock)
    free: float = 0.0
    edited: float = float("-inf")
    placed: float = float("-inf")
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=GROUP_REQUESTS))
    newest: int = 0
    tried: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    reason: str = ""

    def note(self, message_id: int) -> None:
        """Remember that the message exists."""
        self.newest = max(self.newest, message_id)
        self.ids.newest = max(self.ids.newest, message_id)
        self.ids.known.append(message_id)

    def knows(self, message_id: int) -> bool:
        """Whether the message with this id was seen, or tried in vain."""
        return message_id in self.ids.known or message_id in self.tried

    def penalise(self, error: FloodWait) -> None:
        """Send nothing for as long as Telegram asks."""
        self.free = max(self.free, time.monotonic() + error.seconds)

    async def retry(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        gap: float = 0.0,
        wanted: Callable[[], bool] | None = None,
        once: bool = False,
    ) -> T:
        """Await ``call`` until Telegram answers; returns the answer. ``gap`` is the least time in seconds since the
        last edit. With ``once``, nothing is waited for and the first failure is the last. Raises Unwanted when
        ``wanted`` returns False or, with ``once``, after a failure; NotFree; Failing after TRIES failures; and what
        Telegram refuses."""
        failures = 0
        while failures < TRIES:
            if once and (self.lock.awaited(ANSWER) or self._wait(gap) > 0):
                raise Unwanted if wanted is not None and not wanted() else NotFree
            await self._wait_until_free(gap)
            if wanted is not None and not wanted():
                raise Unwanted
            try:
                return await call()
            except FloodWait as error:
                self.penalise(error)
            except (BadRequest, Forbidden, ChatMigrated):
                raise
            except TelegramError as error:
                if TOO_LARGE.search(str(error)):
                    raise
                self._failed(error, failures)
                failures += 1
            finally:
                self.recent.append(time.monotonic())
                if gap:
                    self.edited = time.monotonic()
            if once:
                raise Unwanted
        raise Failing(self.reason)

    def _failed(self, error: TelegramError, before: int) -> None:
        """Leave time before the next request: one that timed out may still be executed, and must overtake nothing."""
        late = TIMEOUT_SECONDS if isinstance(error, TimedOut) else 0.1
        self.free = time.monotonic() + min(late * 2**before, LONGEST_WAIT)
        self.reason = str(error)

    def busy_seconds(self, *, group: bool) -> float:
        """Seconds for which partial texts wait because of the number of requests in the last minute."""
        full = group and len(self.recent) == GROUP_REQUESTS
        return max(0.0, self.recent[0] + GROUP_SECONDS - time.monotonic()) if full else 0.0

    async def attempt(self, call: Callable[[], Awaitable[Any]]) -> bool:
        """Await ``call`` once, or skip it while Telegram asks to wait. Whether it succeeded."""
        if self.free > time.monotonic():
            return False
        try:
            await call()
        except FloodWait as error:
            self.penalise(error)
        except TelegramError as error:
            self.reason = str(error)
        else:
            return True
        return False

    def _wait(self, gap: float) -> float:
        return max(self.free, self.edited + gap if gap else 0.0) - time.monotonic()

    async def _wait_until_free(self, gap: float) -> None:
        while (left := self._wait(gap)) > 0:
            await asyncio.sleep(left)


class Outlets:
    """The outlets of a bot's chats; those that are idle are dropped beyond OUTLETS."""

    def __init__(self) -> None:
        self._outlets: OrderedDict[int, Outlet] = OrderedDict()
        self._account = IdSpace()

    def of(self, chat: int) -> Outlet:
        """The outlet of ``chat``."""
        outlet = self._outlets.get(chat)
        if outlet is None:
            outlet = self._outlets[chat] = Outlet(IdSpace() if chat < LARGE else self._account)
            for idle in list(self._idle()) if len(self._outlets) > OUTLETS else ():
                del self._outlets[idle]
        self._outlets.move_to_end(chat)
        return outlet

    def _idle(self) -> Iterator[int]:
        """Chats that were not used for longest and hold no state that matters."""
        now = time.monotonic()
        for chat, outlet in itertools.islice(self._outlets.items(), OUTLETS // 10):
            if not outlet.lock.locked() and max(outlet.free, outlet.edited + 60) < now:
                yield chat


def is_blocked(error: TelegramError) -> bool:
    """Whether the error means that the bot cannot write to the chat."""
    return isinstance(error, Forbidden) or any(words in str(error).lower() for words in BLOCKED)


def is_lost(reason: str) -> bool:
    """Whether Telegram's refusal ``reason`` means that the chat is closed to the bot for good."""
    return any(words in reason.lower() for words in LOST)


def outcome_of(error: TelegramError) -> SendOutcome | None:
    """The outcome of an edit that failed with ``error``; None if Telegram rejects the content."""
    words = str(error).lower()
    if "not modified" in words:
        return "OK"
    if any(one in words for one in GONE):
        return "GONE"
    if any(one in words for one in TOO_OLD):
        return "TOO_OLD"
    return "BLOCKED" if is_blocked(error) and not NO_FILES.search(words) else None
