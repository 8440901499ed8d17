"""Order within a chat, without waiting for other chats."""

from __future__ import annotations

import asyncio

from rolecall.frontends.telegram.grouping import ChatQueue


async def test_leaving_early_does_not_let_later_tickets_overtake_earlier_ones() -> None:
    queue, said, done = ChatQueue(), [], asyncio.Event()

    async def one(key: str, name: str, *, first: asyncio.Event | None = None, waits: bool = True) -> None:
        with queue.enter(key) as ticket:
            if first is not None:
                await first.wait()
            if waits:
                await ticket.wait()
            said.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(one("a", "slow", first=done))
        group.create_task(one("a", "refused", waits=False))
        last = group.create_task(one("a", "last"))
        await group.create_task(one("b", "other"))
        await asyncio.wait([last], timeout=0.02)
        assert said == ["refused", "other"]
        done.set()
    assert said[2:] == ["slow", "last"]
    assert len(queue) == 0
