"""HOP, COMPLETE, DEFER, BURY, QUARANTINE: the one step that ends a hop."""

from __future__ import annotations

import pytest

from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.leases import hand_back, owns_turn, renew
from rolecall.bus.maintenance import promote, wake_due
from rolecall.bus.settle import hop, quarantine
from rolecall.bus.turn import Records, TurnState, snapshot, turns_in_flight
from rolecall.errors import ServerFull
from rolecall.redis.server import RedisServer, server_ms
from rolecall.settings import Settings
from tests.bus.steps import (
    answer,
    ask,
    bury_turn,
    defer_turn,
    entries,
    expire,
    finals,
    hash_of,
    log_records,
    names,
    send,
    take_one,
    take_role,
)


async def test_a_hop_moves_the_turn_and_its_records_and_preferences_in_one_step(bus: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    assert held.envelope is not None
    records = Records("manager:h:1:0")
    records.add("SENT", "to role stream echo")
    assert await hop(bus, held, held.envelope.via("echo"), records, {"lang": "de", "x": ""}) == "OK"
    moved = await take_one(bus, "echo")
    assert (moved.turn, moved.hop) == ("1", 1)
    assert await hash_of(bus, bus.shards[0].preferences("a")) == {"lang": "de"}
    assert [e["w"] for e in await log_records(bus)][-3:] == ["STARTED", "SENT", "STARTED"]


async def test_a_settle_repeated_after_a_lost_reply_does_nothing(bus: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    assert await send(bus, held, "echo") == "OK"
    assert await send(bus, held, "echo") == "FENCED"
    held = await take_one(bus, "echo")
    assert await answer(bus, held, history=[b"x"]) == "OK"
    assert await answer(bus, held, history=[b"x"]) == "FENCED"
    assert await bus.server.call("LLEN", bus.shards[0].history("a")) == 1
    assert await finals(bus) == [("1", "final")]


async def test_completing_writes_the_answer_once_everywhere_and_releases_the_next(bus: Bus) -> None:
    await ask(bus, outbox=True, reply_to="front")
    await ask(bus, text="second")
    held = await take_one(bus)
    verdict = await answer(bus, held, "hello", history=[b"q", b"a"], preferences={"lang": "de"}, tokens_out=7)
    assert verdict == "OK"
    shard, found = bus.shards[0], await snapshot(bus, "a", "1")
    assert found.final is not None
    assert (found.state, found.final["text"], found.final["kind"]) == ("finished", "hello", "final")
    assert [(e["c"], e["t"]) for e in await entries(bus, shard.outbox("front"))] == [("a", "1")]
    assert await bus.server.call("LRANGE", shard.history("a"), 0, -1) == [b"q", b"a"]
    following = await take_one(bus)
    assert following.envelope is not None
    assert (following.turn, following.envelope.text) == ("2", "second")


async def test_history_keeps_its_limit(server: RedisServer) -> None:
    bus = Bus(server, Settings(assistant_history_limit=4), "p")
    for number in range(4):
        await ask(bus)
        await answer(bus, await take_one(bus), history=[b"q%d" % number, b"a%d" % number])
    assert await server.call("LRANGE", bus.shards[0].history("a"), 0, -1) == [b"q2", b"a2", b"q3", b"a3"]


async def test_an_answer_cannot_pass_for_another_kind_of_event(bus: Bus) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus), kind="error")
    final = (await snapshot(bus, "a", "1")).final
    assert final is not None
    assert final["kind"] == "final"


async def test_forgetting_clears_the_history_and_the_next_message_begins_a_session(bus: Bus) -> None:
    await ask(bus)
    await ask(bus, text="waits")
    await answer(bus, await take_one(bus), history=[b"x"], forget=True)
    await take_one(bus)
    await ask(bus, text="new")
    log = await log_records(bus)
    sessions = {session: [e["w"] for e in log if e["s"] == session] for session in dict.fromkeys(e["s"] for e in log)}
    assert list(sessions.values()) == [
        ["NOTE", "RECEIVED", "RECEIVED", "NOTE", "STARTED", "STARTED"],
        ["NOTE", "RECEIVED", "NOTE"],
    ]
    assert await bus.server.call("EXISTS", bus.shards[0].history("a")) == 0


async def test_preferences_of_a_conversation_that_only_had_commands_are_not_kept_for_ever(bus: Bus) -> None:
    await ask(bus, control=True)
    await answer(bus, await take_one(bus, "command"), preferences={"lang": "de"})
    shard = bus.shards[0]
    for key in (shard.preferences("a"), shard.conversation("a"), shard.events("a")):
        assert await bus.server.call("PTTL", key) > 0


async def test_a_control_answer_beside_a_running_turn_leaves_it_alone(bus: Bus) -> None:
    await ask(bus)
    await ask(bus, control=True)
    await answer(bus, await take_one(bus, "command"), preferences={"lang": "de"})
    assert await finals(bus) == [("c1", "final")]
    assert (await snapshot(bus, "a", "1")).state is TurnState.RUNNING
    assert await bus.server.call("PTTL", bus.shards[0].conversation("a")) == -1


async def test_burying_leaves_a_dead_letter_and_one_apology_and_the_next_turn_runs(bus: Bus) -> None:
    await ask(bus, outbox=True, reply_to="front")
    await ask(bus)
    held = await take_one(bus)
    assert await bury_turn(bus, held) == "OK"
    assert await bury_turn(bus, held) == "FENCED"
    (letter,) = await entries(bus, bus.shards[0].dead)
    assert (letter["c"], letter["t"], letter["why"], letter["e"]) == ("a", "1", "why", held.raw.decode())
    assert await finals(bus) == [("1", "error")]
    assert len(await entries(bus, bus.shards[0].outbox("front"))) == 1
    assert (await take_one(bus)).turn == "2"


async def test_a_deferred_turn_holds_nothing_and_wakes_where_it_slept(bus: Bus, other: Bus) -> None:
    await ask(bus, priority=90)
    await send(bus, await take_one(bus), "echo")
    held = await take_one(bus, "echo")
    assert await defer_turn(bus, held) == "OK"
    assert await bus.server.call("XLEN", held.stream) == 0
    assert (await snapshot(bus, "a", "1")).state is TurnState.DEFERRED
    assert await promote(other, bus.shards[0], "a") == "EARLY"
    assert (await wake_due(other, bus.shards[0], await server_ms(bus.server))).woken == 0
    assert (await wake_due(other, bus.shards[0], await server_ms(bus.server) + 2_000_000)).woken == 0
    assert await promote(other, bus.shards[0], "a", early=True) == "OK"
    assert await promote(bus, bus.shards[0], "a", early=True) == "GONE"
    woken = await take_one(other, "echo")
    assert (woken.stream, woken.hop, woken.count) == (held.stream, 1, 1)


async def test_a_deferred_turn_that_is_due_is_woken_by_the_first_who_looks(bus: Bus, other: Bus) -> None:
    for conversation in "abc":
        await ask(bus, conversation)
    for held in await take_role(bus, free=3):
        await defer_turn(bus, held, 0)
    now = await server_ms(bus.server) + 1
    assert (await wake_due(bus, bus.shards[0], now)).woken == 3
    assert (await wake_due(other, bus.shards[0], now)).woken == 0
    assert len(await take_role(other, free=5)) == 3


async def test_turns_that_wait_behind_a_deferred_one_keep_waiting(bus: Bus) -> None:
    await ask(bus)
    await ask(bus)
    await defer_turn(bus, await take_one(bus))
    assert await take_role(bus, free=5) == []
    assert (await snapshot(bus, "a", "2")).place == 1


async def test_a_control_turn_cannot_sleep(bus: Bus) -> None:
    await ask(bus, control=True)
    held = await take_one(bus, "command")
    assert await defer_turn(bus, held) == "CONTROL"
    assert await answer(bus, held) == "OK"


async def test_garbage_is_put_aside_and_touches_no_conversation(bus: Bus) -> None:
    await ask(bus)
    stream = bus.shards[0].stream("manager", "n")
    await bus.server.call("XADD", stream, "*", "nonsense", b"\xff\xfe")
    true, garbage = await take_role(bus, free=2)
    assert not garbage.usable
    assert await quarantine(bus, garbage) == "OK"
    assert await quarantine(bus, garbage) == "FENCED"
    (letter,) = await entries(bus, bus.shards[0].aside("envelope"))
    assert (letter["c"], letter["why"]) == ("", garbage.problem)
    assert await answer(bus, true) == "OK"


@pytest.mark.parametrize("fields", [("c", "a"), ("c", "a", "t", "1", "h", "x", "e", "{}"), ("e", "{}")])
async def test_an_entry_without_a_turn_is_not_usable(bus: Bus, fields: tuple[str, ...]) -> None:
    await bus.server.call("XADD", bus.shards[0].stream("manager", "h"), "*", *fields)
    assert not (await take_one(bus)).usable


async def test_an_envelope_of_another_conversation_is_a_problem(bus: Bus) -> None:
    await ask(bus, "b")
    raw = (await take_one(bus)).raw
    await bus.server.call("XADD", bus.shards[0].stream("manager", "h"), "*", "c", "a", "t", 1, "h", 0, "e", raw)
    stray = await take_one(bus)
    assert (stray.usable, stray.envelope) == (True, None)
    assert not await owns_turn(bus, stray)


async def test_a_direct_envelope_reaches_a_living_process_and_only_that(bus: Bus, other: Bus) -> None:
    await ask(bus)
    await renew(other, other.shards[0], [])
    assert await send(bus, await take_one(bus), f"echo@{other.process}") == "OK"
    assert await take_role(bus, "echo") == []
    held = await take_one(other, "echo")
    assert await answer(other, held) == "OK"


async def test_a_direct_envelope_to_a_process_that_is_gone_goes_to_its_role(bus: Bus) -> None:
    await ask(bus, priority=90)
    assert await send(bus, await take_one(bus), "echo@host:9~dead") == "OK"
    assert (await take_one(bus, "echo")).stream.endswith(":h")
    assert not [key for key in await names(bus) if "@host:9" in key]


async def test_at_the_memory_limit_every_accepted_turn_still_finishes(bus: Bus, other: Bus) -> None:
    for number in range(8):
        await ask(bus, str(number), outbox=True, reply_to="front", principal="u")
        await ask(bus, str(number))
    await take_role(bus, "echo", free=0)
    await renew(bus, bus.shards[0], [])
    await bus.server.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(ServerFull, match="maxmemory"):
        await bus.server.call("SET", "x", "y")
    for _ in range(2):
        held = await take_role(bus, free=8)
        assert len(held) == 8
        assert await renew(bus, bus.shards[0], held) == []
        await expire(bus, held[7])
        held[7] = await take_one(bus, claim=True)
        await hand_back(bus, held[6])
        held[6] = await take_one(bus, claim=True)
        assert [await send(bus, d, "echo") for d in held] == ["OK"] * 8
        late = await take_role(bus, "echo", free=8)
        assert await defer_turn(bus, late[0]) == "OK"
        assert await promote(bus, bus.shards[0], late[0].conversation, early=True) == "OK"
        late[0] = await take_one(bus, "echo")
        assert await bury_turn(bus, late[1]) == "OK"
        assert await cancel_turn(bus, late[2].conversation, late[2].turn)
        assert [await answer(bus, d, history=[b"x"]) for d in (late[0], *late[3:])] == ["OK"] * 6
    assert await turns_in_flight(bus, bus.shards[0]) == 0
    assert len(await entries(bus, bus.shards[0].outbox("front"))) == 8
