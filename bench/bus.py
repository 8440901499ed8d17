"""The bus, measured through a whole runtime in this process, as ``rolecall up`` runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from bench.app import (
    FILLER,
    HOPS,
    ClockAgent,
    ManagerAgent,
    PingAgent,
    PongAgent,
    SampleLLMAgent,
    WaitAgent,
    application,
    settings,
)
from bench.raw import worker_process
from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.admission import admit
from rolecall.bus.bus import Bus
from rolecall.bus.process.processes import process_name
from rolecall.bus.wakeups import Wakeups
from rolecall.frontends.front import Front
from rolecall.redis.server import RedisServer
from rolecall.transcripts.scribe import Scribe
from rolecall.worker.runtime import Runtime

INSTANCES = 32
AT_ONCE = 64
"""So many messages are admitted at once. All of them at once would be begun in one tick of the event loop, before the
server sees the first; no front end gets its messages that way."""
LONGEST_SECONDS = 120.0
"""After so long, a measurement has failed."""
PLAIN = (Role(ManagerAgent, INSTANCES), Role(PingAgent, INSTANCES), Role(PongAgent, INSTANCES))
FULL = (Role(ManagerAgent, INSTANCES), Role(SampleLLMAgent, INSTANCES, ("echo@test",)))
WAITING = (Role(ManagerAgent, INSTANCES), Role(WaitAgent, 50))
STREAMING = (Role(ManagerAgent, 1), Role(ClockAgent, 1))


async def plain_messages(url: str, conversations: int) -> float:
    """Deliveries per second from role to role: each is written, taken, announced, handled and settled, with its
    transcript records and its event, under a lease."""
    async with running(url, PLAIN) as runtime:
        took = await _all_answered(runtime, conversations, "ping")
    return conversations * (HOPS + 1) / took


async def full_turns(url: str, conversations: int) -> float:
    """Turns per second from admission to answer over manager and samplellm, with history, events and records."""
    async with running(url, FULL) as runtime:
        return conversations / await _all_answered(runtime, conversations, "samplellm")


async def one_role_turns(url: str, turns: int, conversations: int) -> float:
    """Turns per second over the manager alone, which answers at once; so many ``turns`` in ``conversations``."""
    async with running(url, FULL[:1]) as runtime:
        return turns / await _all_answered(runtime, turns, "", conversations)


async def short_waits(url: str, conversations: int) -> float:
    """Seconds until so many turns have ended, each of which waits WAIT_SECONDS in one of 50 instances."""
    async with running(url, WAITING) as runtime:
        return await _all_answered(runtime, conversations, "wait")


async def two_hops(url: str, times: int) -> list[float]:
    """Milliseconds from a user's message to its answer at a front end in this process, over two roles in a worker
    process, one at a time; sorted."""
    async with _front(url, "bus") as front:
        return sorted([await one_turn(front, f"bench:{number % 50}") for number in range(times)])


async def first_pieces(url: str, times: int) -> list[float]:
    """Milliseconds from the first piece of a model in a worker process until a front end in this process has it, one
    answer at a time; sorted."""
    async with _front(url, "streams") as front:
        return sorted([await first_piece(front, f"bench:{number % 50}") for number in range(times)])


async def first_piece(front: Front, conversation: str) -> float:
    """The milliseconds of one answer of the clock."""
    received = await front.receive(conversation, "?", payload={"to": "clock"})
    took = [
        (time.monotonic() - float(event.text)) * 1000
        async for event in front.follow(received)
        if event.kind == "delta" and not event.position
    ]
    return took[0]


@asynccontextmanager
async def _front(url: str, work: str) -> AsyncIterator[Front]:
    """A front end in this process, beside a worker process."""
    async with _connection(url) as server, worker_process(work, url):
        wakeups = Wakeups(server.pubsub())
        listening = asyncio.create_task(wakeups.run(), name="bench wake-ups")
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                yield Front(Bus(server, settings(), process_name()), wakeups, "bench")
        finally:
            listening.cancel()
            await asyncio.wait([listening], timeout=1)
            await wakeups.aclose()


async def one_turn(front: Front, conversation: str) -> float:
    began = time.perf_counter()
    received = await front.receive(conversation, FILLER, payload={"to": "samplellm"})
    async for event in front.follow(received):
        if event.last:
            took = (time.perf_counter() - began) * 1000
    return took


async def at_rest(url: str, log_dir: Path, shards: int, seconds: float) -> tuple[float, int]:
    """Commands per second and connections of one process that runs 10 roles × 5 instances and the scribe, with
    nothing to do."""
    roles = [Role(ManagerAgent, 5), *(Role(_agent(number), 5) for number in range(9))]
    async with running(url, roles, shards), _connection(url) as observer, _writing(url, log_dir, shards):
        await asyncio.sleep(seconds / 4)
        before = await _commands(observer)
        await asyncio.sleep(seconds)
        rate = (await _commands(observer) - before) / seconds
        listed: bytes = await observer.call("CLIENT", "LIST")
        return rate, listed.count(b"\n") - 1


async def _all_answered(runtime: Runtime, turns: int, to: str, conversations: int = 0) -> float:
    """Seconds until ``turns`` that go on to the role ``to`` are answered, by default each in its own conversation."""
    began, active = time.perf_counter(), runtime.bus.shards[0].active
    payload = {"text": FILLER, "to": to} if to else {"text": FILLER}
    envelopes = [
        Envelope(conversation=f"bench:{number % (conversations or turns)}", payload=payload) for number in range(turns)
    ]
    coming = iter(envelopes)

    async def front_end() -> None:
        for envelope in coming:
            await admit(runtime.bus, envelope)

    await asyncio.gather(*(front_end() for _ in range(AT_ONCE)))
    async with asyncio.timeout(LONGEST_SECONDS):
        while await runtime.bus.server.call("ZCARD", active):
            await asyncio.sleep(0.002)
    return time.perf_counter() - began


@asynccontextmanager
async def running(
    url: str, roles: Iterable[Role], shards: int = 1, *, emptied: bool = True
) -> AsyncIterator[Runtime]:  # fmt: skip
    """``roles`` at work in this process on a server that is ``emptied`` first."""
    async with _connection(url) as server:
        if emptied:
            await server.call("FLUSHALL")
        runtime = Runtime(application(roles, shards), server, process_name())
        working = asyncio.create_task(runtime.run(), name="bench runtime")
        await runtime.ready()
        try:
            yield runtime
        finally:
            await runtime.stop()
            await working


@asynccontextmanager
async def _writing(url: str, log_dir: Path, shards: int) -> AsyncIterator[None]:
    async with _connection(url) as server:
        scribe = Scribe(server, shards, log_dir, process="bench")
        writing = asyncio.create_task(scribe.run(), name="bench scribe")
        try:
            yield
        finally:
            await scribe.stop()
            await writing


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[RedisServer]:
    server = RedisServer(url)
    try:
        yield server
    finally:
        await server.aclose()


def _agent(number: int) -> type[Agent]:
    async def handle(self: Agent, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("done")

    return type(f"Role{number}Agent", (Agent,), {"handle": handle})


async def _commands(server: RedisServer) -> int:
    stats: bytes = await server.call("INFO", "commandstats")
    counts = [line for line in stats.decode().splitlines() if line.startswith("cmdstat_")]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in counts if "_info:" not in line)
