"""Steps: agents call each other, wait for timers, and pay for nothing twice; who waits holds no instance."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from rolecall import Agent, Context, Envelope, Role, Tool
from rolecall.bus.cancel import cancel_turn, stop_conversation
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.maintenance import audit, promote
from rolecall.bus.steps.answers import UserQuestion, answer
from rolecall.bus.turn import TurnState, snapshot
from rolecall.errors import CallFailed, OverBudget, told
from rolecall.frontends.front import Received
from rolecall.redis.server import server_ms
from rolecall.testing import FakeModel, tool_call
from tests.bus.steps import log_records
from tests.deployment import Deployment, deployed
from tests.waiting import wait_until

DONE: list[str] = []
"""What the handlers did, in order."""


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    DONE.clear()


class ManagerAgent(Agent):
    """Does what the first word of the message says."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        DONE.append("manager")
        does, _, more = envelope.text.partition(" ")
        return envelope.reply(await SCENES[does](ctx, more))


async def one(ctx: Context, word: str) -> str:
    return f"it says {await ctx.call('echo', word, loud=True)}"


async def many(ctx: Context, number: str) -> str:
    calls = [ctx.call("echo", str(n)) for n in range(int(number))]
    return " ".join(reply.text for reply in await ctx.gather(*calls))


async def fails(ctx: Context, _: str) -> str:
    return str(await ctx.call("echo", "fail"))


async def caught(ctx: Context, _: str) -> str:
    failed, fine = await ctx.gather(ctx.call("echo", "fail"), ctx.call("echo", "b"), return_failures=True)
    assert isinstance(failed, CallFailed)
    return f"{failed.role}: {failed.reason}; {fine}"


async def broke(ctx: Context, catch: str) -> str:
    (found,) = await ctx.gather(ctx.call("echo", "broke"), return_failures=bool(catch))
    assert isinstance(found, CallFailed)
    return f"{found.kind}: {found.reason}"


async def late(ctx: Context, _: str) -> str:
    try:
        return str(await ctx.call("echo", "hang", timeout=0.2))
    except CallFailed as error:
        return str(error)


async def hang(ctx: Context, _: str) -> str:
    return str(await ctx.gather(ctx.call("echo", "hang"), ctx.call("echo", "sleep"), ctx.call("peer", "hang")))


async def sleep(ctx: Context, seconds: str) -> str:
    await ctx.once("before", DONE.append, "before")
    await ctx.sleep(float(seconds or 0.3))
    return "slept"


async def flows(ctx: Context, _: str) -> str:
    return " ".join(await asyncio.gather(_flow(ctx, "a"), _flow(ctx, "b")))


async def peer(ctx: Context, number: str) -> str:
    return str(await ctx.call("peer", number))


async def nobody(ctx: Context, _: str) -> str:
    return str(await ctx.call("nobody", "?"))


async def tool(ctx: Context, _: str) -> str:
    async def ask_echo(word: str) -> str:
        """Ask the other."""
        return (await ctx.call("echo", word)).text

    answer = await ctx.ask(MODELS[0], [], "Ask", tools=[ask_echo])
    return f"{answer.text} {len(MODELS[0].requests)}"


async def confirm(ctx: Context, _: str) -> str:
    await ctx.once("before", DONE.append, "before")
    return "sent" if await ctx.confirm("Send it?") else "not sent"


async def choose(ctx: Context, seconds: str) -> str:
    timeout = timedelta(seconds=float(seconds or 60))
    return str(await ctx.choose("Which?", ["red", "green"], timeout=timeout, default="green"))


async def through(ctx: Context, _: str) -> str:
    return str(await ctx.call("echo", "confirm"))


async def tools(ctx: Context, _: str) -> str:
    async def charge(amount: int) -> str:
        """Charge it."""
        DONE.append(f"charged {amount}")
        return "charged"

    return (await ctx.ask(MODELS[0], [], "Charge", tools=[Tool.of(charge, confirm=True)])).text


SCENES = {scene.__name__: scene for scene in (
    one, many, fails, caught, broke, late, hang, sleep, flows, peer, nobody, tool, confirm, choose, through, tools,
)}  # fmt: skip
MODELS: list[FakeModel] = []


async def _flow(ctx: Context, name: str) -> str:
    first = await ctx.call("echo", f"{name}1")
    await ctx.once("note", DONE.append, first.text)
    return f"{first}{await ctx.call('echo', f'{name}2')}"


class EchoAgent(Agent):
    """Says it again."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        match envelope.text:
            case "fail":
                raise ZeroDivisionError("division by zero")
            case "hang":
                DONE.append("hangs")
                await asyncio.sleep(60)
            case "sleep":
                await ctx.sleep(60)
            case "broke":
                raise OverBudget(told("budget_user", limit="5 tokens"), "budget_user", tokens=5)
            case "confirm":
                return envelope.reply(str(await ctx.confirm("Really?")))
        return envelope.reply(f"{envelope.text}{'!' if envelope.payload.get('loud') else ''}")


class PeerAgent(Agent):
    """Calls its like until the number is 0."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "hang":
            return envelope.reply(str(await ctx.call("echo", "hang")))
        number = int(envelope.text)
        return envelope.reply(f"{number}{await ctx.call('peer', str(number - 1)) if number else ''}")


ROLES = (Role(ManagerAgent, instances=1), Role(EchoAgent, instances=1), Role(PeerAgent, instances=1))


async def leftovers(app: Deployment) -> set[str]:
    """Keys that only unfinished turns have."""
    found = [key.decode() for key in await app.session.server.call("KEYS", "*")]
    return {key for key in found if key.split(":")[2] in ("j", "x", "z", "a", "u")}


async def test_a_role_asks_another_and_waits_for_its_reply(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        assert (await app.ask("terminal:ann", "one hello")).text == "it says hello!"
        assert DONE in (["manager"], ["manager", "manager"])  # the reply may come before the turn is suspended
        assert not await leftovers(app)


async def test_calls_run_at_the_same_time_in_two_processes_and_their_replies_are_in_order(tmp_path: Path) -> None:
    async with deployed(tmp_path, (ROLES[0], Role(EchoAgent, instances=5)), processes=2) as app:
        assert (await app.ask("terminal:ann", "many 20")).text == " ".join(map(str, range(20)))
        assert not await leftovers(app)


async def test_roles_that_call_each_other_with_one_instance_each_do_not_deadlock(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        found = await asyncio.gather(*(app.ask(f"terminal:{n}", "peer 3") for n in range(5)))
        assert [final.text for final in found] == ["3210"] * 5


async def test_calls_nested_too_deep_end_with_one_clear_message(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        final = await app.ask("terminal:ann", "peer 4")
        assert final.kind == "error"
        letters = await dead_letters(app.session.bus)
        assert "calls are nested deeper than 4, see CALL_DEPTH: peer calls peer" in letters[0].reason
        assert not await leftovers(app)


async def test_too_many_calls_at_once_end_with_one_clear_message(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        assert (await app.ask("terminal:ann", "many 33")).kind == "error"
        (letter,) = await dead_letters(app.session.bus)
        assert "a handler may have 32 calls at once, see CALL_LIMIT" in letter.reason


async def test_a_role_that_does_not_exist_is_named(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        assert (await app.ask("terminal:ann", "nobody")).kind == "error"
        (letter,) = await dead_letters(app.session.bus)
        assert letter.reason == "there is no role 'nobody' to call; there are echo, manager, peer"


async def test_a_call_that_fails_ends_its_caller_unless_it_catches_that(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        assert (await app.ask("terminal:ann", "fails")).kind == "error"
        reasons = [letter.reason for letter in await dead_letters(app.session.bus)]
        assert reasons == [
            "echo failed: ZeroDivisionError: division by zero",
            "echo failed: echo failed: ZeroDivisionError: division by zero",
        ]
        caught = await app.ask("terminal:ann", "caught")
        assert caught.text == "echo: echo failed: ZeroDivisionError: division by zero; b"
        assert not await leftovers(app)


async def test_a_call_that_is_over_budget_is_no_reply(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        limit = "You've reached today's limit (5 tokens). It resets at midnight UTC."
        assert (await app.ask("terminal:ann", "broke catch")).text == f"budget_user: {limit}"
        final = await app.ask("terminal:ann", "broke")
        assert (final.kind, final.text, final.payload["failure"]) == ("final", limit, {"kind": "budget_user"})
        assert not await dead_letters(app.session.bus)


async def test_a_call_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        final = await app.ask("terminal:ann", "late")
        assert final.text == "echo failed: no reply within 1 s"
        assert (await app.ask("terminal:bob", "one more")).text == "it says more!"  # the instance is free again
        assert not await leftovers(app)


async def test_a_timer_is_waited_for_without_an_instance(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        sleeper, bus = await app.say("terminal:ann", "sleep 60"), app.session.bus
        assert (await app.ask("terminal:bob", "one hello")).text == "it says hello!"
        assert (await snapshot(bus, "terminal:ann", sleeper.turn)).state is TurnState.SUSPENDED
        assert await promote(bus, bus.shards[0], "terminal:ann", early=True) == "EARLY"
        assert await promote(bus, bus.shards[0], "terminal:ann", as_if_due=True) == "OK"
        assert (await app.answer(sleeper)).text == "slept"
        assert DONE.count("before") == 1


async def test_tasks_of_a_handler_wait_for_their_calls_side_by_side(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        assert (await app.ask("terminal:ann", "flows")).text == "a1a2 b1b2"
        assert sorted(word for word in DONE if word != "manager") == ["a1", "b1"]


async def test_a_tool_may_call_roles(tmp_path: Path) -> None:
    MODELS[:] = [FakeModel((tool_call("ask_echo", word="x"), tool_call("ask_echo", word="y")), "asked")]
    async with deployed(tmp_path, ROLES) as app:
        assert (await app.ask("terminal:ann", "tool")).text == "asked 2"


@pytest.mark.parametrize("how", ["cancel", "stop"])
async def test_cancelling_a_turn_reaches_all_its_calls_and_timers_at_once(tmp_path: Path, how: str) -> None:
    async with deployed(tmp_path, (ROLES[0], Role(EchoAgent, instances=3), ROLES[2])) as app:
        bus, received = app.session.bus, await app.say("terminal:ann", "hang")
        await wait_until(lambda: DONE.count("hangs") == 2)
        began = time.monotonic()
        if how == "cancel":
            assert await cancel_turn(bus, "terminal:ann", received.turn)
        else:
            await stop_conversation(bus, "terminal:ann")
        assert not await leftovers(app)
        await wait_until(lambda: not any(instance.delivery for instance in app.runtime.roster.everyone()))
        assert time.monotonic() - began < 1
        assert (await app.ask("terminal:ann", "one more")).text == "it says more!"


async def test_a_turn_that_is_in_flight_too_long_ends_with_all_its_calls(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, turn_seconds=0.5) as app:
        received = await app.say("terminal:ann", "hang")
        await wait_until(lambda: "hangs" in DONE)
        await asyncio.sleep(0.6)
        bus = app.session.bus
        await audit(bus, bus.shards[0], await server_ms(bus.server))
        assert (await app.answer(received)).kind == "error"
        assert not await leftovers(app)


async def test_a_drained_process_leaves_waiting_turns_to_others(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, processes=2, drain_seconds=0.1) as app:
        received = [await app.say(f"terminal:{n}", "sleep") for n in range(4)]
        await wait_until(lambda: DONE.count("before") == 4)
        await app.runtimes[1].stop()
        assert [(await app.answer(one)).text for one in received] == ["slept"] * 4
        assert DONE.count("before") == 4


# ── people ──────────────────────────────────────────────────────────────────────────────────────

ASKS = {"asks": True}


async def asked(app: Deployment, received: Received) -> UserQuestion:
    """The question that the turn asks."""
    async for event in app.front.follow(received):
        if event.kind == "asked":
            return msgspec.convert(event.payload, UserQuestion)
    raise AssertionError("it asked nothing")


@pytest.mark.parametrize(("choice", "text"), [(0, "sent"), (1, "not sent")])
async def test_a_handler_asks_its_user_and_holds_no_instance_meanwhile(tmp_path: Path, choice: int, text: str) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = await app.say("terminal:ann", "confirm", meta=ASKS)
        question = await asked(app, received)
        assert (question.text, question.options, question.style) == ("Send it?", ("yes", "no"), "confirm")
        assert (await app.ask("terminal:bob", "one hello")).text == "it says hello!"

        assert await answer(app.session.bus, "terminal:ann", question.id, choice, user="terminal:ann") == "OK"
        assert await answer(app.session.bus, "terminal:ann", question.id, choice, user="terminal:ann") in (
            "LATE",
            "GONE",
        )
        assert (await app.answer(received)).text == text
        assert await answer(app.session.bus, "terminal:ann", question.id, choice, user="terminal:ann") == "GONE"
        assert DONE.count("before") == 1
        assert not await leftovers(app)


async def answers_on_record(app: Deployment) -> list[str]:
    """What the transcript will say about answers to questions."""
    bus = app.session.bus
    return [entry["x"] for entry in await log_records(bus) if entry["w"] == "ANSWERED"]


async def test_only_the_user_of_the_turn_may_answer_and_only_what_was_offered(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = await app.say("terminal:ann", "choose", meta=ASKS)
        question, bus = await asked(app, received), app.session.bus
        assert await answer(bus, "terminal:ann", question.id, 0, user="terminal:bob") == "FORBIDDEN"
        assert await answer(bus, "terminal:ann", question.id, 2, user="terminal:ann") == "INVALID"
        assert await answer(bus, "terminal:ann", "1-0-99", 0, user="terminal:ann") == "GONE"
        assert await answer(bus, "terminal:ann", question.id, 0, user="terminal:ann") == "OK"
        assert (await app.answer(received)).text == "red"
        assert await answers_on_record(app) == ['"red" to "Which?" by terminal:ann']


async def test_the_next_message_of_a_conversation_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        first = await app.say("terminal:ann", "choose", meta=ASKS)
        question = await asked(app, first)
        second = await app.say("terminal:ann", "one red", meta=ASKS)
        assert second.place == 1
        await answer(app.session.bus, "terminal:ann", question.id, 0, user="terminal:ann")
        assert (await app.answer(first)).text == "red"
        assert (await app.answer(second)).text == "it says red!"


async def test_the_default_counts_when_nobody_answers_in_time(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = await app.say("terminal:ann", "choose 0.2", meta=ASKS)
        question = await asked(app, received)
        assert (await app.answer(received)).text == "green"
        assert await answers_on_record(app) == ['"green" to "Which?", as nobody has answered in time']
        assert await answer(app.session.bus, "terminal:ann", question.id, 0, user="terminal:ann") == "GONE"


async def test_a_called_role_asks_the_user_of_the_turn(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = await app.say("terminal:ann", "through", meta=ASKS)
        question = await asked(app, received)
        assert await answer(app.session.bus, "terminal:ann", question.id, 0, user="terminal:ann") == "OK"
        assert (await app.answer(received)).text == "True"


async def test_a_tool_that_wants_it_runs_only_when_the_user_agrees(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        for choice, done in ((1, 0), (0, 1)):
            MODELS[:] = [FakeModel(tool_call("charge", amount=3), "over")]
            received = await app.say("terminal:ann", "tools", meta=ASKS)
            question = await asked(app, received)
            assert question.text == 'Run charge({"amount": 3})?'
            await answer(app.session.bus, "terminal:ann", question.id, choice, user="terminal:ann")
            assert (await app.answer(received)).text == "over"
            assert DONE.count("charged 3") == done
            result = MODELS[0].requests[-1].messages[-1].text
            assert result == ("charged" if done else "error: the user declined; do not try this again")


async def test_a_front_end_that_cannot_ask_gets_one_clear_error(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        final = await app.ask("terminal:ann", "confirm")
        assert final.kind == "error" and final.text.startswith(told("cannot_ask"))
        (letter,) = await dead_letters(app.session.bus)
        assert "test cannot ask its user: use a front end that can, or do not ask there" in letter.reason


async def test_cancelling_a_turn_closes_its_question(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = await app.say("terminal:ann", "confirm", meta=ASKS)
        question = await asked(app, received)
        assert await cancel_turn(app.session.bus, "terminal:ann", received.turn)
        assert await answer(app.session.bus, "terminal:ann", question.id, 0, user="terminal:ann") == "GONE"
        assert not await leftovers(app)
