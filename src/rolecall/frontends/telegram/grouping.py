"""Grouping of messages: the order of a chat, the pictures of an album, the pieces that a client cut a text into, and
what was forwarded with a comment or in one go."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from telegram import Message, Update

from rolecall.bus.admission import hold_longer
from rolecall.bus.bus import Bus
from rolecall.bus.commands import COMMANDS
from rolecall.bus.maintenance import promote
from rolecall.frontends.front import Received
from rolecall.frontends.telegram.menu import TELEGRAM_COMMANDS
from rolecall.frontends.telegram.message import Incoming, is_long, sender_of

HOLD_SECONDS = 1.2
"""How long a turn waits for more pieces of its text."""
ALBUM_SECONDS = 2.0
"""How long a turn waits for more pictures of its album, and for longer while some are being downloaded."""
COMMENT_SECONDS = 0.25
"""How long a turn waits for what is forwarded with it: clients send the comment first and the forwards right after."""
APART_SECONDS = 2.0
"""Clients send the pieces of one text at once; Telegram's clock shows whole seconds."""
HELD_CHECKS = 4
"""How often within its hold a held turn is looked at."""
REMEMBERED = 1000
ANSWERED_HERE = TELEGRAM_COMMANDS | {command.name for command in COMMANDS}
"""Commands without files or further pieces; those of roles may have both."""
MOST_PASSED = 15
"""A turn has no room for more pieces of a text."""


class MessageGroup(NamedTuple):
    """The group of a message. Messages with the same ``name`` become one turn, which waits ``hold`` seconds for more of
    them, but only ``patience`` seconds if there is one, and longer while some are on their way; a ``further`` message
    does not count towards the rate limit. Without a turn, ``command`` is what answers them, one by one."""

    name: str = ""
    hold: float = 0.0
    further: bool = False
    patience: float = 0.0
    command: str = ""


@dataclass(frozen=True, slots=True)
class OpenGroup:
    """The last message of a group that may have more: when it was sent, the group's name, whether any message
    continues it or only a forwarded one, and the command that its text is for."""

    date: float
    group: str
    long: bool
    command: str = ""


class MessageGroups:
    """Recognises messages that belong together.

    What it remembers is short-lived and local to the process. The names of groups are derived from the messages, so an
    update that arrives again, even in another process, gets the same group.
    """

    def __init__(self, *, comment_seconds: float = COMMENT_SECONDS) -> None:
        self.comment_seconds = comment_seconds
        self._open: OrderedDict[tuple[int, int], OpenGroup] = OrderedDict()
        self._albums: OrderedDict[str, str] = OrderedDict()
        self._full: OrderedDict[str, None] = OrderedDict()
        self._passed: OrderedDict[Hashable, list[Update]] = OrderedDict()
        self._arriving: Counter[str] = Counter()
        self._heads: OrderedDict[tuple[int, int], str] = OrderedDict()
        self._members: OrderedDict[str, list[str]] = OrderedDict()

    def continues(self, message: Message) -> bool:
        """Whether ``message`` continues an album, a text or a comment that was addressed to the bot. What addressed it
        continues nothing, also when it is edited."""
        if (message.chat.id, message.message_id) in self._heads:
            return False
        if message.media_group_id in self._albums:
            return True
        sender, forwarded = sender_of(message), message.forward_origin is not None
        date = message.date.timestamp()
        return sender is not None and self._before(message.chat.id, sender.id, date, forwarded) is not None

    def pass_over(self, update: Update) -> None:
        """Remember a part of an album or a text that is not addressed to the bot: a later part may be."""
        message = update.message
        if message is None or not (message.media_group_id or is_long(message)):
            return
        before = self.passed_over(message)[-MOST_PASSED:]
        self._passed[_whole(message)] = [*before, update]
        _forget_oldest(self._passed)

    def passed_over(self, message: Message) -> list[Update]:
        """The parts that ``message`` continues and that were passed over before it; only once."""
        found = self._passed.pop(_whole(message), [])
        last = found[-1].message if found else None
        return found if last and abs((message.date - last.date).total_seconds()) <= APART_SECONDS else []

    def withdrawn_with(self, message: Message, key: str) -> list[str]:
        """The idempotency keys of the messages that ask nothing when ``message``, whose key is ``key``, no longer
        addresses the bot: with it all of its group, unless another one of them does."""
        name = self._heads.get((message.chat.id, message.message_id), "")
        heads = list(self._heads.values()).count(name) if name else 0
        return [*self._members.get(name, ())] if heads == 1 else [key]

    def group(self, incoming: Incoming, *, head: bool = False) -> MessageGroup:
        """The group of ``incoming``; without a name when it stands on its own. ``head`` says that it addresses the
        bot."""
        own = incoming.command in TELEGRAM_COMMANDS
        if incoming.version or (incoming.command in ANSWERED_HERE and not (own and incoming.long)):
            return MessageGroup()
        person = (incoming.address.chat, incoming.user)
        before = self._before(*person, incoming.date, incoming.forwarded)
        apart = incoming.forwarded or incoming.files
        command = incoming.command if own else before.command if before and not apart else ""
        joined = self._albums.get(incoming.album, before.group if before else "")
        if incoming.album:
            self._albums[incoming.album] = name = joined or f"album:{incoming.album}"
            _forget_oldest(self._albums)
            hold, patience = ALBUM_SECONDS, 0.0
        elif incoming.long:
            name, hold, patience = joined or f"long:{incoming.message_id}", HOLD_SECONDS, 0.0
        elif self._may_be_comment(incoming):
            name, hold, patience = joined or f"with:{incoming.message_id}", ALBUM_SECONDS, self.comment_seconds
        else:
            name, hold, patience = joined, 0.0, 0.0
        if name:
            self._join(name, incoming, head=head and not incoming.address.private)
        self._open.pop(person, None)
        if hold:
            self._open[person] = OpenGroup(incoming.date, name, incoming.long, command)
            _forget_oldest(self._open)
        return MessageGroup(name, hold, bool(joined), patience, command)

    def _join(self, name: str, incoming: Incoming, *, head: bool) -> None:
        keys = self._members.setdefault(name, [])
        if incoming.idempotency not in keys:
            keys.append(incoming.idempotency)
        if head:
            self._heads[incoming.address.chat, incoming.message_id] = name
        _forget_oldest(self._members)
        _forget_oldest(self._heads)

    @contextmanager
    def arriving(self, group: MessageGroup) -> Iterator[None]:
        """While a message of ``group`` is on its way, its turn waits for it."""
        self._arriving[group.name] += 1
        try:
            yield
        finally:
            self._arriving[group.name] -= 1
            if not self._arriving[group.name]:
                del self._arriving[group.name]

    async def release(self, bus: Bus, received: Received, group: MessageGroup) -> None:
        """Hold the turn of ``group`` for as long as more messages of it are on their way, such as files that are being
        downloaded; where the group has a patience, release it once none is."""
        conversation, turn, quiet = received.conversation, received.turn, time.monotonic()
        while time.monotonic() < quiet + group.hold:
            await asyncio.sleep(group.patience or group.hold / HELD_CHECKS)
            if group.name in self._arriving:
                quiet = time.monotonic()
                await hold_longer(bus, conversation, turn, group.hold)
            elif group.patience:
                verdict = await promote(bus, bus.shard(conversation), conversation, held=turn)
                if verdict == "OK" or received.outcome == "RUN":
                    return

    def overflow(self, group: MessageGroup) -> None:
        """A message of ``group`` was one too many, for its turn or for its user's limit."""
        if group.name:
            self._full[group.name] = None
            _forget_oldest(self._full)

    def is_full(self, group: MessageGroup) -> bool:
        """Whether the turn of ``group`` lacks a message, so that later ones would leave a gap."""
        return group.name in self._full

    def _may_be_comment(self, incoming: Incoming) -> bool:
        apart = incoming.files or incoming.quoted or incoming.command
        return self.comment_seconds > 0 and (incoming.forwarded or not apart)

    def _before(self, chat: int, user: int, date: float, forwarded: bool) -> OpenGroup | None:
        found = self._open.get((chat, user))
        return found if found and abs(date - found.date) <= APART_SECONDS and (found.long or forwarded) else None


def _whole(message: Message) -> Hashable:
    """What ``message`` is a part of: its album, or what its sender writes."""
    sender = sender_of(message)
    return message.media_group_id or (message.chat.id, sender.id if sender else 0)


def _forget_oldest(memory: OrderedDict[Any, Any]) -> None:
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

    async def settled(self, key: Hashable) -> None:
        """Wait until no ticket of ``key`` is left."""
        while last := self._last.get(key):
            await asyncio.shield(last)

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
