"""The way in of the Telegram front end in a test: everything but the deliverer, on the local Telegram."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from telegram import Update

from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.chat_messages import Placeholders
from rolecall.bus.outbox import Outbox, OutboxEntry
from rolecall.bus.turn import Records, snapshot
from rolecall.bus.wakeups import Wakeups
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.admins import Admins
from rolecall.frontends.telegram.admitter import Admitter
from rolecall.frontends.telegram.bot import QuietBot, open_bot
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.deliverer import Deliverer
from rolecall.frontends.telegram.grouping import MessageGroups
from rolecall.frontends.telegram.media import Media
from rolecall.frontends.telegram.menu import Commands
from rolecall.frontends.telegram.pickers import Choices
from rolecall.frontends.telegram.placeholders import TurnMessages
from rolecall.frontends.telegram.progress import ProgressDisplay
from rolecall.frontends.telegram.receiver import Receiver
from rolecall.frontends.telegram.updates import Poller
from rolecall.redis.server import RedisServer
from tests.telegram.api import TelegramApi
from tests.waiting import wait_until


@dataclass
class WayIn:
    """What one process has of it."""

    bot: QuietBot
    bus: Bus
    receiver: Receiver

    async def turns(self, conversation: str) -> int:
        """How many ordered turns the conversation has had, those that wait or run included."""
        found = await self.bus.server.fetch("HGET", self.bus.shard(conversation).conversation(conversation), "seq")
        return int(found or 0)

    async def ended(self, conversation: str, turn: int | str) -> dict[str, Any]:
        """The final event of a turn, once there is one."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            final = (await snapshot(self.bus, conversation, str(turn))).final
            found.extend([final] if final else [])
            return bool(final)

        await wait_until(there, what=f"the end of {conversation}/{turn}")
        return found[0]

    async def answer(self, conversation: str, turn: int | str) -> str:
        """The text a turn ended with."""
        return str((await self.ended(conversation, turn))["text"])

    @asynccontextmanager
    async def polling(self, poller: Poller | None = None) -> AsyncIterator[Poller]:
        """Poll meanwhile."""
        poller = poller or Poller(self.bot, self.receiver.receive)
        task = asyncio.create_task(poller.run(), name="poller of a test")
        try:
            yield poller
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()


@asynccontextmanager
async def way_in(
    api: TelegramApi, bus: Bus, wakeups: Wakeups, *, keywords: tuple[str, ...] = (), comment_seconds: float = 0
) -> AsyncIterator[WayIn]:
    """One process's way in to ``bus``, with its bot connected. A question waits ``comment_seconds`` for what is
    forwarded with it."""
    bot = open_bot(bus.settings)
    await bot.initialize()
    front, blobs, placeholders = (
        Front(bus, wakeups, "telegram", True),
        Blobs(bus),
        Placeholders(bus),
    )
    chats, access, choices = Chats(bot, edit_seconds=0.05), Access(bus), Choices()
    turn_messages = TurnMessages(chats, placeholders)
    live = ProgressDisplay(bus, wakeups, chats, turn_messages)
    buttons = Buttons(bot, front, access, choices, placeholders, chats, live)
    commands = Commands(bot, bus, access, choices, admins=Admins(bus, access), rights=buttons.rights)
    media = Media(bot, blobs, voice=bool(bus.settings.voice_model), characters=bus.settings.document_chars)
    groups = MessageGroups(comment_seconds=comment_seconds)
    admitter = Admitter(front, media, access, commands, live, groups)
    receiver = Receiver(front, access, commands, buttons, chats, groups, admitter, keywords)
    outbox = Outbox(bus, cast(RedisServer, bus.server), "telegram")
    deliverer = Deliverer(outbox, chats, live, turn_messages, blobs, access)

    async def deliver(entry: OutboxEntry) -> bool:
        """Deliver the replies of the front end alone."""
        if entry.kind == "reply":
            return await deliverer.deliver(entry)
        return await outbox.delivered(entry, Records("telegram"))

    delivering = asyncio.create_task(outbox.run(deliver), name="outbox of a test")
    try:
        yield WayIn(bot, bus, receiver)
    finally:
        delivering.cancel()
        await asyncio.wait([delivering])
        for part in (admitter, live, buttons, turn_messages):
            await part.aclose()
        await bot.shutdown()


def updates(api: TelegramApi, bot: QuietBot) -> list[Update]:
    """The updates that wait at the local Telegram."""
    return [Update.de_json({"update_id": n, kind: body}, bot) for n, kind, body in api.world.updates.waiting]
