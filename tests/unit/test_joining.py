"""ADMIT while busy: collect, interrupt and hold; EDIT: what has not begun is answered as it reads now."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rolecall.bus.admission import Admission, EditResult, admit, edit_message, places
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn, stop_conversation, withdraw_message
from rolecall.bus.conversation import envelopes_of
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import hand_back
from rolecall.bus.maintenance import audit_one, promote, wake_due
from rolecall.bus.settle import defer
from rolecall.bus.turn import Records, turns_in_flight
from rolecall.redis.server import RedisServer, server_ms
from rolecall.settings import Settings
from tests.bus.steps import (
    answer,
    ask,
    defer_turn,
    entries,
    finals,
    hash_of,
    log_records,
    names,
    send,
    take_one,
    take_role,
)
from tests.waiting import wait_until

LONG = 1000.0


async def collect(bus: Bus, text: str, **options: Any) -> Admission:
    return await ask(bus, text=text, mode="collect", **options)


async def interrupt(bus: Bus, text: str, **options: Any) -> Admission:
    return await ask(bus, text=text, mode="interrupt", **options)


async def album(bus: Bus, text: str = "", image: str = "", **options: Any) -> Admission:
    payload: dict[str, Any] = {"text": text, "images": [image]} if image else {"text": text}
    envelope = Envelope(conversation="a", payload=payload, reply_to="front")
    return await admit(bus, envelope, **{"hold": LONG, "group": "g", **options})


async def edit(bus: Bus, text: str, key: str, version: int = 1, **payload: Any) -> EditResult:
    envelope = Envelope(conversation="a", payload={"text": text, **payload})
    return await edit_message(bus, envelope, idempotency=key, version=version)


async def said(bus: Bus) -> str:
    """What the next turn to be handled says."""
    delivery = await take_one(bus)
    assert delivery.envelope is not None
    return delivery.envelope.text


# ── collect ─────────────────────────────────────────────────────────────────────────────────────


async def test_what_waits_takes_in_what_the_same_user_adds(bus: Bus) -> None:
    await collect(bus, "one", principal="u")
    assert (await collect(bus, "two", principal="u")).outcome == "WAIT"
    got = await collect(bus, "three", principal="u", idempotency="k")
    assert (got.outcome, got.turn, got.place, got.accepted) == ("MERGED", "2", 1, True)
    assert (await collect(bus, "three", principal="u", idempotency="k")).outcome == "DUP"
    assert (await collect(bus, "other", principal="u", idempotency="k")).outcome == "CONFLICT"
    assert await hash_of(bus, bus.shards[0].principals) == {"u": "2"}
    await answer(bus, await take_one(bus))
    delivery = await take_one(bus)
    assert delivery.envelope is not None
    assert delivery.envelope.text == "two\nthree"
    await answer(bus, delivery)
    assert await finals(bus) == [("1", "final"), ("2", "final")]
    assert (await collect(bus, "three", principal="u", idempotency="k")).turn == "2"
    assert await bus.server.call("EXISTS", bus.shards[0].journal("a"), bus.shards[0].principals) == 0


async def test_a_command_collects_nothing_and_what_comes_behind_it_does_not_overtake_it(bus: Bus) -> None:
    texts = ("one", "two", "/remind tea", "three", "four")
    assert [(await collect(bus, text, idempotency=text)).turn for text in texts] == ["1", "2", "3", "4", "4"]
    assert (await edit(bus, "/calc 1+1", "four")).outcome == "SHARED"
    assert (await edit(bus, "/calc 1+1", "two")).outcome == "EDITED"
    await answer(bus, await take_one(bus))
    for text in ("/calc 1+1", "/remind tea", "three\nfour"):
        delivery = await take_one(bus)
        assert delivery.envelope is not None
        assert delivery.envelope.text == text
        await answer(bus, delivery)


async def test_one_user_never_adds_to_what_another_said(bus: Bus) -> None:
    for user, text in (("u", "1"), ("u", "2"), ("v", "3"), ("u", "4"), ("v", "5")):
        await collect(bus, text, principal=user)
    await answer(bus, await take_one(bus))
    assert [await said(bus)] == ["2\n4"]
    await stop_conversation(bus, "a")


async def test_parts_may_fill_a_turn_and_no_more(bus: Bus) -> None:
    for _ in range(2):
        await collect(bus, "x")
    assert (await collect(bus, "y" * 40_000)).outcome == "MERGED"
    before = await names(bus)
    full = await collect(bus, "z" * 40_000)
    assert (full.outcome, full.turn, full.accepted) == ("FULL", "2", False)
    assert await names(bus) == before
    await answer(bus, await take_one(bus))
    held = await take_one(bus)
    assert await send(bus, held, "echo") == "OK"


async def test_a_merged_message_is_refused_by_a_full_server_and_nothing_is_written(bus: Bus) -> None:
    for _ in range(2):
        await collect(bus, "x")
    before = await names(bus)
    await bus.server.call("CONFIG", "SET", "maxmemory", 1)
    assert (await collect(bus, "y")).outcome == "BUSY"
    await bus.server.call("CONFIG", "SET", "maxmemory", 0)
    assert await names(bus) == before


async def test_the_parts_of_a_turn_survive_a_hand_back_and_an_audit(bus: Bus, other: Bus) -> None:
    for text in "123":
        await collect(bus, text)
    await answer(bus, await take_one(bus))
    await hand_back(bus, await take_one(bus))
    assert await said(other) == "2\n3"
    await bus.server.call("DEL", bus.shards[0].stream("manager", "n"))
    assert await audit_one(bus, bus.shards[0], "a") == "REPAIRED"
    assert await said(bus) == "2\n3"


async def test_a_turn_of_a_newer_version_keeps_its_parts_while_it_sleeps(bus: Bus) -> None:
    for text in "123":
        await collect(bus, text)
    await answer(bus, await take_one(bus))
    await defer(bus, await take_one(bus), 0, None, "newer", Records("test"))
    assert await promote(bus, bus.shards[0], "a") == "OK"
    assert await said(bus) == "2\n3"


# ── interrupt ───────────────────────────────────────────────────────────────────────────────────


async def test_a_newer_message_takes_the_place_of_what_runs(bus: Bus, other: Bus) -> None:
    await ask(bus, text="one", outbox=True, reply_to="front")
    held = await take_one(bus)
    got = await interrupt(other, "two")
    assert (got.outcome, got.turn) == ("RUN", "2")
    assert await answer(bus, held) == "FENCED"
    assert await said(bus) == "two"
    assert await finals(bus) == [("1", "cancelled")]
    (told,) = await entries(bus, bus.shards[0].outbox("front"))
    assert told["t"] == "1"
    assert "newer message" in told["e"]
    history = await bus.server.call("LRANGE", bus.shards[0].history("a"), 0, -1)
    assert history == [b'{"role":"user","text":"one","turn":"1","mark":"stopped"}']


async def test_twenty_messages_in_a_moment_get_one_answer_and_nineteen_are_stopped(bus: Bus, other: Bus) -> None:
    got = await asyncio.gather(*(interrupt((bus, other)[n % 2], str(n), principal="u") for n in range(20)))
    assert {admission.outcome for admission in got} == {"RUN"}
    assert {admission.turn for admission in got} == {str(n) for n in range(1, 21)}
    await answer(bus, await take_one(bus))
    assert await take_role(bus) == []
    assert await finals(bus) == [*((str(n), "cancelled") for n in range(1, 20)), ("20", "final")]
    assert await turns_in_flight(bus, bus.shards[0]) == 0


async def test_a_storm_against_a_turn_that_keeps_moving_leaves_one(bus: Bus, other: Bus) -> None:
    async def work() -> None:
        for _ in range(30):
            for role in ("manager", "echo"):
                for delivery in await take_role(bus, role):
                    await send(bus, delivery, "echo" if role == "manager" else "manager")

    await asyncio.gather(work(), *(interrupt(other, str(n)) for n in range(20)))
    assert len(await finals(bus)) == 19
    state = await hash_of(bus, bus.shards[0].conversation("a"))
    assert (state["cur"], state["seq"]) == ("20", "20")
    assert await audit_one(bus, bus.shards[0], "a") == "OK"


async def test_what_another_user_asked_is_not_interrupted(bus: Bus) -> None:
    await interrupt(bus, "one", principal="u")
    assert (await interrupt(bus, "two", principal="v")).outcome == "WAIT"
    assert await finals(bus) == []


async def test_an_interrupted_turn_gives_way_to_those_that_waited(bus: Bus) -> None:
    await ask(bus, text="one")
    await ask(bus, text="two")
    assert (await interrupt(bus, "three")).outcome == "WAIT"
    assert await finals(bus) == [("1", "cancelled")]
    assert await said(bus) == "two"


async def test_a_repeated_or_refused_interruption_ends_nothing(server: RedisServer) -> None:
    bus = Bus(server, Settings(mailbox_limit=1), "p")
    await interrupt(bus, "one", idempotency="k")
    assert (await interrupt(bus, "one", idempotency="k")).outcome == "DUP"
    await ask(bus, text="two", principal="v")
    await ask(bus, text="three")
    assert (await interrupt(bus, "other", principal="w")).outcome == "FULL"
    assert await finals(bus) == []


async def test_a_turn_that_sleeps_is_interrupted_too(bus: Bus) -> None:
    await ask(bus)
    await defer_turn(bus, await take_one(bus))
    assert (await interrupt(bus, "two")).outcome == "RUN"
    assert await said(bus) == "two"
    assert await bus.server.call("ZCARD", bus.shards[0].deferred) == 0


# ── hold ────────────────────────────────────────────────────────────────────────────────────────


async def test_an_album_is_one_turn_with_all_its_pictures(bus: Bus) -> None:
    got = [await album(bus, "look", "i1", idempotency="1"), await album(bus, "", "i2"), await album(bus, "nice?", "i3")]
    assert [(a.outcome, a.turn) for a in got] == [("RUN", "1"), ("MERGED", "1"), ("MERGED", "1")]
    assert await take_role(bus) == []
    assert await promote(bus, bus.shards[0], "a") == "EARLY"
    assert await promote(bus, bus.shards[0], "a", early=True) == "OK"
    delivery = await take_one(bus)
    assert delivery.envelope is not None
    assert delivery.envelope.payload == {"text": "look\nnice?", "images": ["i1", "i2", "i3"]}
    assert (await album(bus, "look", "i1", idempotency="1")).outcome == "DUP"
    assert (await album(bus, "late", "i4")).outcome == "WAIT"
    await answer(bus, delivery)
    assert await finals(bus) == [("1", "final")]


async def test_a_hold_ends_by_itself_and_each_part_renews_it_up_to_five_times(bus: Bus) -> None:
    await album(bus, "1", hold=0.1)
    shard = bus.shards[0]
    first = float(await bus.server.call("ZSCORE", shard.deferred, "a"))
    await wait_until(lambda: _passed(bus, first - 60))
    await album(bus, "2", hold=0.1)
    second = float(await bus.server.call("ZSCORE", shard.deferred, "a"))
    assert first < second
    await album(bus, "3", hold=50)
    journal = await hash_of(bus, shard.journal("a"))
    assert float(await bus.server.call("ZSCORE", shard.deferred, "a")) <= int(journal["1:r"]) + 5 * 50_000
    await bus.server.call("ZADD", shard.deferred, second, "a")

    async def woken() -> bool:
        return (await wake_due(bus, shard, await server_ms(bus.server))).woken == 1

    await wait_until(woken)
    assert await said(bus) == "1\n2\n3"


async def _passed(bus: Bus, ms: float) -> bool:
    return await server_ms(bus.server) > ms


async def test_a_held_turn_that_had_to_wait_sleeps_out_what_is_left(bus: Bus) -> None:
    await ask(bus)
    assert (await album(bus, "1")).outcome == "WAIT"
    await answer(bus, await take_one(bus))
    assert await take_role(bus) == []
    assert (await album(bus, "2")).outcome == "MERGED"
    assert await audit_one(bus, bus.shards[0], "a") == "OK"
    assert await promote(bus, bus.shards[0], "a", early=True) == "OK"
    assert await said(bus) == "1\n2"


async def test_a_held_turn_is_released_before_its_time_and_no_other_is(bus: Bus) -> None:
    await ask(bus, text="one")
    await defer_turn(bus, await take_one(bus))
    await album(bus, "two")
    shard = bus.shards[0]
    assert [await promote(bus, shard, "a", held=turn) for turn in ("1", "2")] == ["GONE", "GONE"]
    assert await promote(bus, shard, "a", early=True) == "OK"
    await answer(bus, await take_one(bus))
    assert await promote(bus, shard, "a", held="1") == "GONE"
    assert await promote(bus, shard, "a", held="2") == "OK"
    assert await said(bus) == "two"


async def test_a_message_of_another_group_waits_behind_what_is_held(bus: Bus) -> None:
    await album(bus, "1")
    assert (await album(bus, "2", group="h")).outcome == "WAIT"
    assert (await ask(bus, text="3")).outcome == "WAIT"
    assert (await collect(bus, "4")).turn == "3"
    assert (await album(bus, "5", mode="interrupt")).turn == "1"


async def test_a_message_without_a_hold_joins_its_group_and_runs_at_once_without_one(bus: Bus) -> None:
    assert (await ask(bus, text="alone", group="paste")).outcome == "RUN"
    await answer(bus, await take_one(bus))
    await ask(bus, text="first", group="paste", hold=LONG)
    assert (await ask(bus, text="rest", group="paste")).outcome == "MERGED"


async def test_a_held_turn_is_cancelled_stopped_and_interrupted(bus: Bus) -> None:
    await album(bus)
    assert await cancel_turn(bus, "a", "1")
    await album(bus)
    assert await stop_conversation(bus, "a") == 1
    await album(bus)
    assert (await interrupt(bus, "now")).outcome == "RUN"
    assert await said(bus) == "now"
    assert await bus.server.call("ZCARD", bus.shards[0].deferred) == 0


async def test_a_deferred_turn_has_begun_and_takes_nothing_in(bus: Bus) -> None:
    await ask(bus, text="one", group="g")
    await defer_turn(bus, await take_one(bus))
    assert (await ask(bus, text="two", group="g")).outcome == "WAIT"
    assert (await collect(bus, "three")).turn == "2"


# ── edit ────────────────────────────────────────────────────────────────────────────────────────


async def test_an_edit_is_taken_as_long_as_its_turn_has_not_begun(bus: Bus) -> None:
    assert await edit(bus, "new", "1") == EditResult("UNKNOWN")
    await ask(bus, text="one", idempotency="1")
    await ask(bus, text="two", idempotency="2")
    assert await edit(bus, "new", "1") == EditResult("RUNNING", "1")
    assert await edit(bus, "new", "2") == EditResult("EDITED", "2")
    await answer(bus, await take_one(bus))
    assert await edit(bus, "newer", "1") == EditResult("DONE", "1")
    assert await said(bus) == "new"
    assert await edit(bus, "newer", "2") == EditResult("RUNNING", "2")


async def test_an_older_edit_never_undoes_a_newer_one(bus: Bus) -> None:
    await album(bus, "one", idempotency="1")
    assert [(await edit(bus, text, "1", version)).outcome for text, version in (("new", 5), ("old", 4), ("x", 5))] == [
        "EDITED"
    ] * 3
    await promote(bus, bus.shards[0], "a", early=True)
    assert await said(bus) == "new"


async def test_each_part_of_a_turn_is_edited_for_itself(bus: Bus) -> None:
    for number in "1234":
        await album(bus, number, image=f"i{number}", idempotency=number)
    assert (await edit(bus, "three", "3", 7, images=["j3"])).outcome == "EDITED"
    assert (await edit(bus, "one", "1", 7, images=["i1"])).outcome == "EDITED"
    assert (await edit(bus, "four", "4", 7)).outcome == "EDITED"
    assert (await edit(bus, "old", "3", 6)).outcome == "EDITED"
    assert (await edit(bus, "y" * 60_000, "2", 8)).outcome == "EDITED"
    assert (await edit(bus, "z" * 60_000, "1", 8)).outcome == "FULL"
    assert (await edit(bus, "2", "2", 9)).outcome == "EDITED"
    await promote(bus, bus.shards[0], "a", early=True)
    delivery = await take_one(bus)
    assert delivery.envelope is not None
    assert delivery.envelope.payload == {"text": "one\n2\nthree\nfour", "images": ["i1", "j3"]}


async def test_a_message_is_withdrawn_without_the_others_of_its_turn(bus: Bus) -> None:
    for text in ("one", "two", "three", "four"):
        await collect(bus, text, idempotency=text)
    for key, version in (("three", 7), ("two", 8), ("two", 8)):
        assert await withdraw_message(bus, "a", idempotency=key, version=version)
    assert (await edit(bus, "3", "three", 9)).outcome == "EDITED"
    assert (await envelopes_of(bus, "a", ["2"]))["2"].text == "3\nfour"
    for key in ("three", "four"):
        assert await withdraw_message(bus, "a", idempotency=key, version=10)
    assert (await finals(bus), await places(bus, "a")) == ([("2", "cancelled")], {})
    assert not await withdraw_message(bus, "a", idempotency="one", version=11)


async def test_an_edited_message_is_still_known_when_its_first_form_comes_again(bus: Bus) -> None:
    await album(bus, "one", idempotency="1")
    await edit(bus, "new", "1")
    key = bus.shards[0].idempotency("a", "1")
    assert (await album(bus, "one", idempotency="1")).outcome == "DUP"
    assert 0 < await bus.server.call("PTTL", key) <= 86_400_000


async def test_an_edit_and_the_release_of_its_turn_never_miss_each_other(bus: Bus, other: Bus) -> None:
    for _ in range(30):
        await ask(bus, text="first")
        waiting = await ask(bus, text="old", idempotency="k")
        held = await take_one(bus)
        edited, _ = await asyncio.gather(edit(other, "new", "k"), answer(bus, held))
        delivery = await take_one(bus)
        assert delivery.envelope is not None
        assert (delivery.turn, delivery.envelope.text) == (
            waiting.turn, "new" if edited.outcome == "EDITED" else "old"
        )  # fmt: skip
        await answer(bus, delivery)
        await bus.server.call("DEL", bus.shards[0].idempotency("a", "k"))


async def test_the_log_tells_of_parts_and_edits(bus: Bus) -> None:
    await album(bus, "one")
    await album(bus, "two", idempotency="2")
    await edit(bus, "zwei", "2")
    log = [(e["w"], e["x"]) for e in await log_records(bus)]
    assert log[2:] == [
        ("RECEIVED", 'a/1 "two"'), ("NOTE", "joins this turn, which has not begun"), ("NOTE", 'edited: "zwei"')
    ]  # fmt: skip


async def test_places_of_all_that_waits_are_one_look(bus: Bus) -> None:
    for _ in range(4):
        await ask(bus)
    assert await places(bus, "a") == {"2": 1, "3": 2, "4": 3}
    await cancel_turn(bus, "a", "2")
    assert await places(bus, "a") == {"3": 1, "4": 2}
    assert await places(bus, "nobody") == {}


@pytest.mark.parametrize("mode", ["queue", "collect", "interrupt"])
async def test_all_this_works_in_whatever_shard(server: RedisServer, mode: Any) -> None:
    bus = Bus(server, Settings(shards=16), "p")
    for n in range(40):
        for text in "12":
            await ask(bus, f"telegram:{n}", text, mode=mode)
        tags = {key.partition("}")[0] for key in await names(bus) if f":telegram:{n}" in key}
        assert tags == {bus.shard(f"telegram:{n}").prefix[:-1]}
