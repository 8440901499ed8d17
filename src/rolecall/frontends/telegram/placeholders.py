"""Placeholders: messages that are recorded before anything final is in them, so that an answer appears once.

Telegram has no idempotency keys and cannot be asked what became of a request whose answer was lost. So a message is
sent without content that matters, its id is recorded, and only edits, which can be repeated, put the answer in. An
intent is recorded before the message is sent. Where this can break:

- Before the send, or Telegram refused it: there is an intent and no message; the next process creates it.
- Sent, but the answer or this process was lost: the same, and a duplicate is left in the chat. The intent tells behind
  which id it is; ``Orphans`` finds and deletes it.
- Sent and recorded, but the intent was left behind: the message stands, and the search finds nothing.
- A request that timed out is executed late, after the message that was sent instead: a later search looks above it.
- Two processes create the same part: the first one recorded stands, the other process deletes its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

from rolecall.background import BackgroundTasks
from rolecall.bus.chat_messages import WHOLE, Placeholders
from rolecall.frontends.telegram.chats import Chats, Keyboard, Unreachable
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.outlet import MESSAGE, IdSpace

logger = logging.getLogger(__name__)
INTENT = "?"
"""Prefix of a part's name for the intent to send it: ``~<lowest id>~<likeliest id>~<random mark>``."""
ABOUT = "about"
"""The name under which a turn is described: ``~<language>~<ms when it was received>~<message id of the question>``."""
REPLY = "reply:"
"""Prefix of what stands for a turn: a reply of the front end itself."""
ORPHANS = "doubts"
"""Stands for a turn, in a conversation without a chat, that records all searches of a bot as
``<conversation>/<turn>/<part>``."""
SEARCHES_AT_ONCE = 4
LATE_SECONDS = 15.0
"""How long after a doubtful send a search looks for what Telegram has executed late."""
LATE_IDS = 10
LATE = "late"
MAX_IDS = 100
MAX_TRIES = 30
BATCH = 6
"""A search looks at up to MAX_IDS ids, tries up to MAX_TRIES of them at Telegram, and lets other messages be sent after
each BATCH. Private chats share their ids, so most ids between two messages of a chat belong to other chats."""


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """What is recorded of a turn: its message ids by part, the id ranges of unconfirmed sends by part, the language of
    its user, when it was received (ms on the server's clock) and the id of its question; 0 for unknown."""

    messages: dict[str, int] = field(default_factory=dict)
    intents: dict[str, OrphanRange] = field(default_factory=dict)
    language: str | None = None
    at: int = 0
    question: int = 0


@dataclass(frozen=True, slots=True)
class OrphanRange:
    """The ids that a duplicate may have: ``low`` < id < ``high``, most likely ``guess``. ``low`` is 0 for unknown, and
    ``high`` for the newest at the time of the search, which then comes later."""

    low: int
    guess: int
    high: int = 0

    @classmethod
    def of_intent(cls, value: str) -> OrphanRange:
        """The range of a recorded intent; ``high`` is not known yet."""
        _, low, guess, _ = value.split("~")
        return cls(int(low), int(guess))

    def ids(self) -> Sequence[int]:
        """The possible ids, the likeliest first; at most MAX_IDS."""
        first = self.low + 1 if self.low else max(1, self.high - MAX_IDS)
        guess = self.guess if self.low else self.high
        return sorted(range(first, min(self.high, first + MAX_IDS)), key=lambda number: abs(number - guess))


class TurnMessages:
    """Creates and records the messages that show turns."""

    def __init__(self, chats: Chats, placeholders: Placeholders) -> None:
        self.chats = chats
        self.placeholders = placeholders
        self.orphans = Orphans(chats, placeholders)
        self._locks: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()

    async def of(self, conversation: str, turn: str) -> TurnRecord:
        """The record of ``turn``."""
        parts = await self.placeholders.of(conversation, turn)
        language, at, question, *_ = [*parts.pop(ABOUT, "").removeprefix("~").split("~"), "", ""]
        intents = {name[1:]: OrphanRange.of_intent(value) for name, value in parts.items() if name.startswith(INTENT)}
        messages = {name: int(value) for name, value in parts.items() if value.isdecimal()}
        if (address := Address.of(conversation)) is not None:
            self.chats.learn(address, messages.values(), max((one.low for one in intents.values()), default=0))
        return TurnRecord(messages, intents, language or None, int(at or 0), int(question or 0))

    async def describe(self, conversation: str, turn: str, language: str | None, at: int, question: int) -> None:
        """Record the language of the turn's user, when the turn was received, and the message id of its question."""
        await self.placeholders.record(conversation, turn, f"~{language or ''}~{at}~{question}", ABOUT)

    async def create(
        self,
        address: Address,
        turn: str,
        part: TextPart,
        *,
        name: str = WHOLE,
        after: int = 0,
        keyboard: Keyboard | None = None,
        ring: bool = False,
        reply_to: int | None = None,
        priority: int = MESSAGE,
    ) -> int | Unreachable:
        """The id of the message that shows the part ``name`` of ``turn``: the recorded one, otherwise a new one that
        reads ``part``. ``after`` is the id of an older message, such as the user's; 0 for unknown. Idempotent."""
        conversation = address.conversation
        async with self._lock(conversation, turn, name):
            recorded = (await self.of(conversation, turn)).messages.get(name)
            if recorded is not None:
                return recorded
            intent = _Intent(self.placeholders, conversation, turn, f"{INTENT}{name}", after)
            sent = await self.chats.send(
                address, part, keyboard=keyboard, ring=ring, reply_to=reply_to, priority=priority,
                announce=intent.announce,
            )  # fmt: skip
            if isinstance(sent, Unreachable):
                if not sent.failing:  # else it may have been sent all the same
                    await intent.forget()
                return sent
            return await self._record(address, turn, name, sent, intent)

    async def forget(self, address: Address, turn: str, message_id: int, name: str = WHOLE) -> None:
        """Forget a message that is gone, if it still is the one that shows the part."""
        await self.placeholders.forget(address.conversation, turn, str(message_id), name)

    async def abandon(self, address: Address, turn: str) -> None:
        """Forget the messages of a turn that is not delivered: they show nothing that their buttons could concern."""
        for name, message_id in (await self.of(address.conversation, turn)).messages.items():
            await self.forget(address, turn, message_id, name)

    async def clear(self, address: Address, turn: str, record: TurnRecord) -> None:
        """Start to search for the duplicates of the intents in ``record`` whose part has a message."""
        for name in record.intents:
            async with self._lock(address.conversation, turn, name):
                parts = await self.placeholders.of(address.conversation, turn)
                intent, message = parts.get(f"{INTENT}{name}", ""), parts.get(name, "")
                if intent and message:
                    await self._search(address, turn, name, intent, int(message))

    async def aclose(self) -> None:
        """Stop searching for duplicates."""
        await self.orphans.aclose()

    async def _record(self, address: Address, turn: str, name: str, sent: int, intent: _Intent) -> int:
        await self.orphans.protect(address, turn, sent, name)
        stands = int(await self.placeholders.record(address.conversation, turn, str(sent), name))
        if stands != sent:
            await self.chats.delete(address, sent)
        if intent.doubtful:
            await self._search(address, turn, name, intent.value, sent)
        else:
            await intent.forget()
        return stands

    async def _search(self, address: Address, turn: str, name: str, intent: str, message_id: int) -> None:
        """Replace an intent, whose part has a message, by a search for its duplicate."""
        await self.orphans.add(address, turn, name, replace(OrphanRange.of_intent(intent), high=message_id))
        await self.orphans.add(address, turn, f"{name}/{LATE}", OrphanRange(message_id, message_id + 1))
        await self.placeholders.forget(address.conversation, turn, intent, f"{INTENT}{name}")

    def _lock(self, conversation: str, turn: str, name: str) -> asyncio.Lock:
        return self._locks.setdefault((conversation, turn, name), asyncio.Lock())


@dataclass
class _Intent:
    """The intent to send a part, recorded just before the message is sent, in the order of the chat."""

    placeholders: Placeholders
    conversation: str
    turn: str
    name: str
    after: int
    value: str = ""
    tries: int = 0
    inherited: bool = False

    async def announce(self, ids: IdSpace) -> None:
        """Record the intent before the first try. An intent that is recorded already stays, with its older range."""
        self.tries += 1
        if self.tries == 1:
            low = max(ids.newest, self.after)
            mine = f"~{low}~{low + ids.sending}~{secrets.token_hex(4)}"
            self.value = await self.placeholders.record(self.conversation, self.turn, mine, self.name)
            self.inherited = self.value != mine

    @property
    def doubtful(self) -> bool:
        """Whether more than one message may have been sent."""
        return self.inherited or self.tries > 1

    async def forget(self) -> None:
        """Remove the intent: the send is confirmed, so there is no duplicate."""
        if self.value:
            await self.placeholders.forget(self.conversation, self.turn, self.value, self.name)


class Orphans:
    """Finds and deletes duplicate placeholders in the background. A successor continues the searches left over.

    Without it, about 10 % of placeholders are left behind when the front end is killed every 2 s and 5 % of Telegram's
    answers are lost; with it, about 1 %.
    """

    def __init__(self, chats: Chats, placeholders: Placeholders) -> None:
        self.chats, self.placeholders = chats, placeholders
        self.late_seconds = LATE_SECONDS
        self._searches = BackgroundTasks()
        self._searching: set[str] = set()
        self._slots = asyncio.Semaphore(SEARCHES_AT_ONCE)

    async def add(self, address: Address, turn: str, part: str, ids: OrphanRange) -> None:
        """Search for the duplicate; the search is recorded until it is done."""
        name = f"{address.conversation}/{turn}/{part}"
        mine = f"~{ids.low}~{ids.guess}~{ids.high}"
        value = await self.placeholders.record(_no_chat(address.front), ORPHANS, mine, name)
        self._start(address, name, value)

    async def resume(self, front: str, holding: Callable[[str], bool]) -> None:
        """Continue the searches that a predecessor left over in the conversations that this process is ``holding``."""
        for name, value in (await self.placeholders.of(_no_chat(front), ORPHANS)).items():
            address = Address.of(name.partition("/")[0])
            if address is not None and holding(address.conversation) and name not in self._searching:
                self._start(address, name, value)

    async def drain(self) -> None:
        """Wait until all searches are done."""
        await self._searches.drain()

    async def aclose(self) -> None:
        """Cancel all searches."""
        await self._searches.drain(0)

    async def remove(self, address: Address, ids: OrphanRange) -> int:
        """Delete the bot's messages in the range that neither this process nor any record knows; returns how many."""
        tried: list[int] = []
        for message_id in ids.ids():
            known = len(tried) == MAX_TRIES or self.chats.knows(address, message_id)
            if not known and not await self.placeholders.turn_of(_whole_chat(address), str(message_id)):
                tried.append(message_id)
        batches = [tried[first : first + BATCH] for first in range(0, len(tried), BATCH)]
        return sum([await self.chats.delete_own(address, batch) for batch in batches])

    async def protect(self, address: Address, turn: str, message_id: int, part: str) -> None:
        """Protect a message in a topic from searches in other topics: ids count per chat, records are per topic."""
        if address.topic is not None:
            await self.placeholders.record(_whole_chat(address), f"{address.topic}/{turn}", str(message_id), part)

    def _start(self, address: Address, name: str, value: str) -> None:
        self._searching.add(name)
        searching = self._searches.start(self._search(address, name, value), "rolecall telegram search")
        searching.add_done_callback(lambda task: self._searching.discard(name))

    async def _search(self, address: Address, name: str, value: str) -> None:
        low, guess, high = map(int, value.split("~")[1:])
        if not high:
            await asyncio.sleep(self.late_seconds)
            high = max(self.chats.newest_id(address), low) + LATE_IDS
        async with self._slots:
            removed = await self.remove(address, OrphanRange(low, guess, high))
            await self.placeholders.forget(_no_chat(address.front), ORPHANS, value, name)
        if removed:
            logger.info("%s: deleted %d duplicate placeholders", address.conversation, removed)


def _whole_chat(address: Address) -> str:
    """The conversation of a chat without its topics."""
    return Address(address.chat, None, address.front).conversation


def _no_chat(front: str) -> str:
    return Address(0, None, front).conversation
