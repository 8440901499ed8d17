"""The outbox: every entry is delivered once, those of one conversation in order, and no conversation waits for
another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rolecall.bus import outbox as outbox_module
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import notify
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.outbox import Outbox, OutboxEntry, Whole
from rolecall.bus.turn import Records
from rolecall.errors import ServerRefused
from rolecall.redis.keys import GROUP
from rolecall.redis.leader import Leader
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.bus.steps import answer, ask, log_records, take_one
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until


@dataclass
class Outside:
    """Where answers are delivered to. Conversations in ``stalled`` get nothing until they are taken out of it."""

    outbox: Outbox
    got: list[tuple[str, str]] = field(default_factory=list)
    stalled: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)
    error: BaseException = field(default_factory=lambda: ValueError("the outside is out of order"))
    acknowledges: bool = True

    async def deliver(self, entry: OutboxEntry) -> bool:
        while entry.conversation in self.stalled:
            await asyncio.sleep(0.005)
        if self.failures.get(entry.conversation, 0) > 0:
            self.failures[entry.conversation] -= 1
            raise self.error
        assert entry.payload is not None
        self.got.append((entry.conversation, entry.payload["text"]))
        if self.acknowledges:
            records = Records("test")
            records.add("DELIVERED", "")
            await self.outbox.delivered(entry, records)
        return True

    def of(self, conversation: str) -> list[str]:
        return [text for name, text in self.got if name == conversation]


@asynccontextmanager
async def delivering(
    bus: Bus, server: RedisServer, *, holding: Callable[[], bool] = lambda: True, **options: object
) -> AsyncIterator[Outside]:
    outbox = Outbox(bus, server, "front", shares=Whole(holding))
    outside = Outside(outbox, **options)  # type: ignore[arg-type]
    task = asyncio.create_task(outbox.run(outside.deliver), name="test outbox")
    try:
        yield outside
    finally:
        task.cancel()
        await asyncio.wait([task])


async def tell(bus: Bus, conversation: str, *texts: str) -> None:
    for text in texts:
        key = f"{conversation} {text}"
        assert await notify(bus, conversation, text, idempotency=key, front="front", remember=False) == "OK"


async def left(bus: Bus) -> int:
    """Entries in the outbox, and those held of them."""
    found = 0
    for shard in bus.shards:
        found += await bus.server.call("XLEN", shard.outbox("front"))
        found += (await bus.server.call("XPENDING", shard.outbox("front"), GROUP))[0]
    return found


async def test_answers_and_notices_are_delivered_in_order_and_then_gone(bus: Bus, server: RedisServer) -> None:
    async with delivering(bus, server) as outside:
        for number in "123":
            await ask(bus, text=number, outbox=True, reply_to="front")
            await answer(bus, await take_one(bus), f"answer {number}")
        await tell(bus, "a", "notice")
        await wait_until(lambda: len(outside.got) == 4)
        assert outside.of("a") == ["answer 1", "answer 2", "answer 3", "notice"]
        await wait_until(lambda: _nothing_left(bus))
        assert [e["w"] for e in await log_records(bus)].count("DELIVERED") == 4


async def _nothing_left(bus: Bus) -> bool:
    return await left(bus) == 0


async def test_a_conversation_that_stalls_holds_up_no_other_however_much_it_has(
    bus: Bus, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "AHEAD", 30)
    stalled = {f"s{n}" for n in range(4)}
    async with delivering(bus, server, stalled=set(stalled)) as outside:
        for name in stalled:
            await tell(bus, name, *(str(n) for n in range(30)))
        await tell(bus, "free", *(str(n) for n in range(30)))
        await wait_until(lambda: len(outside.of("free")) == 30)
        assert outside.outbox._loaded <= 30
        outside.stalled.clear()
        await wait_until(lambda: len(outside.got) == 150)
        for name in (*stalled, "free"):
            assert outside.of(name) == [str(n) for n in range(30)]
        await wait_until(lambda: _nothing_left(bus))
        assert (outside.outbox._known, outside.outbox._loaded) == (0, 0)


async def test_what_fails_is_tried_again_and_given_up_on_before_it_holds_up_its_conversation_for_ever(
    bus: Bus, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "LONGEST_WAIT", 0.02)
    async with delivering(bus, server, failures={"a": 2}) as outside:
        await tell(bus, "a", "1", "2")
        await wait_until(lambda: outside.of("a") == ["1", "2"])
        outside.failures["b"] = outbox_module.TRIES
        await tell(bus, "b", "lost", "next")
        await wait_until(lambda: outside.of("b") == ["next"], seconds=20)
        await wait_until(lambda: _nothing_left(bus))
    (error,) = [e for e in await log_records(bus) if e["w"] == "ERROR"]
    assert error["x"] == "not delivered: ValueError: the outside is out of order"


async def test_a_successor_begins_with_what_was_read_and_not_delivered(
    bus: Bus, other: Bus, server: RedisServer
) -> None:
    async with delivering(bus, server, stalled={"a", "b"}) as outside:
        await tell(bus, "a", *(str(n) for n in range(250)))
        await tell(bus, "b", "1")
        await wait_until(lambda: outside.outbox._known == 251)
    assert outside.got == []
    await tell(bus, "a", "newest")
    async with delivering(other, server) as successor:
        await wait_until(lambda: len(successor.got) == 252)
        assert successor.of("a") == [*(str(n) for n in range(250)), "newest"]
        await wait_until(lambda: _nothing_left(bus))


async def test_what_was_delivered_and_not_said_so_is_delivered_again(bus: Bus, server: RedisServer) -> None:
    async with delivering(bus, server, acknowledges=False) as outside:
        await tell(bus, "a", "1")
        await wait_until(lambda: outside.got)
    async with delivering(bus, server) as successor:
        await wait_until(lambda: successor.of("a") == ["1"])
        await wait_until(lambda: _nothing_left(bus))


async def test_an_entry_is_said_to_be_delivered_once(bus: Bus, server: RedisServer) -> None:
    async with delivering(bus, server, acknowledges=False) as outside:
        await tell(bus, "a", "1")
        await wait_until(lambda: outside.got)
    ((raw_id, _),) = await server.call("XRANGE", bus.shards[0].outbox("front"), "-", "+")
    entry = OutboxEntry(0, raw_id.decode(), "a", "", {})
    said = await asyncio.gather(*(outside.outbox.delivered(entry, _line()) for _ in range(5)))
    assert sorted(said) == [False] * 4 + [True]
    assert [e["w"] for e in await log_records(bus)].count("DELIVERED") == 1


def _line() -> Records:
    records = Records("test")
    records.add("DELIVERED", "")
    return records


async def test_what_a_version_before_read_through_the_group_is_delivered_and_leaves_nothing(
    bus: Bus, server: RedisServer
) -> None:
    stream = bus.shards[0].outbox("front")
    await tell(bus, "a", "1", "2")
    await server.call("XGROUP", "CREATE", stream, GROUP, "0")
    await server.call("XREADGROUP", "GROUP", GROUP, "deliverer", "COUNT", 1, "STREAMS", stream, ">")
    async with delivering(bus, server) as outside:
        await wait_until(lambda: _nothing_left(bus))
        assert outside.of("a") == ["1", "2"]


async def test_what_cannot_be_read_is_a_dead_letter_and_holds_up_nothing(bus: Bus, server: RedisServer) -> None:
    stream = bus.shards[0].outbox("front")
    for fields in (("x", "y"), ("c", "a", "t", "1", "e", "{"), ("c", b"\xff", "t", "1", "e", "{}")):
        await server.call("XADD", stream, "*", *fields)
    await tell(bus, "a", "1")
    async with delivering(bus, server) as outside:
        await wait_until(lambda: _nothing_left(bus))
        assert outside.got == [("a", "1")]
    letters = await dead_letters(bus)
    assert [(letter.kind, letter.source, letter.reason) for letter in letters] == [
        ("delivery", "front", "the entry cannot be read")
    ] * 3


@pytest.mark.parametrize(
    "error", [SystemExit(3), RecursionError(), asyncio.CancelledError(), ServerRefused("WRONGTYPE")]
)
async def test_whatever_a_front_end_raises_is_given_up_on_and_the_next_is_delivered(
    bus: Bus, server: RedisServer, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(outbox_module, "LONGEST_WAIT", 0.02)
    async with delivering(bus, server, failures={"a": outbox_module.TRIES}) as outside:
        outside.error = error
        await tell(bus, "a", "lost", "next")
        await tell(bus, "b", "other")
        await wait_until(lambda: outside.of("a") == ["next"] and outside.of("b") == ["other"], seconds=20)
    (letter,) = await dead_letters(bus)
    assert (letter.kind, letter.conversation, letter.deliveries) == ("delivery", "a", outbox_module.TRIES)


async def test_a_moment_without_the_lease_loses_nothing(bus: Bus, server: RedisServer) -> None:
    held = True
    async with delivering(bus, server, holding=lambda: held, stalled={"a"}) as outside:
        await tell(bus, "a", "1", "2", "3")
        await wait_until(lambda: outside.outbox._known == 3)
        held = False
        outside.acknowledges = False  # it may not any more: what it still does is void
        outside.stalled.clear()
        await wait_until(lambda: not outside.outbox._tenures)
        held = outside.acknowledges = True
        await wait_until(lambda: _nothing_left(bus))
        assert outside.of("a")[-2:] == ["2", "3"]


async def test_while_another_process_has_the_lease_nothing_is_delivered(
    bus: Bus, other: Bus, server: RedisServer
) -> None:
    leases = [Leader(server, "front", each.process, seconds=1) for each in (bus, other)]
    keeping = [asyncio.create_task(lease.run(), name="test lease") for lease in leases]
    try:
        await wait_until(lambda: any(lease.held for lease in leases))
        first = 0 if leases[0].held else 1
        buses = (bus, other) if first == 0 else (other, bus)
        async with (
            delivering(buses[0], server, holding=lambda: leases[first].held) as leader,
            delivering(buses[1], server, holding=lambda: leases[1 - first].held) as standby,
        ):
            await tell(bus, "a", "1", "2")
            await wait_until(lambda: leader.of("a") == ["1", "2"])
            keeping[first].cancel()
            await wait_until(lambda: leases[1 - first].held)
            await tell(bus, "a", "3")
            await wait_until(lambda: standby.of("a") == ["3"])
            assert leader.of("a") == ["1", "2"]
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.wait(keeping)


async def test_a_server_that_comes_back_finds_all_delivered_once(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path, durable=True)
    process.start()
    server = RedisServer(process.url)
    bus = Bus(server, Settings(), "p")
    try:
        async with delivering(bus, server, stalled={"a"}) as outside:
            await tell(bus, "a", "1", "2")
            await tell(bus, "b", "1")
            await wait_until(lambda: outside.of("b") == ["1"] and outside.outbox._known == 2)
            process.kill()
            process.start()
            outside.stalled.clear()
            await tell(bus, "b", "2")
            await wait_until(lambda: (outside.of("a"), outside.of("b")) == (["1", "2"], ["1", "2"]), seconds=20)
            await wait_until(lambda: _nothing_left(bus))
    finally:
        await server.aclose()
        process.kill()


async def test_the_entries_of_all_shards_are_delivered(server: RedisServer) -> None:
    bus = Bus(server, Settings(shards=16), "p")
    async with delivering(bus, server) as outside:
        for n in range(40):
            await tell(bus, f"telegram:{n}", "1", "2")
        await wait_until(lambda: len(outside.got) == 80)
        for n in range(40):
            assert outside.of(f"telegram:{n}") == ["1", "2"]
        await wait_until(lambda: _nothing_left(bus))
