"""What is wrapped round a handler: limits, back off, timeout."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from rolecall.agent.context import Context
from rolecall.agent.policies import BACK_OFF, Handler, Rules, wrapped
from rolecall.bus.envelope import Envelope
from rolecall.errors import (
    ConfigError,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    RateLimited,
    Reject,
    Retry,
    Truncated,
    TurnTimeout,
    UnknownRole,
)

RULES = Rules("echo", frozenset({"manager", "echo", "lang"}), hop_limit=16, timeout=5, attempts=3)
CONTEXT = cast(Context, None)
QUESTION = Envelope(conversation="a", payload={"text": "hi"}, role="echo")


def returning(result: Any) -> Handler:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        return cast(Envelope, result)

    return handle


def raising(error: BaseException) -> Handler:
    async def handle(envelope: Envelope, ctx: Context) -> Envelope:
        raise error

    return handle


async def handled(handler: Handler, envelope: Envelope = QUESTION, rules: Rules = RULES) -> Envelope:
    return await wrapped(handler, rules)(envelope, CONTEXT)


@pytest.mark.parametrize("result", [QUESTION.reply("x"), QUESTION.via("lang"), QUESTION.via("lang", "manager")])
async def test_what_a_handler_returns_passes_through(result: Envelope) -> None:
    assert await handled(returning(result)) is result


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "returned NoneType"),
        ("text", "returned str"),
        (QUESTION.via("nobody"), "there is no role 'nobody'; there are echo, lang, manager"),
        (QUESTION.via("lang", "nobody"), "no role 'nobody'"),
        (QUESTION.via("nobody@host:1~a"), "no role 'nobody'"),
        (QUESTION.via("echo"), "to itself"),
        (QUESTION.reply("x", blob="x" * 300_000), "262,144"),
        (QUESTION.reply("x", thing=object()), "JSON"),
    ],
)
async def test_a_result_that_cannot_go_on_is_refused_with_a_reason(result: Any, said: str) -> None:
    with pytest.raises(Reject, match=said):
        await handled(returning(result))


async def test_too_many_hops_are_refused_before_the_handler_runs() -> None:
    reached = QUESTION
    for _ in range(17):
        reached = reached.via("echo")
    with pytest.raises(Reject, match="more than 16 roles"):
        await handled(raising(AssertionError("it ran")), reached)


@pytest.mark.parametrize(
    "error", [ModelUnavailable("away"), ModelTimeout("silent"), Truncated("cut"), ModelError("?"), RateLimited("slow")]
)
async def test_a_model_that_is_away_is_another_try_later(error: ModelError) -> None:
    with pytest.raises(Retry) as caught:
        await handled(raising(error))
    assert BACK_OFF[0] * 0.8 <= caught.value.after <= BACK_OFF[0] * 1.2


@pytest.mark.parametrize(("asked", "after"), [(7.0, 7.0), (0.0, 0.1), (-1.0, 0.1), (900.0, 900.0)])
async def test_a_provider_that_says_how_long_to_wait_is_heeded(asked: float, after: float) -> None:
    with pytest.raises(Retry) as caught:
        await handled(raising(RateLimited("slow", asked)))
    assert caught.value.after == after


async def test_each_try_waits_longer_and_the_last_one_gives_up() -> None:
    rules, pauses = Rules("echo", RULES.roles, 16, 5, attempts=6), []
    for attempt in range(5):
        with pytest.raises(Retry) as caught:
            await handled(
                raising(ModelUnavailable("away")), Envelope(conversation="a", payload={}, attempt=attempt), rules
            )
        pauses.append(caught.value.after)
    assert pauses == sorted(pauses)
    with pytest.raises(Reject, match="in 6 tries: away"):
        await handled(raising(ModelUnavailable("away")), Envelope(conversation="a", payload={}, attempt=5), rules)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelRefused("too long"), "the model refused: too long"),
        (ModelUnauthorised("401"), "refused the key"),
        (ConfigError("no model"), "no model"),
        (UnknownRole("nobody"), "nobody"),
    ],
)
async def test_what_another_try_cannot_help_is_refused_at_once(error: Exception, said: str) -> None:
    with pytest.raises(Reject, match=said):
        await handled(raising(error))


@pytest.mark.parametrize("error", [Retry(3, "busy"), Reject("no"), ValueError("bug"), TimeoutError("its own")])
async def test_what_a_handler_raises_itself_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await handled(raising(error))
    assert caught.value is error


async def test_a_handler_gets_its_time_and_no_more() -> None:
    async def forever(envelope: Envelope, ctx: Context) -> Envelope:
        await asyncio.Event().wait()
        return envelope

    with pytest.raises(TurnTimeout, match=r"echo took more than 0\.01 s"):
        await handled(forever, rules=Rules("echo", RULES.roles, 16, 0.01))


async def test_a_handler_that_is_cancelled_stays_cancelled() -> None:
    started = asyncio.Event()

    async def forever(envelope: Envelope, ctx: Context) -> Envelope:
        started.set()
        await asyncio.Event().wait()
        return envelope

    task = asyncio.create_task(handled(forever))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
