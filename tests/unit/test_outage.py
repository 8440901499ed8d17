"""What the answers of a real server mean: every code that means "not now" is waited out, on a Redis 7 and a Valkey."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import ServerError, ServerFull, ServerRefused, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.leader import LEASE
from rolecall.redis.outage import TRANSIENT
from rolecall.redis.server import RedisServer, connected
from tests.outages import CASES, Case
from tests.proxy import Proxy, free_port
from tests.valkey import ValkeyProcess, server_binary
from tests.waiting import wait_until

LOADED_KEYS = 300


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path:
    return server_binary(str(request.param))


@asynccontextmanager
async def served(directory: Path, binary: Path, *options: str) -> AsyncIterator[RedisServer]:
    process = ValkeyProcess(directory, *options, binary=binary, port=free_port() if options else 0)
    process.start()
    server = RedisServer(process.url)
    try:
        yield server
    finally:
        await server.aclose()
        process.kill()


async def lease(server: RedisServer) -> Any:
    return await server.run(LEASE, lease=keys.lease("x"), token="me", lasts=60_000)


async def error_of(work: Awaitable[Any]) -> ServerError:
    with pytest.raises(ServerError) as caught:
        await work
    return caught.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
async def test_every_answer_that_passes_is_waited_out_and_told_once(
    case: Case, binary: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(directory, binary, *case.options) as server, beside(server) as admin:
        if case.options:
            await case.mend(admin, directory)
            await wait_until(lambda: writable(server))
        await server.call("XGROUP", "CREATE", "{bus:0}:s", "g", "0", "MKSTREAM")
        await case.spoil(admin, directory)
        caplog.clear()
        read = server.reader().read("XREADGROUP", "GROUP", "g", "c", "BLOCK", 100, "STREAMS", "{bus:0}:s", ">")
        for work in (server.call("SET", "{bus:0}:a", 1), server._evaluate(LEASE, lease_arguments()), read):
            error = await error_of(work)
            assert isinstance(error, ServerUnavailable), error
            assert error.code == case.code or (case.code, error.code) == ("MASTERDOWN", "READONLY")
        assert TRANSIENT[case.code] in server.outage.reason or case.code == "MASTERDOWN"
        waiting = [asyncio.create_task(lease(server), name="waiting") for _ in range(5)]
        await asyncio.sleep(0.7)
        assert not any(task.done() for task in waiting)
        await case.mend(admin, directory)
        async with asyncio.timeout(10):
            assert await asyncio.gather(*waiting) == [1] * 5
            await server._readers[0].read("XREADGROUP", "GROUP", "g", "c", "BLOCK", 1, "STREAMS", "{bus:0}:s", ">")
        await server.call("PING")
        assert not server.outage.reason
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert len(told) == 2 and "unavailable, waiting: it" in told[0] and "available again after" in told[1], told


@asynccontextmanager
async def beside(server: RedisServer) -> AsyncIterator[RedisServer]:
    """Another process's connection to the same server."""
    other = RedisServer(server.url)
    try:
        yield other
    finally:
        await other.aclose()


def lease_arguments() -> list[Any]:
    return LEASE.arguments((), {"lease": keys.lease("x"), "token": "me", "lasts": 60_000})


async def writable(server: RedisServer) -> bool:
    try:
        await server.call("SET", "{bus:0}:a", 1)
    except ServerUnavailable:
        return False
    return True


async def test_a_password_that_is_changed_is_told_though_the_outage_began_with_a_lost_connection(
    binary: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = ValkeyProcess(directory, binary=binary)
    process.start()
    async with connected(process.url) as admin:
        await admin.call("ACL", "SETUSER", "few", "on", ">one", "~*", "&*", "+@all")
        async with connected(process.url.replace("://", "://few:one@")) as server:
            await admin.call("ACL", "SETUSER", "few", "resetpass", ">two")
            await admin.call("CLIENT", "KILL", "USER", "few")
            waiting = asyncio.create_task(lease(server))
            await wait_until(lambda: "WRONGPASS" in server.outage.reason)
            await admin.call("ACL", "SETUSER", "few", ">one")
            await waiting
    process.kill()
    told = [record.getMessage() for record in caplog.records if "available" in record.getMessage()]
    assert len(told) == 3 and told[1].endswith("it does not accept our user and password (WRONGPASS)")


async def test_an_outage_ends_with_the_server_and_not_with_the_next_entry(binary: Path, directory: Path) -> None:
    process = ValkeyProcess(directory, binary=binary, durable=True)
    process.start()
    async with connected(process.url) as server:
        await server.call("XGROUP", "CREATE", "{bus:0}:s", "g", "0", "MKSTREAM")
        reader = server.reader()

        async def read() -> None:
            while True:
                with suppress(ServerUnavailable):
                    await reader.read("XREADGROUP", "GROUP", "g", "c", "BLOCK", 60_000, "STREAMS", "{bus:0}:s", ">")
                await asyncio.sleep(0.01)

        reading = asyncio.create_task(read(), name="reader of a test")
        await wait_until(lambda: reader.connections)
        process.kill()
        await wait_until(lambda: server.outage.reason)
        process.start()
        await server.fetch("PING")
        await wait_until(lambda: not server.outage.reason)
        await reader.wake()
        reading.cancel()
    process.kill()


async def test_a_server_that_loads_its_data_is_waited_for(binary: Path, directory: Path) -> None:
    slowly = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    process = ValkeyProcess(directory, *slowly, binary=binary)
    process.start()
    async with connected(process.url) as admin:
        await admin.call("MSET", *(part for number in range(LOADED_KEYS) for part in (number, "x" * 1024)))
        await admin.call("SAVE")
    process.kill()
    process.start(ready=False)
    server = RedisServer(process.url)
    error = await error_of(server.call("GET", "1"))
    assert (type(error), error.code) == (ServerUnavailable, "LOADING")
    assert await lease(server) == 1
    await server.aclose()
    process.kill()


async def test_a_server_that_runs_a_script_for_long_is_waited_for(binary: Path, directory: Path) -> None:
    async with served(directory, binary) as server, beside(server) as admin, beside(server) as other:
        await admin.call("CONFIG", "SET", "busy-reply-threshold", 50)
        await other.call("PING")
        endless = admin.send("EVAL", "while true do end", 0)
        await asyncio.sleep(0.3)
        error = await error_of(server.call("GET", "1"))
        assert (type(error), error.code) == (ServerUnavailable, "BUSY")
        waiting = asyncio.create_task(lease(server), name="waiting")
        await other.call("SCRIPT", "KILL")
        assert await waiting == 1
        assert isinstance(await error_of(endless), ServerRefused)


async def test_a_full_server_refuses_at_once_and_what_is_accepted_waits(binary: Path, directory: Path) -> None:
    async with served(directory, binary, "--maxmemory", "1") as server:
        for work in (server.call("SET", "a", "b"), lease(server)):
            error = await error_of(work)
            assert (type(error), error.code) == (ServerFull, "OOM")
            assert isinstance(error, ServerUnavailable)
        assert "out of memory" in server.outage.reason


async def test_a_slot_that_moves_between_cluster_nodes_is_waited_for(binary: Path, directory: Path) -> None:
    parts = [directory / "0", directory / "1"]
    for part in parts:
        part.mkdir()
    ports = [free_port(), free_port()]
    nodes = [
        ValkeyProcess(part, "--cluster-enabled", "yes", binary=binary, port=port)
        for part, port in zip(parts, ports, strict=True)
    ]
    for node in nodes:
        node.start()
    here, there = (RedisServer(node.url) for node in nodes)
    try:
        await here.call("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        await here.call("CLUSTER", "MEET", "127.0.0.1", ports[1])
        await wait_until(lambda: writable(here), seconds=20)
        there_id = (await there.call("CLUSTER", "MYID")).decode()
        slot = await here.call("CLUSTER", "KEYSLOT", "{t}")
        await wait_until(lambda: migrating(here, slot, there_id), seconds=20)
        await here.call("SET", "{t}1", 1)  # one of two keys has moved already
        error = await error_of(here.call("MGET", "{t}1", "{t}2"))
        assert (type(error), error.code) == (ServerUnavailable, "TRYAGAIN")
        waiting = asyncio.create_task(here.fetch("MGET", "{t}1", "{t}2"), name="waiting")
        await here.call("CLUSTER", "SETSLOT", slot, "STABLE")
        assert await waiting == [b"1", None]
    finally:
        for server, node in zip((here, there), nodes, strict=True):
            await server.aclose()
            node.kill()


async def migrating(server: RedisServer, slot: int, node: str) -> bool:
    try:
        await server.call("SET", "{t}1", 1)
        return bool(await server.call("CLUSTER", "SETSLOT", slot, "MIGRATING", node))
    except ServerError:  # it does not know the other node yet
        return False


@pytest.mark.parametrize("code", ["WRONGTYPE", "NOPERM", "ERR", "NOSCRIPT"])
async def test_every_other_answer_is_final(binary: Path, directory: Path, code: str) -> None:
    async with served(directory, binary) as server:
        await server.call("ACL", "SETUSER", "default", "-ping")
        await server.call("SET", "a", 1)
        command = {"WRONGTYPE": "LPUSH a 1", "NOPERM": "PING", "ERR": "GET", "NOSCRIPT": f"EVALSHA {'0' * 40} 0"}[code]
        error = await error_of(server.call(*command.split()))
        assert (type(error), error.code) == (ServerRefused, code)
        assert not server.outage.reason


async def test_an_address_that_leads_to_a_new_primary_is_followed_by_every_connection(
    binary: Path, directory: Path
) -> None:
    old, new = (ValkeyProcess(directory / name, binary=binary) for name in ("old", "new"))
    for node in (old, new):
        node.directory.mkdir()
        node.start()
    proxy = Proxy(old.socket)
    await proxy.start()
    server = RedisServer(proxy.url)
    admin, successor = RedisServer(old.url), RedisServer(new.url)
    pubsub, reader = server.pubsub(), server.reader()
    try:
        await pubsub.subscribe("news")
        await pubsub.get_message(5)
        assert await lease(server) == 1
        await successor.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
        await admin.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
        reading = asyncio.create_task(
            reader.read("XREADGROUP", "GROUP", "g", "c", "BLOCK", 2000, "STREAMS", "s", ">"), name="reading"
        )
        listening = asyncio.create_task(heard(pubsub), name="listening")
        await asyncio.sleep(1.1)
        await admin.call("REPLICAOF", "127.0.0.1", 1)
        proxy.target = new.socket  # where new connections go; the old ones stay open
        async with asyncio.timeout(5):
            assert await lease(server) == 1
            assert await successor.call("EXISTS", keys.lease("x")) == 1
            await asyncio.gather(reading, return_exceptions=True)
            await successor.call("XADD", "s", "*", "a", "b")
            read = await reader.read("XREADGROUP", "GROUP", "g", "c", "BLOCK", 2000, "STREAMS", "s", ">")
            assert read[0][0] == b"s"
            while await successor.call("PUBLISH", "news", "hello") == 0:
                await asyncio.sleep(0.02)
            assert await listening == b"hello"
        assert not server.outage.reason
    finally:
        for one in (server, admin, successor):
            await one.aclose()
        await proxy.stop()
        for node in (old, new):
            node.kill()


async def heard(pubsub: Any) -> Any:
    while True:
        try:
            message = await pubsub.get_message(5)
        except ServerUnavailable:
            continue
        if message is not None and message["type"] == "message":
            return message["data"]


async def test_connections_to_a_replica_are_opened_anew_once_a_second_not_at_every_command(
    directory: Path, binary: Path
) -> None:
    node = ValkeyProcess(directory, binary=binary)
    node.start()
    proxy = Proxy(node.socket)
    await proxy.start()
    server, admin = RedisServer(proxy.url), RedisServer(node.url)
    await admin.call("REPLICAOF", "127.0.0.1", 1)
    waiting = [asyncio.create_task(lease(server), name="waiting") for _ in range(50)]
    began = time.monotonic()
    await asyncio.sleep(2.5)
    opened = proxy.accepted
    await admin.call("REPLICAOF", "NO", "ONE")
    await asyncio.gather(*waiting)
    assert opened <= (time.monotonic() - began) + 1
    await server.aclose()
    await admin.aclose()
    await proxy.stop()
    node.kill()
