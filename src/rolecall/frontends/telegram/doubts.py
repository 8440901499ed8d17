"""Messages whose sending is in doubt: looked for where they must be, and removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis.exceptions import RedisError

from rolecall.errors import ServerUnavailable
from rolecall.frontends.telegram.address import Address
from rolecall.frontends.telegram.chats import Chats
from rolecall.placeholders import Placeholders

logger = logging.getLogger(__name__)
DOUBTS = "doubts"
"""Stands for a turn, in the conversation of no chat: all doubts of a bot, ``<conversation>/<turn>/<part>`` each."""
AT_ONCE = 4
LOOKS = 100
TRIES = 30
AT_A_TIME = 6
"""So many ids are looked at, so many of them tried at Telegram, and so many before others may send. Chats with people
share their ids, so that between a message and what was last heard of there are those of others."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Where a message is, if it is: behind the id ``low`` (0 for unknown), before ``high``, likely at ``guess``."""

    low: int
    guess: int
    high: int = 0

    def ids(self) -> Sequence[int]:
        """The ids that it may have, the likeliest first."""
        first = self.low + 1 if self.low else max(1, self.high - LOOKS)
        guess = self.guess if self.low else self.high
        return sorted(range(first, min(self.high, first + LOOKS)), key=lambda number: abs(number - guess))


class Doubts:
    """Looks for messages, beside everything else. What it has not found when it ends, its successor looks for."""

    def __init__(self, chats: Chats, placeholders: Placeholders) -> None:
        self.chats, self.placeholders = chats, placeholders
        self._looking: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def add(self, address: Address, turn: str, part: str, doubt: Doubt) -> None:
        """Look for the message, and until that is done remember it."""
        name = f"{address.conversation}/{turn}/{part}"
        mine = f"~{doubt.low}~{doubt.guess}~{doubt.high}"
        value = await self.placeholders.record(_nowhere(address.front), DOUBTS, mine, name)
        self._look(address, name, value)

    async def resume(self, front: str) -> None:
        """Look for what a predecessor has not found."""
        for name, value in (await self.placeholders.of(_nowhere(front), DOUBTS)).items():
            address = Address.of(name.partition("/")[0])
            if address is not None:
                self._look(address, name, value)

    async def settle(self) -> None:
        """Return when nothing is looked for."""
        while self._looking:
            await asyncio.wait(set(self._looking))

    async def aclose(self) -> None:
        """Stop looking."""
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

    async def sweep(self, address: Address, doubt: Doubt) -> int:
        """Remove the messages of ours in ``doubt`` that nobody knows of: neither this process nor what is recorded.
        Returns how many."""
        tried: list[int] = []
        for message_id in doubt.ids():
            known = len(tried) == TRIES or self.chats.knows(address, message_id)
            if not known and not await self.placeholders.turn_of(_whole(address), str(message_id)):
                tried.append(message_id)
        batches = [tried[first : first + AT_A_TIME] for first in range(0, len(tried), AT_A_TIME)]
        return sum([await self.chats.remove_ours(address, batch) for batch in batches])

    async def keep(self, address: Address, turn: str, message_id: int, part: str) -> None:
        """Let no sweep take a message in a topic: ids are counted over the whole chat."""
        if address.topic is not None:
            await self.placeholders.record(_whole(address), f"{address.topic}/{turn}", str(message_id), part)

    def _look(self, address: Address, name: str, value: str) -> None:
        task = asyncio.create_task(self._looked(address, name, value), name="rolecall telegram doubt")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _looked(self, address: Address, name: str, value: str) -> None:
        low, guess, high = map(int, value.split("~")[1:])
        with suppress(RedisError, OSError, ServerUnavailable):
            async with self._room:
                removed = await self.sweep(address, Doubt(low, guess, high))
                await self.placeholders.forget(_nowhere(address.front), DOUBTS, value, name)
            if removed:
                logger.info("%s: removed %d placeholders whose sending was in doubt", address.conversation, removed)


def _whole(address: Address) -> str:
    """The conversation of a whole chat, whatever the topic."""
    return Address(address.chat, None, address.front).conversation


def _nowhere(front: str) -> str:
    return Address(0, None, front).conversation
