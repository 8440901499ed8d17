"""A named lease is with one process at a time, and changes hands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rolecall.redis.leader import Lease
from rolecall.redis.server import RedisServer
from tests.valkey import ValkeyProcess


@asynccontextmanager
async def keeping(lease: Lease) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lease.run(), name="test lease")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_one_has_it_and_who_gives_it_up_lets_the_next_have_it(server: RedisServer) -> None:
    first, second = (Lease(server, "x", name, seconds=2) for name in ("a", "b"))
    async with keeping(second) as waiting:
        await second.wait()
        async with keeping(first):
            assert not first.held
            waiting.cancel()
            await first.wait()
            assert not second.held


async def test_whoever_vanished_loses_it_when_its_time_is_over(server: RedisServer) -> None:
    first, second = (Lease(server, "x", name, seconds=0.6) for name in ("a", "b"))
    await first._renew()
    assert first.held
    async with keeping(second):
        await second.wait()
        assert not first.held
        await first._renew()
        assert not first.held
        assert second.held


async def test_processes_of_one_directory_take_over_at_once(server: RedisServer, tmp_path: Path) -> None:
    lock = tmp_path / "state" / "x.lock"
    first, second, elsewhere = (
        Lease(server, "x", name, seconds=60, lock=where)
        for name, where in (("a", lock), ("b", lock), ("c", tmp_path / "x.lock"))
    )
    await first._renew()
    await second._renew()
    assert (first.held, second.held) == (True, False)
    first._token = ""  # it dies, which is: its lock is gone and nothing was given up
    await first._give_up()
    await elsewhere._renew()
    await second._renew()
    assert (elsewhere.held, second.held) == (False, True)


async def test_nobody_has_it_while_the_server_is_away(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url, patience=0.1)
    lease = Lease(server, "x", "a", seconds=0.6)
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
