"""The way out of a Telegram front end inside a test: questions get to the bus, answers to the local Telegram."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telegram import Bot

from rolecall import Role
from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.chat_messages import Placeholders
from rolecall.bus.outbox import Outbox, Whole
from rolecall.bus.turn import turns_in_flight
from rolecall.frontends.front import Front, Received
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.bot import open_bot
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.deliverer import Deliverer
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.placeholders import TurnMessages
from rolecall.frontends.telegram.progress import ProgressDisplay
from rolecall.settings import Settings
from tests.deployment import Deployment, deployed
from tests.telegram.api import TelegramApi, User
from tests.waiting import wait_until

THINKING = "Thinking…"


class Process:
    """The way out of one process. ``kill`` ends it wherever it is."""

    def __init__(self, app: Deployment, bot: Bot, *, edit_seconds: float, ring_seconds: float, drafts: bool) -> None:
        self.bus, self.holds = app.session.bus, True
        self.chats = Chats(bot, edit_seconds=edit_seconds)
        self.turn_messages = TurnMessages(self.chats, Placeholders(self.bus))
        self.turn_messages.orphans.late_seconds = 1.5
        self.outbox = Outbox(self.bus, app.session.server, "telegram", shares=Whole(lambda: self.holds))
        self.progress = ProgressDisplay(
            self.bus, app.runtime.wakeups, self.chats, self.turn_messages, holding=lambda conversation: self.holds,
            undelivered=self.outbox.holds_back, drafts=drafts,
        )  # fmt: skip
        self.deliverer = Deliverer(
            self.outbox, self.chats, self.progress, self.turn_messages, Blobs(self.bus), Access(self.bus),
            ring_seconds=ring_seconds,
        )  # fmt: skip
        self._delivering: asyncio.Task[None] | None = None

    def deliver(self) -> None:
        """Begin to deliver."""
        self._delivering = asyncio.create_task(self.outbox.run(self.deliverer.deliver))

    async def kill(self) -> None:
        """End it now: what is being sent is cut off."""
        tasks = [self._delivering] if self._delivering else []
        for task in tasks:
            task.cancel()
        parts = (self.progress, self.turn_messages)
        await asyncio.gather(*tasks, *(part.aclose() for part in parts), return_exceptions=True)


@dataclass
class Stage:
    """A deployment, a local Telegram, and the present process between them."""

    app: Deployment
    api: TelegramApi
    bot: Bot
    options: dict[str, Any]
    process: Process
    asked: dict[int, list[str]] = field(default_factory=dict)

    @property
    def bus(self) -> Bus:
        return self.app.session.bus

    async def say(self, user: User, text: str, *, chat: int | None = None, topic: int | None = None) -> Received:
        """``user`` writes, and the message is taken in."""
        message = user.write(text, chat=chat, topic=topic)
        address = Address(chat or user.id, topic)
        front = Front(self.bus, self.app.runtime.wakeups, "telegram", outbox=True)
        received = await front.receive(
            address.conversation, text, idempotency=f"tg:1:{address.chat}:{message.id}", principal=f"u:{user.id}"
        )
        assert not received.refused, received.reply
        await self.process.progress.show(received, address, message.id, user.language_code)
        self.asked.setdefault(address.chat, []).append(text)
        return received

    async def crash(self, *, deliver: bool = True) -> None:
        """Kill the present process and start another one."""
        await self.process.kill()
        self.process = Process(self.app, self.bot, **self.options)
        if deliver:
            await self.process.progress.resume()
            self.process.deliver()

    async def quiet(self, *, seconds: float = 20) -> None:
        """Return when all is delivered and cleared up."""

        async def done() -> bool:
            running = sum([await turns_in_flight(self.bus, shard) for shard in self.bus.shards])
            return not running and not await self.process.outbox.waiting()

        try:
            await wait_until(done, seconds=seconds)
        except AssertionError:
            last = (f"{call.method} {call.chat} {call.status} {call.fields}" for call in self.api.log[-15:])
            raise AssertionError("\n".join(last)) from None
        await self.process.turn_messages.orphans.drain()
        await wait_until(lambda: not self.process.progress.showing, what="turns are still shown")

    def texts(self, chat: int = 7) -> list[str]:
        """What the bot's messages in a chat say."""
        return [message.text for message in self.api.chat(chat).answers]


@asynccontextmanager
async def staged(
    directory: Path, roles: Sequence[Role], *, edit_seconds: float = 0.02, ring_seconds: float = 0,
    drafts: bool = False, deliver: bool = True, **settings: Any,
) -> AsyncIterator[Stage]:  # fmt: skip
    """``roles`` at work and reachable through a local Telegram."""
    options: dict[str, Any] = {"edit_seconds": edit_seconds, "ring_seconds": ring_seconds, "drafts": drafts}
    async with TelegramApi() as api, deployed(directory, roles, **settings) as app:
        bot = open_bot(Settings.model_validate({"telegram_bot_token": api.token, "telegram_api_url": api.url}))
        await bot.initialize()
        stage = Stage(app, api, bot, options, Process(app, bot, **options))
        if deliver:
            stage.process.deliver()
            await wait_until(lambda: not stage.process.outbox.holds_back("telegram:0"))
        try:
            yield stage
        finally:
            await stage.process.kill()
            await bot.shutdown()
