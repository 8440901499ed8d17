"""Failures: every turn has one answer, also when it could not be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Reject, Retry, Role
from rolecall.bus.dead_letters import count_dead_letters
from rolecall.bus.envelope import short_turn_id
from rolecall.errors import FAILURES, ModelRefused, RateLimited, Truncated
from rolecall.models import Delta, ModelEvent, Request
from tests.deployment import Deployment, deployed

UNSENDABLE = {"large": "x" * 300_000, "unwritable": object()}


class ManagerAgent(Agent):
    """Does what the message says."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        match envelope.text:
            case "raise":
                raise ZeroDivisionError("division by zero")
            case "reject":
                raise Reject("I do not talk about that")
            case "nowhere":
                return envelope.via("nobody")
            case "loop":
                return envelope.via("manager")
            case "ping-pong":
                return envelope.via("other")
            case "hang":
                await asyncio.sleep(60)
            case "refused":
                raise ModelRefused("the context is too long")
            case "large" | "unwritable":
                return envelope.via("other", secret=UNSENDABLE[envelope.text])
            case "none":
                return None  # type: ignore[return-value]  # the mistake under test
        return envelope.reply("fine")


class OtherAgent(Agent):
    """Sends everything back."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("manager")


ROLES = (Role(ManagerAgent), Role(OtherAgent))


async def dead_letters(app: Deployment) -> int:
    return await count_dead_letters(app.session.bus)


async def test_what_an_agent_rejects_gets_one_apology_that_says_why(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, assistant_timeout=0.5) as app:
        received = await app.say("terminal:ann", "reject")
        final = await app.answer(received)

        assert final.kind == "error"
        assert "I do not talk about that" in final.text
        assert short_turn_id("terminal:ann", received.turn) in final.text
        assert await dead_letters(app) == 1
        assert (await app.ask("terminal:ann", "next")).text == "fine"


DEFECT = FAILURES["defect"]


@pytest.mark.parametrize(
    ("text", "told", "reason"),
    [
        ("raise", DEFECT, "manager failed: ZeroDivisionError: division by zero"),
        ("nowhere", DEFECT, "there is no role 'nobody'; there are manager, other"),
        ("loop", DEFECT, "manager sent the turn to itself"),
        ("ping-pong", DEFECT, "it went through more than 16 roles"),
        ("large", DEFECT, "the limit is 262,144"),
        ("unwritable", DEFECT, "this envelope cannot be written as JSON: payload['secret']"),
        ("none", DEFECT, "manager returned NoneType, not an envelope"),
        ("hang", "Sorry, this took too long, so I gave up.", "manager took more than 0.5 s"),
        ("refused", "Sorry, the model refused this request.", "the model refused: the context is too long"),
    ],
)
async def test_the_details_of_a_failure_are_for_operators(tmp_path: Path, text: str, told: str, reason: str) -> None:
    async with deployed(tmp_path, ROLES, assistant_timeout=0.5) as app:
        received = await app.say("terminal:ann", text)
        final = await app.answer(received)

        assert final.text == f"{told} (turn {short_turn_id('terminal:ann', received.turn)})"
        assert reason not in str(final.payload)
        ((_, letter),) = await app.session.server.call("XRANGE", app.session.bus.shards[0].dead, "-", "+")
        assert reason.encode() in b" ".join(letter)


async def test_a_retry_comes_back_later_and_holds_no_instance_meanwhile(tmp_path: Path) -> None:
    attempts: list[int] = []

    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            if envelope.text != "patience":
                return envelope.reply("at once")
            attempts.append(envelope.attempt)
            if len(attempts) < 3:
                raise Retry(after=0.3)
            return envelope.reply("at last")

    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        slow = await app.say("terminal:ann", "patience")
        assert (await app.ask("terminal:bob", "hello")).text == "at once"
        assert (await app.answer(slow)).text == "at last"

    assert attempts == [0, 1, 2]


async def test_a_model_that_asks_to_wait_is_waited_for(tmp_path: Path) -> None:
    asked: list[int] = []

    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            asked.append(envelope.attempt)
            if len(asked) == 1:
                raise RateLimited("slow down", retry_after=0.2)
            return envelope.reply("done")

    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        assert (await app.ask("terminal:ann", "hello")).text == "done"

    assert asked == [0, 1]


async def test_garbage_in_a_role_stream_becomes_a_dead_letter_and_harms_nobody(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        stream = app.session.bus.shards[0].stream("manager", "n")
        for fields in (("x", "y"), ("c", "terminal:ann", "t", "1", "h", "0", "e", b"\xff{"), ("c", b"\xff", "t", "1")):
            await app.session.server.call("XADD", stream, "*", *fields)

        assert (await app.ask("terminal:ann", "hello")).text == "fine"
        async with asyncio.timeout(10):
            while await dead_letters(app) < 3:
                await asyncio.sleep(0.01)
        assert not await app.session.server.call("XLEN", stream)


async def test_an_answer_that_breaks_off_is_kept_and_marked(tmp_path: Path) -> None:
    class BreakingModel:
        name = "breaking@test"

        async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
            yield Delta("The capital of")
            raise Truncated("the connection was lost", "The capital of")

        async def aclose(self) -> None: ...

    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(await ctx.stream(BreakingModel(), [], envelope.text))

    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        final = await app.ask("terminal:ann", "What is the capital of France?")

    assert final.kind == "final"
    assert final.text == "The capital of … [the model broke off here]"
    assert final.payload["finish"] == "interrupted"
