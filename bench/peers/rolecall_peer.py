"""Rolecall as it ships: leases, events, transcript records and fencing for every message. A call is a whole turn with
history, from a front end over the manager and samplellm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from links import ANSWERS, PASSES, Body, Connection, Follow, main

from bench.app import settings
from bench.bus import FULL, INSTANCES, one_turn, running
from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.admission import admit
from rolecall.bus.bus import Bus
from rolecall.bus.process.processes import process_name
from rolecall.bus.wakeups import Wakeups
from rolecall.frontends.front import Front
from rolecall.redis.server import RedisServer


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    if links == (ANSWERS,):
        async with _driver(url) as connection:
            yield connection
        return

    def link(name: str) -> Role:
        async def handle(self: Agent, envelope: Envelope, ctx: Context) -> Envelope:
            following = follow(name, {"left": PASSES - envelope.hops, "call": ""})
            return envelope.via(following[0]) if following else envelope.reply("done")

        return Role(type(f"{name.upper()}Agent", (Agent,), {"handle": handle}), INSTANCES)

    async with running(url, (*FULL, *map(link, links))):
        yield Connection(asyncio.sleep)


@asynccontextmanager
async def _driver(url: str) -> AsyncIterator[Connection]:
    server = RedisServer(url)
    bus = Bus(server, settings(), process_name())
    wakeups = Wakeups(server.pubsub())
    listening = asyncio.create_task(wakeups.run(), name="wake-ups")
    front = Front(bus, wakeups, "bench")

    async def send(bodies: list[Body]) -> None:
        envelopes = [Envelope(conversation=b["conversation"], payload={**b["payload"], "to": "a"}) for b in bodies]
        await asyncio.gather(*(admit(bus, envelope) for envelope in envelopes))

    yield Connection(send, lambda body: one_turn(front, f"calls:{body['id'] % 50}"))
    listening.cancel()


main(connect)
