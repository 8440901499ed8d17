"""Messages whose sending is in doubt: looked for where they must be, and removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from rolecall.frontends.telegram.address import Address
from rolecall.frontends.telegram.chats import Chats

TRIES = 20
LOOKS = 100
"""So many ids are looked at, and so many of them tried at Telegram. Chats with people share their ids, so that between
a message and what was last heard of there are those of others."""


async def sweep(chats: Chats, address: Address, low: int, high: int, spared: Callable[[int], Awaitable[bool]]) -> int:
    """Remove the messages of ours between the ids ``low`` and ``high`` that nobody knows of: neither this process nor
    ``spared``. Returns how many. Tries a few ids: behind ``low``, or with ``low`` 0 before ``high``."""
    first = low + 1 if low else max(1, high - TRIES)
    left, removed = TRIES, 0
    for message_id in range(first, min(high, first + LOOKS)):
        if not left:
            break
        if chats.knows(address, message_id) or await spared(message_id):
            continue
        left -= 1
        if await chats.is_unknown(address, message_id):
            removed += await chats.delete(address, message_id)
    return removed
