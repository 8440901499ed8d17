"""Several servers of a model: who gets a call, who is left out, and what becomes of the calls while all are."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from rolecall.errors import ModelUnavailable, NotNow
from rolecall.redis import keys
from rolecall.redis.server import RedisServer, server_ms
from rolecall.serving.balance import LEFT, PICK, Balance, Candidate, conditions
from tests.waiting import wait_until

MODEL = "m@test"
A, B = Candidate("a", 4), Candidate("b", 4)
KEYS = {"calls": keys.SERVED_CALLS, "known": keys.model(MODEL, "servers")}


@dataclass
class Host:
    """What the probes of all processes find."""

    away: set[str] = field(default_factory=set)
    probes: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most: int = 0

    async def probe(self, server: str) -> None:
        self.probes[server] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.02)  # as long as a connection may take
            if server in self.away:
                raise ModelUnavailable(f"no connection to {server}")
        finally:
            self.now -= 1


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
async def balances(server: RedisServer, host: Host) -> AsyncIterator[list[Balance]]:
    """Those of two processes."""
    both = [Balance(server, MODEL, host.probe) for _ in range(2)]
    yield both
    for one in both:
        await one.aclose()


async def test_a_server_is_left_out_no_longer_when_the_clock_steps_back(
    server: RedisServer, balances: list[Balance]
) -> None:
    await fail(balances[0], "a")
    for name in ("seen", "a until"):
        await server.call("HINCRBY", KEYS["known"], name, 3_600_000)
    await server.call("ZADD", KEYS["calls"], await server_ms(server) + 3_600_000, "a of-a-dead-process")
    place = await balances[1].pick([A])
    assert place.server == "a"
    assert await server.call("ZCARD", KEYS["calls"]) == 1


async def fail(balance: Balance, server: str, *, slots: int = 4) -> None:
    place = await balance.pick([Candidate(server, slots)])
    await balance.left(place, "FAILED", f"{server} broke")


async def test_the_least_busy_server_is_picked_and_the_faster_one_gets_most(balances: list[Balance]) -> None:
    seconds, busy = {"a": 0.05, "b": 0.15}, Counter[str]()
    apart: list[int] = []
    answered = Counter[str]()
    questions = iter(range(20))

    async def worker(balance: Balance) -> None:
        for _ in questions:
            place = await balance.pick([A, B])
            busy[place.server] += 1
            apart.append(abs(busy["a"] - busy["b"]))
            await asyncio.sleep(seconds[place.server])  # as long as the server takes
            busy[place.server] -= 1
            answered[place.server] += 1
            await balance.left(place, "OK")

    await asyncio.gather(*(worker(balances[n % 2]) for n in range(4)))

    assert answered.total() == 20
    assert answered["a"] >= 12
    assert max(apart) <= 1 + 1, "one may be over and not told yet"


async def test_equal_servers_take_turns_and_weights_part_the_work(balances: list[Balance]) -> None:
    picked = Counter[str]()
    for n in range(10):
        place = await balances[n % 2].pick([A, B])
        picked[place.server] += 1
        await balances[n % 2].left(place, "OK")
    assert picked == {"a": 5, "b": 5}

    places = [await balances[0].pick([Candidate("a", 9, 3), Candidate("b", 9, 1)]) for _ in range(8)]
    assert Counter(place.server for place in places) == {"a": 6, "b": 2}
    for place in places:
        await balances[0].left(place, "OK")


async def test_no_server_gets_more_than_its_slots_and_who_waits_gets_the_next_place(
    server: RedisServer, balances: list[Balance]
) -> None:
    most = 0

    async def ask(number: int) -> None:
        nonlocal most
        balance = balances[number % 2]
        place = await balance.pick([Candidate("a", 2)])
        most = max(most, await server.call("ZCARD", keys.SERVED_CALLS))
        await asyncio.sleep(0.01)  # the answer
        await balance.left(place, "OK")

    async with asyncio.timeout(20):
        await asyncio.gather(*(ask(number) for number in range(12)))
    assert most == 2
    assert await server.call("ZCARD", keys.SERVED_CALLS) == 0


async def test_a_call_that_is_cancelled_before_it_has_its_place_holds_none_and_a_repeat_keeps_its_own(
    server: RedisServer, balances: list[Balance]
) -> None:
    one = [Candidate("a", 1)]
    picking = asyncio.create_task(balances[0].pick(one))
    await asyncio.sleep(0)  # it has asked for a place
    picking.cancel()
    await asyncio.wait([picking])
    async with asyncio.timeout(5):
        place = await balances[1].pick(one)
    more = {"lease": 15_000, "probe_ms": 5_000, "servers": ["a", 1, 1.0]}
    assert await server.run(PICK, KEYS, call=place.call, **more) == [b"GO", b"a", b""]
    assert await server.call("ZCARD", keys.SERVED_CALLS) == 1


async def test_a_call_that_is_left_alone_frees_its_place_and_so_does_a_dead_process(
    server: RedisServer, balances: list[Balance]
) -> None:
    one = [Candidate("a", 1)]
    place = await balances[0].pick(one)
    balances[0].abandoned(place)
    place = await balances[1].pick(one)
    place.holding.cancel()  # the process is gone: no sign of life any more
    await server.call("ZADD", keys.SERVED_CALLS, 1, f"a {place.call}")
    async with asyncio.timeout(10):
        await balances[0].left(await balances[0].pick(one), "OK")


async def test_a_broken_server_is_left_out_and_looked_after_by_one(
    server: RedisServer, balances: list[Balance], host: Host
) -> None:
    host.away = {"b"}
    await fail(balances[0], "b")
    picked = Counter[str]()

    async def work(balance: Balance) -> None:
        place = await balance.pick([A, B])
        picked[place.server] += 1
        await asyncio.sleep(0.01)  # the answer
        await balance.left(place, "OK")

    async def probed() -> bool:
        await asyncio.gather(*(work(balances[n % 2]) for n in range(4)))
        return host.probes["b"] >= 2

    await wait_until(probed, what="two probes")
    assert set(picked) == {"a"}
    assert host.most == 1
    assert (await conditions(server, MODEL, ["a", "b"]))["b"].broken == "no connection to b"

    host.away = set()

    async def back() -> bool:
        await asyncio.gather(*(work(balances[n % 2]) for n in range(4)))
        return picked["b"] > 0

    await wait_until(back, what="calls at the server that is back")


async def test_a_server_that_goes_on_failing_is_left_out_for_longer_up_to_two_seconds(
    server: RedisServer, balances: list[Balance]
) -> None:
    for pause in (250, 500, 1000, 2000, 2000):
        seconds, micros = await server.call("TIME")
        await server.run(LEFT, KEYS, call="", server="a", outcome="FAILED", why="gone", wait=-1, longest=2000)
        until = int(await server.call("HGET", keys.model(MODEL, "servers"), "a until"))
        assert pause <= until - int(seconds) * 1000 - int(micros) // 1000 < pause + 5000
    with pytest.raises(NotNow, match="gone") as caught:
        await balances[1].pick([A])
    assert 0 < caught.value.after <= 2, "seconds to the next look"


async def test_while_all_are_away_callers_hear_when_to_look_again_and_only_probes_connect(
    balances: list[Balance], host: Host
) -> None:
    host.away = {"a", "b"}
    for name in host.away:
        await fail(balances[0], name)
    over = time.monotonic() + 1
    refused = 0

    async def worker(balance: Balance) -> None:
        nonlocal refused
        while True:
            try:
                return await balance.left(await balance.pick([A, B]), "OK")
            except NotNow as later:
                refused += 1
                assert (later.models, 0 < later.after <= 2) == ((MODEL,), True)
                await asyncio.sleep(later.after)

    working = [asyncio.create_task(worker(balances[n % 2])) for n in range(20)]
    await wait_until(lambda: time.monotonic() > over, what="the end of the outage")
    probes = host.probes.copy()
    host.away, back = set(), time.monotonic()
    await asyncio.wait_for(asyncio.gather(*working), 20)
    took = time.monotonic() - back
    assert probes["a"] <= 4, probes
    assert probes["b"] <= 4, probes
    assert refused > 20
    assert took < 8, "it is 2 s where nothing else runs"


async def test_calls_that_fail_together_count_once(server: RedisServer, balances: list[Balance]) -> None:
    places = [await balances[0].pick([A]) for _ in range(4)]
    for place in places:
        await balances[0].left(place, "FAILED", "gone")
    assert await server.call("HGET", keys.model(MODEL, "servers"), "a opens") == b"1"


async def test_a_server_that_names_a_time_is_left_out_until_then(balances: list[Balance]) -> None:
    await balances[0].left(await balances[0].pick([A]), "FAILED", "too many", retry_after=7)
    with pytest.raises(NotNow, match="too many") as caught:
        await balances[1].pick([A])
    assert 3 < caught.value.after <= 7


async def test_without_any_server_the_caller_is_told_to_look_again(balances: list[Balance]) -> None:
    with pytest.raises(NotNow, match="no server") as caught:
        await balances[0].pick([])
    assert caught.value.after == 1
