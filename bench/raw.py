"""The yardstick: what a bare redis-py loop does with the same server, and what the disk does."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from bench.app import FILLER

STREAM, GROUP = "raw", "g"
CHAIN = ("raw:manager", "raw:samplellm", "raw:answers")
BATCH = 100
START_SECONDS, END_SECONDS = 60.0, 10.0
"""How long the other process may take to start, and to end before it is killed."""


async def raw_messages(url: str, count: int) -> float:
    """Messages per second through one stream, about 1 kB of JSON each: sent in pipelines of 100, read 100 at a time,
    decoded, acknowledged and deleted in one pipeline. Sender and reader share this process, as all that is measured."""
    async with Redis.from_url(url) as sender, Redis.from_url(url) as reader:
        await reader.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        began = time.perf_counter()
        await asyncio.gather(_send(sender, count), _read(reader, count))
        took = time.perf_counter() - began
        await reader.delete(STREAM)
    return count / took


async def _send(client: Redis, count: int) -> None:
    for first in range(0, count, BATCH):
        pipeline = client.pipeline(transaction=False)
        for number in range(first, first + BATCH):
            body = {
                "id": number,
                "conversation": f"bench:{number}",
                "payload": {"text": FILLER},
                "created": time.time(),
            }
            pipeline.xadd(STREAM, {"e": msgspec.json.encode(body)})
        await pipeline.execute()


async def _read(client: Redis, count: int) -> None:
    done = 0
    while done < count:
        entries = await _read_some(client, STREAM, BATCH)
        for _, fields in entries:
            msgspec.json.decode(fields[b"e"])
        ids = [entry_id for entry_id, _ in entries]
        pipeline = client.pipeline(transaction=False)
        pipeline.xack(STREAM, GROUP, *ids)
        pipeline.xdel(STREAM, *ids)
        await pipeline.execute()
        done += len(ids)


async def raw_two_hops(url: str, times: int) -> list[float]:
    """Milliseconds from a message to its answer over two such streams read by another process and back by a third
    stream, one at a time; sorted."""
    async with Redis.from_url(url) as client:
        async with worker_process("raw", url):
            last, took = "0", []
            for number in range(times):
                began = time.perf_counter()
                await client.xadd(CHAIN[0], {"e": msgspec.json.encode(_body(number))})
                reply: Any = await client.xread({CHAIN[-1]: last}, count=1, block=1000)
                last, fields = reply[0][1][0]
                msgspec.json.decode(fields[b"e"])
                took.append((time.perf_counter() - began) * 1000)
        await client.delete(*CHAIN)
    return sorted(took)


async def pass_on(url: str, source: str, target: str, stopped: asyncio.Event) -> None:
    """Read ``source``, one message at a time, and send each on to ``target``. ``stopped`` ends it within a second; it
    is not cancelled, because redis-py may lose a cancellation that comes while it reads."""
    async with Redis.from_url(url) as client:
        await client.xgroup_create(source, GROUP, "0", mkstream=True)
        while not stopped.is_set():
            for entry_id, fields in await _read_some(client, source, 1):
                body = msgspec.json.decode(fields[b"e"])
                pipeline = client.pipeline(transaction=False)
                pipeline.xadd(target, {"e": msgspec.json.encode(body)})
                pipeline.xack(source, GROUP, entry_id)
                pipeline.xdel(source, entry_id)
                await pipeline.execute()


@asynccontextmanager
async def worker_process(what: str, url: str) -> AsyncIterator[None]:
    """``python -m bench.worker`` at work."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.worker", what, url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            assert await process.stdout.readline(), f"the {what} worker did not start"
        yield
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process: it is asked by closing its input, then killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read_some(client: Redis, stream: str, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
    reply: Any = await client.xreadgroup(GROUP, "bench", {stream: ">"}, count=count, block=1000)
    return reply[0][1] if reply else []


def _body(number: int) -> dict[str, Any]:
    return {"id": number, "conversation": f"bench:{number}", "payload": {"text": FILLER}}


def fsync_ms(directory: Path, times: int = 100) -> float:
    """The median of ``times`` times writing 4 kB and having the disk confirm it, in ms."""
    path, took = directory / "fsync", []
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    for _ in range(times):
        os.write(file, b"x" * 4096)
        began = time.perf_counter()
        os.fdatasync(file) if hasattr(os, "fdatasync") else os.fsync(file)
        took.append(time.perf_counter() - began)
    os.close(file)
    path.unlink()
    return statistics.median(took) * 1000
