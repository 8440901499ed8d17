"""Schedules: turns that begin by themselves, in time, once, in the user's time zone, and through outages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta
from pathlib import Path

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.schedule.schedules import Schedule, schedule, schedules_of
from rolecall.redis.server import server_ms
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
