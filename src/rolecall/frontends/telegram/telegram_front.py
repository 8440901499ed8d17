"""The front end at work: of all processes of a bot one takes updates and delivers, the others stand by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from telegram.error import Forbidden, InvalidToken, TelegramError

from rolecall.bus.blobs import Blobs
from rolecall.bus.events import Wakeups
from rolecall.bus.outbox import Outbox, OutboxEntry, Placeholders
from rolecall.errors import ConfigError, ServerError
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.bot import QuietBot, explain
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.deliverer import Deliverer
from rolecall.frontends.telegram.media import Media
from rolecall.frontends.telegram.menu import Commands
from rolecall.frontends.telegram.pickers import Choices
from rolecall.frontends.telegram.placeholders import Recorded
from rolecall.frontends.telegram.progress import Live
from rolecall.frontends.telegram.receiver import Receiver
from rolecall.frontends.telegram.updates import WATCHDOG_SECONDS, Updates
from rolecall.session import Leader, Session

logger = logging.getLogger(__name__)
WEBHOOK_PATH = "/telegram/webhook"
LONGEST_PAUSE = 30.0
STAND_BY_SECONDS = 2.0
"""How long it may take to get the lease before it is said that another process has it."""
DRAIN_SECONDS = 5.0
PRIVACY = "; in groups it sees commands, mentions and replies to it alone (/setprivacy at @BotFather)"
LOOK_SECONDS = 0.05


class TelegramFront:
    """Serves ``bot``, which bot.open_bot gave. ``name`` names the front end, one for each bot; ``tell`` takes lines for
    operators: never the token, but the link that makes the first admin."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, tell: Callable[[str], None],
        *, name: str = "telegram", watchdog_seconds: float = WATCHDOG_SECONDS,
    ) -> None:  # fmt: skip
        self.bot, self.session, self.wakeups, self.watchdog_seconds = bot, session, wakeups, watchdog_seconds
        self.lease = session.leader(name)
        self.serving: Service | None = None
        """Set while this process leads."""
        self._tell = tell
        self._told = ""

    async def run(self) -> None:
        """Serve until cancelled, or until Telegram says that it does not know the token. Raises ConfigError for a
        webhook that cannot be."""
        try:
            if await self._met():
                await self._serve()
        except (InvalidToken, Forbidden) as error:
            self.tell(explain(error))
        finally:
            await self.bot.shutdown()

    @property
    def name(self) -> str:
        """The name of the front end: one for each bot."""
        return self.lease.name

    def route(self) -> Route:
        """The webhook as a route of another ASGI application, at WEBHOOK_PATH: 503 while another process leads, or
        while updates are polled."""
        return Route(WEBHOOK_PATH, _Relay(self), methods=None)

    async def deliver(self, entry: OutboxEntry) -> None:
        """Deliver one answer or notice, while this process leads."""
        if self.serving is not None:
            await self.serving.deliverer.deliver(entry)

    async def drain(self) -> None:
        """Take no more updates, and deliver what is ready, as far as a few seconds suffice."""
        if self.serving is not None:
            await self.serving.drain(DRAIN_SECONDS)

    def tell(self, line: str) -> None:
        """Tell operators, unless it is what they were told last."""
        if line != self._told:
            self._told = line
            self._tell(f"Telegram: {line}")

    async def _met(self) -> bool:
        """Ask Telegram who the bot is until it answers; False when it knows no such bot."""
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
        """Lead whenever this process has the lease, stand by while it has not."""
        keeping = asyncio.create_task(self.lease.run(), name="rolecall telegram lease")
        try:
            while True:
                await self._stand_by()
                leading = asyncio.create_task(self._lead(), name="rolecall telegram")
                losing = asyncio.create_task(self.lease.wait(held=False), name="rolecall telegram lease lost")
                try:
                    await asyncio.wait([leading, losing], return_when=asyncio.FIRST_COMPLETED)
                    if leading.done():
                        return leading.result()
                    self.tell("this process lost its lease; it takes no updates until it leads again")
                finally:
                    await ended(leading, losing)
        finally:
            await ended(keeping)

    async def _stand_by(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STAND_BY_SECONDS):
                return await self.lease.wait()
        self.tell(f"another process serves @{self.bot.username}, this one is on standby")
        await self.lease.wait()

    async def _lead(self) -> None:
        """Take updates and deliver, until cancelled. Raises what Updates.run raises."""
        pause = 1.0
        while True:
            self.serving = Service(
                self.bot, self.session, self.wakeups, self.lease, self.tell, watchdog_seconds=self.watchdog_seconds
            )
            try:
                await self._greet(self.serving.access)
                return await self.serving.run()
            except (InvalidToken, Forbidden, ConfigError):
                raise
            except Exception:  # a boundary: whatever went wrong, the bot is not left alone
                logger.exception("serving @%s broke off; it begins anew in %g s", self.bot.username, pause)
            finally:
                self.serving = None
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _greet(self, access: Access) -> None:
        user = self.bot.bot
        hint = "" if user.can_read_all_group_messages else PRIVACY
        self.tell(f"@{user.username} is served: https://t.me/{user.username}{hint}")
        code = await access.start_code()
        if code is not None:
            link = f"https://t.me/{user.username}?start={code}"
            self.tell(f"nobody is admin yet; whoever opens this first becomes it: {link}")


class _Relay:
    def __init__(self, front: TelegramFront) -> None:
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._front.serving
        webhook = None if serving is None else serving.updates.webhook
        await (webhook or Response(status_code=503))(scope, receive, send)


class Service:
    """Takes the updates of ``bot`` and delivers, while ``run`` runs and ``lease`` is held."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, lease: Leader, tell: Callable[[str], None],
        *, watchdog_seconds: float,
    ) -> None:  # fmt: skip
        bus, settings = session.bus, session.application.settings
        front = Front(bus, wakeups, lease.name, outbox=True)
        placeholders, blobs = Placeholders(bus), Blobs(bus)
        choices = Choices.of(session.application)
        self.access = Access(bus, lease.name)
        self.chats = Chats(bot, edit_seconds=settings.telegram_edit_seconds)
        self.recorded = Recorded(self.chats, placeholders)
        self.live = Live(
            bus, wakeups, self.chats, self.recorded, front=lease.name, holding=lambda: lease.held,
            drafts=settings.telegram_drafts,
        )  # fmt: skip
        self.outbox = Outbox(bus, session.server, lease.name, holding=lambda: lease.held)
        self.deliverer = Deliverer(
            self.outbox, self.chats, self.live, self.recorded, blobs, holding=lambda: lease.held,
            ring_seconds=settings.telegram_ring_seconds,
        )  # fmt: skip
        self.commands = Commands(bot, bus, self.access, choices, front=lease.name)
        self.buttons = Buttons(bot, front, self.access, choices, placeholders, self.chats, self.live)
        media = Media(bot, blobs, voice=bool(settings.voice_model), characters=settings.document_chars)
        self.receiver = Receiver(
            front, bot.bot, media, self.access, self.commands, self.buttons, self.chats, self.live,
            keywords=_listed(settings.telegram_keywords),
        )  # fmt: skip
        self.updates = Updates(bot, self.receiver.receive, settings, tell, watchdog_seconds)
        self._taking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until cancelled. Raises what Updates.run raises."""
        self._taking = asyncio.create_task(self.updates.run(), name="rolecall telegram updates")
        delivering = asyncio.create_task(self.outbox.run(self.deliverer.deliver), name="rolecall telegram outbox")
        beside = asyncio.create_task(self._beside(), name="rolecall telegram beside")
        try:
            done, _ = await asyncio.wait([self._taking, delivering], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
            await delivering  # no updates are taken any more
        finally:
            await ended(self._taking, delivering, beside)
            for part in (self.buttons, self.commands, self.live, self.recorded, self.chats):
                await part.aclose()

    async def drain(self, seconds: float) -> None:
        """Take no more updates, and return when nothing is left to be delivered, or after ``seconds``."""
        if self._taking is not None:
            await ended(self._taking)
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.outbox.waiting():
                    await asyncio.sleep(LOOK_SECONDS)

    async def _beside(self) -> None:
        """What is good to have soon, and stops nothing when it fails."""
        try:
            await self.live.resume()
        except ServerError as error:
            logger.info("turns in the making are not shown: %s", error)
        await self.commands.set_menus()


async def ended(*tasks: asyncio.Task[None]) -> None:
    """End ``tasks`` and wait until they have."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())
