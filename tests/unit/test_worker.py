"""A worker: takes for free instances, keeps their leases, and drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.role import role_infos
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, ensure_groups
from rolecall.bus.settle import Refill
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from rolecall.worker.instance import Instance
from rolecall.worker.roster import Roster
from rolecall.worker.worker import Worker
from tests.bus.steps import ask, expire, finals, log_records, take_one, take_role
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
async def working(bus: Bus, server: RedisServer, count: int = 2, *agents: type[Agent]) -> AsyncIterator[Worker]:
    """A worker with ``count`` instances of each role, drained at the end."""
    roles = [Role(agent) for agent in agents or (ManagerAgent,)]
    services = AgentServices(bus, role_infos(roles))
    roster = Roster(services)
    roster.deploy(roles, services)
    for role in roles:
        roster.set_count(role.name, count)
    await ensure_groups(bus, bus.shards[0], [role.name for role in roles])
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


class EchoAgent(Agent):
    """Answers what the manager sent on."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(f"{ctx.instance}: {envelope.text}")


async def scripts_run(server: RedisServer) -> int:
    stats: bytes = await server.call("INFO", "commandstats")
    lines = [line for line in stats.decode().splitlines() if line.startswith("cmdstat_evalsha:")]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)


async def test_a_backlog_is_worked_off_with_one_script_per_envelope(bus: Bus, server: RedisServer) -> None:
    for number in range(100):
        await ask(bus, str(number))
    before = await scripts_run(server)
    async with working(bus, server) as worker:
        await wait_until(lambda: all_handled(worker, 100))
        assert await scripts_run(server) - before < 100 + 25  # the others: the first take, heartbeats
    assert [await finals(bus, str(number)) for number in range(100)] == [[("1", "final")]] * 100


async def all_handled(worker: Worker, count: int) -> bool:
    return sum(instance.handled for instance in worker.roster.everyone()) == count


async def test_a_turn_goes_on_to_an_idle_instance_of_the_next_role_in_the_settling_script(
    bus: Bus, server: RedisServer
) -> None:
    class RoutingAgent(ManagerAgent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            before.append(await scripts_run(server))
            return envelope.via("echo")

    class CountingAgent(EchoAgent):
        role = "echo"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            after.append(await scripts_run(server))
            return await super().handle(envelope, ctx)

    before: list[int] = []
    after: list[int] = []
    async with working(bus, server, 1, RoutingAgent, CountingAgent):
        for number in range(5):
            await ask(bus, str(number))
            await wait_until(lambda number=number: finals(bus, str(number)))
    hops = [there - here for here, there in zip(before, after, strict=True)]
    assert sorted(hops)[2] <= 2  # the hop, and what the take found that followed the bell


async def test_a_backlog_does_not_keep_low_priority_waiting(bus: Bus, server: RedisServer) -> None:
    class CountingAgent(ManagerAgent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            handled.append(envelope.conversation)
            return envelope.reply("")

    handled: list[str] = []
    for number in range(40):
        await ask(bus, f"high{number}", priority=90)
    await ask(bus, "low", priority=10)
    async with working(bus, server, 1, CountingAgent):
        await wait_until(lambda: "low" in handled)
    assert handled.index("low") < 20


async def test_a_backlog_does_not_keep_the_entries_of_a_dead_process_waiting(
    bus: Bus, other: Bus, server: RedisServer
) -> None:
    await ask(bus, "lost")
    await expire(other, await take_one(other))

    async def more() -> None:
        for number in range(10_000):
            await ask(bus, str(number))

    filling = asyncio.create_task(more())
    async with working(bus, server, count=1):
        await wait_until(lambda: finals(bus, "lost"))
        assert not filling.done()
        filling.cancel()


@pytest.mark.parametrize("reason", ["DRAIN", "FENCED"])
async def test_an_entry_taken_along_is_handled_though_the_handling_is_cancelled_while_it_settles(
    bus: Bus, server: RedisServer, reason: str
) -> None:
    for number in range(3):
        await ask(bus, str(number))
    async with working(bus, server, count=1) as worker:
        (instance,) = worker.roster.everyone()
        refill = worker._supply

        def cancelled(settling: Instance, onward: str) -> Refill | None:
            found = refill(settling, onward)
            if settling.handled == 0:
                asyncio.get_running_loop().call_soon(settling.cancel, reason)
            return found

        instance.supplier = cancelled
        for number in range(3):
            await wait_until(lambda number=number: finals(bus, str(number)))
    # A handler that is told while it settles that its lease is gone has only just given it up itself.
    assert "FENCED" not in [record["w"] for record in await log_records(bus)]


async def test_a_free_instance_is_used_as_soon_as_it_appears(bus: Bus, server: RedisServer) -> None:
    async with working(bus, server, count=0) as worker:
        await ask(bus)
        await asyncio.sleep(0.1)
        assert await finals(bus) == []
        worker.roster.set_count("manager", 1)
        worker.freed_up()
        await wait_until(lambda: finals(bus))


async def test_an_instance_too_many_is_gone_once_it_has_ended_what_it_handled(bus: Bus, server: RedisServer) -> None:
    go_on = asyncio.Event()

    class HeldAgent(Agent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            await go_on.wait()
            return envelope.reply("done")

    async with working(bus, server, 3, HeldAgent) as worker:
        for number in range(3):
            await ask(bus, str(number))
        everyone = worker.roster.everyone
        await wait_until(lambda: all(instance.delivery for instance in everyone()))
        worker.roster.set_count("manager", 1)
        assert len(everyone()) == 3, "they are still at work"
        go_on.set()
        await wait_until(lambda: len(everyone()) == 1)
        await ask(bus, "3")
        await wait_until(lambda: finals(bus, "3"))


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


async def test_a_handler_that_ignores_its_cancellation_loses_its_slot_and_its_turn(
    bus: Bus, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DeafAgent(ManagerAgent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            while envelope.text == "wait" and not over.is_set():
                with suppress(asyncio.CancelledError):
                    await over.wait()
            return envelope.reply("too late")

    over = asyncio.Event()
    monkeypatch.setattr("rolecall.worker.handling.DEAF_SECONDS", 0.1)
    async with working(bus, server, 1, DeafAgent) as worker:
        await ask(bus, text="wait")
        (deaf,) = worker.roster.everyone()
        await wait_until(lambda: deaf.delivery)
        deaf.since -= bus.settings.assistant_timeout
        await ask(bus, "b")
        await wait_until(lambda: finals(bus, "b"))
        (new,) = worker.roster.everyone()
        assert new.id != deaf.id and deaf.delivery is not None
        assert await finals(bus) == [("1", "error")]
        over.set()
        await wait_until(lambda: deaf.delivery is None)
    assert await finals(bus) == [("1", "error")]


async def test_draining_hands_back_what_takes_too_long(bus: Bus, other: Bus, server: RedisServer) -> None:
    async with working(bus, server) as worker:
        await ask(bus, text="wait")
        await wait_until(lambda: any(i.delivery for i in worker.roster.everyone()))
    taken = await take_one(other)
    assert (taken.conversation, taken.count) == ("a", 1)


async def test_handlers_that_end_with_the_process_leave_their_turns_to_others(
    bus: Bus, other: Bus, server: RedisServer
) -> None:
    async with working(bus, server) as worker:
        await ask(bus, text="wait")
        await wait_until(lambda: any(i.delivery for i in worker.roster.everyone()))
        draining = asyncio.create_task(worker.drain())
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():  # as asyncio.run does at its end
            if task is draining or task.get_name().startswith("manager:"):
                task.cancel()
        await wait_until(lambda: all(i.delivery is None for i in worker.roster.everyone()))
    assert await finals(bus) == []


async def take_one_or_none(bus: Bus) -> Delivery | None:
    return next(iter(await take_role(bus, claim=True)), None)
