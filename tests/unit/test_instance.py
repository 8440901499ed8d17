"""One instance: what becomes of an envelope, whatever its handler does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from types import NoneType
from typing import Any

import msgspec
import pytest

from rolecall import Agent, Context, Envelope, Reject, Retry, Role
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.role import role_infos
from rolecall.bus.bus import Bus
from rolecall.bus.events import _event
from rolecall.bus.leases import Delivery
from rolecall.bus.turn import snapshot
from rolecall.errors import ModelUnavailable, RateLimited, ServerUnavailable, StepError
from rolecall.redis import keys
from rolecall.stats import Metrics, metric_totals
from rolecall.testing import FakeModel
from rolecall.worker.instance import Instance
from tests.bus.steps import ask, entries, expire, finals, log_records, take_one, take_role
from tests.waiting import wait_until

Handle = Callable[[Envelope, Context], Awaitable[Any]]


class ManagerAgent(Agent):
    """Does what the test says."""

    does: Handle

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return await self.does(envelope, ctx)  # type: ignore[no-any-return]  # whatever the test returns


class EchoAgent(ManagerAgent):
    """The next role."""


ROLES = (Role(ManagerAgent), Role(EchoAgent))


def instance_that(does: Handle, bus: Bus, **services: Any) -> Instance:
    agent = ManagerAgent()
    agent.does = does
    return Instance("manager:host:1:0", "manager", agent, AgentServices(bus, role_infos(ROLES), **services))


async def handled(does: Handle, bus: Bus, delivery: Delivery | None = None, **services: Any) -> Instance:
    """An instance after it handled ``delivery``, by default the first of a new turn."""
    if delivery is None:
        await ask(bus)
        delivery = await take_one(bus)
    instance = instance_that(does, bus, **services)
    instance.occupy(delivery)
    await instance.handle()
    return instance


async def words(bus: Bus) -> list[str]:
    return [entry["w"] for entry in await log_records(bus)]


async def reply(envelope: Envelope, ctx: Context) -> Envelope:
    return envelope.reply("hello")


async def test_a_reply_completes_the_turn(bus: Bus) -> None:
    instance = await handled(reply, bus)
    assert await finals(bus) == [("1", "final")]
    assert (instance.handled, instance.errors, instance.free) == (1, 0, True)


async def test_another_role_gets_the_envelope(bus: Bus) -> None:
    async def forward(envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("echo")

    await handled(forward, bus)
    assert (await take_one(bus, "echo")).hop == 1
    assert "SENT" in await words(bus)


async def test_a_retry_defers_the_turn_and_counts_an_attempt_unless_it_is_free(bus: Bus) -> None:
    async def retry(envelope: Envelope, ctx: Context) -> Envelope:
        raise Retry(60, "later", free=envelope.attempt > 0)

    await handled(retry, bus)
    assert (await snapshot(bus, "a", "1")).state == "deferred"
    assert (await words(bus))[-1] == "DEFERRED"
    assert await finals(bus) == []


async def test_a_model_that_stays_away_ends_the_turn_after_max_attempts(bus: Bus) -> None:
    async def unavailable(envelope: Envelope, ctx: Context) -> Envelope:
        raise ModelUnavailable("no answer")

    await ask(bus)
    delivery = await take_one(bus)
    assert delivery.envelope is not None
    last = msgspec.structs.replace(delivery.envelope, attempt=bus.settings.max_attempts - 1)
    await handled(unavailable, bus, replace(delivery, envelope=last))
    (letter,) = await entries(bus, bus.shards[0].dead)
    assert letter["why"] == f"the model did not answer in {bus.settings.max_attempts} tries: no answer"


async def test_followers_are_told_why_a_turn_waits_without_what_the_provider_said(bus: Bus) -> None:
    async def limited(envelope: Envelope, ctx: Context) -> Envelope:
        raise RateLimited("gpt@openai: 10.0.0.1 asks to wait: sk-1 has no tokens left", 40)

    await handled(limited, bus)
    told = [_event("1-0", {key.encode(): value.encode() for key, value in entry.items()})
            for entry in await entries(bus, bus.shards[0].events("a"))]  # fmt: skip
    (queued,) = [event for event in told if event.kind == "queued"]
    assert queued.text == "The model has reached its limit. I'll continue in 40 s."
    assert (queued.payload["kind"], queued.payload["wait"]) == ("model_limit", 40)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Reject("not today"), "not today"),
        (ValueError("a defect"), "manager failed: ValueError: a defect"),
        (None, "manager returned NoneType, not an envelope"),
        (MemoryError(), "manager failed: MemoryError"),
        (SystemExit(3), "manager failed: it called sys.exit(3)"),
        (KeyboardInterrupt(), "manager failed: KeyboardInterrupt"),
        (GeneratorExit(), "manager failed: GeneratorExit"),
        (asyncio.CancelledError(), "manager failed: CancelledError"),
        (StopAsyncIteration(), "manager failed: StopAsyncIteration"),
        (BaseExceptionGroup("two", [SystemExit(1)]), "manager failed: it called sys.exit(1)"),
        (ExceptionGroup("two", [Reject("not today"), ValueError("its consequence")]), "not today"),
    ],
)
async def test_a_failure_becomes_a_dead_letter_and_one_apology(bus: Bus, error: BaseException | None, why: str) -> None:
    async def fail(envelope: Envelope, ctx: Context) -> None:
        if error is not None:
            raise error

    instance = await handled(fail, bus)
    assert await finals(bus) == [("1", "error")]
    assert [letter["why"] for letter in await entries(bus, bus.shards[0].dead)] == [why]
    assert instance.errors == 1


class Silent(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


def soon(seconds: Any) -> Retry:
    retry = Retry()
    retry.after = seconds
    return retry


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (Silent(), "manager failed: Silent"),
        (soon("soon"), "manager failed: TypeError"),
        (soon(float("inf")), "manager failed: OverflowError"),
        (Envelope(conversation="a", payload={}, role="echo", priority="high"), "manager failed: TypeError"),  # type: ignore[arg-type]
        (Envelope(conversation="a", payload={"text": None}, role=""), "manager failed: TypeError"),
    ],
)
async def test_what_cannot_be_settled_ends_the_turn_at_once(bus: Bus, result: Exception | Envelope, why: str) -> None:
    async def left(envelope: Envelope, ctx: Context) -> Envelope:
        if isinstance(result, Exception):
            raise result
        return result

    instance = await handled(left, bus)
    assert await finals(bus) == [("1", "error")]
    assert (await entries(bus, bus.shards[0].dead))[0]["why"].startswith(why)
    assert instance.free


@pytest.mark.parametrize("after", ["soon", timedelta(seconds=5), float("nan"), None])
def test_a_retry_after_no_number_of_seconds_is_refused_where_it_is_raised(after: Any) -> None:
    with pytest.raises(TypeError, match="expected a number of seconds"):
        Retry(after)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("We are closed.", "Sorry, this did not work: We are closed."),
        ("we are closed", "Sorry, this did not work: we are closed."),
        ("", "Sorry, this did not work: it gave no reason."),
    ],
)
async def test_a_refusal_reads_as_one_sentence(bus: Bus, said: str, told: str) -> None:
    async def refuse(envelope: Envelope, ctx: Context) -> Envelope:
        raise Reject(said)

    await handled(refuse, bus)
    final = (await snapshot(bus, "a", "1")).final
    assert final is not None
    assert final["text"].startswith(f"{told} (turn ")


async def begin_step(ctx: Context) -> None:
    await ctx.once("late", str)


async def emit_piece(ctx: Context) -> None:
    await ctx.emit("late")


async def call_echo(ctx: Context) -> None:
    await ctx.call("echo", "late")


@pytest.mark.parametrize("stepped", [True, False])
@pytest.mark.parametrize("late", [begin_step, emit_piece, call_echo])
async def test_a_task_that_a_handler_left_behind_does_not_disturb_the_next_turn(
    bus: Bus, late: Callable[[Context], Awaitable[None]], stepped: bool
) -> None:
    tasks, go_on = list[asyncio.Task[None]](), asyncio.Event()

    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        async def left() -> None:
            await go_on.wait()
            await late(ctx)

        if not tasks:
            if stepped:
                await ctx.once("first", str)
            tasks.append(asyncio.create_task(left()))
        else:
            go_on.set()
            await asyncio.wait(tasks, timeout=5)
        return envelope.reply("hello")

    instance = await handled(handle, bus)
    await ask(bus)
    instance.occupy(await take_one(bus))
    await instance.handle()
    assert await finals(bus) == [("1", "final"), ("2", "final")]
    dropped = late is emit_piece
    assert isinstance(tasks[0].exception(), NoneType if dropped else StepError)


async def test_what_an_exception_says_is_for_operators_and_without_secrets(bus: Bus) -> None:
    async def fail(envelope: Envelope, ctx: Context) -> None:
        raise OSError("postgres://reader:geheim@db/crm refused Bearer abcdef0123456789, key sk-proj-0123456789abcdef")

    await handled(fail, bus)
    (letter,) = await entries(bus, bus.shards[0].dead)
    assert letter["why"] == "manager failed: OSError: postgres://•••@db/crm refused Bearer •••, key •••"
    final = (await snapshot(bus, letter["c"], "1")).final
    assert final is not None
    assert final["reason"] == "defect"
    assert final["text"].startswith("Sorry, something went wrong here.")


async def test_an_unavailable_server_leaves_the_envelope_to_its_lease(bus: Bus) -> None:
    async def unavailable(envelope: Envelope, ctx: Context) -> Envelope:
        raise ServerUnavailable("away")

    await ask(bus)
    delivery = await take_one(bus)
    await handled(unavailable, bus, delivery)
    assert await finals(bus) == []
    await expire(bus, delivery)
    assert (await take_one(bus, claim=True)).id == delivery.id


async def test_an_envelope_delivered_too_often_is_not_handled_again(bus: Bus) -> None:
    await ask(bus)
    delivery = await take_one(bus)
    for _ in range(bus.settings.max_deliveries):
        await expire(bus, delivery)
        (delivery,) = await take_role(bus, claim=True)
    await handled(reply, bus, delivery)
    (letter,) = await entries(bus, bus.shards[0].dead)
    assert letter["why"].startswith("each time it was handled, its worker ended")


async def test_a_cancelled_handler_says_that_its_work_is_void(bus: Bus) -> None:
    started = asyncio.Event()

    async def endless(envelope: Envelope, ctx: Context) -> Envelope:
        started.set()
        await asyncio.sleep(600)
        return envelope.reply("never")

    await ask(bus)
    instance = instance_that(endless, bus)
    instance.occupy(await take_one(bus))
    handling = asyncio.create_task(instance.handle())
    await started.wait()
    instance.cancel("FENCED")
    await handling
    assert (instance.free, (await words(bus))[-1]) == (True, "FENCED")
    assert await finals(bus) == []


async def test_a_new_agent_and_new_services_count_from_the_next_envelope_on(bus: Bus) -> None:
    models = {"manager": FakeModel(name="new@test")}

    async def model(envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(ctx.model.name)

    instance = await handled(reply, bus)
    agent = ManagerAgent()
    agent.does = model
    instance.deploy(agent, AgentServices(bus, role_infos(ROLES), role_models=models))
    await ask(bus)
    instance.occupy(await take_one(bus))
    await instance.handle()
    assert (await snapshot(bus, "a", "2")).final == {"kind": "final", "text": "new@test"}


async def test_it_measures_what_it_does(bus: Bus) -> None:
    metrics = Metrics()

    async def answer(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.ask(ctx.model, [], "hi")
        return envelope.reply("hello")

    await handled(answer, bus, meter=metrics, role_models={"manager": FakeModel(name="m@test")})
    await metrics.flush(bus.server)
    totals = await metric_totals(bus.server)
    assert totals.times["model"]["manager", "m@test"].count == 1
    assert totals.times["handling"]["manager",].count == totals.times["turn"][()].count == 1


async def test_pieces_of_an_answer_are_published_while_it_is_made(bus: Bus) -> None:
    async def stream(envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.emit("hel")
        await wait_until(lambda: pieces(bus))
        return envelope.reply("hello")

    await handled(stream, bus)
    assert await finals(bus) == [("1", "final")]


async def pieces(bus: Bus) -> list[str]:
    events = await entries(bus, keys.ShardKeys(0).events("a"))
    return [event["k"] for event in events if event["k"] == "delta"]
