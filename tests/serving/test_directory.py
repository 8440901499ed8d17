"""The directory of model servers: one start per model, memory that is never promised twice, nothing left behind."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from rolecall.redis import keys
from rolecall.redis.server import RedisServer, server_ms
from rolecall.serving.directory import LIST, Directory
from rolecall.serving.footprint import Room
from rolecall.serving.spec import ModelServer, Spec

HERE = "machine"
ROOM = Room(1000, 100_000)


@pytest.fixture
def directory(server: RedisServer) -> Directory:
    return Directory(server)


def spec(name: str) -> Spec:
    return Spec(f"{name}@local", weights=f"/{name}.gguf", slots=2)


def wanted(name: str, number: int = 1, *, ram: int = 100, machine: str = HERE, pinned: bool = False) -> ModelServer:
    one = spec(name)
    return ModelServer(f"{name}{number}", one.model, one.id, machine=machine, ram=ram, slots=one.slots, pinned=pinned)


async def ready(directory: Directory, server: ModelServer, room: Room = ROOM) -> ModelServer:
    assert (await directory.claim(server, "p", room)).word == "START"
    server = msgspec.structs.replace(server, state="ready", url=f"http://{server.id}")
    assert (await directory.beat(server)).known
    return server


async def test_of_many_who_ask_one_starts(directory: Directory) -> None:
    claims = await asyncio.gather(*(directory.claim(wanted("a", n), f"p{n}", ROOM) for n in range(20)))
    assert sorted(claim.word for claim in claims) == ["START"] + ["STARTING"] * 19
    assert {claim.server.id for claim in claims if claim.server} == {"a0"}


async def test_a_ready_server_is_found_by_its_machine_alone(directory: Directory) -> None:
    there = await ready(directory, wanted("a"))
    claim = await directory.claim(wanted("a", 2), "p", ROOM)
    assert (claim.word, claim.server and claim.server.url) == ("READY", there.url)
    assert (await directory.claim(wanted("a", 3, machine="other"), "p", ROOM)).word == "START"
    assert [one.id for one in await directory.servers(spec("a"), machine=HERE)] == ["a1"]


async def test_what_was_replaced_is_told_so(directory: Directory) -> None:
    old = await ready(directory, wanted("a"))
    await directory.end(old.id)
    await ready(directory, wanted("a", 2))
    for again in ("no", "alone"):
        assert not (await directory.beat(old, again=again)).known
    assert [one.id for one in await directory.servers()] == ["a2"]


async def test_what_the_server_forgot_is_put_back(directory: Directory, server: RedisServer) -> None:
    there = await ready(directory, wanted("a"))
    await server.call("FLUSHALL")
    assert (await directory.beat(there, again="alone")).known
    assert (await directory.servers())[0].url == there.url


async def test_a_failure_is_told_to_all_and_then_forgotten(directory: Directory, server: RedisServer) -> None:
    await directory.claim(wanted("a"), "p", ROOM)
    await directory.end("a1", "no such file|really\nnot")
    claim = await directory.claim(wanted("a", 2), "p", ROOM)
    assert (claim.word, claim.why) == ("FAILED", "no such file|really\nnot")
    assert 2 < claim.after <= 3
    await server.call("HSET", keys.SERVED_FAILED, spec("a").id, "1|long ago")
    assert (await directory.claim(wanted("a", 2), "p", ROOM)).word == "START"


async def test_what_does_not_fit_makes_the_longest_idle_leave(directory: Directory, server: RedisServer) -> None:
    for name in ("a", "b"):
        await ready(directory, wanted(name, ram=400))
    await backdate(server, "a1", "b1")
    await directory.enter(spec("a"), HERE, "call")
    await directory.leave("a1", "call")
    claim = await directory.claim(wanted("c", ram=500), "p", ROOM)
    assert (claim.word, claim.used) == ("FULL", 800)
    assert (await directory.claim(wanted("c", ram=500), "p", ROOM)).word == "FULL"
    states = {one.id: one.state for one in await directory.servers()}
    assert states == {"a1": "ready", "b1": "stopping"}, "no second one leaves meanwhile"
    await directory.end("b1")
    assert (await directory.claim(wanted("c", ram=500), "p", ROOM)).word == "START"


async def test_busy_loading_pinned_and_young_servers_stay(directory: Directory, server: RedisServer) -> None:
    for name in ("busy", "pinned", "young"):
        await ready(directory, wanted(name, pinned=name == "pinned"))
    await directory.claim(wanted("loading"), "p", ROOM)
    await directory.enter(spec("busy"), HERE, "call")
    await backdate(server, "busy1", "pinned1")
    claim = await directory.claim(wanted("c", ram=700), "p", ROOM)
    assert (claim.word, claim.used) == ("FULL", 400)
    never = await directory.claim(wanted("c", ram=950), "p", ROOM)
    assert (never.word, never.used) == ("NEVER", 100)
    assert {one.state for one in await directory.servers()} == {"ready", "starting"}


async def test_none_leaves_in_vain(directory: Directory, server: RedisServer) -> None:
    for name in ("idle", "busy"):
        await ready(directory, wanted(name, ram=400))
    await directory.enter(spec("busy"), HERE, "call")
    await backdate(server, "idle1", "busy1")
    assert (await directory.claim(wanted("c", ram=900), "p", ROOM)).word == "FULL"
    assert {one.state for one in await directory.servers()} == {"ready"}


async def test_who_is_hungry_has_busy_ones_leave_after_their_answer(directory: Directory, server: RedisServer) -> None:
    await ready(directory, wanted("busy", ram=800))
    await directory.enter(spec("busy"), HERE, "call")
    await backdate(server, "busy1")
    await directory.claim(wanted("c", ram=500), "p", ROOM, hungry=True)
    (one,) = await directory.servers()
    assert (one.state, one.in_flight) == ("stopping", 1)
    assert await directory.enter(spec("busy"), HERE, "late") is None
    pulse = await directory.beat(one)
    assert (pulse.state, pulse.in_flight) == ("stopping", 1)


async def test_a_call_goes_where_there_is_most_room(directory: Directory) -> None:
    twice = [msgspec.structs.replace(wanted("a", n), machine="", state="ready", weight=n) for n in (1, 2)]
    for one in twice:
        await directory.beat(one, again="always")
    went = [await directory.enter(spec("a"), HERE, f"c{n}", queue=False) for n in range(5)]
    assert [one.id if isinstance(one, ModelServer) else one for one in went] == ["a2", "a1", "a2", "a1", 4]
    assert isinstance(await directory.enter(spec("a"), HERE, "c5"), ModelServer)
    await directory.leave("a1", "c1")
    assert {one.id: one.in_flight for one in await directory.servers()} == {"a1": 1, "a2": 3}
    assert await directory.enter(spec("b"), HERE, "c6") is None


async def test_nothing_stays_that_nobody_keeps(directory: Directory, server: RedisServer) -> None:
    await ready(directory, wanted("a"))
    await directory.enter(spec("a"), HERE, "call")
    await directory.claim(wanted("b"), "p", ROOM)
    await directory.end("b1", "broken")
    kept = [keys.SERVED, keys.SERVED_CALLS, keys.SERVED_USERS, keys.SERVED_FAILED]
    lives = [await server.call("PTTL", key) for key in kept]
    assert all(0 < ms <= 15_000 for ms in lives), lives


async def backdate(server: RedisServer, *ids: str) -> None:
    """As if these had been loaded a minute ago."""
    for number, one in enumerate(ids):
        raw = msgspec.json.decode(await server.call("HGET", keys.SERVED, one))
        raw["ready"] -= 60_000
        raw["used"] += number - 60_000
        await server.call("HSET", keys.SERVED, one, msgspec.json.encode(raw))


async def test_a_clock_that_steps_back_keeps_nothing_longer(directory: Directory, server: RedisServer) -> None:
    for name in ("a", "b"):
        await ready(directory, wanted(name, ram=400))
        await directory.enter(spec(name), HERE, "call")
    await directory.claim(wanted("c"), "p", ROOM)
    await directory.end("c1", "broken")
    hour = 3_600_000  # ahead: all of it was written before the step
    for one in ("a1", "b1"):
        raw = msgspec.json.decode(await server.call("HGET", keys.SERVED, one))
        times = {name: raw[name] + hour for name in ("lapses", "beat", "since", "used", "ready")}
        await server.call("HSET", keys.SERVED, one, msgspec.json.encode({**raw, **times}))
    for key in (keys.SERVED_CALLS, keys.SERVED_USERS):
        for member in await server.call("ZRANGE", key, 0, -1):
            await server.call("ZINCRBY", key, hour, member)
    until = await server_ms(server) + hour
    await server.call("HSET", keys.SERVED_FAILED, spec("c").id, f"{until:.0f}|broken")
    assert [one.id for one in await directory.servers()] == ["a1", "b1"]
    assert (await directory.beat(wanted("a", ram=400))).known  # its host lives; that of b does not
    assert (await directory.claim(wanted("c", 2), "p", ROOM)).word == "START"
    for key in (keys.SERVED_CALLS, keys.SERVED_USERS):
        ends, now = (await server.call("ZRANGE", key, 0, -1, "WITHSCORES"))[1::2], await server_ms(server)
        assert ends and all(float(end) < now + 16_000 for end in ends)
    raw = msgspec.json.decode(await server.call("HGET", keys.SERVED, "b1"))
    assert max(raw["lapses"] - 5_000, raw["used"], raw["ready"]) <= await server_ms(server) + 100


async def test_a_list_leaves_out_what_is_over_and_is_for_those_too_who_may_only_read(
    directory: Directory, server: RedisServer
) -> None:
    there = await ready(directory, wanted("a"))
    over = msgspec.structs.replace(there, id="over")
    await server.call("HSET", keys.SERVED, "over", msgspec.json.encode({**msgspec.to_builtins(over), "lapses": 1}))
    assert isinstance(await directory.enter(spec("a"), HERE, "call"), ModelServer)
    assert LIST.reads
    assert [(one.id, one.in_flight) for one in await directory.servers()] == [("a1", 1)]
