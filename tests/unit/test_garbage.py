"""Entries that cannot be read: a turn that waits for one is told at once, anything else touches no conversation."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.agent.agent import Agent
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.context import Context
from rolecall.agent.role import Role, role_infos
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import Delivery, read_entry
from rolecall.bus.turn import turns_in_flight
from rolecall.redis.keys import METRICS
from rolecall.worker.roster import Roster
from tests.bus.steps import ask, entries, finals, hash_of, names, take_one, take_role


class ManagerAgent(Agent):
    """Says hello."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("hello")


class CommandAgent(ManagerAgent):
    """Says hello too."""


async def handle(bus: Bus, delivery: Delivery) -> None:
    """Let an instance of the delivery's role handle it."""
    roles = (Role(ManagerAgent), Role(CommandAgent))
    roster = Roster(AgentServices(bus))
    roster.deploy(roles, AgentServices(bus, roles=role_infos(roles)))
    roster.set_count(delivery.role, 1)
    instance = roster.pick(delivery.role)
    assert instance is not None
    instance.occupy(delivery)
    await instance.handle()


async def put(bus: Bus, *fields: str | bytes | int) -> None:
    await bus.server.call("XADD", bus.shards[0].stream("manager", "h"), "*", *fields)


@pytest.mark.parametrize(
    "fields",
    [
        ("junk", b"\xff\xfe"),
        ("c", "a", "t", 1, "h", 0, "e", "{}"),
        ("c", "a", "t", 1, "h", 0, "e", b"\xff"),
        ("c", "a", "t", 1, "h", "x", "e", "{}"),
        ("c", "a", "t", 99, "h", 0, "e", "{}"),
        ("c", "nobody", "t", 1, "h", 0, "e", "{}"),
        ("c", "a", "t", "", "h", 0, "e", "{}"),
        ("c", "a", "t", 1, "h", 0, "e", '{"conversation":"other","payload":{}}'),
    ],
)
async def test_garbage_beside_a_running_turn_is_set_aside_and_the_turn_goes_on(
    bus: Bus, fields: tuple[str | bytes | int, ...]
) -> None:
    await ask(bus)
    state, before = await hash_of(bus, bus.shards[0].conversation("a")), await names(bus)
    await put(bus, *fields)
    garbage = await take_one(bus)
    await handle(bus, garbage)
    (letter,) = await entries(bus, bus.shards[0].aside("envelope"))
    assert (letter["c"], letter["why"]) == ("", garbage.problem)
    assert await hash_of(bus, bus.shards[0].conversation("a")) == state
    new = {key for key in await names(bus) - before if ":r:" not in key and key != METRICS}
    assert new == {bus.shards[0].aside("envelope")}
    await handle(bus, await take_one(bus))
    assert await finals(bus) == [("1", "final")]


async def test_a_running_turn_whose_envelope_is_broken_is_buried_and_its_user_told(bus: Bus) -> None:
    await ask(bus)
    await ask(bus)
    held = await take_one(bus)
    broken = read_entry(0, held.stream, held.role, (held.id.encode(), [b"c", b"a", b"t", b"1", b"h", b"0", b"e", b"{"]))
    await handle(bus, broken)
    assert await finals(bus) == [("1", "error")]
    (letter,) = await entries(bus, bus.shards[0].dead)
    assert (letter["c"], letter["t"], letter["e"]) == ("a", "1", "{")
    await handle(bus, await take_one(bus))
    assert await finals(bus) == [("1", "error"), ("2", "final")]


async def test_an_open_control_turn_whose_envelope_is_broken_is_buried(bus: Bus) -> None:
    await ask(bus, control=True)
    held = await take_one(bus, "command")
    flat = [b"c", b"a", b"t", b"c1", b"h", b"0", b"e", b"{"]
    await handle(bus, read_entry(0, held.stream, held.role, (held.id.encode(), flat)))
    assert await finals(bus) == [("c1", "error")]
    assert await bus.server.call("HGET", bus.shards[0].conversation("a"), "ctl") == b"0"


async def test_what_a_later_version_wrote_is_told_from_garbage(bus: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    later = b'{"conversation":"a","payload":{},"v":99,"later":1}'
    flat = [b"c", b"a", b"t", b"1", b"h", b"0", b"e", later]
    newer = read_entry(0, held.stream, held.role, (held.id.encode(), flat))
    assert newer.newer
    assert newer.envelope is None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(fields=st.lists(st.tuples(st.sampled_from([b"c", b"t", b"h", b"e", b"x"]), st.binary(max_size=20)), min_size=1))
def test_reading_an_entry_never_raises(fields: list[tuple[bytes, bytes]]) -> None:
    flat = [part for pair in fields for part in pair]
    delivery = read_entry(0, "s", "manager", (b"1-1", flat))
    assert delivery.envelope is None
    assert delivery.problem


async def test_garbage_among_good_entries_never_stops_the_good(bus: Bus) -> None:
    for number in range(10):
        await ask(bus, str(number))
        await put(bus, "c", str(number), "t", 1, "h", 0, "e", b"\x00" * number)
    while got := await take_role(bus, free=5):
        await asyncio.gather(*(handle(bus, delivery) for delivery in got))
    for number in range(10):
        assert await finals(bus, str(number)) == [("1", "final")]
    assert len(await entries(bus, bus.shards[0].aside("envelope"))) == 10
    assert await turns_in_flight(bus, bus.shards[0]) == 0


async def test_garbage_never_pushes_out_the_dead_letter_of_a_turn_and_is_stored_cut(bus: Bus) -> None:
    await ask(bus)
    held = await take_one(bus)
    await handle(bus, read_entry(0, held.stream, held.role, (held.id.encode(), [b"c", b"a", b"t", b"1", b"h", b"0"])))
    (letter,) = await dead_letters(bus)
    for _ in range(2500):
        bus.server.send("XADD", bus.shards[0].stream("manager", "h"), "*", "junk", "x" * 10_000)
    while got := await take_role(bus, free=500):
        await asyncio.gather(*(handle(bus, delivery) for delivery in got))
    found = await dead_letters(bus)
    assert letter in found
    assert len(found) < 2500
    assert max(len(one.envelope) for one in found) <= 4096
