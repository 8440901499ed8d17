"""Messages whose sending is in doubt: looked for where they must be, and removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from rolecall.frontends.telegram.address import Address
from rolecall.frontends.telegram.chats import Chats

TRIES = 12
LOOKS = 100
"""So many ids are looked at, and so many of them tried at Telegram. Chats with people share their ids, so that between
a message and what was last heard of there are those of others."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Where a message is, if it is: behind the id ``low``, 0 for unknown, and most likely at ``guess``."""

    low: int
    guess: int

    def ids(self, high: int) -> Sequence[int]:
        """The ids below ``high`` that it may have, the likeliest first."""
        first = self.low + 1 if self.low else max(1, high - LOOKS)
        guess = self.guess if self.low else high
        return sorted(range(first, min(high, first + LOOKS)), key=lambda number: abs(number - guess))


async def sweep(
    chats: Chats, address: Address, doubt: Doubt, high: int, spared: Callable[[int], Awaitable[bool]]
) -> int:
    """Remove the messages of ours in ``doubt``, below the id ``high``, that nobody knows of: neither this process nor
    ``spared``. Returns how many."""
    tried: list[int] = []
    for message_id in doubt.ids(high):
        if len(tried) < TRIES and not chats.knows(address, message_id) and not await spared(message_id):
            tried.append(message_id)
    return await chats.remove_ours(address, tried)
