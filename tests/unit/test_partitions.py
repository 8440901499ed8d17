"""Partitions: each part is held by one process at a time, and all have equal shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rolecall.redis.partitions import PARTS, Partitions
from rolecall.redis.server import RedisServer
from tests.waiting import wait_until


@asynccontextmanager
async def taking_part(*sharers: Partitions) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(one.run(), name="test partitions") for one in sharers]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def holders(part: int, *sharers: Partitions) -> int:
    return sum(one.tenure(part) > 0 for one in sharers)


def shares(*sharers: Partitions) -> list[int]:
    return sorted(one.held for one in sharers)


async def test_processes_that_join_and_leave_share_all_parts_and_no_part_has_two_holders(server: RedisServer) -> None:
    first, *others = (Partitions(server, "work", f"p{n}", seconds=1.2) for n in range(3))
    doubled: list[int] = []

    async def watch() -> None:
        while True:
            doubled.extend(part for part in range(PARTS) if holders(part, first, *others) > 1)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    async with taking_part(first):
        await wait_until(lambda: first.held == PARTS)
        async with taking_part(*others):
            await wait_until(lambda: shares(first, *others) == [10, 11, 11], seconds=20)
            assert first.members == 3
        await wait_until(lambda: first.held == PARTS, seconds=20)
    watching.cancel()
    assert not doubled


async def test_the_share_of_a_process_that_ends_without_a_word_expires(server: RedisServer) -> None:
    silent, other = (Partitions(server, "work", name, seconds=1) for name in ("silent", "other"))
    await silent.renew()
    assert silent.held == PARTS
    async with taking_part(other):
        await wait_until(lambda: other.held == PARTS, seconds=20)
        assert silent.held == 0


async def test_a_part_that_comes_back_has_another_tenure(server: RedisServer) -> None:
    one = Partitions(server, "work", "one", seconds=1)
    await one.renew()
    before = one.tenure(0)
    await wait_until(lambda: not one.tenure(0), seconds=20)
    async with taking_part(one):
        await wait_until(lambda: one.held == PARTS, seconds=20)
    assert one.tenure(0) != before


async def test_what_a_dead_process_of_the_directory_held_is_taken_over_before_it_expires(
    server: RedisServer, tmp_path: Path
) -> None:
    dying, living = (Partitions(server, "work", n, seconds=600, directory=tmp_path) for n in ("dying", "living"))
    await dying.renew()
    await living.renew()
    assert shares(dying, living) == [0, PARTS]
    assert dying._lock is not None
    dying._lock.drop()  # as the system does when a process ends, however it ends
    async with taking_part(living):
        await wait_until(lambda: living.held == PARTS, seconds=20)


async def test_a_process_that_starts_again_has_the_share_of_the_one_that_died_at_once(
    server: RedisServer, tmp_path: Path
) -> None:
    dying = Partitions(server, "work", "dying", seconds=600, directory=tmp_path)
    await dying.renew()
    assert dying._lock is not None
    dying._lock.drop()
    successor = Partitions(server, "work", "successor", seconds=600, directory=tmp_path)
    await successor.renew()
    assert successor.held == PARTS
