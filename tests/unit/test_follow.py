"""Following a turn: every event in order, no gap, no double, the final one just once."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.events import Event, follow
from rolecall.bus.leases import emit, renew
from rolecall.bus.turn import snapshot
from rolecall.bus.wakeups import LINGERING, Listener, Wakeups
from rolecall.errors import RolecallError
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.bus.steps import answer, ask, defer_turn, expire, send, take_one
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until


@asynccontextmanager
async def listening(server: RedisServer) -> AsyncIterator[Wakeups]:
    wakeups = Wakeups(server.pubsub())
    task = asyncio.create_task(wakeups.run(), name="wake-ups")
    try:
        yield wakeups
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await wakeups.aclose()


@pytest.fixture
async def wakeups(server: RedisServer) -> AsyncIterator[Wakeups]:
    async with listening(server) as wakeups:
        yield wakeups


class Follower:
    """Someone who follows a turn; ``events`` fills while ``task`` runs."""

    def __init__(self, bus: Bus, wakeups: Wakeups, turn: str = "1", after: str = "0-0") -> None:
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._run(bus, wakeups, turn, after), name="follower")

    async def _run(self, bus: Bus, wakeups: Wakeups, turn: str, after: str) -> None:
        async for event in follow(bus, wakeups, "a", turn, after):
            self.events.append(event)

    async def saw(self, kind: str) -> None:
        await wait_until(lambda: any(event.kind == kind for event in self.events), what=kind)

    async def done(self) -> list[Event]:
        async with asyncio.timeout(20):
            await self.task
        return self.events


async def kinds(bus: Bus, wakeups: Wakeups, turn: str = "1", after: str = "0-0") -> list[str]:
    return [event.kind for event in await Follower(bus, wakeups, turn, after).done()]


async def test_a_follower_sees_a_turn_from_its_acceptance_to_its_answer(bus: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    follower = Follower(bus, wakeups)
    await follower.saw("accepted")
    held = await take_one(bus, instances=("manager:h:1:0",))
    await follower.saw("started")
    for position, piece in enumerate("hello"):
        await emit(bus, held, position, piece)
    await answer(bus, held, "hello")
    events = await follower.done()
    assert [e.kind for e in events] == ["accepted", "started", *["delta"] * 5, "final"]
    assert [(e.position, e.text) for e in events[2:7]] == list(enumerate("hello"))
    assert (events[1].role, events[1].instance, events[1].attempt) == ("manager", "manager:h:1:0", 1)
    assert (events[-1].text, events[-1].last) == ("hello", True)
    order = [tuple(map(int, e.id.split("-"))) for e in events]
    assert order == sorted(set(order))


async def test_a_follower_hears_the_events_and_reads_only_to_begin(
    bus: Bus, wakeups: Wakeups, server: RedisServer
) -> None:
    await ask(bus)
    follower = Follower(bus, wakeups)
    await follower.saw("accepted")
    before = await calls(server, "xrange")
    held = await take_one(bus)
    for position, piece in enumerate(("a\x1fx\x1f", "\x1f", "é\ud800".encode("utf-8", "replace").decode(), "\n")):
        await emit(bus, held, position, piece)
    await answer(bus, held, "a\x1fx\x1fb")
    assert [event.text for event in await follower.done()][2:] == ["a\x1fx\x1f", "\x1f", "é?", "\n", "a\x1fx\x1fb"]
    assert await calls(server, "xrange") == before


@pytest.mark.parametrize("role", ["x", "t", "p"])
async def test_a_role_may_have_the_name_of_a_field_of_its_events(bus: Bus, wakeups: Wakeups, role: str) -> None:
    await ask(bus)
    follower = Follower(bus, wakeups)
    await follower.saw("accepted")
    await send(bus, await take_one(bus, instances=("manager:h:1:0",)), role)
    held = await take_one(bus, role, instances=(f"{role}:h:1:0",))
    await wait_until(lambda: follower.task.done() or any(event.role == role for event in follower.events))
    await emit(bus, held, 0, "hel\x1fx\x1flo")
    await answer(bus, held, "hello")
    assert [(event.kind, event.role, event.text) for event in await follower.done()][2:] == [
        ("started", role, ""), ("delta", "", "hel\x1fx\x1flo"), ("final", "", "hello"),
    ]  # fmt: skip


async def test_an_answer_too_large_to_be_told_is_read(bus: Bus, wakeups: Wakeups, server: RedisServer) -> None:
    await ask(bus)
    follower = Follower(bus, wakeups)
    await follower.saw("accepted")
    before = await calls(server, "xrange")
    await answer(bus, await take_one(bus), "x" * 10_000)
    assert (await follower.done())[-1].text == "x" * 10_000
    assert await calls(server, "xrange") > before


async def test_a_follower_reads_when_only_told_that_something_happened(
    bus: Bus, wakeups: Wakeups, server: RedisServer
) -> None:
    """As a process of version 0.1 does."""
    await ask(bus)
    follower = Follower(bus, wakeups)
    await follower.saw("accepted")
    shard = bus.shard("a")
    fields = ("t", "1", "k", "delta", "p", 0, "x", "hello")
    await server.call("XADD", shard.events("a"), "*", *fields)
    await server.call("PUBLISH", shard.channel("a"), "delta")
    await follower.saw("delta")
    await answer(bus, await take_one(bus))
    assert [event.kind for event in await follower.done()] == ["accepted", "delta", "started", "final"]


async def calls(server: RedisServer, command: str) -> int:
    """How often the server has run ``command``."""
    stats: bytes = await server.call("INFO", "commandstats")
    lines = [line for line in stats.decode().splitlines() if line.startswith(f"cmdstat_{command}:")]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)


async def test_many_followers_of_a_turn_that_is_being_answered_all_see_the_same(bus: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    held = await take_one(bus)
    followers = []
    for position in range(50):
        followers.append(Follower(bus, wakeups))
        await emit(bus, held, position, "x")
    await answer(bus, held, "x" * 50)
    seen = [[e.id for e in await follower.done()] for follower in followers]
    assert seen == [seen[0]] * 50
    assert len(seen[0]) == 53


async def test_a_follow_resumes_after_any_event_without_gap_or_double(bus: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    held = await take_one(bus)
    for position in range(5):
        await emit(bus, held, position, "x")
    await answer(bus, held)
    whole = await Follower(bus, wakeups).done()
    for number, event in enumerate(whole):
        rest = await Follower(bus, wakeups, after=event.id).done()
        assert [e.id for e in rest] == [e.id for e in whole[number + 1 :]]


async def test_a_late_follower_gets_it_all(bus: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus))
    assert await kinds(bus, wakeups) == ["accepted", "started", "final"]


async def test_when_the_events_are_gone_the_answer_comes_from_the_result_just_once(bus: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus), "hello")
    found = await snapshot(bus, "a", "1")
    await bus.server.call("DEL", bus.shards[0].events("a"))
    (final,) = await Follower(bus, wakeups).done()
    assert (final.kind, final.text, final.id) == ("final", "hello", found.final_id)
    assert await kinds(bus, wakeups, after=final.id) == []


async def test_a_final_event_that_never_reached_its_follower_is_found_in_the_result(
    bus: Bus, wakeups: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.bus.events.LOOK_AGAIN_SECONDS", 0.05)
    await ask(bus)
    held = await take_one(bus)
    follower = Follower(bus, wakeups)
    await follower.saw("accepted")
    # In one step, so that nobody can read between: the turn ends and its events are trimmed away.
    done = asyncio.gather(answer(bus, held, "hello"), bus.server.call("DEL", bus.shards[0].events("a")))
    await done
    assert [e.text for e in await follower.done() if e.last] == ["hello"]


@pytest.mark.parametrize(("turn", "reason"), [("1", "gone"), ("2", "unknown"), ("nonsense", "unknown")])
async def test_a_turn_nobody_knows_ends_in_an_error(bus: Bus, wakeups: Wakeups, turn: str, reason: str) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus))
    await bus.server.call("DEL", bus.shards[0].events("a"), bus.shards[0].result("a", "1"))
    (event,) = await Follower(bus, wakeups, turn).done()
    assert (event.kind, event.payload["reason"], event.last) == ("error", reason, True)


@pytest.mark.parametrize("after", ["", "x", "-", "1-", "$", "1-2-3", "9" * 30])
async def test_what_can_be_no_event_id_is_refused(bus: Bus, wakeups: Wakeups, after: str) -> None:
    with pytest.raises(RolecallError, match="event ID"):
        await Follower(bus, wakeups, after=after).done()


async def test_a_follower_of_a_waiting_turn_sees_its_place_and_then_its_answer(bus: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    await ask(bus)
    follower = Follower(bus, wakeups, "2")
    await follower.saw("queued")
    assert follower.events[0].place == 1
    await answer(bus, await take_one(bus), "first")
    await answer(bus, await take_one(bus), "second")
    assert [(e.kind, e.text) for e in await follower.done()] == [
        ("queued", ""), ("started", ""), ("final", "second"),
    ]  # fmt: skip


async def test_a_follower_sees_deferral_take_over_and_cancellation(bus: Bus, other: Bus, wakeups: Wakeups) -> None:
    await ask(bus)
    follower = Follower(bus, wakeups)
    held = await take_one(bus, instances=("one",))
    await emit(bus, held, 0, "old")
    await expire(bus, held)
    held = await take_one(other, claim=True, instances=("two",))
    await send(other, held, "echo")
    await defer_turn(bus, await take_one(bus, "echo"))
    await cancel_turn(bus, "a", "1", text="half")
    events = await follower.done()
    assert [e.kind for e in events] == ["accepted", "started", "delta", "started", "started", "queued", "cancelled"]
    assert [e.attempt for e in events if e.kind == "started"] == [1, 2, 1]
    assert events[-1].text == "half"


async def test_a_follower_lives_through_a_restart_of_the_server() -> None:
    with tempfile.TemporaryDirectory(prefix="rolecall") as directory:
        process = ValkeyProcess(Path(directory), "--appendfsync", "always", durable=True)
        process.start()
        server = RedisServer(process.url)
        bus = Bus(server, Settings(), "p")
        try:
            async with listening(server) as wakeups:
                await ask(bus)
                held = await take_one(bus)
                await emit(bus, held, 0, "he")
                follower = Follower(bus, wakeups)
                await follower.saw("delta")
                process.kill()
                await wait_until(lambda: not server.connected)
                process.start()
                await renew(bus, bus.shards[0], [held])
                await emit(bus, held, 2, "llo")
                await answer(bus, held, "hello")
                events = await follower.done()
            assert [(e.kind, e.text) for e in events] == [
                ("accepted", ""), ("started", ""), ("delta", "he"), ("delta", "llo"), ("final", "hello"),
            ]  # fmt: skip
        finally:
            await server.aclose()
            process.kill()


async def test_a_subscription_is_kept_for_the_next_turn_until_many_others_came_after(
    server: RedisServer, wakeups: Wakeups
) -> None:
    for number in range(LINGERING + 1):
        async with wakeups.listen(f"channel {number}"):
            pass

    async def the_oldest_alone_is_given_up() -> bool:
        counts = await server.call("PUBSUB", "NUMSUB", "channel 0", "channel 1", f"channel {LINGERING}")
        return [int(count) for count in counts[1::2]] == [0, 1, 1]

    await wait_until(the_oldest_alone_is_given_up)


async def test_a_final_event_that_is_lost_before_a_later_one_is_heard_comes_all_the_same(
    bus: Bus, wakeups: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = Listener.hear
    monkeypatch.setattr(Listener, "hear", lambda self, data: None if b"final" in data else hear(self, data))
    monkeypatch.setattr("rolecall.bus.events.LOOK_AGAIN_SECONDS", 0.2)
    await ask(bus)
    held, follower = await take_one(bus), Follower(bus, wakeups)
    await follower.saw("started")
    await ask(bus, text="next")
    await answer(bus, held)
    await take_one(bus)
    events = await follower.done()
    assert (events[-1].kind, events[-1].text) == ("final", "hello")
