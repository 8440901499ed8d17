"""A named lease is with one process at a time, and changes hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rolecall.redis import keys
from rolecall.redis.leader import Leader
from rolecall.redis.server import RedisServer
from tests.valkey import ValkeyProcess


@asynccontextmanager
async def keeping(lease: Leader) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lease.run(), name="test lease")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_one_has_it_and_who_gives_it_up_lets_the_next_have_it(server: RedisServer) -> None:
    first, second = (Leader(server, "x", name, seconds=2) for name in ("a", "b"))
    async with keeping(second) as waiting:
        await second.wait()
        async with keeping(first):
            assert not first.held
            waiting.cancel()
            await first.wait()
            assert not second.held


async def test_who_is_cancelled_while_it_is_elected_gives_it_up_at_once(server: RedisServer) -> None:
    first, second = (Leader(server, "x", name, seconds=60) for name in ("a", "b"))
    async with keeping(first):
        await asyncio.sleep(0)  # it has asked for the lead
    assert await second.renew()


async def test_whoever_vanished_loses_it_when_its_time_is_over(server: RedisServer) -> None:
    first, second = (Leader(server, "x", name, seconds=0.6) for name in ("a", "b"))
    await first.renew()
    assert first.held
    async with keeping(second):
        await second.wait()
        assert not first.held
        await first.renew()
        assert not first.held
        assert second.held


async def test_processes_of_one_directory_take_over_at_once(server: RedisServer, tmp_path: Path) -> None:
    lock = tmp_path / "state" / "x.lock"
    first, second, elsewhere = (
        Leader(server, "x", name, seconds=60, lock=where)
        for name, where in (("a", lock), ("b", lock), ("c", tmp_path / "x.lock"))
    )
    await first.renew()
    await second.renew()
    assert (first.held, second.held) == (True, False)
    first._token = ""  # it dies, which is: its lock is gone and nothing was given up
    await first.resign()
    await elsewhere.renew()
    await second.renew()
    assert (elsewhere.held, second.held) == (False, True)


async def test_without_the_lock_of_its_directory_a_process_is_no_candidate_where_that_is_required(
    server: RedisServer, tmp_path: Path
) -> None:
    first, second = (Leader(server, "x", n, seconds=60, lock=tmp_path / "x.lock", exclusive=True) for n in ("a", "b"))
    assert await first.renew()
    await server.call("DEL", keys.lease("x"))
    assert not await second.renew()
    await first.resign()
    assert await second.renew()


async def test_nobody_has_it_while_the_server_is_away(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url, patience=0.1)
    lease = Leader(server, "x", "a", seconds=0.6)
    try:
        async with keeping(lease):
            await lease.wait()
            process.kill()
            await lease.wait(held=False)
            process.start()
            await lease.wait()
    finally:
        await server.aclose()
        process.kill()
