"""Grouping of messages: the order of a chat, the pictures of an album, and the pieces that a client cut a text into."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from telegram import Message

from rolecall.frontends.telegram.message import Incoming

HOLD_SECONDS = 1.2
"""How long a turn waits for more pieces of its text."""
ALBUM_SECONDS = 2.0
"""How long a turn waits for more pictures of its album; they are downloaded before they are admitted."""
APART_SECONDS = 2.0
"""Clients send the pieces of one text at once; Telegram's clock shows whole seconds."""
REMEMBERED = 1000


class MessageGroup(NamedTuple):
    """The group of a message. Messages with the same ``name`` become one turn, which waits ``hold`` seconds for more of
    them; a ``further`` message does not count towards the rate limit."""

    name: str = ""
    hold: float = 0.0
    further: bool = False


@dataclass(frozen=True, slots=True)
class LongText:
    """The last piece of a long text: when it was sent, and the name of its group."""

    date: float
    group: str


class MessageGroups:
    """Recognises messages that belong together.

    What it remembers is short-lived and local to the process. The names of groups are derived from the messages, so an
    update that arrives again, even in another process, gets the same group.
    """

    def __init__(self) -> None:
        self._long: OrderedDict[tuple[int, int], LongText] = OrderedDict()
        self._albums: OrderedDict[str, None] = OrderedDict()

    def continues(self, message: Message) -> bool:
        """Whether ``message`` continues an album or a text that was addressed to the bot."""
        if message.media_group_id:
            return message.media_group_id in self._albums
        person = message.from_user
        return person is not None and self._before(message.chat.id, person.id, message.date.timestamp()) is not None

    def group(self, incoming: Incoming) -> MessageGroup:
        """The group of ``incoming``; without a name when it stands on its own."""
        if incoming.command or incoming.version:
            return MessageGroup()
        if incoming.album:
            further = incoming.album in self._albums
            self._albums[incoming.album] = None
            _forget_oldest(self._albums)
            return MessageGroup(f"album:{incoming.album}", ALBUM_SECONDS, further)
        person = (incoming.address.chat, incoming.user)
        before = self._before(*person, incoming.date)
        self._long.pop(person, None)
        name = before.group if before else f"long:{incoming.message_id}" if incoming.long else ""
        if incoming.long:
            self._long[person] = LongText(incoming.date, name)
            _forget_oldest(self._long)
        return MessageGroup(name, HOLD_SECONDS if incoming.long else 0.0, before is not None)

    def _before(self, chat: int, user: int, date: float) -> LongText | None:
        found = self._long.get((chat, user))
        return found if found and abs(date - found.date) <= APART_SECONDS else None


def _forget_oldest(memory: OrderedDict[tuple[int, int], LongText] | OrderedDict[str, None]) -> None:
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)


class Ticket:
    """A place in a queue."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before

    async def wait(self) -> None:
        """Wait for all earlier tickets. Work that does not depend on the order may be done first."""
        if self._before is not None:
            await asyncio.shield(self._before)


class ChatQueue:
    """A first-in, first-out queue per key, such as a chat. A key without tickets takes no memory."""

    def __init__(self) -> None:
        self._last: dict[Hashable, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._last)

    @contextmanager
    def enter(self, key: Hashable) -> Iterator[Ticket]:
        """Queue up until the block is left. Leaving early does not let later tickets overtake earlier ones."""
        before, mine = self._last.get(key), asyncio.get_running_loop().create_future()
        self._last[key] = mine

        def leave(_: object = None) -> None:
            if self._last.get(key) is mine:
                del self._last[key]
            mine.set_result(None)

        try:
            yield Ticket(before)
        finally:
            if before is None or before.done():
                leave()
            else:
                before.add_done_callback(leave)
