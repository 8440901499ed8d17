"""The clock of the server steps, forward and back, while turns run, sleep, and wait for a dead process's lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rolecall import Agent, Context, Envelope, Retry
from rolecall.agent.role import Role
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import count_dead_letters
from rolecall.bus.leases import ensure_groups, renew_idle
from rolecall.bus.maintenance import mend_step
from rolecall.bus.settle import defer
from rolecall.bus.turn import Records
from rolecall.redis.leader import Leader
from rolecall.redis.server import RedisServer, server_ms
from rolecall.settings import Settings
from tests.bus.steps import ask, finals, take_one, take_role
from tests.deployment import Deployment, deployed
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

CLOCKS: dict[str, Any] = {"lease_seconds": 1.0, "heartbeat_seconds": 0.25, "scan_seconds": 0.2}
STEPS = [62 * 60, -60 * 60]
LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
needs_library = pytest.mark.skipif(LIBRARY is None, reason="no libfaketime on this machine: apt install libfaketime")


class Clocked(ValkeyProcess):
    """A server whose clock steps when it is told to."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        super().__init__(directory, environment={
            "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self._offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        })  # fmt: skip
        self.step(0)

    def step(self, seconds: int) -> None:
        """Make the clock show ``seconds`` more than the true time."""
        (self.directory / "new").write_text(f"{seconds:+d}")
        (self.directory / "new").rename(self._offset)


class ManagerAgent(Agent):
    """Answers after as many seconds as the text says; ``later`` sleeps first, without a slot."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        begun.append(envelope.conversation)
        what, _, seconds = envelope.text.partition(" ")
        if what == "later" and envelope.attempt == 0:
            raise Retry(float(seconds), "later")
        if what == "sleep":
            await asyncio.sleep(float(seconds))
        return envelope.reply("done")


begun: list[str] = []
ROLES = (Role(ManagerAgent, instances=16),)


@pytest.fixture
async def server(directory: Path) -> AsyncIterator[Clocked]:
    begun.clear()
    made = Clocked(directory)
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def at_work(directory: Path, server: Clocked) -> AsyncIterator[Deployment]:
    """A deployment that has read the server's clock."""
    async with deployed(directory, ROLES, redis_url=server.url, **CLOCKS) as deployment:
        await wait_until(lambda: deployment.runtime.bus.clocks[0].now())
        yield deployment


@needs_library
@pytest.mark.parametrize("step", STEPS)
async def test_what_runs_and_what_sleeps_is_answered_once_and_in_its_time(
    directory: Path, server: Clocked, step: int
) -> None:
    async with at_work(directory, server) as deployment:
        running = [await deployment.say(f"test:{number}", "sleep 3") for number in range(8)]
        told = time.monotonic()
        sleeping = await deployment.say("test:later", "later 4")
        await wait_until(lambda: len(begun) == 9)
        server.step(step)
        assert [(await deployment.answer(turn)).kind for turn in running] == ["final"] * 8
        assert (await deployment.answer(sleeping)).kind == "final"
        assert 3.5 < time.monotonic() - told < 9
        assert (await deployment.ask("test:new", "sleep 0")).kind == "final"
        assert sorted(begun) == sorted([*(f"test:{n}" for n in range(8)), "test:later", "test:later", "test:new"])
        assert await count_dead_letters(deployment.session.bus) == 0


@needs_library
@pytest.mark.parametrize("step", STEPS)
async def test_turns_sleep_as_long_as_they_were_to_whether_they_fell_asleep_before_or_after_the_step(
    server: Clocked, step: int
) -> None:
    connection = RedisServer(server.url)
    bus = Bus(connection, Settings(**CLOCKS), "host:1~aaaaaa")
    shard = bus.shards[0]

    async def falls_asleep(conversation: str) -> None:
        await ask(bus, conversation)
        await defer(bus, await take_one(bus), 60, None, "later", Records("i"))

    await ensure_groups(bus, shard, ["manager"])
    await renew_idle(bus, [shard])
    await falls_asleep("test:before")
    server.step(step)
    await falls_asleep("test:after")
    await renew_idle(bus, [shard])
    await mend_step(bus, shard, ["manager"])
    now = await server_ms(connection)
    due = [float(await connection.call("ZSCORE", shard.deferred, name)) for name in ("test:before", "test:after")]
    assert [(at - now) / 1000 for at in due] == pytest.approx([60, 60], abs=5)
    await connection.aclose()


@needs_library
@pytest.mark.parametrize("step", STEPS)
async def test_what_a_dead_process_held_is_free_after_a_lease(directory: Path, server: Clocked, step: int) -> None:
    connection = RedisServer(server.url)
    dead = Bus(connection, Settings(**CLOCKS), "host:9~dead00")
    await ensure_groups(dead, dead.shards[0], ["manager"])
    await ask(dead, "test:dead", "sleep 0")
    assert await take_role(dead)
    assert await Leader(connection, "election", "dead", seconds=1).renew()
    async with at_work(directory, server) as deployment:
        server.step(step)
        stepped, leader = time.monotonic(), Leader(deployment.session.server, "election", "alive", seconds=1)
        await wait_until(leader.renew)
        await wait_until(lambda: finals(dead, "test:dead"))
        assert time.monotonic() - stepped < 6
    await connection.aclose()
