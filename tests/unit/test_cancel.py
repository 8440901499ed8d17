"""CANCEL, STOP, SNAPSHOT: ending a turn from outside, wherever its entry is, with just one reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn, stop_conversation
from rolecall.bus.leases import renew
from rolecall.bus.turn import snapshot, turns_in_flight
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from tests.bus.steps import answer, ask, defer_turn, entries, expire, finals, log_records, send, take_one, take_role

Place = Callable[[Bus, Bus], Awaitable[object]]


async def nowhere(bus: Bus, other: Bus) -> None:
    """Undelivered."""


async def leased(bus: Bus, other: Bus) -> None:
    await take_one(bus)


async def abandoned(bus: Bus, other: Bus) -> None:
    await expire(bus, await take_one(bus))


async def taken_over(bus: Bus, other: Bus) -> None:
    await expire(bus, await take_one(bus))
    await take_one(other, claim=True)


async def deferred(bus: Bus, other: Bus) -> None:
    await defer_turn(bus, await take_one(bus))


async def between_hops(bus: Bus, other: Bus) -> None:
    await send(bus, await take_one(bus), "echo")


async def addressed(bus: Bus, other: Bus) -> None:
    await renew(other, other.shards[0], [])
    await send(bus, await take_one(bus), f"echo@{other.process}")


PLACES = [nowhere, leased, abandoned, taken_over, deferred, between_hops, addressed]


@pytest.mark.parametrize("place", PLACES)
async def test_a_turn_is_cancelled_wherever_it_is_and_the_next_one_runs(bus: Bus, other: Bus, place: Place) -> None:
    await ask(bus, outbox=True, reply_to="front")
    await ask(bus, text="next")
    await place(bus, other)
    assert await cancel_turn(other, "a", "1", text="partial")
    assert not await cancel_turn(bus, "a", "1")
    assert await finals(bus) == [("1", "cancelled")]
    assert [e["t"] for e in await entries(bus, bus.shards[0].outbox("front"))] == ["1"]
    assert (await take_one(bus)).turn == "2"
    assert await take_role(bus, "echo", claim=True) == []
    assert await take_role(other, "echo", claim=True) == []
    assert await bus.server.call("ZCARD", bus.shards[0].deferred) == 0


@pytest.mark.parametrize("place", PLACES)
async def test_stop_ends_what_runs_and_all_that_waits_oldest_first(bus: Bus, other: Bus, place: Place) -> None:
    for _ in range(3):
        await ask(bus, principal="u")
    await place(bus, other)
    assert await stop_conversation(bus, "a") == 3
    assert await stop_conversation(bus, "a") == 0
    assert await finals(bus) == [("1", "cancelled"), ("2", "cancelled"), ("3", "cancelled")]
    assert await turns_in_flight(bus, bus.shards[0]) == 0
    assert await bus.server.call("EXISTS", bus.shards[0].principals, bus.shards[0].journal("a")) == 0
    assert (await ask(bus)).outcome == "RUN"


async def test_a_waiting_turn_is_cancelled_without_touching_the_running_one(bus: Bus) -> None:
    for _ in range(3):
        await ask(bus)
    held = await take_one(bus)
    assert await cancel_turn(bus, "a", "2")
    assert await answer(bus, held) == "OK"
    assert (await take_one(bus)).turn == "3"
    assert await finals(bus) == [("2", "cancelled"), ("1", "final")]


async def test_the_holder_of_a_cancelled_turn_is_fenced(bus: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    await cancel_turn(bus, "a", "1")
    assert await answer(bus, held) == "FENCED"
    assert await renew(bus, bus.shards[0], [held]) == [held]


async def test_an_answer_that_stands_is_not_cancelled(bus: Bus) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus))
    assert not await cancel_turn(bus, "a", "1")
    assert not await cancel_turn(bus, "a", "7")
    assert not await cancel_turn(bus, "nobody", "1")
    assert await finals(bus) == [("1", "final")]


async def test_of_many_cancels_and_one_answer_at_once_one_wins(bus: Bus, other: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    *cancels, verdict = await asyncio.gather(*(cancel_turn(other, "a", "1") for _ in range(5)), answer(bus, held))
    assert [*cancels, verdict == "OK"].count(True) == 1
    assert len(await finals(bus)) == 1


async def test_a_turn_that_keeps_moving_is_cancelled_all_the_same(bus: Bus, other: Bus) -> None:
    await ask(bus)
    held, role = await take_one(bus), "manager"

    async def travel() -> None:
        nonlocal held, role
        for _ in range(bus.settings.hop_limit):
            role = "echo" if role == "manager" else "manager"
            if await send(bus, held, role) != "OK":
                return
            if not (got := await take_role(bus, role)):
                return
            held = got[0]

    ended, _ = await asyncio.gather(cancel_turn(other, "a", "1"), travel())
    assert ended
    assert await finals(bus) == [("1", "cancelled")]


async def test_stop_puts_each_answer_where_its_turn_came_from(bus: Bus) -> None:
    await ask(bus)
    await ask(bus, outbox=True, reply_to="front")
    await ask(bus)
    assert await stop_conversation(bus, "a") == 3
    assert [e["t"] for e in await entries(bus, bus.shards[0].outbox("front"))] == ["2"]
    assert not await bus.server.call("EXISTS", bus.shards[0].outbox("-"))


async def test_stop_leaves_other_conversations_and_the_control_lane_alone(bus: Bus) -> None:
    await ask(bus)
    await ask(bus, "b")
    await ask(bus, control=True)
    assert await stop_conversation(bus, "a") == 1
    assert (await take_one(bus)).conversation == "b"
    assert await answer(bus, await take_one(bus, "command")) == "OK"


async def test_stop_with_forget_clears_the_history_but_not_what_the_user_prefers(bus: Bus) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus), history=[b"x"], preferences={"lang": "de"})
    assert await stop_conversation(bus, "a", forget=True) == 0
    shard = bus.shards[0]
    assert await bus.server.call("EXISTS", shard.history("a")) == 0
    assert await bus.server.call("HGET", shard.preferences("a"), "lang") == b"de"
    await ask(bus)
    assert [e["w"] for e in await log_records(bus)][-2:] == ["NOTE", "RECEIVED"]


async def test_an_end_is_broadcast_to_whoever_handles_the_turn(bus: Bus, server: RedisServer) -> None:
    pubsub = server.pubsub()
    await pubsub.subscribe(keys.CONTROL)
    confirmed = await pubsub.get_message(timeout=5)
    assert confirmed and confirmed["type"] == "subscribe"
    await ask(bus)
    await cancel_turn(bus, "a", "1")
    heard = await pubsub.get_message(timeout=5)
    assert heard and msgspec.json.decode(heard["data"]) == {"ended": "a"}
    await pubsub.aclose()


async def test_a_snapshot_tells_where_a_turn_stands(bus: Bus) -> None:
    for _ in range(3):
        await ask(bus)
    states = [await snapshot(bus, "a", turn) for turn in ("1", "2", "3", "4", "0", "x", "c1")]
    assert [(s.state, s.place) for s in states] == [
        ("running", 0), ("waiting", 1), ("waiting", 2), ("unknown", 0), ("unknown", 0), ("unknown", 0), ("unknown", 0),
    ]  # fmt: skip
    await answer(bus, await take_one(bus))
    finished = await snapshot(bus, "a", "1")
    assert (finished.state, finished.final_id) == ("finished", finished.last)
    assert (await snapshot(bus, "a", "2")).state == "running"


@pytest.mark.parametrize("control", [False, True])
async def test_a_turn_whose_result_is_not_kept_any_more_is_gone(bus: Bus, control: bool) -> None:
    turn = (await ask(bus, control=control)).turn
    await answer(bus, await take_one(bus, "command" if control else "manager"))
    await bus.server.call("DEL", bus.shards[0].result("a", turn))
    assert (await snapshot(bus, "a", turn)).state == "gone"
