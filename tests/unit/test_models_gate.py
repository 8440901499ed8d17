"""The gate in front of a model: breaker, quota, places and budgets, decided in scripts on the real server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from rolecall.errors import (
    LogprobsRefused,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    NotNow,
    OverBudget,
    RateLimited,
    Truncated,
)
from rolecall.models import Caller, Delta, Done, Message, ModelEvent, Request, Spoke, Usage
from rolecall.models.fallback import Fallback
from rolecall.models.gate import ENTER, Gate, GatedModel
from rolecall.models.registry import open_model
from rolecall.redis import keys
from rolecall.redis.server import RedisServer, server_ms
from rolecall.settings import Settings, Terms
from tests.waiting import wait_until

SETTINGS = Settings(breaker_failures=2, probe_seconds=0.5, quota_minute_seconds=6)
HELLO = Request((Message("user", "Hello"),), caller=Caller("a:1", "1", "ann"))


class Provider:
    """A model that answers or fails as it is told, and counts how often it is asked."""

    def __init__(self, name: str = "m@test", tokens: tuple[int, int] | None = (10, 20)) -> None:
        self.name = name
        self.cut: ModelError | None = None
        self.error: ModelError | None = None
        self.tokens = tokens
        self.logprobs = False
        self.asked = 0
        self.most = 0
        self.now = 0
        self.going = asyncio.Event()
        self.going.set()

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.going.wait()
            if self.error:
                raise self.error
            yield Delta("yes")
            if self.cut:
                raise self.cut
            if self.tokens:
                yield Usage(*self.tokens)
            yield Done("stop")
        finally:
            self.now -= 1

    async def aclose(self) -> None: ...


class Stage:
    """One provider behind gates of several processes, and who was woken."""

    def __init__(self, server: RedisServer, terms: Terms, settings: Settings, processes: int = 1) -> None:
        self.provider = Provider()
        self.woken: list[str] = []
        self.ended: set[str] = set()
        self.gates = [Gate(server, "m@test", terms, settings, self._wake) for _ in range(processes)]
        self.models = [GatedModel(self.provider, gate) for gate in self.gates]
        self.server = server

    async def _wake(self, conversation: str) -> bool:
        self.woken.append(conversation)
        return conversation not in self.ended

    async def ask(self, conversation: str = "a:1", process: int = 0) -> list[ModelEvent]:
        request = msgspec.structs.replace(HELLO, caller=Caller(conversation, "1", conversation))
        return [event async for event in self.models[process].stream(request)]

    async def refused(self, conversation: str = "a:1", process: int = 0) -> NotNow:
        with pytest.raises(NotNow) as found:
            await self.ask(conversation, process)
        return found.value

    async def silent_for(self, seconds: float) -> bool:
        """Whether a question is refused because the model has not answered for so long. It may be a probe."""
        try:
            await self.ask()
        except NotNow as later:
            return later.silent >= seconds
        except ModelError:
            pass
        return False

    async def answers(self) -> bool:
        """Whether a question is answered."""
        try:
            return bool(await self.ask())
        except ModelError:
            return False

    async def fail(self, error: ModelError, times: int = 1) -> None:
        self.provider.error = error
        for _ in range(times):
            with pytest.raises(ModelError):
                await self.ask()


def stage(server: RedisServer, processes: int = 1, **terms: float) -> Stage:
    return Stage(server, Terms(**terms), SETTINGS, processes)  # type: ignore[arg-type]  # ints as the fields want


async def test_failures_in_a_row_open_the_breaker_for_every_process(server: RedisServer) -> None:
    on = stage(server, processes=2)
    await on.fail(ModelTimeout("too slow"), 2)
    asked = on.provider.asked

    away = await on.refused(process=1)

    assert (away.models, on.provider.asked) == (("m@test",), asked)
    assert "m@test is away: too slow" in str(away)


async def test_it_is_known_for_how_long_a_model_has_not_answered(server: RedisServer) -> None:
    on = stage(server)
    await on.fail(ModelTimeout("too slow"), 2)
    first = await on.refused()
    await wait_until(lambda: on.silent_for(0.6))
    on.provider.error = None
    await wait_until(on.answers)
    await on.fail(ModelTimeout("too slow"), 2)
    assert first.silent < 0.6 and (await on.refused()).silent < 0.6


async def test_of_several_models_the_one_that_went_away_last_counts(server: RedisServer) -> None:
    waits = [NotNow("a", 1.0, ("a",), silent=300), NotNow("b", 2.0, ("b",), silent=5)]

    class Away:
        name = "m@test"

        def __init__(self, wait: NotNow) -> None:
            self.wait = wait

        async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
            raise self.wait
            yield

        async def aclose(self) -> None: ...

    with pytest.raises(NotNow) as caught:
        _ = [event async for event in Fallback([Away(wait) for wait in waits]).stream(HELLO)]
    assert (caught.value.silent, caught.value.models) == (5, ("a", "b"))


async def test_a_failure_that_may_pass_is_tried_again_at_once_before_anybody_hears_of_it(server: RedisServer) -> None:
    on = Stage(server, Terms(), Settings(breaker_failures=100))
    on.provider.error = ModelUnavailable("no")
    with pytest.raises(ModelUnavailable):
        await on.ask()
    assert on.provider.asked == 3


async def test_a_success_between_failures_keeps_the_breaker_closed(server: RedisServer) -> None:
    on = stage(server)
    for _ in range(4):
        await on.fail(ModelTimeout("slow"))
        on.provider.error = None
        await on.ask()
    assert on.provider.asked == 8


async def test_what_the_provider_refuses_says_that_it_is_there(server: RedisServer) -> None:
    on = stage(server)
    await on.fail(ModelTimeout("slow"))
    await on.fail(ModelRefused("nonsense"), 5)
    await on.fail(ModelTimeout("slow"))
    assert on.provider.asked == 7


async def test_while_it_is_away_one_call_at_a_time_asks_whether_it_is_back(server: RedisServer) -> None:
    on = stage(server, processes=4)
    await on.fail(ModelTimeout("slow"), 2)
    on.provider.going.clear()
    asked, on.provider.most = on.provider.asked, 0

    async def insist(process: int) -> None:
        try:
            await on.ask(f"a:{process}", process)
        except NotNow as later:
            await asyncio.sleep(min(later.after, 0.05))

    async def all_insist() -> bool:
        await asyncio.wait([asyncio.create_task(insist(n % 4)) for n in range(8)], timeout=0.1)
        return on.provider.now == 1

    await wait_until(all_insist, what="a probe")
    for _ in range(5):
        await all_insist()
    assert (on.provider.asked, on.provider.most) == (asked + 1, 1)
    on.provider.error = None
    on.provider.going.set()
    await wait_until(lambda: on.provider.now == 0)


async def test_those_who_wait_look_one_after_the_other(server: RedisServer) -> None:
    on = stage(server)
    await on.fail(ModelTimeout("slow"), 2)
    waits = [(await on.refused(f"a:{n}")).after for n in range(5)]
    assert all(0.4 < later - earlier < 0.6 for earlier, later in itertools.pairwise(waits))


async def test_the_first_word_of_a_probe_ends_the_absence_and_wakes_who_sleeps(server: RedisServer) -> None:
    on = stage(server)
    await on.fail(ModelTimeout("slow"), 2)
    for number in range(5):
        await on.gates[0].waits(f"a:{number}")
    assert on.woken == []

    on.provider.error = None

    async def asked() -> bool:
        try:
            return bool(await on.ask())
        except NotNow:
            return False

    await wait_until(asked, what="the breaker to let one through")
    await wait_until(lambda: len(on.woken) == 5, what="all to be woken")
    assert on.woken == [f"a:{number}" for number in range(5)]


async def test_who_goes_to_sleep_when_it_is_back_already_is_woken_at_once(server: RedisServer) -> None:
    on = stage(server)
    await on.gates[0].waits("a:1")
    assert on.woken == ["a:1"]


async def test_a_provider_that_asks_to_wait_is_left_alone_by_all_for_so_long(server: RedisServer) -> None:
    on = stage(server, processes=2)
    on.provider.error = RateLimited("slow down", 0.6)
    first = await on.refused()
    second = await on.refused(process=1)
    assert on.provider.asked == 1
    assert 0.4 < first.after < 0.8 and 0.4 < second.after < 0.8
    assert "asks to wait: slow down" in str(second)
    on.provider.error = None
    await asyncio.sleep(second.after)  # the wait that was asked for
    assert await on.ask()


async def test_a_limit_without_a_time_is_waited_for_longer_each_time(server: RedisServer) -> None:
    on = stage(server)
    on.provider.error = RateLimited("slow down")
    first = await on.refused()
    await asyncio.sleep(first.after)  # as long as it said
    assert (await on.refused()).after > 1.5 * first.after


async def test_no_more_calls_at_once_than_the_terms_allow_and_a_free_place_wakes_one(server: RedisServer) -> None:
    on = stage(server, processes=3, concurrent=2)
    on.provider.going.clear()
    running = [asyncio.create_task(on.ask(f"a:{n}", n)) for n in range(2)]
    await wait_until(lambda: on.provider.now == 2)

    full = await on.refused("a:2", process=2)
    assert (full.models, on.provider.most) == (("m@test",), 2)
    await on.gates[2].waits("a:2")
    assert on.woken == []

    on.provider.going.set()
    await asyncio.gather(*running)
    await wait_until(lambda: on.woken == ["a:2"], what="the one that waits to be woken")


async def test_a_free_place_goes_to_the_next_turn_when_those_before_it_have_ended(server: RedisServer) -> None:
    on = stage(server, concurrent=1)
    on.provider.going.clear()
    first = asyncio.create_task(on.ask("a:0"))
    await wait_until(lambda: on.provider.now == 1, what="the call to begin")
    for number in range(1, 6):
        await on.gates[0].waits(f"a:{number}")
    on.ended = {"a:1", "a:2", "a:3"}
    on.provider.going.set()
    await first
    await wait_until(lambda: on.woken == ["a:1", "a:2", "a:3", "a:4"], what="one that still waits to be woken")


async def test_a_call_of_a_dead_process_does_not_hold_its_place_for_ever(server: RedisServer) -> None:
    on = stage(server, concurrent=1)
    await server.call("ZADD", keys.model("m@test", "busy"), 1, "dead")  # its time ran out in 1970
    assert await on.ask()


async def test_a_cancelled_call_frees_its_place(server: RedisServer) -> None:
    on = stage(server, concurrent=1)
    on.provider.going.clear()
    call = asyncio.create_task(on.ask())
    await wait_until(lambda: on.provider.now == 1)
    call.cancel()
    await asyncio.wait([call])
    on.provider.going.set()

    async def asked() -> bool:
        try:
            return bool(await on.ask("a:2"))
        except NotNow:
            return False

    await wait_until(asked, what="the place to be free")


@pytest.mark.parametrize("away", [False, True])
async def test_a_call_that_is_cancelled_before_it_is_let_in_holds_no_place_and_is_no_probe(
    server: RedisServer, *, away: bool
) -> None:
    on, before = stage(server, concurrent=1), stage(server, concurrent=1)
    if away:
        await on.fail(ModelUnavailable("down"), SETTINGS.breaker_failures)
        await asyncio.sleep((await on.refused()).after)
        on.provider.error = None
    call = asyncio.create_task(on.ask())
    await asyncio.sleep(0)  # it has asked to be let in
    call.cancel()
    await asyncio.wait([call])
    assert on.provider.now == 0
    await wait_until(before.answers, seconds=5, what="the place to be free")


@pytest.mark.parametrize("away", [False, True])
async def test_a_call_whose_answer_was_lost_is_let_in_again(server: RedisServer, *, away: bool) -> None:
    on = stage(server, concurrent=1)
    if away:
        await on.fail(ModelUnavailable("down"), SETTINGS.breaker_failures)
        await asyncio.sleep((await on.refused()).after)
        on.provider.error = None
    gate = on.gates[0]
    entering = gate._entering(Caller("a:1", "1"), HELLO, book=True)
    replies = [await server.run(ENTER, gate._block("call"), **entering) for _ in range(2)]
    assert [reply[0] for reply in replies] == [b"GO", b"GO"]
    assert replies[0][3] == replies[1][3] == int(away)


async def test_requests_per_minute_are_those_of_all_processes_and_a_booked_place_is_kept(server: RedisServer) -> None:
    on = stage(server, processes=2, rpm=4)
    for number in range(4):
        await on.ask(f"a:{number}", number % 2)

    waits = [await on.refused(f"b:{number}", number % 2) for number in range(4)]
    again = await on.refused("b:0")

    assert on.provider.asked == 4
    assert not waits[0].models and "quota" in str(waits[0])
    assert again.after <= waits[0].after  # it has its place, and does not queue up anew
    await asyncio.sleep(again.after)  # the minute, scaled to six seconds
    assert await on.ask("b:0")


async def test_what_a_call_used_counts_in_its_minute_only_and_leaves_nothing_behind_later(server: RedisServer) -> None:
    on, use = stage(server, tpm=1000), keys.model("m@test", "use")
    on.provider.going.clear()
    asking = asyncio.create_task(on.ask())
    await wait_until(lambda: on.provider.asked, what="the call")
    await server.call("DEL", use)
    on.provider.going.set()
    assert await asking
    assert await server.call("EXISTS", use) == 0

    assert await on.ask("a:2")
    kept = await server.call("HGETALL", use)
    assert sorted(map(int, kept[1::2])) == [1, 30]  # one request of 30 tokens, instead of those expected


async def test_a_call_of_a_model_with_a_limit_and_a_quota_costs_fourteen_commands(server: RedisServer) -> None:
    on = stage(server, tpm=100_000, rpm=1000, concurrent=10)
    assert await on.ask()

    async def commands() -> int:
        counts = await server.info("commandstats")
        return sum(int(counts[name].split(",")[0].removeprefix("calls=")) for name in counts)

    before = await commands()
    for number in range(100):
        assert await on.ask(f"a:{number}")
    assert 13 < (await commands() - before) / 100 < 15  # with what was spent, now and then


async def test_a_fallback_speaks_while_the_first_may_not_be_asked_and_says_why(server: RedisServer) -> None:
    on = stage(server)
    other = Provider("other@test")
    both = Fallback([on.models[0], other])
    await on.fail(ModelTimeout("slow"), 2)

    events = [event async for event in both.stream(HELLO)]

    assert isinstance(events[0], Spoke) and events[0].model == "other@test"
    assert events[0].why == "m@test is away: slow"


async def test_what_the_fallback_answers_takes_no_place_in_the_quota_of_the_first(server: RedisServer) -> None:
    on = stage(server, rpm=1)
    both = Fallback([on.models[0], Provider("other@test")])
    for _ in range(5):
        assert [event async for event in both.stream(HELLO)]
    assert await server.call("EXISTS", keys.model("m@test", "booked")) == 0


async def test_a_user_who_has_spent_his_tokens_of_the_day_is_told_so_and_others_go_on(server: RedisServer) -> None:
    on = Stage(server, Terms(), Settings(user_tokens_per_day=50))
    await on.ask("ann")
    await on.ask("ann")
    with pytest.raises(OverBudget, match=r"You've reached today's limit \(50 tokens\)\..* midnight UTC") as told:
        await on.ask("ann")
    assert told.value.limit == {"tokens": 50}
    assert await on.ask("bob")


@pytest.mark.parametrize("end", ["whole", "broken off", "stopped", "stopped before the first word"])
async def test_an_answer_whose_tokens_the_provider_does_not_tell_counts_in_budgets_by_estimate(
    server: RedisServer, end: str
) -> None:
    on = Stage(server, Terms(tpm=10_000), Settings(user_tokens_per_day=1))
    on.provider.tokens = None
    on.provider.cut = Truncated("cut", "yes") if end == "broken off" else None
    events = list[ModelEvent]()

    async def ask() -> None:
        async for event in on.models[0].stream(HELLO):
            events.append(event)
            if end == "stopped":
                await asyncio.Event().wait()

    if end.endswith("first word"):
        on.provider.going.clear()
    asking = asyncio.create_task(ask())
    if end.startswith("stopped"):
        await wait_until(lambda: on.provider.now == 1 and (bool(events) or not on.provider.going.is_set()))
        asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await on.gates[0].aclose()

    told = [event for event in events if isinstance(event, Usage)]
    assert told == ([] if end.startswith("stopped") else [Usage(5, 1)])  # 5 + 16 characters, and 3
    spent = await server.call("HMGET", keys.spent(keys.today()), "u:ann:tokens", "m:m@test:in", "m:m@test:out")
    assert spent == ([b"5", b"5", None] if end.endswith("first word") else [b"6", b"5", b"1"])
    assert await server.call("HGET", keys.model("m@test", "state"), "scale") is None, (
        "the quota learns from counts only"
    )
    with pytest.raises(OverBudget):
        await ask()


async def test_money_is_counted_by_the_price_table_and_bounded(server: RedisServer) -> None:
    on = Stage(server, Terms(price_in=1.0, price_out=10.0), Settings(cost_per_day=0.0003))
    await on.ask("ann")  # 10 tokens at 1, 20 at 10 per million
    await on.ask("bob")
    with pytest.raises(OverBudget, match=r"This assistant has reached today's limit \(0\.0003 USD\)"):
        await on.ask("eve")
    day = time.strftime("%Y%m%d", time.gmtime())
    assert await server.call("HGET", keys.spent(day), "cost") == b"420"
    assert await server.call("HGET", keys.spent(day), "u:ann:cost") == b"210"
    assert await server.call("HGET", keys.spent(day), "m:m@test:calls") == b"2"


async def test_what_was_set_until_a_time_is_void_once_the_clock_stepped_back(server: RedisServer) -> None:
    stage = Stage(server, Terms(concurrent=1), SETTINGS)
    await stage.fail(RateLimited("slow down", 60))
    await stage.refused()
    state, hour = keys.model("m@test", "state"), 3_600_000
    for field in ("until", "seen", "look"):
        await server.call("HINCRBY", state, field, hour)
    await server.call("ZADD", keys.model("m@test", "busy"), await server_ms(server) + hour, "a call of a dead process")
    stage.provider.error = None
    assert await stage.ask()


async def test_log_probabilities_come_from_the_first_model_that_has_them(server: RedisServer) -> None:
    stage = Stage(server, Terms(), SETTINGS)
    asked = msgspec.structs.replace(HELLO, logprobs=0)
    with pytest.raises(LogprobsRefused, match="m@test: has no log probabilities"):
        _ = [event async for event in stage.models[0].stream(asked)]
    giving = Provider("p@test")
    giving.logprobs = True
    second = GatedModel(giving, Gate(server, "p@test", Terms(), SETTINGS, stage._wake))
    events = [event async for event in Fallback([stage.models[0], second]).stream(asked)]
    assert events[0] == Spoke("p@test", "m@test: has no log probabilities")
    assert (stage.provider.asked, giving.asked) == (0, 1)


async def test_behind_its_gate_only_a_model_of_this_machine_can_be_loaded(server: RedisServer) -> None:
    stage = Stage(server, Terms(), SETTINGS)
    local = GatedModel(open_model("smollm2@local", SETTINGS, Path()), stage.gates[0])
    assert hasattr(local, "warm") and not hasattr(stage.models[0], "warm")
