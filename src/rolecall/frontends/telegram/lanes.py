"""Order within a chat, without waiting for other chats."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Lane:
    """A place in a line. ``turn`` returns when all that entered before have left."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before

    async def turn(self) -> None:
        """Wait for those before. Whoever waits may do what needs no order meanwhile."""
        if self._before is not None:
            await asyncio.shield(self._before)


class Lanes:
    """One line for each key; a key with nobody in line takes no memory."""

    def __init__(self) -> None:
        self._last: dict[Hashable, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._last)

    @contextmanager
    def enter(self, key: Hashable) -> Iterator[Lane]:
        """Stand in line from here to the end of the block. Whoever leaves early lets nobody pass those before."""
        before, mine = self._last.get(key), asyncio.get_running_loop().create_future()
        self._last[key] = mine

        def leave(_: object = None) -> None:
            if self._last.get(key) is mine:
                del self._last[key]
            mine.set_result(None)

        try:
            yield Lane(before)
        finally:
            if before is None or before.done():
                leave()
            else:
                before.add_done_callback(leave)
