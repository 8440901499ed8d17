"""The Telegram front end: of all processes of a bot, one receives updates, the leader; all of them deliver, each to its
share of the chats."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from telegram.error import Forbidden, InvalidToken, TelegramError

from rolecall.background import cancel_and_wait
from rolecall.bus.blobs import Blobs
from rolecall.bus.chat_messages import Placeholders
from rolecall.bus.members import note_bot, served_bot
from rolecall.bus.outbox import Outbox, OutboxEntry
from rolecall.bus.wakeups import Wakeups
from rolecall.errors import ConfigError, ServerError, ServerRefused
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.admins import Admins
from rolecall.frontends.telegram.admitter import Admitter
from rolecall.frontends.telegram.bot import QuietBot, explain
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.deliverer import Deliverer
from rolecall.frontends.telegram.grouping import MessageGroups
from rolecall.frontends.telegram.media import Media
from rolecall.frontends.telegram.menu import Commands
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.pickers import Choices
from rolecall.frontends.telegram.placeholders import TurnMessages
from rolecall.frontends.telegram.progress import ProgressDisplay
from rolecall.frontends.telegram.receiver import Receiver
from rolecall.frontends.telegram.updates import WATCHDOG_SECONDS, Updates
from rolecall.session import Leader, Partitions, Session
from rolecall.settings import listed

logger = logging.getLogger(__name__)
WEBHOOK_PATH = "/telegram/webhook"
LONGEST_PAUSE = 30.0
STAND_BY_SECONDS = 2.0
"""How long an election may take before operators are told that another process leads."""
DRAIN_SECONDS = 5.0
PRIVACY = "; in groups it sees commands, mentions and replies to it alone (/setprivacy at @BotFather)"
POLL_SECONDS = 0.05
RESUME_SECONDS = 0.25
NAME_SECONDS = 300.0
WATCH_SECONDS = 2.0
"""How often a process looks which bot is served, and how many processes deliver."""


class TelegramFront:
    """The front end of ``bot``, made by ``open_bot``. Each bot has its own ``name``. ``tell`` receives lines for
    operators, including the link that makes the first admin, but never the token."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, tell: Callable[[str], None],
        *, name: str = "telegram", watchdog_seconds: float = WATCHDOG_SECONDS,
    ) -> None:  # fmt: skip
        self.bot, self.session, self.wakeups, self.watchdog_seconds = bot, session, wakeups, watchdog_seconds
        self.leader = session.leader(name)
        self.partitions = session.partitions(f"{name}-chats")
        self.serving: Service | None = None
        """Set while this process delivers."""
        self._tell = tell
        self._last_line = ""

    async def run(self) -> None:
        """Serve until cancelled. Raises ConfigError when Telegram rejects the token, and for an invalid webhook."""
        try:
            await self._connect()
            await self._serve()
        except (InvalidToken, Forbidden) as error:
            raise ConfigError(explain(error)) from error
        finally:
            await self.bot.shutdown()

    @property
    def name(self) -> str:
        """The name of the front end; each bot has its own."""
        return self.leader.name

    def route(self) -> Route:
        """The webhook as a route of another ASGI application, at WEBHOOK_PATH: 503 while another process receives, or
        while updates are polled."""
        return Route(WEBHOOK_PATH, _Relay(self), methods=None)

    async def deliver(self, entry: OutboxEntry) -> None:
        """Deliver one answer or notice, while this process may deliver to its chat."""
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

    async def _connect(self) -> None:
        """Connect to Telegram, retrying until it answers. Raises InvalidToken."""
        pause = 0.5
        while True:
            try:
                return await self.bot.initialize()
            except InvalidToken:
                raise
            except TelegramError as error:
                self.tell(f"{explain(error)}; retrying")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _serve(self) -> None:
        """Work while no other application serves the bot."""
        alone = self.session.bot_leader(self.bot.bot.id, self.name)
        elsewhere = f"another application serves @{self.bot.username}, this one is on standby: get a token of its own"
        try:
            await alone.renew()
        except ServerRefused as error:  # this user lacks the right; in the application it is alone all the same
            logger.warning("whether another application serves the bot cannot be checked: %s", error)
            return await self._work()
        await self._while_leading(alone, self._work, lambda: _said(elsewhere))

    async def _work(self) -> None:
        """Deliver to this process's share of the chats and, while it leads, receive, until cancelled; restart after
        unexpected errors. Raises what Updates.run raises."""
        pause = 1.0
        sharing = asyncio.create_task(self._share(), name="rolecall telegram shares")
        try:
            while True:
                try:
                    return await self._deliver_and_receive()
                except (InvalidToken, Forbidden, ConfigError):
                    raise
                except Exception:  # the boundary: whatever failed, the bot must be served again
                    logger.exception("serving @%s failed; restarting in %g s", self.bot.username, pause)
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
        finally:
            await cancel_and_wait(sharing)

    async def _deliver_and_receive(self) -> None:
        service = Service(self.bot, self.session, self.wakeups, self.name, self.partitions)
        receive = partial(self._receive, service)
        delivering = asyncio.create_task(service.run(), name="rolecall telegram deliveries")
        leading = asyncio.create_task(
            self._while_leading(self.leader, receive, self._why_standby), name="rolecall telegram leading"
        )
        self.serving = service
        try:
            done, _ = await asyncio.wait([delivering, leading], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.serving = None
            await cancel_and_wait(leading, delivering)

    async def _share(self) -> None:
        """Take part in the deliveries while this front end serves this very bot."""
        sharing: asyncio.Task[None] | None = None
        try:
            while True:
                with suppress(ServerError):
                    found = await served_bot(self.session.bus, self.name)
                    ours = found is None or found[0] == self.bot.bot.id
                    if sharing is None and ours:
                        sharing = asyncio.create_task(self.partitions.run(), name="rolecall telegram partitions")
                    elif sharing is not None and not ours:
                        await cancel_and_wait(sharing)
                        sharing = None
                self.bot.share(self.partitions.members, self.session.application.settings.telegram_per_second)
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            if sharing is not None:
                await cancel_and_wait(sharing)

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
            return f"another process receives what users write to @{own}; this one helps to deliver"
        return (
            f"the front end {self.name!r} serves @{found[1]}; @{own} waits until that ends: "
            "`rolecall telegram --name NAME` serves it as well"
        )

    async def _receive(self, service: Service) -> None:
        """Receive updates until cancelled. Raises what Updates.run raises."""
        reception = service.reception(self.tell, self.watchdog_seconds)
        await service.follow_moves()
        await self._greet(reception.access)
        renaming = asyncio.create_task(self._follow_renames(), name="rolecall telegram name")
        try:
            await reception.run()
        finally:
            await cancel_and_wait(renaming)

    async def _follow_renames(self) -> None:
        """Ask Telegram every NAME_SECONDS what the bot is called, until cancelled: groups and links name it."""
        while True:
            await asyncio.sleep(NAME_SECONDS)
            with suppress(TelegramError, ServerError):
                user = await self.bot.get_me()
                await note_bot(self.session.bus, self.name, user.id, user.username or "")

    async def _greet(self, access: Access) -> None:
        user = self.bot.bot
        await note_bot(self.session.bus, self.name, user.id, user.username or "")
        hint = "" if user.can_read_all_group_messages else PRIVACY
        self.tell(f"@{user.username} is served: https://t.me/{user.username}{hint}")
        code = await access.start_code()
        if code is not None:
            link = f"https://t.me/{user.username}?start={code}"
            self.tell(f"there is no admin yet; the first person to open this link becomes admin: {link}")


async def _said(line: str) -> str:
    return line


class _Relay:
    def __init__(self, front: TelegramFront) -> None:
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._front.serving
        webhook = None if serving is None or serving.receiving is None else serving.receiving.updates.webhook
        await (webhook or Response(status_code=503))(scope, receive, send)


class Service:
    """Shows progress and delivers answers in the chats of ``partitions``, those of topics with their chat."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, name: str, partitions: Partitions
    ) -> None:  # fmt: skip
        bus, settings = session.bus, session.application.settings
        self.bot, self.session, self.wakeups, self.name = bot, session, wakeups, name
        self.placeholders, self.blobs, self.access = Placeholders(bus), Blobs(bus), Access(bus, name)
        self.chats = Chats(bot, edit_seconds=settings.telegram_edit_seconds)
        self.turn_messages = TurnMessages(self.chats, self.placeholders)
        self.outbox = Outbox(bus, session.server, name, shares=ChatShares(partitions))
        self.progress = ProgressDisplay(
            bus, wakeups, self.chats, self.turn_messages, front=name, holding=self.outbox.holds,
            undelivered=self.outbox.holds_back, drafts=settings.telegram_drafts,
        )  # fmt: skip
        self.deliverer = Deliverer(
            self.outbox, self.chats, self.progress, self.turn_messages, self.blobs, self.access,
            ring_seconds=settings.telegram_ring_seconds,
        )  # fmt: skip
        self.receiving: Reception | None = None
        """Set while this process receives updates."""
        self._partitions = partitions

    def reception(self, tell: Callable[[str], None], watchdog_seconds: float) -> Reception:
        """What receives updates, while this process leads."""
        return Reception(self, tell, watchdog_seconds)

    async def follow_moves(self) -> None:
        """Learn of the groups that became supergroups while another process received."""
        for new, old in (await self.access.moves(reread=True)).items():
            self.chats.moved(old, new)

    async def run(self) -> None:
        """Deliver until cancelled."""
        await self.follow_moves()
        resuming = asyncio.create_task(self._resume(), name="rolecall telegram progress")
        try:
            await self.outbox.run(self.deliverer.deliver)
        finally:
            await cancel_and_wait(resuming)
            for part in (self.progress, self.turn_messages):
                await part.aclose()

    async def drain(self, seconds: float) -> None:
        """Stop receiving updates; return when the outbox is empty, or after ``seconds``."""
        if self.receiving is not None:
            await self.receiving.stop()
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.outbox.waiting():
                    await asyncio.sleep(POLL_SECONDS)

    async def _resume(self) -> None:
        """Show the progress of unfinished turns whenever there are more chats to deliver to; failures are logged."""
        before: set[int] = set()
        while True:
            held = {tenure for part in range(self._partitions.parts) if (tenure := self._partitions.tenure(part))}
            if held - before:
                try:
                    await self.progress.resume()
                except ServerError as error:
                    logger.info("progress of unfinished turns is not shown: %s", error)
            before = held
            await asyncio.sleep(RESUME_SECONDS)


class ChatShares:
    """The chats of ``partitions``, those of topics with their chat."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self.parts, self.tenure = partitions.parts, partitions.tenure

    def part(self, conversation: str) -> int:
        """See Shares."""
        address = Address.of(conversation)
        return self._partitions.part(str(address.chat) if address is not None else conversation)


class Reception:
    """Receives updates into ``service``'s front end."""

    def __init__(self, service: Service, tell: Callable[[str], None], watchdog_seconds: float) -> None:
        session, bot, chats, progress = service.session, service.bot, service.chats, service.progress
        bus, settings, self.access = session.bus, session.application.settings, service.access
        front, choices = Front(bus, service.wakeups, service.name, outbox=True), Choices.of(session.application)
        self.admins = Admins(bus, self.access, session.application.model_names)
        self.buttons = Buttons(bot, front, self.access, choices, service.placeholders, chats, progress)
        self.commands = Commands(
            bot, bus, self.access, choices, front=service.name, admins=self.admins, rights=self.buttons.rights
        )
        media = Media(bot, service.blobs, voice=bool(settings.voice_model), characters=settings.document_chars)
        groups = MessageGroups()
        self.admitter = Admitter(front, media, self.access, self.commands, progress, groups)
        self.receiver = Receiver(
            front, self.access, self.commands, self.buttons, chats, groups, self.admitter,
            keywords=tuple(listed(settings.telegram_keywords)),
        )  # fmt: skip
        self.updates = Updates(bot, self.receiver.receive, settings, tell, watchdog_seconds)
        self._service = service
        self._receiving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Receive until cancelled. Raises what Updates.run raises."""
        self._receiving = asyncio.create_task(self.updates.run(), name="rolecall telegram updates")
        preparing = asyncio.create_task(self.commands.set_menus(), name="rolecall telegram menus")
        watching = asyncio.create_task(self.admins.watch(), name="rolecall telegram admins")
        self._service.receiving = self
        try:
            await asyncio.wait([self._receiving])
            if not self._receiving.cancelled():
                return self._receiving.result()
            await asyncio.Event().wait()  # drained: no more updates are received
        finally:
            self._service.receiving = None
            await cancel_and_wait(self._receiving, preparing, watching)
            for part in (self.admitter, self.buttons, self.commands):
                await part.aclose()

    async def stop(self) -> None:
        """Receive no more updates."""
        if self._receiving is not None:
            await cancel_and_wait(self._receiving)
