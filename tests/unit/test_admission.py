"""ADMIT: what is accepted, what is refused, and that a refusal writes nothing."""

from __future__ import annotations

import asyncio

import pytest

from rolecall.bus.admission import Mode, admit
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope
from rolecall.bus.turn import snapshot, turns_in_flight
from rolecall.errors import ConfigError, EnvelopeTooLarge, RolecallError
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.bus.steps import answer, ask, hash_of, log_records, names, send, take_one, take_role


@pytest.fixture
def settings() -> Settings:
    return Settings(mailbox_limit=2, in_flight_limit=2, user_limit=3, user_soft_limit=1)


async def test_the_first_message_runs_and_the_next_ones_wait_in_line(bus: Bus) -> None:
    first, second, third = [await ask(bus) for _ in range(3)]
    assert (first.outcome, first.turn, first.place) == ("RUN", "1", 0)
    assert (second.outcome, second.turn, second.place) == ("WAIT", "2", 1)
    assert (third.outcome, third.turn, third.place) == ("WAIT", "3", 2)


async def test_a_repeat_is_known_by_its_key_and_another_body_is_a_conflict(bus: Bus) -> None:
    await ask(bus, text="hi", idempotency="k")
    before = await names(bus)
    assert (await ask(bus, text="hi", idempotency="k")).outcome == "DUP"
    assert (await ask(bus, text="ho", idempotency="k")).outcome == "CONFLICT"
    assert (await ask(bus, text="hi", idempotency="k", priority=90)).outcome == "CONFLICT"
    assert await names(bus) == before


async def test_keys_of_different_conversations_never_meet(bus: Bus) -> None:
    assert (await ask(bus, "telegram:42", idempotency="7:x")).outcome == "RUN"
    assert (await ask(bus, "telegram:42:7", idempotency="x")).outcome == "RUN"


@pytest.mark.parametrize("repeats", [2, 20])
async def test_one_of_many_equal_messages_at_once_is_accepted(bus: Bus, other: Bus, repeats: int) -> None:
    got = await asyncio.gather(*(ask((bus, other)[n % 2], idempotency="k") for n in range(repeats)))
    assert sorted(admission.outcome for admission in got) == ["DUP"] * (repeats - 1) + ["RUN"]
    assert {admission.turn for admission in got} == {"1"}


async def test_a_full_mailbox_refuses_and_writes_nothing(bus: Bus) -> None:
    for _ in range(3):
        await ask(bus)
    before, state = await names(bus), await hash_of(bus, bus.shards[0].conversation("a"))
    refused = await ask(bus)
    assert (refused.outcome, refused.turn, refused.accepted) == ("FULL", "", False)
    assert await names(bus) == before
    assert await hash_of(bus, bus.shards[0].conversation("a")) == state


async def test_a_busy_shard_refuses_new_conversations_but_not_those_at_work(bus: Bus) -> None:
    await ask(bus, "a")
    await ask(bus, "b")
    before = await names(bus)
    assert (await ask(bus, "c")).outcome == "BUSY"
    assert await names(bus) == before
    assert (await ask(bus, "a")).outcome == "WAIT"


async def test_turns_count_as_in_flight_at_whatever_hop_they_are(bus: Bus) -> None:
    await ask(bus, "a")
    await ask(bus, "b")
    for delivery in await take_role(bus, free=2):
        await send(bus, delivery, "echo")
    assert (await ask(bus, "c")).outcome == "BUSY"


async def test_a_user_over_the_limit_is_refused_until_a_turn_ends(bus: Bus) -> None:
    for _ in range(3):
        await ask(bus, "a", principal="u")
    assert (await ask(bus, "b", principal="u")).outcome == "FULL"
    assert (await ask(bus, "b", principal="v")).outcome == "RUN"
    await answer(bus, await take_one(bus))
    assert (await ask(bus, "b", principal="u")).outcome == "WAIT"


async def test_a_user_with_much_at_work_goes_one_band_down_at_every_hop(bus: Bus) -> None:
    await ask(bus, "a", principal="u", priority=90)
    await ask(bus, "b", principal="u", priority=90)
    first, second = await take_role(bus, free=2)
    assert (first.stream[-1], second.stream[-1]) == ("h", "n")
    for delivery in (first, second):
        await send(bus, delivery, "echo")
    assert [d.stream[-1] for d in await take_role(bus, "echo", free=2)] == ["h", "n"]


async def test_the_control_lane_runs_beside_a_busy_conversation(bus: Bus) -> None:
    await ask(bus)
    control = await ask(bus, control=True)
    assert (control.outcome, control.turn) == ("RUN", "c1")
    delivery = await take_one(bus, "command")
    assert await answer(bus, delivery) == "OK"
    assert (await snapshot(bus, "a", "1")).state == "running"


async def test_commands_have_room_beyond_the_limit_of_a_user_but_not_without_end(bus: Bus) -> None:
    for conversation in ("a", "b", "a"):
        await ask(bus, conversation, principal="u")
    assert (await ask(bus, "b", principal="u")).outcome == "FULL"
    outcomes = [(await ask(bus, f"c{n}", control=True, principal="u")).outcome for n in range(5)]
    assert outcomes == ["RUN"] * 3 + ["FULL"] * 2
    assert (await ask(bus, "c", control=True, principal="other")).outcome == "RUN"


async def test_the_control_lane_is_refused_by_no_limit_of_its_conversation_but_its_own(bus: Bus) -> None:
    await ask(bus, "a", principal="u")
    await ask(bus, "b", principal="u")
    outcomes = [(await ask(bus, "c", control=True, principal="u")).outcome for _ in range(5)]
    assert outcomes == ["RUN"] * 4 + ["FULL"]


async def test_a_conversation_at_work_is_not_forgotten_and_one_at_rest_has_its_time(server: RedisServer) -> None:
    bus = Bus(server, Settings(conversation_days=0.01), "p")
    key = bus.shards[0].conversation("a")
    await ask(bus)
    assert await server.call("PTTL", key) == -1
    await answer(bus, await take_one(bus))
    assert 0 < await server.call("PTTL", key) <= 0.01 * 86_400_000


async def test_a_server_at_its_memory_limit_is_busy(bus: Bus) -> None:
    await ask(bus)
    await bus.server.call("CONFIG", "SET", "maxmemory", 1)
    assert (await ask(bus, "b")).outcome == "BUSY"
    assert (await ask(bus, "a")).outcome == "BUSY"
    await bus.server.call("CONFIG", "SET", "maxmemory", 0)
    assert not {key for key in await names(bus) if key.endswith(":b")}


async def test_the_log_says_what_came_and_when_a_session_began(bus: Bus) -> None:
    await ask(bus, text='say "hi"', title="Ann", instance="telegram:h:1:0")
    await ask(bus)
    log = await log_records(bus)
    assert [(e["w"], e["x"]) for e in log] == [
        ("NOTE", "session of a title Ann"),
        ("RECEIVED", 'a/1 "say \\"hi\\""'),
        ("RECEIVED", 'a/2 "hi"'),
        ("NOTE", "waits, place 1"),
    ]
    assert len({e["s"] for e in log}) == 1


@pytest.mark.parametrize("mode", ["queue", "collect", "interrupt"])
async def test_a_text_that_no_json_can_hold_is_refused_as_such(bus: Bus, mode: Mode) -> None:
    before = await names(bus)
    with pytest.raises(RolecallError, match="cannot be written as JSON"):
        await ask(bus, text="\ud800", mode=mode)
    assert await names(bus) == before


@pytest.mark.parametrize("conversation", ["", "x" * 201, "a\nb", "a\x1fb", "\ud800"])
async def test_what_can_be_no_conversation_is_refused(bus: Bus, conversation: str) -> None:
    with pytest.raises(RolecallError, match="conversation"):
        await ask(bus, conversation)
    assert await names(bus) == set()


async def test_what_is_too_large_is_refused(bus: Bus) -> None:
    with pytest.raises(EnvelopeTooLarge, match="64 kB"):
        await ask(bus, text="x" * 70_000)
    with pytest.raises(EnvelopeTooLarge, match="262,144"):
        await admit(bus, Envelope(conversation="a", payload={"blob": "x" * 300_000}))
    assert await names(bus) == set()


async def test_another_shard_count_is_refused_with_what_to_do(server: RedisServer, bus: Bus) -> None:
    await bus.prepare()
    await bus.prepare()
    with pytest.raises(ConfigError, match=r"SHARDS=16 is invalid: .* 1 shards; set SHARDS=1"):
        await Bus(server, Settings(shards=16), "p").prepare()


async def test_conversations_spread_over_sixteen_shards_each_in_one(server: RedisServer) -> None:
    bus = Bus(server, Settings(shards=16), "p")
    for n in range(200):
        await ask(bus, f"telegram:{n}")
    used = [await turns_in_flight(bus, shard) for shard in bus.shards]
    assert sum(used) == 200
    assert min(used) > 0
    tags = {key.partition("}")[0] for key in await names(bus)}
    assert tags == {f"{{bus:{n}" for n in range(16)}
