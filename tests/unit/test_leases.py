"""TAKE, START, RENEW, HAND_BACK, EMIT: who holds what, and for how long."""

from __future__ import annotations

import time

import pytest

from rolecall.bus.bus import Bus
from rolecall.bus.leases import Along, Demand, emit, hand_back, owns_turn, renew, take
from rolecall.bus.settle import bury
from rolecall.bus.turn import Records, snapshot
from rolecall.redis.clock import ServerClock, seconds
from tests.bus.steps import answer, ask, began, entries, expire, log_records, send, take_one, take_role


async def admitted(bus: Bus, count: int, priority: int = 50) -> None:
    for number in range(count):
        await ask(bus, f"{priority}:{number}", priority=priority)


async def test_high_comes_before_normal_before_low_and_each_in_order(bus: Bus) -> None:
    for priority in (10, 50, 90):
        await admitted(bus, 2, priority=priority)
    got = [delivery.conversation for delivery in await take_role(bus, free=10)]
    assert got == ["90:0", "90:1", "50:0", "50:1", "10:0", "10:1"]


@pytest.mark.parametrize(("start", "first"), [(0, "90:0"), (1, "50:0"), (2, "10:0")])
async def test_a_take_may_begin_with_another_band(bus: Bus, start: int, first: str) -> None:
    for priority in (10, 50, 90):
        await admitted(bus, 1, priority=priority)
    assert (await take_one(bus, start=start)).conversation == first


async def test_no_take_brings_more_than_there_are_free_slots_over_all_bands_and_roles(bus: Bus, other: Bus) -> None:
    for priority in (10, 50, 90):
        await admitted(bus, 4, priority=priority)
    for delivery in await take_role(other, free=4):
        await send(other, delivery, "echo")
    await expire(other, *await take_role(other, free=3))
    demands = [Demand("manager", 2), Demand("echo", 3), Demand("idle", 5)]
    got = await take(bus, bus.shards[0], demands, claim=True)
    assert [delivery.role for delivery in got] == ["manager"] * 2 + ["echo"] * 3
    assert [delivery.count for delivery in got] == [2, 2, 1, 1, 1]


async def test_what_a_role_reads_of_a_conversation_comes_along_with_its_entry(bus: Bus) -> None:
    shard = bus.shards[0]
    await bus.server.call("RPUSH", shard.history("a"), "one", "two", "three")
    await bus.server.call("HSET", shard.preferences("b"), "lang", "de")
    for conversation in "ab":
        await ask(bus, conversation)
    demand = Demand("manager", 2, history=2, preferences=True)
    assert [delivery.along for delivery in await take(bus, shard, [demand])] == [
        Along([b"two", b"three"], []), Along([], [b"lang", b"de"]),
    ]  # fmt: skip


async def test_nothing_comes_along_that_is_not_read(bus: Bus) -> None:
    await ask(bus)
    assert (await take_one(bus)).along == Along(None, None)


async def test_a_take_of_nothing_is_empty_and_makes_the_groups(bus: Bus) -> None:
    assert await take_role(bus) == []
    assert await take_role(bus, claim=True) == []


async def test_a_lease_that_ran_out_is_taken_over_with_its_holder_and_count(bus: Bus, other: Bus) -> None:
    await ask(bus)
    first = await take_one(bus)
    assert (first.count, first.previous) == (1, "")
    assert await take_role(other, claim=True) == []
    await expire(bus, first)
    assert await take_role(other) == []
    second = await take_one(other, claim=True)
    assert (second.id, second.count, second.previous) == (first.id, 2, bus.process)


async def test_what_the_old_holder_still_does_is_fenced(bus: Bus, other: Bus) -> None:
    await ask(bus)
    old = await take_one(bus)
    await expire(bus, old)
    new = await take_one(other, claim=True)
    shard = bus.shards[0]
    assert await began(bus, old) == "FENCED"
    assert await emit(bus, old, 0, "x") == "FENCED"
    assert await send(bus, old, "echo") == "FENCED"
    assert await bury(bus, old, "why", "sorry", Records("i")) == "FENCED"
    assert await hand_back(bus, old) == "FENCED"
    assert await renew(bus, shard, [old]) == [old]
    assert await answer(bus, old, "late") == "FENCED"
    assert await answer(other, new, "right") == "OK"
    final = (await snapshot(bus, "a", "1")).final
    assert final is not None
    assert final["text"] == "right"


async def test_a_renewed_lease_is_not_taken_over(bus: Bus, other: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    await expire(bus, held)
    assert await renew(bus, bus.shards[0], [held]) == []
    assert await take_role(other, claim=True) == []


async def test_renewing_does_not_count_as_a_delivery(bus: Bus, other: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    for _ in range(5):
        await renew(bus, bus.shards[0], [held])
    await expire(bus, held)
    assert (await take_one(other, claim=True)).count == 2


async def test_only_one_entry_on_its_last_delivery_is_taken_at_a_time(bus: Bus, other: Bus) -> None:
    await admitted(bus, 3)
    held = await take_role(bus, free=3)
    await expire(bus, *held)
    held = await take_role(bus, free=3, claim=True)
    assert [delivery.count for delivery in held] == [2, 2, 2]
    await expire(bus, *held)
    assert [delivery.count for delivery in await take_role(other, free=3, claim=True)] == [3]
    assert await take_role(other, free=3, claim=True, last_ok=False) == []


async def test_one_delivered_too_often_is_always_given_out_to_be_buried(bus: Bus) -> None:
    await ask(bus)
    for count in (1, 2, 3):
        held = await take_one(bus, claim=True)
        assert held.count == count
        await expire(bus, held)
    assert (await take_one(bus, claim=True, last_ok=False)).count == 4


async def test_an_entry_handed_back_goes_to_anyone_at_once_and_was_not_delivered(bus: Bus, other: Bus) -> None:
    await ask(bus)
    assert await hand_back(bus, await take_one(bus)) == "OK"
    again = await take_one(other)
    assert (again.count, again.previous) == (1, "")
    assert await answer(other, again) == "OK"


async def test_handing_back_keeps_the_count_of_those_who_died_of_it(bus: Bus, other: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    await expire(bus, held)
    second = await take_one(other, claim=True)
    assert await hand_back(other, second) == "OK"
    assert (await take_one(bus, claim=True)).count == 2


async def test_a_beginning_is_an_event_and_a_record_that_names_the_one_taken_over_from(bus: Bus, other: Bus) -> None:
    await ask(bus)
    held = await take_one(bus, instances=("manager:h:1:0",))
    await expire(bus, held)
    await take_one(other, claim=True, instances=("manager:h:2:0",))
    events = [e for e in await entries(bus, bus.shards[0].events("a")) if e["k"] == "started"]
    assert [(e["r"], e["h"], e["n"], e["w"]) for e in events] == [
        ("manager", "0", "1", "manager:h:1:0"),
        ("manager", "0", "2", "manager:h:2:0"),
    ]
    words = [(e["w"], e["x"]) for e in await log_records(bus)][-2:]
    assert words == [("STARTED", "hop 0"), ("TAKEN_OVER", f"hop 0 attempt 2 from {bus.process}")]


async def test_scripts_the_server_forgot_are_sent_again(bus: Bus) -> None:
    await ask(bus)
    await bus.server.call("SCRIPT", "FLUSH")
    held = await take_one(bus)
    await bus.server.call("SCRIPT", "FLUSH")
    assert await answer(bus, held) == "OK"
    assert (await snapshot(bus, "a", "1")).state == "finished"


async def test_two_processes_never_hold_the_same_entry(bus: Bus, other: Bus) -> None:
    await admitted(bus, 20)
    mine, theirs = await take_role(bus, free=15), await take_role(other, free=15)
    assert len(mine) + len(theirs) == 20
    assert not {d.id for d in mine} & {d.id for d in theirs}


async def test_a_forged_entry_of_a_running_turn_is_dropped_and_changes_nothing(bus: Bus) -> None:
    await ask(bus)
    true = await take_one(bus)
    await bus.server.call("XADD", true.stream, "*", "c", "a", "t", "1", "h", 0, "e", true.raw)
    forged = await take_one(bus)
    assert await answer(bus, forged, "forged") == "STALE"
    assert await answer(bus, true, "true") == "OK"
    assert await bus.server.call("XLEN", true.stream) == 0


async def test_a_forged_control_turn_is_dropped_and_changes_nothing(bus: Bus) -> None:
    await ask(bus, control=True)
    true = await take_one(bus, "command")
    await bus.server.call("XADD", true.stream, "*", "c", "a", "t", "c99", "h", 0, "e", true.raw)
    forged = await take_one(bus, "command")
    assert not await owns_turn(bus, forged)
    assert await owns_turn(bus, true)
    assert await answer(bus, forged) == "STALE"
    assert await bus.server.call("HGET", bus.shards[0].conversation("a"), "ctl") == b"1"


@pytest.mark.parametrize("step", [3_600_000, -3_600_000])
def test_a_step_of_the_servers_clock_is_noticed_until_it_is_accepted(step: int) -> None:
    clock = ServerClock()
    clock.note(seconds(), 1e12)
    clock.note(seconds(), 1e12 + 5)
    assert clock.step == 0
    for _ in range(2):  # what puts it right may fail the first time
        clock.note(seconds(), 1e12 + step)
        assert abs(clock.step - step) < 1000 and abs(clock.now() - 1e12) < 1000
    clock.accept()
    assert clock.step == 0 and abs(clock.now() - 1e12 - step) < 1000


async def test_a_renewal_reads_the_servers_clock(bus: Bus) -> None:
    assert bus.clocks[0].now() == 0
    await renew(bus, bus.shards[0], [])
    assert abs(bus.clocks[0].now() - time.time() * 1000) < 5000
