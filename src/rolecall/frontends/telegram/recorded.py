"""Messages that are remembered before anything final is in them, so that an answer comes once.

Telegram has no key that makes a send happen once, and cannot be asked what became of one whose answer got lost. So what
is sent says nothing yet, its id is recorded, and only edits, which can be repeated, put the answer in. Where it breaks:

- before the send, or the send was refused: there is an intent and no message; the next one to look makes it.
- sent, and the answer or this process lost: the same, but a message too many stands in the chat. The intent says behind
  which id it must be; it is looked for there and removed (sweep.py).
- sent and recorded, the intent left behind: the message stands; the next one to look finds nothing to remove.
- two at once make the same part: the first that is recorded stands, the other removes its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from redis.exceptions import RedisError

from rolecall.errors import ServerUnavailable
from rolecall.frontends.telegram.address import Address
from rolecall.frontends.telegram.chats import Chats, Gone, Keyboard
from rolecall.frontends.telegram.outlet import Box
from rolecall.frontends.telegram.sweep import Doubt, sweep
from rolecall.frontends.telegram_text import Part
from rolecall.placeholders import WHOLE, Placeholders

logger = logging.getLogger(__name__)
INTENT = "?"
"""Before a part's name: the intent to send it, ``~<an id it will be behind>~<its likeliest id>~<a random mark>``."""
ABOUT = "about"
"""A part that is none: ``~<language>~<ms the turn was received>``."""


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
        self._sweeping: set[asyncio.Task[None]] = set()

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
        part: Part,
        *,
        name: str = WHOLE,
        after: int = 0,
        keyboard: Keyboard | None = None,
        ring: bool = False,
        reply_to: int | None = None,
        doubts: dict[str, Doubt] | None = None,
    ) -> int | Gone:
        """The message that shows the part ``name`` of ``turn``: the one that stands, else a new one that reads as
        ``part``. ``after`` is the id of a message that is older, such as the user's; 0 for none known. Should there be
        one too many it is looked for at once, or, with ``doubts``, that is left to whoever clears these."""
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
            return await self._record(address, turn, name, sent, intent, doubts)

    async def forget(self, address: Address, turn: str, message_id: int, name: str = WHOLE) -> None:
        """Forget a message that is gone, if it is still the one that shows the part."""
        await self.placeholders.forget(address.conversation, turn, str(message_id), name)

    def clear(self, address: Address, turn: str, shown: Shown) -> None:
        """Begin to remove what the intents in ``shown`` may have left in the chat, and the intents whose message is
        there. No answer waits for it."""
        if shown.intents:
            self._in_passing(self._clear(address, turn, shown))

    async def _clear(self, address: Address, turn: str, shown: Shown) -> None:
        for name, doubt in shown.intents.items():
            async with self._alone(address.conversation, turn, name):
                now = await self.of(address.conversation, turn)
                high = now.messages.get(name)
                if high is not None and name in now.intents:
                    await self._sweep(address, doubt, high)
                    await self._forget_intent(address.conversation, turn, name)

    async def settle(self) -> None:
        """Return when no clearing up is going on."""
        while self._sweeping:
            await asyncio.wait(set(self._sweeping))

    async def aclose(self) -> None:
        """End the clearing up that goes on; what is left of it, is known by its intent."""
        for task in self._sweeping:
            task.cancel()
        await asyncio.gather(*self._sweeping, return_exceptions=True)

    async def _record(
        self, address: Address, turn: str, name: str, sent: int, intent: _Intent, doubts: dict[str, Doubt] | None
    ) -> int:
        conversation = address.conversation
        if address.topic is not None:  # ids are the chat's, conversations are topics: so that no sweep takes it
            whole = Address(address.chat, None, address.front).conversation
            await self.placeholders.record(whole, f"{address.topic}/{turn}", str(sent), name)
        stands = int(await self.placeholders.record(conversation, turn, str(sent), name))
        if stands != sent:
            await self.chats.delete(address, sent)
        if not intent.doubtful or sent == intent.doubt.low + 1:
            await intent.forget()
        elif doubts is None:
            self._in_passing(self._clear_up(address, sent, intent))
        else:
            doubts[name] = intent.doubt
        return stands

    def _in_passing(self, sweeping: Coroutine[None, None, None]) -> None:
        async def swept() -> None:
            with suppress(RedisError, OSError, ServerUnavailable):
                await sweeping

        task = asyncio.create_task(swept(), name="rolecall telegram sweep")
        self._sweeping.add(task)
        task.add_done_callback(self._sweeping.discard)

    async def _clear_up(self, address: Address, sent: int, intent: _Intent) -> None:
        await self._sweep(address, intent.doubt, sent)
        await intent.forget()

    async def _sweep(self, address: Address, doubt: Doubt, high: int) -> None:
        whole = Address(address.chat, None, address.front).conversation

        async def spared(message_id: int) -> bool:
            return bool(await self.placeholders.turn_of(whole, str(message_id)))

        removed = await sweep(self.chats, address, doubt, high, spared)
        if removed:
            logger.info("%s: removed %d placeholders whose sending was in doubt", address.conversation, removed)

    async def _forget_intent(self, conversation: str, turn: str, name: str) -> None:
        parts = await self.placeholders.of(conversation, turn)
        if value := parts.get(f"{INTENT}{name}"):
            await self.placeholders.forget(conversation, turn, value, f"{INTENT}{name}")

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
    def doubt(self) -> Doubt:
        """Where the message is."""
        return _doubt(self.value)

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
