"""The pipelined connection: order, and every failure as one of our own errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from rolecall.errors import ServerFull, ServerRefused, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.leader import LEASE
from rolecall.redis.pipeline import BURST
from rolecall.redis.server import RedisServer
from tests.valkey import ValkeyProcess


@asynccontextmanager
async def own_server(directory: Path, socket_timeout: float = 5) -> AsyncIterator[RedisServer]:
    process = ValkeyProcess(directory)
    process.start()
    server = RedisServer(process.url, socket_timeout=socket_timeout)
    try:
        yield server
    finally:
        await server.aclose()
        process.kill()


async def test_replies_belong_to_their_commands_whatever_fails_between(server: RedisServer) -> None:
    futures = [server.send("RPUSH", "list", n) if n % 2 else server.send("INCR", "list") for n in range(1, 9)]
    replies = await asyncio.gather(*futures, return_exceptions=True)
    assert replies[::2] == [1, 2, 3, 4]
    assert [reply.code for reply in replies[1::2] if isinstance(reply, ServerRefused)] == ["WRONGTYPE"] * 4


async def test_a_server_out_of_memory_is_told_apart(tmp_path: Path) -> None:
    async with own_server(tmp_path) as server:
        await server.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(ServerFull) as full:
            await server.call("SET", "a", "b")
        assert full.value.code == "OOM"


async def test_a_demoted_server_is_an_outage_that_scripts_wait_out(tmp_path: Path) -> None:
    async with own_server(tmp_path) as server:
        await server.call("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(ServerUnavailable, match="read-only"):
            await server.call("SET", "a", "b")
        waiting = asyncio.create_task(server.run(LEASE, lease=keys.lease("x"), token="me", lasts=60_000))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await server.call("REPLICAOF", "NO", "ONE")
        assert await waiting == 1


async def test_a_user_without_the_right_is_refused_and_not_asked_again(tmp_path: Path) -> None:
    async with own_server(tmp_path) as server:
        await server.call("ACL", "SETUSER", "default", "-set")
        with pytest.raises(ServerRefused) as refused:
            await server.call("SET", "a", "b")
        assert refused.value.code == "NOPERM"


async def test_a_server_that_falls_silent_fails_all_that_waits_for_it(tmp_path: Path) -> None:
    async with own_server(tmp_path, socket_timeout=0.2) as server:
        await server.call("PING")
        paused = server.send("CLIENT", "PAUSE", 60_000, "ALL")
        assert await paused == b"OK"
        replies = await asyncio.gather(server.call("PING"), server.call("PING"), return_exceptions=True)
        assert [str(reply) for reply in replies] == ["the server is unavailable: no answer within 0.2 s"] * 2


async def test_closing_fails_what_is_unanswered(tmp_path: Path) -> None:
    async with own_server(tmp_path) as server:
        blocked = server.send("BLPOP", "nothing", 60)
        await asyncio.sleep(0.05)
        await server.aclose()
        with pytest.raises(ServerUnavailable, match="closed"):
            await blocked


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_commands_in_the_moment_the_connection_breaks_fail_as_all_others_do(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def send_while_it_breaks() -> list[object]:
        process = ValkeyProcess(tmp_path)
        process.start()
        server = RedisServer(process.url)
        try:
            await server.call("PING")
            process.kill()
            futures = []
            while server.connected:
                futures += [server.send("PING") for _ in range(BURST)]
                await asyncio.sleep(0)
            return [*await asyncio.gather(*futures, return_exceptions=True)]
        finally:
            await server.aclose()
            process.kill()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        replies = runner.run(send_while_it_breaks())
    assert {type(reply) for reply in replies} == {ServerUnavailable}
