"""What belongs together: the pictures of an album, and the pieces a client made of a long text."""

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
"""How long a turn waits for more of its pieces."""
ALBUM_SECONDS = 2.0
"""The same for albums, whose pictures are fetched before they are taken in."""
APART_SECONDS = 2.0
"""The pieces of one text are sent at once; Telegram's clock shows whole seconds."""
REMEMBERED = 1000


class Group(NamedTuple):
    """Messages with one ``name`` become one turn, which sleeps ``hold`` seconds for them; ``further`` ones count as the
    same message to whoever counts messages."""

    name: str = ""
    hold: float = 0.0
    further: bool = False


@dataclass(frozen=True, slots=True)
class Long:
    """The last piece of a long text: when it was sent, and the name of its group."""

    date: float
    group: str


class Pieces:
    """Remembers, for a moment and in this process alone, what may go on. The names of groups come from the messages, so
    that an update that comes again, even to another process, is put where it was."""

    def __init__(self) -> None:
        self._long: OrderedDict[tuple[int, int], Long] = OrderedDict()
        self._albums: OrderedDict[str, None] = OrderedDict()

    def expected(self, message: Message) -> bool:
        """Whether ``message`` goes on with what was for the bot, though it may not look so itself."""
        if message.media_group_id:
            return message.media_group_id in self._albums
        person = message.from_user
        return person is not None and self._before(message.chat.id, person.id, message.date.timestamp()) is not None

    def group(self, incoming: Incoming) -> Group:
        """Where ``incoming`` belongs; no name when it stands alone."""
        if incoming.command or incoming.version:
            return Group()
        if incoming.album:
            further = incoming.album in self._albums
            self._albums[incoming.album] = None
            _forget_oldest(self._albums)
            return Group(f"album:{incoming.album}", ALBUM_SECONDS, further)
        person = (incoming.address.chat, incoming.user)
        before = self._before(*person, incoming.date)
        self._long.pop(person, None)
        name = before.group if before else f"long:{incoming.message_id}" if incoming.long else ""
        if incoming.long:
            self._long[person] = Long(incoming.date, name)
            _forget_oldest(self._long)
        return Group(name, HOLD_SECONDS if incoming.long else 0.0, before is not None)

    def _before(self, chat: int, user: int, date: float) -> Long | None:
        found = self._long.get((chat, user))
        return found if found and abs(date - found.date) <= APART_SECONDS else None


def _forget_oldest(memory: OrderedDict[tuple[int, int], Long] | OrderedDict[str, None]) -> None:
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)


class Lane:
    """A place in a line. ``turn`` returns when all that entered before have left."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before

    async def turn(self) -> None:
        """Wait for those before. Whoever waits may do what needs no order meanwhile."""
        if self._before is not None:
            await asyncio.shield(self._before)


class Lanes:
    """One line for each key; a key with nobody in line takes no memory."""

    def __init__(self) -> None:
        self._last: dict[Hashable, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._last)

    @contextmanager
    def enter(self, key: Hashable) -> Iterator[Lane]:
        """Stand in line from here to the end of the block. Whoever leaves early lets nobody pass those before."""
        before, mine = self._last.get(key), asyncio.get_running_loop().create_future()
        self._last[key] = mine

        def leave(_: object = None) -> None:
            if self._last.get(key) is mine:
                del self._last[key]
            mine.set_result(None)

        try:
            yield Lane(before)
        finally:
            if before is None or before.done():
                leave()
            else:
                before.add_done_callback(leave)
