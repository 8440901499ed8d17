"""What is wrapped round a handler: limits, back off, timeout."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest

from rolecall.agent.context import Context
from rolecall.agent.policies import BACK_OFF, Handler, Rules, all_policies, wrapped
from rolecall.bus.envelope import Envelope
from rolecall.errors import (
    FAILURES,
    WAITS,
    BadStructure,
    ConfigError,
    ContentRefused,
    ContextTooLong,
    ImagesRefused,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    NotNow,
    RateLimited,
    Reject,
    Retry,
    RolecallError,
    ToolError,
    Truncated,
    TurnTimeout,
    UnknownRole,
    duration,
    told,
)
from rolecall.frontends.texts import failure_text, waiting_text

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


@pytest.mark.parametrize(
    ("error", "kind", "wait"),
    [
        (RateLimited("slow", 7200.0), "model_limited", 7200),
        (NotNow("slow", 7200.0, kind="model_limit"), "model_limited", 7200),
        (RateLimited("slow", 3000.0), "model_limited", 3000),
    ],
)
async def test_a_wait_that_outlasts_the_turn_is_refused_at_once(error: ModelError, kind: str, wait: float) -> None:
    old = Envelope(conversation="a", payload={}, created=time.time_ns() // 1_000_000 - 700_000)
    with pytest.raises(Reject) as caught:
        await handled(raising(error), old)
    assert (caught.value.kind, caught.value.wait) == (kind, wait)
    assert "of its 3600 s left" in str(caught.value)


async def test_a_model_that_is_away_is_waited_for_however_far_its_next_probe_seems() -> None:
    with pytest.raises(Retry) as caught:
        await handled(raising(NotNow("away", 7200.0, ("gpt@test",))))
    assert (caught.value.kind, caught.value.models) == ("model_silent", ("gpt@test",))


async def test_a_model_that_has_not_answered_for_long_ends_the_turn_and_blocks_no_chat_behind_it() -> None:
    with pytest.raises(Retry):
        await handled(raising(NotNow("m@test is away: no", 1.0, ("m@test",), silent=119)))
    with pytest.raises(Reject, match="m@test is away: no, for 121 s now") as caught:
        await handled(raising(NotNow("m@test is away: no", 1.0, ("m@test",), silent=121)))
    assert caught.value.kind == "model_away"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelUnavailable("500 from 10.0.0.1"), "model_away"),
        (Truncated("cut"), "model_away"),
        (RateLimited("slow"), "model_limited"),
        (ModelUnauthorised("10.0.0.1 refuses sk-1"), "model_setup"),
        (NoSuchModel("gpt-9"), "model_setup"),
        (ContextTooLong("8192"), "too_long"),
        (ContentRefused("SAFETY"), "content_refused"),
        (ImagesRefused("no eyes"), "images_refused"),
        (BadStructure("twice"), "bad_answer"),
        (ModelRefused("bad"), "model_refused"),
        (ToolError("gone"), "tool_failed"),
    ],
)
async def test_every_failure_of_a_model_has_a_kind_that_users_are_told(error: RolecallError, kind: str) -> None:
    with pytest.raises(Reject) as caught:
        await handled(raising(error), Envelope(conversation="a", payload={}, attempt=RULES.attempts - 1))
    assert caught.value.kind == kind
    assert str(error) in str(caught.value)
    assert str(error) not in told(caught.value.kind)


def test_what_users_are_told_is_the_catalogues_english() -> None:
    for kind in FAILURES:
        payload = {"failure": {"kind": kind, "wait": 7000, "turn": "ab-1"}}
        turn = "" if kind.startswith("budget") else " (turn ab-1)"
        assert failure_text("en", payload) == told(kind, 7000) + turn
    for kind in WAITS:
        assert waiting_text("en", {"kind": kind, "wait": 40}) == told(kind, 40)
    assert failure_text("de", {"text": "no"}) is waiting_text("de", {}) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (6.1, "7 s"), (90, "90 s"), (91, "2 min"), (5400, "90 min"), (7200, "2 h")]
)
def test_a_wait_is_rounded_up(seconds: float, text: str) -> None:
    assert duration(seconds) == text


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


async def test_a_handler_that_goes_on_after_its_time_leaves_its_task_uncancelled() -> None:
    async def stubborn(envelope: Envelope, ctx: Context) -> Envelope:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return envelope.reply("at last")

    assert (await handled(stubborn, rules=Rules("echo", RULES.roles, 16, 0.01))).text == "at last"
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_a_handler_that_is_cancelled_at_the_end_of_its_time_stays_cancelled() -> None:
    async def cancelled_twice(envelope: Envelope, ctx: Context) -> Envelope:
        try:
            await asyncio.Event().wait()
        finally:
            task.cancel()
        return envelope

    task = asyncio.create_task(handled(cancelled_twice, rules=Rules("echo", RULES.roles, 16, 0.01)))
    await asyncio.wait([task])
    assert task.cancelled() and task.cancelling() == 1


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


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (lambda wrong: Retry(wrong), "Retry(after='soon') is invalid: expected a number of seconds"),
        (lambda wrong: Retry(5, models=wrong), "Retry(models='soon') is invalid: expected names such as"),
        (lambda wrong: Reject("no", kind=wrong), "Reject(kind='soon') is invalid: expected one of model_away, "),
        (lambda wrong: Reject("no", wait=wrong), "Reject(wait='soon') is invalid: expected a number of seconds"),
    ],
)
def test_what_a_handler_raises_wrongly_is_named(raised: Callable[[Any], object], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        raised("soon")


@pytest.mark.parametrize("policy", [5, lambda: None])
def test_what_is_no_policy_is_refused_at_the_start(policy: object) -> None:
    with pytest.raises(ConfigError, match="is invalid: expected a function of a handler and its rules"):
        all_policies([policy])
