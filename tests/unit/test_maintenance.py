"""AUDIT, FALLBACK, RETIRE, REGISTER, LEASE, NOTE: what keeps a bus tidy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rolecall.bus.admission import admit
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import stop_conversation
from rolecall.bus.dead_letters import dead_letters, replay
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import renew, renew_idle
from rolecall.bus.maintenance import audit, audit_one, depart, promote, rescue_direct, sweep, wake_due, with_sleepers
from rolecall.bus.process.processes import ProcessState, live_processes, register, unregister
from rolecall.bus.settle import defer
from rolecall.bus.turn import AwakeTurns, Records, note, snapshot
from rolecall.redis import keys
from rolecall.redis.leader import LEASE
from rolecall.redis.scripts import Arg, Block, Script
from rolecall.redis.server import RedisServer, Server, server_ms
from rolecall.settings import Settings
from rolecall.stats import metric_totals
from tests.bus.steps import (
    answer,
    ask,
    defer_turn,
    expire,
    finals,
    log_records,
    names,
    send,
    take_one,
    take_role,
)
from tests.waiting import wait_until

ROLES = ("manager", "echo")


class Meanwhile:
    """A server where something else happens just after a command."""

    def __init__(self, server: Server, command: str, what: Callable[[], Awaitable[object]]) -> None:
        self._server = server
        self._command = command
        self._what = what

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        return self._server.send(*args)

    async def call(self, *args: Arg) -> Any:
        reply = await self._server.call(*args)
        if args[0] == self._command:
            await self._what()
        return reply

    async def fetch(self, *args: Arg) -> Any:
        return await self.call(*args)

    def start(self, script: Script, /, *blocks: Block, **values: Any) -> asyncio.Future[Any]:
        return self._server.start(script, *blocks, **values)

    async def run(self, script: Script, /, *blocks: Block, **values: Any) -> Any:
        return await self._server.run(script, *blocks, **values)


async def live(bus: Bus) -> None:
    """Register a process and give its sign of life, as a worker does."""
    await register(bus, ProcessState(bus.process))
    for shard in bus.shards:
        await renew(bus, shard, [])


async def die(bus: Bus, gone: Bus) -> None:
    """Let the signs of life of a process run out."""
    await bus.server.call("DEL", keys.worker(gone.process))
    for shard in bus.shards:
        await bus.server.call("DEL", shard.alive(gone.process))


async def test_an_audit_of_a_sound_shard_finds_nothing(bus: Bus) -> None:
    for conversation in "abc":
        await ask(bus, conversation)
    await defer_turn(bus, await take_one(bus))
    await take_one(bus)
    await ask(bus, "a", control=True)
    assert await audit(bus, bus.shards[0], await server_ms(bus.server)) == 0
    assert await audit_one(bus, bus.shards[0], "nobody") == "IDLE"


@pytest.mark.parametrize("where", ["stream", "deferred"])
async def test_an_entry_lost_from_outside_is_written_again(bus: Bus, where: str) -> None:
    await ask(bus, text="hi")
    held = await take_one(bus)
    if where == "deferred":
        await defer_turn(bus, held)
        await bus.server.call("DEL", bus.shards[0].deferred)
    else:
        await bus.server.call("DEL", held.stream)
    assert await audit(bus, bus.shards[0], await server_ms(bus.server)) == 1
    assert await audit(bus, bus.shards[0], await server_ms(bus.server)) == 0
    again = await take_one(bus)
    assert again.envelope is not None
    assert (again.turn, again.envelope.text) == ("1", "hi")
    assert await answer(bus, again) == "OK"


async def test_turns_that_sleep_keep_no_other_from_being_audited_and_cost_nothing(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.bus.maintenance.PAGE", 2)
    for conversation in "abcde":
        await ask(bus, conversation)
        if conversation != "e":
            await defer_turn(bus, await take_one(bus))
    await bus.server.call("DEL", (await take_one(bus)).stream)
    now, before = await server_ms(bus.server), await scripts_run(bus)
    while not await audit(bus, bus.shards[0], now):
        assert await scripts_run(bus) == before
    assert await scripts_run(bus) == before + 1
    again = await take_one(bus)
    assert (again.conversation, again.turn) == ("e", "1")


async def scripts_run(bus: Bus) -> int:
    """How many scripts the server has run."""
    found: bytes = await bus.server.call("INFO", "commandstats")
    return int(found.decode().partition("cmdstat_evalsha:calls=")[2].partition(",")[0])


async def test_a_turn_in_flight_too_long_ends_with_an_error_and_the_next_runs(bus: Bus) -> None:
    await ask(bus)
    await ask(bus)
    held = await take_one(bus)
    await audit(bus, bus.shards[0], await server_ms(bus.server) + 3_601_000)
    assert await finals(bus) == [("1", "error")]
    assert await answer(bus, held) == "FENCED"
    assert (await take_one(bus)).turn == "2"
    (letter,) = await dead_letters(bus)
    assert (letter.conversation, letter.turn, letter.role, letter.reason) == ("a", "1", "manager", "in flight too long")
    assert (await replay(bus, letter, "operator")).turn == "3"


async def test_a_conversation_that_cannot_be_looked_at_keeps_no_other_from_being_audited_and_woken(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    shard = bus.shards[0]
    for name in ("a", "b"):
        await ask(bus, name)
        assert await defer(bus, await take_one(bus), 0, None, "", Records("test")) == "OK"
    await bus.server.call("ZADD", shard.deferred, 1, b"\xff", 1, "broken")
    await bus.server.call("ZADD", shard.active, 1, b"\xff", 1, "broken")
    await bus.server.call("SET", shard.conversation("broken"), "no hash")
    await bus.server.call("SET", shard.journal("broken"), "no hash")
    now = await server_ms(bus.server) + 10
    assert (await wake_due(bus, shard, now + 60_000)).woken == 2
    await audit(bus, shard, now + 7_200_000)
    assert await finals(bus, "a") == await finals(bus, "b") == [("1", "error")]
    assert {"promote: b'broken' failed, try 1 of 1", "audit: b'broken' failed, try 1 of 1"} <= set(caplog.messages)
    failures = (await metric_totals(bus.server)).counts["failures"]
    assert failures["promote",] >= 2 and failures["audit",] >= 2


async def test_a_turn_that_began_while_an_older_one_was_looked_at_is_not_ended(bus: Bus) -> None:
    await ask(bus)
    await ask(bus)
    held, shard, now = await take_one(bus), bus.shards[0], await server_ms(bus.server)
    await bus.server.call("ZADD", shard.active, now - 3_700_000, "a")
    watcher = Bus(Meanwhile(bus.server, "ZRANGE", lambda: answer(bus, held)), bus.settings, "watcher")
    await audit(watcher, shard, now)
    assert await finals(bus) == [("1", "final")]
    assert (await snapshot(bus, "a", "2")).state == "running"
    assert await dead_letters(bus) == []


async def test_what_was_addressed_to_a_process_moves_only_when_that_is_gone(bus: Bus, other: Bus) -> None:
    await live(other)
    await ask(bus)
    await send(bus, await take_one(bus), f"echo@{other.process}")
    assert await rescue_direct(bus, bus.shards[0], ROLES, other.process) == 0
    await die(bus, other)
    assert await rescue_direct(bus, bus.shards[0], ROLES, other.process) == 1
    assert await answer(bus, await take_one(bus, "echo")) == "OK"


@pytest.mark.parametrize(("priority", "band"), [(90, "h"), (50, "n"), (10, "l")])
async def test_what_was_addressed_to_a_dead_process_keeps_its_priority(
    bus: Bus, other: Bus, priority: int, band: str
) -> None:
    await live(other)
    await admit(bus, Envelope(conversation="a", payload={"text": "x"}, priority=priority))
    await send(bus, await take_one(bus), f"echo@{other.process}")
    await die(bus, other)
    assert await rescue_direct(bus, bus.shards[0], ROLES, other.process) == 1
    moved = await take_one(bus, "echo")
    assert moved.stream == bus.shards[0].stream("echo", band)
    await send(bus, moved, "manager")
    assert (await take_one(bus)).stream == bus.shards[0].stream("manager", band)


async def test_a_sweep_moves_all_that_was_addressed_to_the_dead_and_removes_every_trace(server: RedisServer) -> None:
    settings = Settings(in_flight_limit=1000)
    bus, other = Bus(server, settings, "host:1~aaaaaa"), Bus(server, settings, "host:2~bbbbbb")
    await live(other)
    for number in range(250):
        await ask(bus, str(number))
    for held in await take_role(bus, free=250):
        await send(bus, held, f"echo@{other.process}")
    await take_role(other, "echo", free=3)
    await die(bus, other)
    assert await sweep(bus, ROLES) == 1
    assert len(await take_role(bus, "echo", free=300)) == 250
    assert await sweep(bus, ROLES) == 0
    assert not [key for key in await names(bus) if other.process in key]


async def test_a_sweep_leaves_the_consumers_that_hold_entries_until_those_are_taken_over(server: RedisServer) -> None:
    settings = Settings(shards=2)
    bus, other = Bus(server, settings, "host:1~aaaaaa"), Bus(server, settings, "host:2~bbbbbb")
    await live(other)
    conversation = next(name for name in "abcdef" if bus.shard(name).number == 0)
    await ask(bus, conversation)
    held = await take_one(other)
    await die(bus, other)
    assert await sweep(bus, ROLES) == 0
    assert other.process.encode() in await server.call("ZRANGE", keys.WORKERS, 0, -1)
    await expire(other, held)
    assert (await take_one(bus, claim=True)).id == held.id
    assert await sweep(bus, ROLES) == 1
    assert await consumers(bus, held.stream) == {bus.process}


async def test_a_process_that_leaves_is_forgotten_like_one_that_died(bus: Bus, other: Bus) -> None:
    await live(other)
    await take_role(other)
    await unregister(other)
    assert await live_processes(bus) == []
    await bus.server.call("DEL", bus.shards[0].alive(other.process))
    assert await sweep(bus, ROLES) == 1
    assert await consumers(bus, bus.shards[0].stream("manager", "n")) == set()


async def test_what_was_addressed_to_a_process_that_departs_is_done_by_others_at_once(bus: Bus, other: Bus) -> None:
    await live(other)
    await ask(bus)
    await send(bus, await take_one(bus), f"echo@{other.process}")
    await depart(other, ROLES)
    assert (await take_one(bus, "echo")).turn == "1"
    assert not [key for key in await names(bus) if "@" in key and other.process in key]


async def test_a_sweep_leaves_the_living_alone(bus: Bus, other: Bus) -> None:
    await live(other)
    await take_role(other)
    assert await sweep(bus, ROLES) == 0
    assert await consumers(bus, bus.shards[0].stream("manager", "n")) == {other.process}


async def consumers(bus: Bus, stream: str) -> set[str]:
    return {row[1].decode() for row in await bus.server.call("XINFO", "CONSUMERS", stream, keys.GROUP)}


async def test_a_named_lease_has_one_holder_until_given_up(bus: Bus) -> None:
    async def hold(token: str, ms: int) -> object:
        return await bus.server.run(LEASE, lease=keys.lease("scribe"), token=token, lasts=ms)

    assert await hold("x", 60_000) == 1
    assert await hold("y", 60_000) == 0
    assert await hold("y", 0) == 0
    assert await hold("x", 90_000) == 1
    assert await bus.server.call("PTTL", keys.lease("scribe")) > 60_000
    await bus.server.call("CONFIG", "SET", "maxmemory", 1)
    assert await hold("x", 99_000) == 1
    await bus.server.call("CONFIG", "SET", "maxmemory", 0)
    assert await hold("x", 0) == 0
    assert await hold("y", 60_000) == 1


async def test_a_note_is_written_to_the_session_of_its_turn(bus: Bus) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus))
    await stop_conversation(bus, "a", forget=True)
    records = Records("telegram:h:1:0")
    records.add("DELIVERED", "to the chat")
    await note(bus, bus.shards[0], "a", "1", records)
    log = await log_records(bus)
    assert (log[-1]["w"], log[-1]["i"]) == ("DELIVERED", "telegram:h:1:0")
    assert len({e["s"] for e in log}) == 1


async def test_nothing_but_what_expires_grows_with_finished_turns(bus: Bus) -> None:
    sizes = []
    for _ in range(2):
        for number in range(20):
            await ask(bus, principal="u", idempotency=str(number))
            held = await take_one(bus)
            await defer_turn(bus, held, 0)
            await promote(bus, bus.shards[0], "a")
            await answer(bus, await take_one(bus), history=[b"x" * 9] * 2)
            await bus.server.call("DEL", bus.shards[0].idempotency("a", str(number)))
        await bus.server.call("DEL", bus.shards[0].log, bus.shards[0].events("a"))
        await bus.server.call("DEL", *[key for key in await names(bus) if ":t:a:" in key])
        sizes.append({key: await bus.server.call("MEMORY", "USAGE", key) for key in sorted(await names(bus))})
    assert sizes[0].keys() == sizes[1].keys()
    assert all(after <= before + 64 for before, after in zip(sizes[0].values(), sizes[1].values(), strict=True)), sizes


async def test_of_many_shards_on_one_server_those_with_sleepers_are_found_with_one_command(server: RedisServer) -> None:
    bus = Bus(server, Settings(shards=16), "p")
    assert await with_sleepers(bus, set()) == []
    for number in (3, 9):
        await server.call("ZADD", bus.shards[number].deferred, 1, "a")
    found = await with_sleepers(bus, set())
    assert [shard.number for shard in found] == [3, 9]
    await server.call("ZADD", bus.shards[5].deferred, 1, "a")
    assert [shard.number for shard in await with_sleepers(bus, {3, 9})] == [3, 5, 9]
    before = await _commands(server)
    assert [shard.number for shard in await with_sleepers(bus, {3, 5, 9})] == [3, 5, 9]
    assert await _commands(server) - before == 1


async def test_a_process_that_holds_nothing_gives_its_sign_of_life_in_all_shards_in_one_step(
    server: RedisServer,
) -> None:
    bus = Bus(server, Settings(shards=16), "p")
    for _ in range(2):
        await renew_idle(bus, bus.shards)
        assert all([0 < await server.call("PTTL", shard.alive("p")) <= 15_000 for shard in bus.shards])


async def test_a_turn_that_is_awake_is_noticed_in_its_shard_before_its_lease_can_expire(server: RedisServer) -> None:
    bus = Bus(server, Settings(shards=16, lease_seconds=1, heartbeat_seconds=0.3, scan_seconds=0.4), "p")
    awake = AwakeTurns(bus)
    assert not any([await awake.any(shard) for shard in bus.shards])
    await ask(bus, "a")
    await wait_until(lambda: awake.any(bus.shard("a")), seconds=1)
    assert [shard for shard in bus.shards if await awake.any(shard)] == [bus.shard("a")]


async def test_that_turns_only_sleep_is_asked_once_in_a_while(bus: Bus, server: RedisServer) -> None:
    await ask(bus, "a")
    await defer(bus, await take_one(bus), 60, None, "", Records("test"))
    awake = AwakeTurns(bus)
    assert not await awake.any(bus.shards[0])
    before = await _commands(server)
    assert not await awake.any(bus.shards[0])
    assert await _commands(server) == before


async def _commands(server: RedisServer) -> int:
    """How many commands were sent, but for this one."""
    stats: bytes = await server.call("INFO", "commandstats")
    counts = (line.partition("calls=")[2].partition(",")[0] for line in stats.decode().splitlines() if "calls=" in line)
    infos = [line for line in stats.decode().splitlines() if line.startswith("cmdstat_info:")]
    return sum(map(int, counts)) - sum(int(line.partition("calls=")[2].partition(",")[0]) for line in infos)
