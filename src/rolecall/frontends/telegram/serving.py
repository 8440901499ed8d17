"""What serves a bot while its process leads, put together: the way in, the way out, and what they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from redis.exceptions import RedisError

from rolecall.blobs import Blobs
from rolecall.errors import ServerUnavailable
from rolecall.follow import Wakeups
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.bot import QuietBot
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.commands import Commands
from rolecall.frontends.telegram.deliverer import Deliverer
from rolecall.frontends.telegram.live import Live
from rolecall.frontends.telegram.media import Media
from rolecall.frontends.telegram.pickers import Choices
from rolecall.frontends.telegram.questions import Questions
from rolecall.frontends.telegram.receiver import Receiver
from rolecall.frontends.telegram.recorded import Recorded
from rolecall.frontends.telegram.updates import Updates
from rolecall.lease import Lease
from rolecall.outbox import Outbox
from rolecall.placeholders import Placeholders
from rolecall.session import Session

logger = logging.getLogger(__name__)
AWAY = (RedisError, OSError, ServerUnavailable)
LOOK_SECONDS = 0.05


class Serving:
    """Takes the updates of ``bot`` and delivers, while ``run`` runs and ``lease`` is held."""

    def __init__(
        self, bot: QuietBot, session: Session, wakeups: Wakeups, lease: Lease, tell: Callable[[str], None],
        *, watchdog_seconds: float,
    ) -> None:  # fmt: skip
        bus, settings = session.bus, session.application.settings
        front = Front(bus, wakeups, lease.name, outbox=True)
        placeholders, blobs, questions = Placeholders(bus), Blobs(bus), Questions(bus)
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
        self.buttons = Buttons(bot, front, self.access, choices, questions, placeholders, self.chats, self.live)
        media = Media(bot, blobs, voice=bool(settings.voice_model), characters=settings.document_chars)
        self.receiver = Receiver(
            front, bot.bot, media, self.access, self.commands, self.buttons, questions, self.chats, self.live,
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
        with suppress(*AWAY, TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.outbox.waiting():
                    await asyncio.sleep(LOOK_SECONDS)

    async def _beside(self) -> None:
        """What is good to have soon, and stops nothing when it fails."""
        try:
            await self.live.resume()
        except AWAY as error:
            logger.info("turns in the making are not shown: the server is away: %s", error)
        await self.commands.set_menus()


async def ended(*tasks: asyncio.Task[None]) -> None:
    """End ``tasks`` and wait until they have."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())
