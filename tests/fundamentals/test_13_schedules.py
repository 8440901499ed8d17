"""Schedules: turns that begin by themselves, in time, once, in the user's time zone, and through outages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.bus import Bus
from rolecall.bus.schedule.schedules import Schedule, schedule, schedules_of
from rolecall.redis.server import server_ms
from tests.bus.steps import entries
from tests.deployment import Deployment, deployed

ROOT = Path(__file__).parents[2]
ANN = "http:ann:1"


class ManagerAgent(Agent):
    """Schedules what it is told, and answers what was scheduled."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text.startswith("schedule "):
            made = await ctx.schedule(envelope.text.removeprefix("schedule "), at=timedelta(seconds=0.3))
            return envelope.reply(f"scheduled {made.id}")
        return envelope.reply(f"⏰ {envelope.text}")


ROLES = (Role(ManagerAgent, instances=2),)


async def overdue(app: Deployment, made: Schedule, ms: float) -> None:
    """Make the schedule due ``ms`` ago."""
    bus = app.session.bus
    shard, due = bus.shard(made.conversation), round(await server_ms(bus.server) - ms)
    for key in (shard.planned, shard.deferred):
        await bus.server.call("ZADD", key, "XX", due, f"{made.conversation}\x1f{made.id}")


async def told(app: Deployment, conversation: str, count: int) -> list[str]:
    """The next texts that followers of ``conversation`` get without asking."""
    found: list[str] = []
    async with asyncio.timeout(10), contextlib.aclosing(app.front.notices(conversation, "0-0")) as notices:
        async for event in notices:
            found.append(event.text)
            if len(found) == count:
                break
    return found


async def test_an_agent_schedules_a_turn_and_it_begins_at_its_time(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        began = time.monotonic()
        assert (await app.ask(ANN, "schedule drink")).text.startswith("scheduled ")
        assert await told(app, ANN, 1) == ["⏰ drink"]
        assert 0.25 < time.monotonic() - began < 2
        assert await schedules_of(app.session.bus, ANN) == []


async def test_of_several_processes_one_begins_each_turn(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, processes=2) as app:
        bus = app.session.bus
        for n in range(20):
            await schedule(bus, f"http:ann:{n % 4}", str(n), at=timedelta(seconds=0.5))
        texts = [text for n in range(4) for text in await told(app, f"http:ann:{n}", 5)]
        assert sorted(texts) == sorted(f"⏰ {n}" for n in range(20))


async def test_what_was_missed_is_made_up_for_once_and_told(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        made = await schedule(app.session.bus, ANN, "stretch", every=timedelta(hours=1))
        await overdue(app, made, 5.5 * 3_600_000)
        missed, answer = await told(app, ANN, 2)
        assert missed.startswith("Due since 20") and missed.endswith(", missed: 5")
        assert answer == "⏰ stretch"
        (left,) = await schedules_of(app.session.bus, ANN)
        assert left.due > await server_ms(app.session.server)


WORKER = """
import asyncio, sys
from pathlib import Path
from rolecall import Config, Role, run
from tests.fundamentals.test_13_schedules import ManagerAgent

async def main():
    config = Config(
        roles=(Role(ManagerAgent, instances=4),), redis_url=sys.argv[1], lease_seconds=1.5, heartbeat_seconds=0.4,
        scan_seconds=0.3,
    )
    async with run(config, app=sys.argv[2], scribe=False):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def start_worker(url: str, directory: Path) -> asyncio.subprocess.Process:
    """A worker process that is at work."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, url, str(directory), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


async def test_kill_9_of_a_process_that_begins_turns_loses_and_doubles_none(
    bus: Bus, server_url: str, tmp_path: Path
) -> None:
    workers = [await start_worker(server_url, tmp_path) for _ in range(2)]
    try:
        due = await server_ms(bus.server) + 300
        for n in range(60):
            at = datetime.fromtimestamp((due + n * 20) / 1000, UTC)
            await schedule(bus, f"http:ann:{n % 10}", f"{n}", at=at)
        await asyncio.sleep(0.9)
        workers[0].kill()
        finals = await all_finals(bus, 60)
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()
    assert sorted(finals) == sorted(f"⏰ {n}" for n in range(60))


async def all_finals(bus: Bus, count: int) -> list[str]:
    """The texts of the final events of all conversations, once there are ``count`` and nothing is left to do."""
    async with asyncio.timeout(20):
        while True:
            found = [
                json.loads(event["x"])["text"]
                for n in range(10)
                for event in await entries(bus, bus.shards[0].events(f"http:ann:{n}"))
                if event["k"] == "final"
            ]
            shard = bus.shards[0]
            left = [await bus.server.call("ZCARD", key) for key in (shard.planned, shard.active)]
            if len(found) >= count and left == [0, 0]:
                return found
            await asyncio.sleep(0.05)


async def test_reminders_are_listed_and_deleted_by_a_command_in_every_front_end(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        bus, front = app.session.bus, app.front
        assert (await front.receive(ANN, "/reminders")).reply.startswith("There are no reminders.")
        for text in ("tea", "stretch"):
            await schedule(bus, ANN, text, every=timedelta(hours=1 if text == "tea" else 2))
        listed = (await front.receive(ANN, "/reminders")).reply.splitlines()
        assert listed[0] == "Your reminders:" and listed[1].endswith(": tea") and "↻ 2 h" in listed[2]
        assert (await front.receive(ANN, "/reminders delete 1")).reply == "Deleted: tea"
        assert (await front.receive(ANN, "/reminders delete 7")).reply == "There is no such reminder."
        assert [one.text for one in await schedules_of(bus, ANN)] == ["stretch"]
        await front.receive(ANN, "/clear")
        assert await schedules_of(bus, ANN) == []


async def test_turns_begin_within_a_second_of_their_time(tmp_path: Path) -> None:
    count = int(os.environ.get("ROLECALL_SCHEDULES", "20"))
    async with deployed(tmp_path, ROLES, processes=2) as app:
        bus, late = app.session.bus, list[int]()
        first = round(await server_ms(bus.server)) + 1000
        for n in range(count):
            at = datetime.fromtimestamp((first + n * 47) / 1000, UTC)
            await schedule(bus, f"http:ann:{n}", "drink", at=at)
        for n in range(count):
            await told(app, f"http:ann:{n}", 1)
            began = await bus.server.call("XRANGE", bus.shards[0].events(f"http:ann:{n}"), "-", "+", "COUNT", 1)
            late.append(int(began[0][0].partition(b"-")[0]) - first - n * 47)
    late.sort()
    print(f"{count} turns began {late[0]} to {late[-1]} ms after their time, p50 {late[count // 2]} ms")
    assert late[0] >= 0 and late[-1] <= 1000
