"""Steps of a handler are recorded, and a handler that is run again gets what was recorded."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from rolecall import Agent, Context, Envelope, Retry, Role
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.calls import RoleCall
from rolecall.agent.role import role_infos
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.leases import Delivery, hand_back
from rolecall.bus.maintenance import promote
from rolecall.bus.steps.journal import NewStep, Step, begin, record, recorded
from rolecall.bus.turn import Records, snapshot
from rolecall.errors import ConfigError, ModelRefused, StepTooLarge
from rolecall.models.model import Request
from rolecall.settings import Settings
from rolecall.stats import Metrics, metric_totals
from rolecall.testing import FakeModel, run_turn, tool_call
from rolecall.worker.instance import Instance
from tests.bus.steps import (
    answer,
    ask,
    bury_turn,
    entries,
    expire,
    finals,
    log_records,
    names,
    send,
    take_one,
    take_role,
)
from tests.waiting import wait_until

Handle = Callable[[Envelope, Context], Awaitable[Envelope]]


class ManagerAgent(Agent):
    """Does what the test says."""

    does: Handle

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return await self.does(envelope, ctx)


ROLES = (Role(ManagerAgent),)


@dataclass
class Life:
    """A handler that dies at ``die`` in its first handlings, and lives in the last one."""

    bus: Bus
    other: Bus
    model: FakeModel = field(default_factory=FakeModel)
    meter: Metrics = field(default_factory=Metrics)
    lives: int = 0
    dying: int = 0
    """The life in which the handler is about to die."""
    done: list[str] = field(default_factory=list)

    async def die(self, at: int = 1) -> None:
        """Let the process die here in its life number ``at``."""
        if self.lives == at:
            self.dying = at
            await asyncio.sleep(60)

    async def run(self, does: Handle, deaths: int = 1) -> None:
        """A turn that ``does`` handles, taken over as often as it dies."""
        await ask(self.bus)
        delivery = await take_one(self.bus)
        for _ in range(deaths):
            delivery = await self.until_death(does, delivery)
        await self.live(does, delivery, self.other if deaths else self.bus)

    async def until_death(self, does: Handle, delivery: Delivery) -> Delivery:
        """Handle ``delivery`` until it hangs; returns the delivery of the process that takes over."""
        instance, life = self._instance(does, self.bus), self.lives + 1
        instance.occupy(delivery)
        task = asyncio.create_task(instance.handle())
        await wait_until(lambda: self.dying == life)
        await asyncio.sleep(0.1)  # longer than the record of a step waits for others
        instance.cancel("DRAIN")
        await task
        await expire(self.bus, delivery)
        return await take_one(self.other, claim=True)

    async def live(self, does: Handle, delivery: Delivery, bus: Bus | None = None) -> None:
        instance = self._instance(does, bus or self.bus)
        instance.occupy(delivery)
        await instance.handle()

    def _instance(self, does: Handle, bus: Bus) -> Instance:
        async def counted(envelope: Envelope, ctx: Context) -> Envelope:
            self.lives += 1
            return await does(envelope, ctx)

        agent = ManagerAgent()
        agent.does = counted
        services = AgentServices(
            bus, role_infos(ROLES), role_models={"manager": self.model}, models={}, meter=self.meter
        )
        return Instance("manager:host:1:0", "manager", agent, services)

    async def text(self) -> str:
        final = (await snapshot(self.bus, "a", "1")).final
        assert final is not None
        return str(final["text"])


@pytest.fixture
def life(bus: Bus, other: Bus) -> Life:
    return Life(bus, other)


@dataclass
class Receipt:
    """What a charge returns."""

    total: int


async def test_a_model_is_not_asked_again_for_what_it_has_answered(life: Life) -> None:
    life.model = FakeModel("plan", "answer", "never")

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        plan = await ctx.ask(ctx.model, [], "Plan it")
        await life.die()
        last = await ctx.ask(ctx.model, [], f"Do {plan.text}")
        return envelope.reply(f"{plan.text} {last.text} {plan.tokens_out}")

    await life.run(handle)
    assert await life.text() == "plan answer 1"
    assert len(life.model.requests) == 2


async def test_a_streamed_answer_is_shown_once_more_in_one_piece_after_a_new_start(life: Life) -> None:
    life.model = FakeModel("one two three")

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        streamed = await ctx.stream(ctx.model, [], "Count")
        await life.die()
        await asyncio.sleep(0.1)
        return envelope.reply(streamed)

    await life.run(handle)
    assert await life.text() == "one two three"
    events = await entries(life.bus, life.bus.shards[0].events("a"))
    last_start = max(number for number, event in enumerate(events) if event["k"] == "started")
    assert [(e["p"], e["x"]) for e in events[last_start:] if e["k"] == "delta"] == [("0", "one two three")]


async def test_once_runs_a_function_once_and_gives_its_result_in_the_type_it_declares(life: Life) -> None:
    keys: list[str] = []

    async def charge(amount: int, *, key: str) -> Receipt:
        life.done.append("charge")
        keys.append(key)
        return Receipt(amount)

    def note(words: tuple[str, ...]) -> Any:
        life.done.append("note")
        return {"words": words}

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        key = ctx.step_key
        receipt = await ctx.once("charge", charge, 7, key=key)
        noted = await ctx.once("note", note, ("a", "b"))
        await life.die()
        keys.append(key)
        return envelope.reply(f"{type(receipt).__name__} {receipt.total} {noted['words']} {ctx.step_key == key}")

    await life.run(handle)
    assert await life.text() == "Receipt 7 ['a', 'b'] False"
    assert life.done == ["charge", "note"]
    assert len(set(keys)) == 1


async def test_what_was_in_flight_at_a_crash_runs_again_with_the_same_step_key(life: Life) -> None:
    keys: list[str] = []

    async def charge(key: str) -> None:
        keys.append(key)
        await life.die()

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.once("charge", charge, ctx.step_key)
        return envelope.reply("done")

    await life.run(handle)
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_tools_run_once_and_each_round_of_the_model_is_paid_once(life: Life) -> None:
    life.model = FakeModel((tool_call("charge", amount=1), tool_call("charge", amount=2)), "charged")

    async def charge(amount: int) -> str:
        """Charge it."""
        life.done.append(f"charge {amount}")
        if amount == 2:
            await life.die()
        return "ok"

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.ask(ctx.model, [], "Charge", tools=[charge]))

    await life.run(handle)
    assert await life.text() == "charged"
    assert sorted(life.done) == ["charge 1", "charge 2", "charge 2"]
    assert len(life.model.requests) == 2


async def test_extracted_data_is_paid_once(life: Life) -> None:
    life.model = FakeModel('{"total": 3}')

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        receipt = await ctx.extract(Receipt, ctx.model, [], "How much?")
        await life.die()
        return envelope.reply(str(receipt.total))

    await life.run(handle)
    assert await life.text() == "3"
    assert len(life.model.requests) == 1


async def test_steps_of_tasks_are_replayed_to_the_same_tasks_whatever_order_they_ended_in(life: Life) -> None:
    async def slow(word: str, pauses: int) -> str:
        for _ in range(pauses):
            await asyncio.sleep(0.01)
        life.done.append(word)
        return word

    async def flow(ctx: Context, name: str, pauses: int) -> str:
        first = await ctx.once("step", slow, f"{name}1", pauses)
        return f"{first}{await ctx.once('step', slow, f'{name}2', 0)}"

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        found = await asyncio.gather(flow(ctx, "a", 5), flow(ctx, "b", 0), flow(ctx, "c", 2))
        await life.die()
        return envelope.reply(" ".join(found))

    await life.run(handle)
    assert await life.text() == "a1a2 b1b2 c1c2"
    assert sorted(life.done) == ["a1", "a2", "b1", "b2", "c1", "c2"]


async def test_an_error_that_the_handler_caught_is_raised_again(life: Life) -> None:
    life.model = FakeModel(ModelRefused("too hot"), "fallback", "never")

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            text = (await ctx.ask(ctx.model, [], "First")).text
        except ModelRefused as error:
            text = f"{error}: {(await ctx.ask(ctx.model, [], 'Second')).text}"
        await life.die()
        return envelope.reply(text)

    await life.run(handle)
    assert await life.text() == "too hot: fallback"
    assert len(life.model.requests) == 2


async def test_a_retry_keeps_what_was_paid_for(life: Life) -> None:
    life.model = FakeModel("plan", "never")

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        plan = await ctx.ask(ctx.model, [], "Plan")
        if envelope.attempt == 0:
            raise Retry(60)
        return envelope.reply(plan.text)

    await ask(life.bus)
    await life.live(handle, await take_one(life.bus))
    assert await promote(life.bus, life.bus.shards[0], "a", early=True) == "OK"
    await life.live(handle, await take_one(life.bus))
    assert await life.text() == "plan"
    assert len(life.model.requests) == 1


async def reason(bus: Bus) -> str:
    (letter,) = await dead_letters(bus)
    return letter.reason


async def test_a_handler_that_takes_another_path_ends_with_the_first_difference(life: Life) -> None:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.once("look", lambda: 1)
        await ctx.once("charge" if life.lives == 1 else "refund", lambda: 2)
        await life.die()
        return envelope.reply("never")

    await life.run(handle)
    assert await finals(life.bus) == [("1", "error")]
    assert "step 2 was once charge when it was recorded, and now is once refund" in await reason(life.bus)
    assert "went wrong here" in await life.text()


async def test_a_handler_that_ends_with_steps_left_over_took_another_path(life: Life) -> None:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        if life.lives == 1:
            await ctx.once("charge", lambda: 2)
        await life.die()
        return envelope.reply("never")

    await life.run(handle)
    assert "step 1 was once charge when it was recorded, and now the handler ends without it" in await reason(life.bus)


async def test_a_step_may_raise_what_has_no_text_and_the_handler_goes_on(life: Life) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise AttributeError("message")

    async def look() -> None:
        raise Speechless

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        with pytest.raises((Speechless, RuntimeError)):
            await ctx.once("look", look)
        await ctx.once("go on", lambda: 1)
        await life.die()
        return envelope.reply("went on")

    await life.run(handle)
    assert await life.text() == "went on"


async def test_catching_the_error_does_not_hide_that_the_handler_took_another_path(life: Life) -> None:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            await ctx.once(f"life {life.lives}", lambda: 1)
        except Exception:
            return envelope.reply("all is well")
        await life.die()
        return envelope.reply("never")

    await life.run(handle)
    assert "step 1 was once life 1" in await reason(life.bus)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "step 1 (once make) returned a value of type object that cannot be recorded: expected JSON"),
        (float("nan"), "step 1 (once make) returned a value of type float that cannot be recorded: expected JSON"),
        (iter([1, 2]), "such as text, numbers, lists, dicts and dataclasses: an iterator can be read only once"),
        ("x" * 70_000, "step 1 (once make) has 70,0"),
    ],
)
async def test_a_result_that_cannot_be_recorded_ends_the_turn_with_one_clear_message(
    life: Life, value: object, why: str
) -> None:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.once("make", lambda: value)
        return envelope.reply("never")

    await life.run(handle, deaths=0)
    assert why in await reason(life.bus)
    assert "\n" not in await reason(life.bus)


async def test_a_result_that_is_not_what_the_function_declares_is_not_recorded(life: Life) -> None:
    def make() -> Receipt:
        return Receipt("many")  # type: ignore[arg-type]  # the mistake under test

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.once("make", make)
        return envelope.reply("never")

    await life.run(handle, deaths=0)
    assert "step 1 (once make) returned a value of type Receipt that cannot be recorded" in await reason(life.bus)


async def test_all_steps_of_a_handler_have_a_limit(bus: Bus, other: Bus) -> None:
    bus.settings = Settings(step_kb=1, steps_kb=3)
    life = Life(bus, other)

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        for _ in range(5):
            await ctx.once("make", lambda: "x" * 800)
        return envelope.reply("never")

    await life.run(handle, deaths=0)
    assert "the steps of this handler exceed 3 kB in all" in await reason(bus)


async def test_the_last_answer_of_a_model_may_be_longer_than_a_step_for_nothing_follows_it(life: Life) -> None:
    life.model = FakeModel("x" * 100_000)

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.stream(ctx.model, [], "Much"))

    await life.run(handle, deaths=0)
    assert await finals(life.bus) == [("1", "final")]


async def test_a_handler_that_ends_with_its_only_answer_writes_no_record(life: Life) -> None:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.stream(ctx.model, [], "Hi"))

    await life.run(handle, deaths=0)
    assert "STEP" not in [entry["w"] for entry in await log_records(life.bus)]


async def test_steps_are_counted_as_recorded_and_replayed(life: Life) -> None:
    life.model = FakeModel("two words")

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.ask(ctx.model, [], "Plan it")
        await ctx.once("note", lambda: 1)
        await life.die()
        return envelope.reply("done")

    await life.run(handle)
    await life.meter.flush(life.bus.server)
    counted = await metric_totals(life.bus.server)
    assert counted.counts["steps"] == {
        ("recorded", "model"): 1, ("recorded", "once"): 1, ("replayed", "model"): 1, ("replayed", "once"): 1,
    }  # fmt: skip
    assert counted.counts["replayed_tokens"] == {("fake@test", "in"): 2, ("fake@test", "out"): 2}


# ── the scripts ─────────────────────────────────────────────────────────────────────────────────

ONE = Step("once", "charge")


async def steps_of(bus: Bus, delivery: Delivery) -> dict[str, Step]:
    verdict, journal = await recorded(bus, delivery)
    assert verdict == "OK"
    return journal.steps


async def recorded_by(bus: Bus, delivery: Delivery, *keys: str) -> str:
    return await record(bus, delivery, [(key, ONE) for key in keys], Records("test"))


async def test_a_recorded_step_stays_as_it_is_and_is_told_once(bus: Bus) -> None:
    await ask(bus)
    delivery, told = await take_one(bus), Records("test")
    told.add("STEP", "1 once charge")
    assert await record(bus, delivery, [("1", ONE)], told.copy()) == "OK"
    assert await record(bus, delivery, [("1", Step("model", "ask"))], told.copy()) == "OK"
    assert (await steps_of(bus, delivery)) == {"1": ONE}
    assert [one["x"] for one in await log_records(bus) if one["w"] == "STEP"] == ["1 once charge"]


async def test_only_the_holder_of_the_entry_records(bus: Bus, other: Bus) -> None:
    await ask(bus)
    zombie = await take_one(bus)
    await expire(bus, zombie)
    holder = await take_one(other, claim=True)
    assert await recorded_by(bus, zombie, "1") == "FENCED"
    assert await recorded_by(other, holder, "2") == "OK"
    assert list(await steps_of(other, holder)) == ["2"]
    assert holder.stepped


async def test_a_holder_that_slept_through_its_lease_does_no_step_that_others_have_done(life: Life) -> None:
    async def note(word: str) -> None:
        life.done.append(word)

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.once("first", note, "first")
        await life.die()
        await ctx.once("second", note, "second")
        return envelope.reply("done")

    await ask(life.bus)
    delivery = await take_one(life.bus)
    again = await life.until_death(handle, delivery)
    await life.live(handle, again, life.other)
    assert life.done == ["first", "second"]
    delivery.stepped = True  # as if it had been taken over before, and slept before it could read the journal
    await life.live(handle, delivery)
    assert life.done == ["first", "second"]


async def test_the_next_hop_begins_without_steps(bus: Bus) -> None:
    await ask(bus)
    first = await take_one(bus)
    await recorded_by(bus, first, "1", "2")
    await send(bus, first, "echo")
    second = await take_one(bus, "echo")
    assert (await steps_of(bus, second)) == {}
    await recorded_by(bus, second, "1")
    assert list(await steps_of(bus, second)) == ["1"]


async def test_nothing_is_written_beyond_the_limit(bus: Bus) -> None:
    bus.settings = Settings(step_kb=1, steps_kb=1)
    await ask(bus)
    delivery = await take_one(bus)
    await recorded_by(bus, delivery, "1")
    with pytest.raises(StepTooLarge, match="exceed 1 kB in all: record less, or raise STEPS_KB"):
        await recorded_by(bus, delivery, *(f"2{n}" for n in range(100)))
    assert list(await steps_of(bus, delivery)) == ["1"]


@pytest.mark.parametrize("ends", ["complete", "bury", "cancel"])
async def test_steps_are_gone_with_the_turn(bus: Bus, ends: str) -> None:
    await ask(bus)
    delivery = await take_one(bus)
    await recorded_by(bus, delivery, "1")
    assert bus.shards[0].steps("a", "1") in await names(bus)
    if ends == "complete":
        await answer(bus, delivery)
    elif ends == "bury":
        await bury_turn(bus, delivery)
    else:
        await cancel_turn(bus, "a", "1")
    left = await names(bus)
    assert not {bus.shards[0].steps("a", "1"), bus.shards[0].journal("a")} & left


async def test_an_entry_that_is_handed_back_says_that_steps_are_recorded(bus: Bus, other: Bus) -> None:
    await ask(bus)
    delivery = await take_one(bus)
    assert not delivery.stepped
    await recorded_by(bus, delivery, "1")
    await hand_back(bus, delivery)
    again = await take_one(other)
    assert (again.count, again.stepped) == (1, True)
    assert list(await steps_of(other, again)) == ["1"]


# ── with rolecall.testing ───────────────────────────────────────────────────────────────────────


class ResearchAgent(Agent):
    """Asks two others and takes its time."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        parts = await ctx.gather(ctx.call("part", "a"), ctx.call("part", "b"))
        await ctx.sleep(days=3)
        return envelope.reply(" ".join(part.text for part in parts))


class PartAgent(Agent):
    """Answers a part, not at once."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.sleep(hours=1)
        return envelope.reply(envelope.text.upper())


class EntryAgent(Agent):
    """Sends everything to research."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("research")


async def test_a_test_runs_calls_and_timers_without_waiting() -> None:
    turn = await run_turn((Role(EntryAgent), Role(ResearchAgent), Role(PartAgent)), "go")
    assert (turn.kind, turn.text) == ("final", "A B")
    assert turn.trace.count("research") == 3
    assert [text for _, text in turn.history] == ["go", "A B"]


class CleanAgent(Agent):
    """Records that it cleaned up, also when it is suspended."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        try:
            await ctx.sleep(hours=1)
        finally:
            await ctx.once("clean", str)
        return envelope.reply("clean")


class ThreadAgent(Agent):
    """Calls from a thread, with a loop of its own or with that of the handler."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        loop = asyncio.get_running_loop()

        async def part() -> str:
            return (await ctx.call("part", "a")).text

        def asked() -> str:
            if envelope.text == "own":
                return asyncio.run(part())
            return asyncio.run_coroutine_threadsafe(part(), loop).result()

        return envelope.reply(await asyncio.to_thread(asked))


async def test_a_suspended_handler_that_asks_for_steps_to_clean_up_ends_all_the_same() -> None:
    async with asyncio.timeout(10):
        assert (await run_turn((Role(CleanAgent),), "go")).text == "clean"


async def test_a_thread_calls_through_the_loop_of_its_handler() -> None:
    roles = (Role(ThreadAgent), Role(PartAgent))
    async with asyncio.timeout(10):
        assert (await run_turn(roles, "its handler's")).text == "A"
        turn = await run_turn(roles, "own")
    assert (turn.kind, turn.payload["reason"]) == ("error", "defect")


async def test_calls_begun_one_by_one_at_once_are_limited_as_those_that_are_gathered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class ManyAgent(Agent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            calls = [ctx.call("part", str(number)) for number in range(int(envelope.text))]

            async def reply(call: RoleCall) -> str:
                return (await call).text

            return envelope.reply(str(len(await asyncio.gather(*map(reply, calls)))))

    caplog.set_level(logging.WARNING)
    roles = (Role(ManyAgent), Role(PartAgent, instances=4))
    assert (await run_turn(roles, "32")).text == "32"
    assert (await run_turn(roles, "33")).kind == "error"
    assert "a handler may have 32 calls at once, see CALL_LIMIT" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda ctx: ctx.gather([ctx.call("part", "a")]),
            "gather() got a value of type list: expected calls",
        ),
        (
            lambda ctx: ctx.call("part", "a", timeout=timedelta(seconds=5)),
            "timeout=datetime.timedelta(seconds=5) is",
        ),
        (lambda ctx: ctx.confirm("Pay?", timeout=30), "timeout=30 is invalid: expected a timedelta"),
        (
            lambda ctx: ctx.schedule("a", when="tomorrow", role="parts"),
            "there is no role 'parts' to schedule",
        ),
        (lambda ctx: ctx.schedule("a", at="tomorrow"), "at is of type str: expected a datetime, or a timedelta"),
        (lambda ctx: ctx.schedule(None, when="tomorrow"), "the text of a schedule is of type NoneType"),
        (lambda ctx: ctx.call("part", None), "the text of a call is of type NoneType: expected a text"),
        (lambda ctx: ctx.sleep(timedelta(hours=1)), "sleep() is of type timedelta: expected numbers"),
        (lambda ctx: ctx.confirm(5), "the question is of type int: expected a text"),
        (lambda ctx: ctx.stream("smollm2@local", [], "a"), "model is of type str: expected a model"),
        (lambda ctx: ctx.ask(FakeModel(), [{"role": "user"}], "a"), "history is of type dict: expected a Message"),
        (lambda ctx: ctx.ask(FakeModel(), None, "a"), "history is of type NoneType: expected messages"),
        (lambda ctx: ctx.extract(int, FakeModel(), [], None), "the text of the user message is of type NoneType"),
        (lambda ctx: ctx.ask(FakeModel(), [], "a", images=["a.png"]), "an image is of type str: expected the bytes"),
        (lambda ctx: ctx.emit(5), "the text of emit() is of type int: expected a text"),
        (lambda ctx: ctx.embed("a"), "texts is of type str: expected a list of texts"),
        (lambda ctx: ctx.embed([5]), "a text to embed is of type int: expected a text"),
        (lambda ctx: ctx.images("a.png"), "envelope is of type str: expected the Envelope that is handled"),
        (lambda ctx: ctx.question("What?"), "envelope is of type str: expected the Envelope that is handled"),
        (lambda ctx: ctx.transcribe("a.ogg"), "envelope is of type str: expected the Envelope that is handled"),
        (
            lambda ctx: ctx.ask(FakeModel(), [], "a", images=b"PNG"),
            "images is of type bytes: expected a list",
        ),
        (
            lambda ctx: ctx.ask(FakeModel(), [], "a", temprature=1),
            "there is no option 'temprature'; there are",
        ),
        (lambda ctx: ctx.ask(FakeModel(), [], "a", stop="END"), "Expected `array`, got `str` - at `$.stop`"),
        (lambda ctx: ctx.confirm("Pay?", who="telegram:42"), "who is of type str: expected users, such as"),
        (lambda ctx: ctx.confirm("Pay?", default="no"), "default is of type str: expected True or False"),
        (lambda ctx: ctx.choose("Which?", "ab"), "options is of type str: expected a list of texts"),
        (lambda ctx: ctx.choose("Which?", [["a"]]), "an option of choose() is of type list: expected a text"),
        (lambda ctx: ctx.schedule("a", when=9), "when is of type int: expected a text"),
        (lambda ctx: ctx.call(["part"], "a"), "the role of a call is of type list: expected a text"),
        (lambda ctx: ctx.memory.prefer(loud=True), "preference loud is of type bool: expected a text"),
        (lambda ctx: ctx.once(str, 1), "the name of once() is of type type: expected a text"),
        (lambda ctx: ctx.once("paid", 1), "the function of once() is of type int: expected a function"),
        (lambda ctx: ctx.choose("Which?", None), "options is of type NoneType: expected a list of texts"),
        (
            lambda ctx: ctx.ask(FakeModel(), [], "a", tools=5),
            "tools is of type int: expected a list of functions and tools",
        ),
        (lambda ctx: ctx.memory.prefer(lang=None), "preference lang is of type NoneType: expected a text"),
        (lambda ctx: ctx.log({}), "the text of log() is of type dict: expected a text"),
    ],
)
async def test_what_a_handler_asks_for_wrongly_is_named(
    caplog: pytest.LogCaptureFixture, ask: Callable[[Context], Awaitable[object]], said: str
) -> None:
    class WrongAgent(Agent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(str(await ask(ctx)))

    caplog.set_level(logging.WARNING)
    await run_turn((Role(WrongAgent), Role(PartAgent)), "go")
    assert said in caplog.messages[-1]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_a_step_in_a_task_of_its_own_cannot_end_the_process(error: BaseException) -> None:
    class LeavingAgent(Agent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            def leave() -> None:
                raise error

            with pytest.raises(RuntimeError, match=f"it raised {type(error).__name__}"):
                await asyncio.gather(ctx.once("leave", leave), ctx.once("stay", lambda: 1))
            return envelope.reply("still here")

    assert (await run_turn((Role(LeavingAgent),), "go")).text == "still here"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"roles": [Role(PartAgent)]}, "there is no role 'manager' among the roles of run_turn"),
        ({"roles": [PartAgent]}, "roles: input should be a dictionary or an instance of Role"),
        ({"text": None}, "text is of type NoneType: expected a text"),
        ({"model": "smollm2@local"}, "model is of type str: expected a model, such as FakeModel()"),
        (
            {"history": [{"role": "user"}]},
            "an entry of history is of type dict: expected a pair",
        ),
        ({"preferences": {"lang": None}}, "preference lang is of type NoneType: expected a text"),
        ({"images": ["a.png"]}, "an image is of type str: expected the bytes of an image file"),
        ({"documents": {"a.txt": b"a"}}, "the document a.txt is of type bytes: expected a text"),
    ],
)
async def test_what_a_test_passes_wrongly_is_named(options: dict[str, Any], said: str) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply("done")

    with pytest.raises((TypeError, ConfigError), match=re.escape(said)):
        await run_turn(**{"roles": [Role(ManagerAgent)], "text": "go", **options})


async def test_a_model_of_a_test_answers_with_what_it_can_give() -> None:
    for wrong in (None, ValueError, (ValueError("no"),)):
        with pytest.raises(TypeError, match=r"an answer of FakeModel is of type \w+: expected a text, an exception or"):
            FakeModel(wrong)  # type: ignore[arg-type]  # that is the mistake


async def test_a_model_that_gives_what_is_no_event_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class PlainModel(FakeModel):
        async def stream(self, request: Request) -> AsyncIterator[Any]:
            yield "hello"

    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(await ctx.stream(ctx.model, [], "go"))

    await run_turn([Role(ManagerAgent, models=("plain@test",))], "go", model=PlainModel(name="plain@test"))
    assert "an event of plain@test is of type str: expected a Delta, Usage or Done" in caplog.messages[-1]


async def test_a_late_reply_to_a_call_of_an_earlier_hop_is_none_for_a_call_of_a_later_one(bus: Bus) -> None:
    async def call(delivery: Delivery) -> None:
        new = NewStep("1:1", Step("call", "echo"), envelope=Envelope(conversation="a", payload={}, role="echo"))
        assert (await begin(bus, delivery, [new], user="", instance="i"))[0] == "OK"

    await ask(bus)
    first_hop = await take_one(bus)
    await call(first_hop)
    assert await send(bus, first_hop, "manager") == "OK"
    second_hop = await take_one(bus)
    await call(second_hop)
    early, late = await take_role(bus, "echo", 2)
    assert await answer(bus, early, "to the first hop") == "OK"
    assert (await recorded(bus, second_hop))[1].results == {}
    assert await answer(bus, late, "to the second hop") == "OK"
    assert b"to the second hop" in (await recorded(bus, second_hop))[1].results["1:1"]
