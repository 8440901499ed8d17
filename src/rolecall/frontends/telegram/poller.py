"""The getUpdates loop: the offset is raised past an update only when it was received."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from telegram import Update
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, TelegramError

from rolecall.frontends.telegram.bot import QuietBot, explain
from rolecall.frontends.telegram.requests import Wait

logger = logging.getLogger(__name__)
Receive = Callable[[Update], Awaitable[None]]
ALLOWED = ("message", "edited_message", "callback_query", "my_chat_member")
"""The kinds of updates that are asked for."""
PATIENCE = 0.5
"""Seconds until others are asked for beside what is still being received, say a large file."""
LONGEST_PAUSE = 10.0


class Poller:
    """Asks for updates and hands each to ``receive``, several at a time. ``last`` is the monotonic time of Telegram's
    last answer, for a watchdog."""

    def __init__(self, bot: QuietBot, receive: Receive, *, seconds: int = 25) -> None:
        self.bot = bot
        self.receive = receive
        self.seconds = seconds
        self.last = time.monotonic()
        self._offset = 0
        self._open: dict[int, asyncio.Task[None]] = {}
        """What was asked for and is not confirmed yet, by update id."""
        self._pause = 0.0

    async def run(self) -> None:
        """Poll until cancelled. Goes on after whatever passes: Telegram away, 429, 5xx. Raises Conflict when another
        polls the same bot or a webhook is set, InvalidToken or Forbidden when the token is no (longer) good; all that
        is received when it ends comes again at the next poll of anyone."""
        try:
            while True:
                for update in await self._ask():
                    if update.update_id not in self._open:
                        self._open[update.update_id] = asyncio.create_task(self._take(update), name="telegram update")
                await self._settle()
        finally:
            await self._stop()

    async def _take(self, update: Update) -> None:
        await self.receive(update)

    async def _settle(self) -> None:
        """Wait for what is being received, not for ever, and raise the offset as far as there is no gap."""
        waiting = [task for task in self._open.values() if not task.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=PATIENCE)
        for number in sorted(self._open):
            if not self._open[number].done():
                break
            self._open.pop(number).result()
            self._offset = number + 1

    async def _ask(self) -> list[Update]:
        """The next updates, none after what passes. While some are being received these come again and again: then
        Telegram is asked for no longer than for what is there."""
        try:
            updates = await self.bot.updates(self._offset, 0 if self._open else self.seconds, ALLOWED)
        except (Conflict, InvalidToken, Forbidden):
            raise
        except Wait as error:
            await self._rest(error, error.seconds)
        except TelegramError as error:
            await self._rest(error, 0)
        else:
            self.last, self._pause = time.monotonic(), 0.0
            return updates
        return []

    async def _rest(self, error: TelegramError, seconds: float) -> None:
        if not self._pause:
            passing = isinstance(error, NetworkError) and not isinstance(error, BadRequest)
            logger.log(logging.INFO if passing else logging.WARNING, "no updates at the moment: %s", explain(error))
        self._pause = min(LONGEST_PAUSE, self._pause * 2 or 0.25)
        await asyncio.sleep(max(self._pause, seconds))

    async def _stop(self) -> None:
        for task in self._open.values():
            task.cancel()
        if self._open:
            await asyncio.wait(self._open.values())
        self._open.clear()
