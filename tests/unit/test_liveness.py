"""Connections whose peer is gone without a word: each kind notices, and works again, in a known time.

The limits are a tenth of the real ones; with ROLECALL_LIVENESS=1 they are the real ones, and the times are printed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.bus.wakeups import Wakeups
from rolecall.errors import ServerError, ServerUnavailable
from rolecall.redis import keys, pipeline, subscriber
from rolecall.redis import reader as reads
from rolecall.redis.leader import LEASE
from rolecall.redis.server import RedisServer
from tests.proxy import Proxy
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

REAL = "ROLECALL_LIVENESS" in os.environ
SCALE = 1.0 if REAL else 0.1
MOST_SECONDS = 30 * SCALE
LIMITS = (
    (pipeline, "CONNECT_SECONDS"), (reads, "SILENCE_SECONDS"), (reads, "ANSWER_SECONDS"), (reads, "BLOCK_MS"),
    (subscriber, "PING_SECONDS"), (subscriber, "ANSWER_SECONDS"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in LIMITS:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, type(real)(real * SCALE))


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    process = ValkeyProcess(tmp_path)
    process.start()
    proxy = Proxy(process.socket)
    await proxy.start()
    yield proxy
    await proxy.stop()
    process.kill()


@pytest.fixture
async def through(proxy: Proxy) -> AsyncIterator[RedisServer]:
    """The server through the proxy."""
    server = RedisServer(proxy.url, socket_timeout=5 * SCALE)
    yield server
    await server.aclose()


def lease(server: RedisServer) -> Any:
    return server.run(LEASE, lease=keys.lease("x"), token="me", lasts=60_000)


def within(began: float, what: str) -> None:
    took = time.monotonic() - began
    if REAL:
        print(f"\n{what}: works again after {took:.1f} s")
    assert took < MOST_SECONDS


async def test_the_command_connection_notices_a_silent_peer(proxy: Proxy, through: RedisServer) -> None:
    assert await lease(through) == 1
    assert proxy.silence("commands") == 1
    began = time.monotonic()
    assert await lease(through) == 1
    within(began, "commands")


async def test_a_blocking_reader_notices_a_silent_peer(proxy: Proxy, through: RedisServer) -> None:
    await through.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    reader = through.reader()
    read = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", reads.BLOCK_MS, "STREAMS", "s", ">")
    assert await reader.read(*read) is None
    reading = asyncio.create_task(reader.read(*read), name="reading")
    await wait_until(lambda: proxy.of("reader"))
    proxy.silence("reader")
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="no answer within"):
        await reading
    await through.call("XADD", "s", "*", "a", "b")
    assert await reader.read(*read)
    within(began, "reader")


async def test_a_reader_that_waits_for_long_is_given_up_with_a_silent_command_connection(
    proxy: Proxy, through: RedisServer
) -> None:
    await through.call("PING")
    reader = through.reader()
    reading = asyncio.create_task(reader.read("XREAD", "BLOCK", 600_000, "STREAMS", "s", "$"), name="reading")
    await wait_until(lambda: proxy.of("reader"))
    proxy.silence()
    began = time.monotonic()
    with pytest.raises(ServerUnavailable):
        await through.call("PING")
    with pytest.raises(ServerUnavailable):
        await reading
    assert await reader.read("XREAD", "BLOCK", 1, "STREAMS", "s", "$") is None
    within(began, "reader beside commands")


async def test_a_subscriber_notices_a_silent_peer_and_hears_again(proxy: Proxy, through: RedisServer) -> None:
    wakeups = Wakeups(through.pubsub())
    running = asyncio.create_task(wakeups.run(), name="wake-ups")
    await wakeups.listening.wait()
    async with wakeups.listen("news") as listener:
        assert proxy.silence("subscriber") == 1
        listener.woken.clear()
        began = time.monotonic()
        while not await through.call("PUBLISH", "news", "hello"):  # the old connection took it for a while
            await asyncio.sleep(0.01)
        while not listener.woken.is_set():
            await through.call("PUBLISH", "news", "hello")
            await asyncio.sleep(0.05)
        within(began, "subscriber")
    running.cancel()
    await asyncio.wait([running])


async def test_a_peer_that_accepts_and_says_nothing_is_given_up_and_tried_again(
    proxy: Proxy, through: RedisServer
) -> None:
    proxy.deaf = True
    reader, pubsub = through.reader(), through.pubsub()
    began = time.monotonic()
    failures = await asyncio.gather(
        through.call("PING"), reader.read("XREAD", "BLOCK", 1, "STREAMS", "s", "$"), pubsub.get_message(10),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(failure) for failure in failures] == [ServerUnavailable] * 3, failures
    assert time.monotonic() - began < 8 * SCALE
    assert through.outage.reason == "it cannot be reached"
    waiting = asyncio.create_task(lease(through), name="waiting")
    await asyncio.sleep(0.1)
    proxy.deaf = False
    assert await waiting == 1
    within(began, "new connections")


async def test_closing_and_cancelling_do_not_wait_for_a_silent_peer(proxy: Proxy, through: RedisServer) -> None:
    reader, pubsub = through.reader(), through.pubsub()
    await lease(through)
    reading = asyncio.create_task(reader.read("XREAD", "BLOCK", reads.BLOCK_MS, "STREAMS", "s", "$"), name="reading")
    listening = asyncio.create_task(pubsub.get_message(60), name="listening")
    await asyncio.sleep(0.2)
    asked = through.send("PING")
    proxy.deaf = True
    proxy.silence()
    began = time.monotonic()
    for task in (reading, listening):
        task.cancel()
    await asyncio.wait([reading, listening])
    await through.aclose()
    assert time.monotonic() - began < 0.5
    with pytest.raises(ServerError):
        await asked


async def test_an_answer_that_takes_long_to_arrive_is_no_silence(proxy: Proxy, through: RedisServer) -> None:
    """What counts are bytes: an answer of 2 MB in pieces takes longer than the timeout of a command."""
    await through.call("SET", "large", b"x" * 2_000_000)
    proxy.pieces = (100_000, 0.08 if not REAL else 0.8)
    began = time.monotonic()
    assert len(await through.call("GET", "large")) == 2_000_000
    assert time.monotonic() - began > 5 * SCALE


async def test_the_end_of_a_process_waits_for_no_connection(proxy: Proxy) -> None:
    """asyncio.run cancels what is left: the command connection must not swallow that, in whatever state it is."""

    async def leave(url: str, moment: float) -> None:
        server = RedisServer(url)
        server.send("PING").add_done_callback(lambda future: future.cancelled() or future.exception())
        await asyncio.sleep(moment)
        proxy.silence()

    for moment in (0, 0.001, 0.01, 0.1):
        async with asyncio.timeout(5):
            await asyncio.to_thread(asyncio.run, leave(proxy.url, moment))
    proxy.deaf = True
    async with asyncio.timeout(5):
        await asyncio.to_thread(asyncio.run, leave(proxy.url, 0.1))
