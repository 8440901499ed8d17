"""Messages that are remembered before anything final is in them, so that an answer comes once.

Telegram has no key that makes a send happen once, and cannot be asked what became of one whose answer got lost. So what
is sent says nothing yet, its id is recorded, and only edits, which can be repeated, put the answer in. Where it breaks:

- before the send, or the send was refused: there is an intent and no message; the next one to look makes it.
- sent, and the answer or this process lost: the same, but a message too many stands in the chat. The intent says behind
  which id it must be; it is looked for there and removed (doubts.py).
- sent and recorded, the intent left behind: the message stands; the next one to look finds nothing to remove.
- two at once make the same part: the first that is recorded stands, the other removes its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

from rolecall.background import BackgroundTasks
from rolecall.bus.outbox import WHOLE, Placeholders
from rolecall.frontends.telegram.chats import Chats, Gone, Keyboard
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.outlet import Box

logger = logging.getLogger(__name__)
INTENT = "?"
"""Before a part's name: the intent to send it, ``~<an id it will be behind>~<its likeliest id>~<a random mark>``."""
ABOUT = "about"
"""A part that is none: ``~<language>~<ms the turn was received>``."""
DOUBTS = "doubts"
"""Stands for a turn, in the conversation of no chat: all doubts of a bot, ``<conversation>/<turn>/<part>`` each."""
AT_ONCE = 4
LOOKS = 100
TRIES = 30
AT_A_TIME = 6
"""So many ids are looked at, so many of them tried at Telegram, and so many before others may send. Chats with people
share their ids, so that between a message and what was last heard of there are those of others."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is recorded of a turn: the ids of its messages by part, where those are whose sending is in doubt, the
    language of its user, and when it was received (ms of the server, 0 unknown)."""

    messages: dict[str, int] = field(default_factory=dict)
    intents: dict[str, Doubt] = field(default_factory=dict)
    language: str | None = None
    at: int = 0


class Recorded:
    """Makes and remembers the messages that show turns."""

    def __init__(self, chats: Chats, placeholders: Placeholders) -> None:
        self.chats = chats
        self.placeholders = placeholders
        self._making: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()
        self.doubts = Doubts(chats, placeholders)

    async def of(self, conversation: str, turn: str) -> Shown:
        """What is recorded of ``turn``."""
        parts = await self.placeholders.of(conversation, turn)
        language, _, at = parts.pop(ABOUT, "~~").removeprefix("~").partition("~")
        intents = {name[1:]: _doubt(value) for name, value in parts.items() if name.startswith(INTENT)}
        messages = {name: int(value) for name, value in parts.items() if value.isdecimal()}
        if (address := Address.of(conversation)) is not None:
            self.chats.learn(address, messages.values(), max((one.low for one in intents.values()), default=0))
        return Shown(messages, intents, language or None, int(at or 0))

    async def about(self, conversation: str, turn: str, language: str | None, at: int) -> None:
        """Remember the language of the turn's user and when it was received."""
        await self.placeholders.record(conversation, turn, f"~{language or ''}~{at}", ABOUT)

    async def make(
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
    ) -> int | Gone:
        """The message that shows the part ``name`` of ``turn``: the one that stands, else a new one that reads as
        ``part``. ``after`` is the id of a message that is older, such as the user's; 0 for none known."""
        conversation = address.conversation
        async with self._alone(conversation, turn, name):
            standing = (await self.of(conversation, turn)).messages.get(name)
            if standing is not None:
                return standing
            intent = _Intent(self.placeholders, conversation, turn, f"{INTENT}{name}", after)
            sent = await self.chats.send(
                address, part, keyboard=keyboard, ring=ring, reply_to=reply_to, announce=intent.announce
            )
            if isinstance(sent, Gone):
                await intent.forget()
                return sent
            return await self._record(address, turn, name, sent, intent)

    async def forget(self, address: Address, turn: str, message_id: int, name: str = WHOLE) -> None:
        """Forget a message that is gone, if it is still the one that shows the part."""
        await self.placeholders.forget(address.conversation, turn, str(message_id), name)

    async def clear(self, address: Address, turn: str, shown: Shown) -> None:
        """Have what the intents in ``shown`` may have left looked for, but for parts whose message is not there."""
        for name in shown.intents:
            async with self._alone(address.conversation, turn, name):
                parts = await self.placeholders.of(address.conversation, turn)
                intent, message = parts.get(f"{INTENT}{name}", ""), parts.get(name, "")
                if intent and message:
                    await self._doubt(address, turn, name, intent, int(message))

    async def aclose(self) -> None:
        """Look no longer for what is in doubt."""
        await self.doubts.aclose()

    async def _record(self, address: Address, turn: str, name: str, sent: int, intent: _Intent) -> int:
        await self.doubts.keep(address, turn, sent, name)
        stands = int(await self.placeholders.record(address.conversation, turn, str(sent), name))
        if stands != sent:
            await self.chats.delete(address, sent)
        if intent.doubtful and sent > _doubt(intent.value).low + 1:
            await self._doubt(address, turn, name, intent.value, sent)
        else:
            await intent.forget()
        return stands

    async def _doubt(self, address: Address, turn: str, name: str, intent: str, message_id: int) -> None:
        """Turn an intent, whose part is there, into a doubt whether that is all."""
        await self.doubts.add(address, turn, name, replace(_doubt(intent), high=message_id))
        await self.placeholders.forget(address.conversation, turn, intent, f"{INTENT}{name}")

    def _alone(self, conversation: str, turn: str, name: str) -> asyncio.Lock:
        """The lock of a part, which lives as long as someone holds it."""
        return self._making.setdefault((conversation, turn, name), asyncio.Lock())


@dataclass
class _Intent:
    """The intent to send a part, written down just before it is sent, in the order of its chat."""

    placeholders: Placeholders
    conversation: str
    turn: str
    name: str
    after: int
    value: str = ""
    tries: int = 0
    inherited: bool = False

    async def announce(self, box: Box) -> None:
        """Write it down before the first try. One that stands already stays: it is older, and so is what it says."""
        self.tries += 1
        if self.tries == 1:
            low = max(box.newest, self.after)
            mine = f"~{low}~{low + box.sending}~{secrets.token_hex(4)}"
            self.value = await self.placeholders.record(self.conversation, self.turn, mine, self.name)
            self.inherited = self.value != mine

    @property
    def doubtful(self) -> bool:
        """Whether there may be more than one message."""
        return self.inherited or self.tries > 1

    async def forget(self) -> None:
        """It is done, and there is nothing left to find."""
        if self.value:
            await self.placeholders.forget(self.conversation, self.turn, self.value, self.name)


def _doubt(value: str) -> Doubt:
    _, low, guess, _ = value.split("~")
    return Doubt(int(low), int(guess))


@dataclass(frozen=True, slots=True)
class Doubt:
    """Where a message is, if it is: behind the id ``low`` (0 for unknown), before ``high``, likely at ``guess``."""

    low: int
    guess: int
    high: int = 0

    def ids(self) -> Sequence[int]:
        """The ids that it may have, the likeliest first."""
        first = self.low + 1 if self.low else max(1, self.high - LOOKS)
        guess = self.guess if self.low else self.high
        return sorted(range(first, min(self.high, first + LOOKS)), key=lambda number: abs(number - guess))


class Doubts:
    """Looks for messages, beside everything else. What it has not found when it ends, its successor looks for."""

    def __init__(self, chats: Chats, placeholders: Placeholders) -> None:
        self.chats, self.placeholders = chats, placeholders
        self._looking = BackgroundTasks()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def add(self, address: Address, turn: str, part: str, doubt: Doubt) -> None:
        """Look for the message, and until that is done remember it."""
        name = f"{address.conversation}/{turn}/{part}"
        mine = f"~{doubt.low}~{doubt.guess}~{doubt.high}"
        value = await self.placeholders.record(_nowhere(address.front), DOUBTS, mine, name)
        self._look(address, name, value)

    async def resume(self, front: str) -> None:
        """Look for what a predecessor has not found."""
        for name, value in (await self.placeholders.of(_nowhere(front), DOUBTS)).items():
            address = Address.of(name.partition("/")[0])
            if address is not None:
                self._look(address, name, value)

    async def settle(self) -> None:
        """Return when nothing is looked for."""
        await self._looking.drain()

    async def aclose(self) -> None:
        """Stop looking."""
        await self._looking.drain(0)

    async def sweep(self, address: Address, doubt: Doubt) -> int:
        """Remove the messages of ours in ``doubt`` that nobody knows of: neither this process nor what is recorded.
        Returns how many."""
        tried: list[int] = []
        for message_id in doubt.ids():
            known = len(tried) == TRIES or self.chats.knows(address, message_id)
            if not known and not await self.placeholders.turn_of(_whole(address), str(message_id)):
                tried.append(message_id)
        batches = [tried[first : first + AT_A_TIME] for first in range(0, len(tried), AT_A_TIME)]
        return sum([await self.chats.remove_ours(address, batch) for batch in batches])

    async def keep(self, address: Address, turn: str, message_id: int, part: str) -> None:
        """Let no sweep take a message in a topic: ids are counted over the whole chat."""
        if address.topic is not None:
            await self.placeholders.record(_whole(address), f"{address.topic}/{turn}", str(message_id), part)

    def _look(self, address: Address, name: str, value: str) -> None:
        self._looking.start(self._looked(address, name, value), "rolecall telegram doubt")

    async def _looked(self, address: Address, name: str, value: str) -> None:
        low, guess, high = map(int, value.split("~")[1:])
        async with self._room:
            removed = await self.sweep(address, Doubt(low, guess, high))
            await self.placeholders.forget(_nowhere(address.front), DOUBTS, value, name)
        if removed:
            logger.info("%s: removed %d placeholders whose sending was in doubt", address.conversation, removed)


def _whole(address: Address) -> str:
    """The conversation of a whole chat, whatever the topic."""
    return Address(address.chat, None, address.front).conversation


def _nowhere(front: str) -> str:
    return Address(0, None, front).conversation
