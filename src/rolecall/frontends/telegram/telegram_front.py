"""The Telegram front end: of all processes of a bot, the leader receives updates and delivers; the others stand by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from telegram.error import Forbidden, InvalidToken, TelegramError

from rolecall.background import cancel_and_wait
from rolecall.bus.blobs import Blobs
from rolecall.bus.events import Wakeups
from rolecall.bus.members import note_bot, served_bot
from rolecall.bus.outbox import Outbox, OutboxEntry, Placeholders
from rolecall.errors import ConfigError, ServerError, ServerRefused
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.admins import Admins
from rolecall.frontends.telegram.bot import QuietBot, explain
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.deliverer import Deliverer
from rolecall.frontends.telegram.media import Media
from rolecall.frontends.telegram.menu import Commands
from rolecall.frontends.telegram.pickers import Choices
from rolecall.frontends.telegram.placeholders import TurnMessages
from rolecall.frontends.telegram.progress import ProgressDisplay
from rolecall.frontends.telegram.receiver import Receiver
from rolecall.frontends.telegram.updates import WATCHDOG_SECONDS, Updates
from rolecall.session import Leader, Session

logger = logging.getLogger(__name__)
WEBHOOK_PATH = "/telegram/webhook"
LONGEST_PAUSE = 30.0
STAND_BY_SECONDS = 2.0
"""How long an election may take before operators are told that another process leads."""
DRAIN_SECONDS = 5.0
PRIVACY = "; in groups it sees commands, mentions and replies to it alone (/setprivacy at @BotFather)"
POLL_SECONDS = 0.05


class TelegramFront:
    """The front end of ``bot``, made by ``open_bot``. Each bot has its own ``name``. ``tell`` receives lines for
    operators, including the link that makes the first admin, but never the token."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, tell: Callable[[str], None],
        *, name: str = "telegram", watchdog_seconds: float = WATCHDOG_SECONDS,
    ) -> None:  # fmt: skip
        self.bot, self.session, self.wakeups, self.watchdog_seconds = bot, session, wakeups, watchdog_seconds
        self.leader = session.leader(name)
        self.serving: Service | None = None
        """Set while this process leads."""
        self._tell = tell
        self._last_line = ""

    async def run(self) -> None:
        """Serve until cancelled, or until Telegram rejects the token. Raises ConfigError for an invalid webhook."""
        try:
            if await self._connect():
                await self._serve()
        except (InvalidToken, Forbidden) as error:
            self.tell(explain(error))
        finally:
            await self.bot.shutdown()

    @property
    def name(self) -> str:
        """The name of the front end; each bot has its own."""
        return self.leader.name

    def route(self) -> Route:
        """The webhook as a route of another ASGI application, at WEBHOOK_PATH: 503 while another process leads, or
        while updates are polled."""
        return Route(WEBHOOK_PATH, _Relay(self), methods=None)

    async def deliver(self, entry: OutboxEntry) -> None:
        """Deliver one answer or notice, while this process leads."""
        if self.serving is not None:
            await self.serving.deliverer.deliver(entry)

    async def drain(self) -> None:
        """Stop receiving updates, then deliver what is ready, for up to DRAIN_SECONDS."""
        if self.serving is not None:
            await self.serving.drain(DRAIN_SECONDS)

    def tell(self, line: str) -> None:
        """Pass ``line`` to operators, unless it repeats the last one."""
        if line != self._last_line:
            self._last_line = line
            self._tell(f"Telegram: {line}")

    async def _connect(self) -> bool:
        """Connect to Telegram, retrying until it answers; False if it rejects the token."""
        pause = 0.5
        while True:
            try:
                await self.bot.initialize()
                return True
            except InvalidToken as error:
                self.tell(explain(error))
                return False
            except TelegramError as error:
                self.tell(f"{explain(error)}; retrying")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _serve(self) -> None:
        """Work while this process leads this front end, and no other application serves its bot."""
        alone = self.session.bot_leader(self.bot.bot.id)
        elsewhere = f"another application serves @{self.bot.username}, this one is on standby: get a token of its own"

        async def serve_alone() -> None:
            try:
                await alone.renew()
            except ServerRefused as error:  # this user lacks the right; in the application it is alone all the same
                logger.warning("whether another application serves the bot cannot be checked: %s", error)
                return await self._lead()
            await self._while_leading(alone, self._lead, lambda: _said(elsewhere))

        await self._while_leading(self.leader, serve_alone, self._why_standby)

    async def _while_leading(
        self, leader: Leader, work: Callable[[], Coroutine[Any, Any, None]], why: Callable[[], Awaitable[str]]
    ) -> None:
        """Do ``work`` whenever this process leads, until it ends by itself. ``why`` says why it does not lead."""
        keeping = asyncio.create_task(leader.run(), name="rolecall telegram election")
        try:
            while True:
                await self._stand_by(leader, why)
                leading = asyncio.create_task(work(), name="rolecall telegram")
                losing = asyncio.create_task(leader.wait(held=False), name="rolecall telegram lead lost")
                try:
                    await asyncio.wait([leading, losing], return_when=asyncio.FIRST_COMPLETED)
                    if leading.done():
                        return leading.result()
                    self.tell("this process lost its lease; it takes no updates until it leads again")
                finally:
                    await cancel_and_wait(leading, losing)
        finally:
            await cancel_and_wait(keeping)

    async def _stand_by(self, leader: Leader, why: Callable[[], Awaitable[str]]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STAND_BY_SECONDS):
                return await leader.wait()
        self.tell(await why())
        await leader.wait()

    async def _why_standby(self) -> str:
        own, found = self.bot.username, None
        with suppress(ServerError):
            found = await served_bot(self.session.bus, self.name)
        if found is None or found[0] == self.bot.bot.id:
            return f"another process serves @{own}, this one is on standby"
        return (
            f"the front end {self.name!r} serves @{found[1]}; @{own} waits until that ends: "
            "`rolecall telegram --name NAME` serves it beside the other"
        )

    async def _lead(self) -> None:
        """Receive and deliver until cancelled; restart after unexpected errors. Raises what Updates.run raises."""
        pause = 1.0
        while True:
            self.serving = Service(
                self.bot, self.session, self.wakeups, self.leader, self.tell, watchdog_seconds=self.watchdog_seconds
            )
            try:
                await self._greet(self.serving.access)
                return await self.serving.run()
            except (InvalidToken, Forbidden, ConfigError):
                raise
            except Exception:  # the boundary: whatever failed, the bot must be served again
                logger.exception("serving @%s failed; restarting in %g s", self.bot.username, pause)
            finally:
                self.serving = None
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _greet(self, access: Access) -> None:
        user = self.bot.bot
        await note_bot(self.session.bus, self.name, user.id, user.username or "")
        hint = "" if user.can_read_all_group_messages else PRIVACY
        self.tell(f"@{user.username} is served: https://t.me/{user.username}{hint}")
        code = await access.start_code()
        if code is not None:
            link = f"https://t.me/{user.username}?start={code}"
            self.tell(f"nobody is admin yet; whoever opens this first becomes it: {link}")


async def _said(line: str) -> str:
    return line


class _Relay:
    def __init__(self, front: TelegramFront) -> None:
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._front.serving
        webhook = None if serving is None else serving.updates.webhook
        await (webhook or Response(status_code=503))(scope, receive, send)


class Service:
    """Receives updates of ``bot`` and delivers answers while ``leader`` leads."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, leader: Leader, tell: Callable[[str], None],
        *, watchdog_seconds: float,
    ) -> None:  # fmt: skip
        bus, settings = session.bus, session.application.settings
        front = Front(bus, wakeups, leader.name, outbox=True)
        placeholders, blobs = Placeholders(bus), Blobs(bus)
        choices = Choices.of(session.application)
        self.access = Access(bus, leader.name)
        self.chats = Chats(bot, edit_seconds=settings.telegram_edit_seconds)
        self.turn_messages = TurnMessages(self.chats, placeholders)
        self.outbox = Outbox(bus, session.server, leader.name, holding=lambda: leader.held)
        self.progress = ProgressDisplay(
            bus, wakeups, self.chats, self.turn_messages, front=leader.name, holding=lambda: leader.held,
            undelivered=self.outbox.holds_back, drafts=settings.telegram_drafts,
        )  # fmt: skip
        self.deliverer = Deliverer(
            self.outbox, self.chats, self.progress, self.turn_messages, blobs, holding=lambda: leader.held,
            ring_seconds=settings.telegram_ring_seconds,
        )  # fmt: skip
        self.admins = Admins(bus, self.access, session.application.model_names)
        self.commands = Commands(bot, bus, self.access, choices, front=leader.name, admins=self.admins)
        self.buttons = Buttons(bot, front, self.access, choices, placeholders, self.chats, self.progress)
        media = Media(bot, blobs, voice=bool(settings.voice_model), characters=settings.document_chars)
        self.receiver = Receiver(
            front, bot.bot, media, self.access, self.commands, self.buttons, self.chats, self.progress,
            keywords=_listed(settings.telegram_keywords),
        )  # fmt: skip
        self.updates = Updates(bot, self.receiver.receive, settings, tell, watchdog_seconds)
        self._receiving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until cancelled. Raises what Updates.run raises."""
        for new, old in (await self.access.moves()).items():
            self.chats.moved(old, new)
        self._receiving = asyncio.create_task(self.updates.run(), name="rolecall telegram updates")
        delivering = asyncio.create_task(self.outbox.run(self.deliverer.deliver), name="rolecall telegram outbox")
        preparing = asyncio.create_task(self._prepare(), name="rolecall telegram preparation")
        watching = asyncio.create_task(self.admins.watch(), name="rolecall telegram admins")
        try:
            done, _ = await asyncio.wait([self._receiving, delivering], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
            await delivering  # drained: no more updates are received
        finally:
            await cancel_and_wait(self._receiving, delivering, preparing, watching)
            for part in (self.receiver, self.buttons, self.commands, self.progress, self.turn_messages):
                await part.aclose()

    async def drain(self, seconds: float) -> None:
        """Stop receiving updates; return when the outbox is empty, or after ``seconds``."""
        if self._receiving is not None:
            await cancel_and_wait(self._receiving)
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.outbox.waiting():
                    await asyncio.sleep(POLL_SECONDS)

    async def _prepare(self) -> None:
        """Resume progress and set the menus; failures are logged."""
        try:
            await self.progress.resume()
        except ServerError as error:
            logger.info("progress of unfinished turns is not shown: %s", error)
        await self.commands.set_menus()


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())
