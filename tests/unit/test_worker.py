"""A worker: takes for free instances, keeps their leases, and drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.agent.context import AgentServices
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, ensure_groups
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from rolecall.worker.roster import Roster, role_infos
from rolecall.worker.worker import Worker
from tests.bus.steps import ask, expire, finals, take_one, take_role
from tests.waiting import wait_until


class ManagerAgent(Agent):
    """Answers at once, or when the test says so."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "wait":
            await asyncio.sleep(600)
        return envelope.reply(f"{ctx.instance}: {envelope.text}")


@pytest.fixture
def settings() -> Settings:
    return Settings(lease_seconds=1, heartbeat_seconds=0.2, scan_seconds=0.2, drain_seconds=0.2)


@asynccontextmanager
async def working(bus: Bus, server: RedisServer, count: int = 2) -> AsyncIterator[Worker]:
    """A worker with ``count`` instances, drained at the end."""
    role = Role(ManagerAgent)
    services = AgentServices(bus, role_infos([role]))
    roster = Roster(services)
    roster.deploy([role], services)
    roster.set_count("manager", count)
    await ensure_groups(bus, bus.shards[0], ["manager"])
    worker = Worker(bus, roster, server.reader)
    task = asyncio.create_task(worker.run(), name="test worker")
    try:
        yield worker
    finally:
        await worker.drain()
        await task


async def test_what_is_admitted_is_answered_by_all_instances(bus: Bus, server: RedisServer) -> None:
    async with working(bus, server) as worker:
        for number in range(10):
            await ask(bus, str(number))
        for number in range(10):
            await wait_until(lambda number=number: finals(bus, str(number)))
        assert sum(instance.handled for instance in worker.roster.everyone()) == 10


async def test_a_free_instance_is_used_as_soon_as_it_appears(bus: Bus, server: RedisServer) -> None:
    async with working(bus, server, count=0) as worker:
        await ask(bus)
        await asyncio.sleep(0.1)
        assert await finals(bus) == []
        worker.roster.set_count("manager", 1)
        worker.freed_up()
        await wait_until(lambda: finals(bus))


async def test_the_lease_of_a_dead_process_is_taken_over(bus: Bus, other: Bus, server: RedisServer) -> None:
    await ask(bus)
    await expire(other, await take_one(other))
    async with working(bus, server):
        await wait_until(lambda: finals(bus))


async def test_leases_are_kept_while_a_handler_works(bus: Bus, other: Bus, server: RedisServer) -> None:
    async with working(bus, server) as worker:
        await ask(bus, text="wait")
        await wait_until(lambda: any(i.delivery for i in worker.roster.everyone()))
        await asyncio.sleep(1.5)  # longer than the lease
        assert await take_one_or_none(other) is None


async def test_a_handler_that_lost_its_lease_is_cancelled(bus: Bus, other: Bus, server: RedisServer) -> None:
    async with working(bus, server) as worker:
        await ask(bus, text="wait")
        await wait_until(lambda: any(i.delivery for i in worker.roster.everyone()))
        (held,) = [i.delivery for i in worker.roster.everyone() if i.delivery]
        await expire(other, held)
        taken = await take_one_or_none(other)
        assert taken is not None and taken.previous == bus.process
        await wait_until(lambda: all(i.delivery is None for i in worker.roster.everyone()))


async def test_draining_hands_back_what_takes_too_long(bus: Bus, other: Bus, server: RedisServer) -> None:
    async with working(bus, server) as worker:
        await ask(bus, text="wait")
        await wait_until(lambda: any(i.delivery for i in worker.roster.everyone()))
    taken = await take_one(other)
    assert (taken.conversation, taken.count) == ("a", 1)


async def take_one_or_none(bus: Bus) -> Delivery | None:
    return next(iter(await take_role(bus, claim=True)), None)
