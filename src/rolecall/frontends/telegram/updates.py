"""Having the bot's updates brought: polled under the eyes of a watchdog, or by webhook."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from telegram.error import Conflict, Forbidden, InvalidToken, TelegramError

from rolecall.errors import ConfigError
from rolecall.frontends.telegram.bot import QuietBot, explain
from rolecall.frontends.telegram.poller import ALLOWED, Poller, Receive
from rolecall.frontends.telegram.webhook import Webhook
from rolecall.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
WATCHDOG_SECONDS = 120.0
LONGEST_PAUSE = 30.0


@dataclass
class Updates:
    """Brings the updates of ``bot`` to ``receive``. ``tell`` takes a line for operators whenever something is wrong
    that they may have to put right."""

    bot: QuietBot
    receive: Receive
    settings: Settings
    tell: Callable[[str], None]
    watchdog_seconds: float = WATCHDOG_SECONDS

    async def run(self) -> None:
        """Bring updates until cancelled; whatever passes is outlasted. Raises InvalidToken or Forbidden when Telegram
        no longer knows the token, ConfigError for a webhook that cannot be."""
        if self.settings.telegram_webhook_url:
            await self._be_called()
        else:
            await self._poll()

    async def _poll(self) -> None:
        pause = 0.0
        while True:
            await self._end_webhook()
            poller = Poller(self.bot, self.receive)
            began = poller.last
            try:
                await self._watched(poller)
                self.tell(f"Telegram was silent for {self.watchdog_seconds:g} s: connecting anew")
                await self.bot.reconnect()
            except Conflict as error:
                self.tell(f"no updates, trying on: {explain(error)}")
                pause = 1.0 if poller.last > began else min(LONGEST_PAUSE, pause * 2 or 1.0)
                await asyncio.sleep(pause)

    async def _watched(self, poller: Poller) -> None:
        """Poll until Telegram has not answered for too long. Raises what the poller raises."""
        polling = asyncio.create_task(poller.run(), name="rolecall telegram poller")
        try:
            while time.monotonic() - poller.last < self.watchdog_seconds:
                done, _ = await asyncio.wait([polling], timeout=self.watchdog_seconds / 8)
                if done:
                    return polling.result()
        finally:
            polling.cancel()
            await asyncio.wait([polling])

    async def _end_webhook(self) -> None:
        """A webhook left over from another program would keep all updates from a poll; none of them is dropped."""
        info = await self._insist(self.bot.get_webhook_info)
        if info.url:
            await self._insist(self.bot.delete_webhook)
            self.tell("a webhook was still set for the bot: it is deleted, for the bot is polled")

    async def _be_called(self) -> None:
        url, secret = self.settings.telegram_webhook_url or "", self.settings.telegram_webhook_secret
        if secret is None:
            raise ConfigError("TELEGRAM_WEBHOOK_SECRET is not set: without it anybody could bring updates")
        hook = Webhook(
            self.bot, self.receive, secret=secret.get_secret_value(), host=self.settings.telegram_webhook_host,
            port=self.settings.telegram_webhook_port,
        )  # fmt: skip
        await self._listen(hook)
        serving = asyncio.create_task(hook.run(), name="rolecall telegram webhook")
        try:
            await self._insist(
                lambda: self.bot.set_webhook(url, allowed_updates=ALLOWED, secret_token=secret.get_secret_value())
            )
            await serving
        finally:
            serving.cancel()
            await asyncio.wait([serving])

    async def _listen(self, hook: Webhook) -> None:
        """Listen where Telegram is to bring updates; another process may do so for a moment yet."""
        pause = 0.5
        while True:
            try:
                return await hook.start()
            except OSError as error:
                where = f"TELEGRAM_WEBHOOK_HOST and _PORT, {hook.host}:{hook.port}"
                self.tell(f"no updates, trying on: {where}: {error.strerror}")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of Telegram, asked for until there is one."""
        pause = 0.5
        while True:
            try:
                return await ask()
            except (InvalidToken, Forbidden):
                raise
            except TelegramError as error:
                self.tell(f"no updates, trying on: {explain(error)}")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
