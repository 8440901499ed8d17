"""What `rolecall stats` shows, on a server in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from agents.stats import report
from agents.texts import Speaker
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.maintenance import promote
from rolecall.bus.process.processes import InstanceState, ProcessState, register
from rolecall.bus.schedule.schedules import schedule
from rolecall.bus.settle import Awaited, suspend
from rolecall.bus.steps.journal import NewStep, Step, begin
from rolecall.bus.turn import Records, turns_awake
from rolecall.cli.top import summary as top_lines
from rolecall.models import Caller, Message, Request, Usage
from rolecall.models.gate import Gate
from rolecall.settings import Settings, Terms
from rolecall.stats import queue_depths, summary
from rolecall.testing import FakeServer
from tests.bus.steps import answer, ask, bury_turn, defer_turn, take_one

ROLES = ("manager", "echo")


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    server = FakeServer()
    yield Bus(server, Settings(), "host:1~aaaaaa")
    await server.aclose()


def state(process: str, *instances: InstanceState, uptime: float = 10.0) -> ProcessState:
    return ProcessState(process, uptime=uptime, instances=instances, connections=3, max_connections=64)


async def test_queues_count_all_bands_and_what_is_being_handled(bus: Bus) -> None:
    for conversation, priority in (("a", 10), ("b", 50), ("c", 90)):
        await ask(bus, conversation, priority=priority)
    await take_one(bus)
    assert await queue_depths(bus, ROLES) == {"manager": 3, "echo": 0}


async def test_the_statistics_of_a_day(bus: Bus) -> None:
    for conversation in "abcde":
        await ask(bus, conversation, principal="u" if conversation < "c" else "v:w")
    await answer(bus, await take_one(bus))
    await bury_turn(bus, await take_one(bus))
    await cancel_turn(bus, "c", "1")
    await defer_turn(bus, await take_one(bus))
    await register(bus, state(bus.process, InstanceState("echo:host:1:0", "echo", handled=4, busy_seconds=2.5)))
    figures = await summary(bus, ROLES)
    turns = figures["turns"]
    assert (turns["today"], turns["errors"], turns["cancelled"], turns["in_flight"]) == (3, 1, 1, 2)
    assert (figures["dead_letters"], figures["deferred"], figures["users_now"]) == (1, 1, 1)
    assert figures["users"]["u"]["turns"] == 2
    assert figures["users"]["v:w"]["cancelled"] == 1
    assert figures["instances"]["echo"]["utilisation"] == 0.25
    assert figures["instances"]["manager"]["instances"] == 0
    assert figures["connections"] == {bus.process: {"open": 3, "allowed": 64}}


async def test_suspended_turns_are_counted_apart_from_deferred_ones_until_they_go_on(bus: Bus) -> None:
    for conversation in "ab":
        await ask(bus, conversation)
        delivery = await take_one(bus)
        await begin(bus, delivery, [NewStep("1", Step("sleep", ""), 60.0)], user="", instance="i")
        due = int(time.time() * 1000) + 60_000
        await suspend(bus, delivery, Awaited([["1"]], due, True, "its timer"), Records("i"))
    await schedule(bus, "c", "tea", every=timedelta(hours=1))
    assert await turns_awake(bus, bus.shards[0]) == 0
    await asyncio.sleep(0.11)
    figures = await summary(bus, ROLES)
    assert (figures["suspended"]["turns"], figures["deferred"]) == (2, 0)
    assert 0.1 <= figures["suspended"]["oldest_seconds"] < 30
    assert "2 suspended, the oldest for 1 s" in top_lines(figures)[1]
    await promote(bus, bus.shards[0], "a", as_if_due=True)
    assert await turns_awake(bus, bus.shards[0]) == 1
    await cancel_turn(bus, "b", "1")
    assert (await summary(bus, ROLES))["suspended"] == {"turns": 0, "oldest_seconds": 0.0}


async def test_one_is_no_plural(bus: Bus) -> None:
    await ask(bus, "a", "hello")
    _, now, _ = top_lines(await summary(bus, ROLES))
    assert now.split(None, 1)[1].startswith("1 turn in flight, ") and ", 1 envelope in queues, " in now


async def test_an_idle_system_has_figures_too(bus: Bus) -> None:
    figures = await summary(bus, ROLES)
    assert figures["turns"]["average_ms"] == 0
    assert figures["queues"] == {"manager": 0, "echo": 0}


async def test_the_figures_of_models_tell_what_was_asked_spent_and_whether_they_may_be_asked(bus: Bus) -> None:
    async def nobody(conversation: str) -> bool:
        return True

    settings = Settings(breaker_failures=1)
    gate = Gate(bus.server, "m@test", Terms(price_in=1.0, price_out=2.0), settings, nobody)
    request = Request((Message("user", "Hello"),), caller=Caller("a:1", "1", "ann"))
    call = await gate.enter(request, book=True)
    call.usage = Usage(100, 50)
    await gate.left(call, "OK")
    await gate.left(await gate.enter(request, book=True), "FAILED", "no connection")

    gate.saved(Usage(1000, 500))
    await gate.aclose()
    removed = Gate(bus.server, "removed@test", Terms(), settings, nobody)
    call = await removed.enter(Request(()), book=True)
    call.usage = Usage(10, 1)
    await removed.left(call, "OK")
    await removed.aclose()

    figures = await summary(bus, ROLES, ["m@test", "other@test"])

    assert figures["saved"] == {"tokens": 1500, "cost": 0.002}
    assert figures["models"]["m@test"]["saved_cost"] == 0.002
    assert "saved 1500 tokens (0.0020) by replayed steps" in top_lines(figures)[0]
    model = figures["models"]["m@test"]
    assert (model["calls"], model["failed"], model["in"], model["out"]) == (2, 1, 100, 50)
    assert figures["tokens"] == {"in": 110, "out": 51}
    assert (figures["cost"], figures["spenders"]) == (0.0002, {"ann": {"tokens": 150, "cost": 0.0002}})
    assert model["state"] == "away: no connection"
    assert figures["models"]["other@test"]["state"] == "ready"
    line = "m@test: calls 2, failed 1, tokens 150, not answering (no connection), cost 0.0002 USD"
    assert line in report(figures, Speaker("en"))
