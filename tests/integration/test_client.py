"""The API for programs: connect, ask, stream, follow, notify, cancel, stop, and a worker inside a program."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest

import rolecall
from rolecall import Agent, Config, Context, Envelope, Reject, Retry, Role
from rolecall.client import Assistant
from rolecall.errors import BadSchedule, ConfigError, NothingRunning, Refused, RolecallError, TurnFailed
from tests.waiting import wait_until


class ManagerAgent(Agent):
    """Answers by what it is told."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "wait":
            await asyncio.sleep(600)
        if envelope.text == "reject":
            raise Reject("I was asked to")
        if envelope.text == "slowly":
            await ctx.emit("Hel")
            await asyncio.sleep(0.3)
        if envelope.text == "half":
            ctx.memory.prefer(name=HALF)
            await ctx.choose(HALF, [HALF, "b"])
            raise Reject(HALF)
        if envelope.text == "pay":
            paid = await ctx.confirm("Pay 9 €?")
            how = await ctx.choose("How?", ["cash", "card"], who=["crm:boss"])
            return envelope.reply(f"{paid}, {how}")
        return envelope.reply(f"Hello, {envelope.text}!", mood="good")


CONFIG = Config(roles=(Role(ManagerAgent, instances=2),), drain_seconds=0.1, mailbox_limit=1)


HALF = "caf\udce9"
"""A file name that is no UTF-8, as Python has it: one half of a surrogate pair, which cannot be encoded."""
DEEP = json.loads("[" * 40 + "]" * 40)


class Silent:
    """A front end that delivers nothing."""

    async def run(self) -> None: ...

    async def deliver(self, entry: object) -> None: ...

    async def drain(self) -> None: ...


@pytest.fixture
async def assistant(tmp_path: Path) -> AsyncIterator[Assistant]:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        yield assistant


async def test_a_program_asks_and_reads_the_reply(assistant: Assistant) -> None:
    reply = await assistant.ask("Ann", conversation="crm:42")
    assert (reply.text, reply.conversation, reply.turn) == ("Hello, Ann!", "crm:42", "1")
    assert reply.payload["mood"] == "good"


async def test_a_question_has_a_priority_and_a_language_as_a_message_that_is_sent(assistant: Assistant) -> None:
    assert (await assistant.ask("Ann", priority=90, language="de")).text == "Hello, Ann!"
    with pytest.raises(TypeError, match="priority is of type str: expected an integer from 0 to 100"):
        await assistant.ask("Ann", priority="high")  # type: ignore[arg-type]


async def test_without_a_conversation_every_message_starts_one(assistant: Assistant) -> None:
    first, second = await asyncio.gather(assistant.ask("a"), assistant.ask("b"))
    assert first.conversation != second.conversation
    assert first.conversation.startswith("program:")


async def test_a_program_streams_an_answer(assistant: Assistant) -> None:
    events = [event async for event in assistant.stream("slowly")]
    deltas = [(event.position, event.text) for event in events if event.kind == "delta"]
    assert deltas == [(0, "Hel"), (3, "lo, slowly!")]
    assert (events[-1].kind, events[-1].text, events[-1].last) == ("final", "Hello, slowly!", True)


async def test_an_answer_that_comes_at_once_is_one_piece(assistant: Assistant) -> None:
    assert [event.text async for event in assistant.stream("Ann") if event.kind == "delta"] == ["Hello, Ann!"]


async def test_a_turn_can_be_sent_now_and_followed_later_also_by_another_program(
    assistant: Assistant, tmp_path: Path
) -> None:
    ref = await assistant.send("Ann", conversation="crm:1")
    await assistant.reply(ref)
    url = assistant.session.server.url
    async with rolecall.connect(url, tmp_path) as other, aclosing(other.follow(ref.conversation, ref.turn)) as events:
        assert [event.text async for event in events][-1] == "Hello, Ann!"


async def test_the_same_idempotency_key_gives_the_same_turn(assistant: Assistant) -> None:
    first = await assistant.send("Ann", conversation="crm:1", idempotency="order-7")
    second = await assistant.send("Ann", conversation="crm:1", idempotency="order-7")
    assert first.turn == second.turn
    with pytest.raises(Refused, match="idempotency key") as refused:
        await assistant.send("Ben", conversation="crm:1", idempotency="order-7")
    assert refused.value.code == "CONFLICT"


async def test_a_message_to_a_full_conversation_is_refused(assistant: Assistant) -> None:
    for _ in range(2):
        await assistant.send("wait", conversation="crm:1")
    with pytest.raises(Refused) as refused:
        await assistant.send("Ann", conversation="crm:1")
    assert refused.value.code == "FULL"
    assert await assistant.stop("crm:1") == 2


async def test_a_turn_that_is_given_up_raises_what_the_user_is_told(assistant: Assistant) -> None:
    with pytest.raises(TurnFailed, match="I was asked to") as failed:
        await assistant.ask("reject")
    assert not failed.value.cancelled


async def test_a_turn_is_cancelled_by_name_by_timeout_and_by_cancelling_the_caller(assistant: Assistant) -> None:
    ref = await assistant.send("wait", conversation="crm:1")
    assert await assistant.cancel(ref.conversation, ref.turn)
    assert not await assistant.cancel(ref.conversation, ref.turn)
    with pytest.raises(TurnFailed) as failed:
        await assistant.reply(ref)
    assert failed.value.cancelled
    with pytest.raises(TimeoutError):
        await assistant.ask("wait", conversation="crm:2", timeout=0.1)
    asking = asyncio.create_task(assistant.ask("wait", conversation="crm:3"))
    await asyncio.sleep(0)  # its message is on its way, and nothing has come back
    asking.cancel()
    await asyncio.wait([asking])

    async def fail(event: object) -> None:
        raise OSError("the client has gone")

    with pytest.raises(OSError, match="the client has gone"):
        await assistant.ask("wait", conversation="crm:4", on_event=fail)
    for conversation in ("crm:2", "crm:3", "crm:4"):
        assert (await assistant.ask("Ann", conversation=conversation)).text == "Hello, Ann!"


async def test_a_program_answers_what_agents_ask(assistant: Assistant) -> None:
    asked = []
    async for event in assistant.stream("pay", conversation="crm:7", user="crm:ann", asks=True):
        if event.kind == "asked":
            question, who = event.payload["id"], "crm:boss" if event.payload["who"] else "crm:ann"
            asked.append((event.text, event.payload["options"]))
            with pytest.raises(RolecallError, match=r"'maybe' is not an option of this question: expected \w+ or \w+"):
                await assistant.answer("crm:7", question, "maybe", user=who)
            with pytest.raises(RolecallError, match="this question is not for crm:7"):
                await assistant.answer("crm:7", question, event.payload["options"][0])
            assert await assistant.answer("crm:7", question, event.payload["options"][0], user=who)
            assert not await assistant.answer("crm:7", question, event.payload["options"][1], user=who)
    assert (event.text, asked) == ("True, cash", [("Pay 9 €?", ["yes", "no"]), ("How?", ["cash", "card"])])
    assert not await assistant.answer("crm:7", question, "cash", user=who)
    with pytest.raises(TurnFailed, match="ask you something first"):
        await assistant.ask("pay", conversation="crm:7")


async def test_half_a_surrogate_pair_is_replaced_and_ends_nothing(
    assistant: Assistant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "rolecall.worker")  # pytest-xdist could not pass it on
    with pytest.raises(TurnFailed, match=r"did not work: caf\?"):
        async for event in assistant.stream("half", conversation="crm:7", asks=True):
            if event.kind == "asked":
                assert (event.text, event.payload["options"]) == ("caf?", ["caf?", "b"])
                assert await assistant.answer("crm:7", event.payload["id"], "caf?")
            if event.last:
                raise TurnFailed(event.text, "crm:7", event.turn)
    made = await assistant.schedule(HALF, conversation="crm:7", when="every day at 9", idempotency=HALF, user=HALF)
    assert (await assistant.schedules("crm:7"))[0].id == made.id and made.text == "caf?"
    assert not await assistant.cancel("crm:7", HALF, reason=HALF)
    assert await assistant.unschedule("crm:7", HALF) == 0


async def test_a_notice_is_told_once(assistant: Assistant) -> None:
    assert await assistant.notify("telegram:42", "Your export is ready.", idempotency="export-7")
    assert not await assistant.notify("telegram:42", "Your export is ready.", idempotency="export-7")
    with pytest.raises(Refused):
        await assistant.notify("telegram:42", "Something else.", idempotency="export-7")


async def test_notices_and_answers_of_schedules_go_to_who_has_the_conversation(tmp_path: Path) -> None:
    class Webhook(Silent):
        name = "webhook"

    config = CONFIG.model_copy(update={"frontends": (Webhook,)})
    async with rolecall.run(config, app=tmp_path) as assistant:
        async with aclosing(assistant.notices("crm:42", "0-0")) as notices, asyncio.timeout(10):
            assert await assistant.notify("crm:42", "Your export is ready.")
            assert (await anext(notices)).text == "Your export is ready."
        outbox = assistant.session.bus.shards[0].outbox
        for conversation, front in (("telegram2:42", "telegram2"), ("webhook:7", "webhook"), ("crm:42", "program")):
            made = await assistant.schedule("report", conversation=conversation, when="every day at 9")
            assert made.definition.front == front
            await assistant.notify(conversation, "ready")
            waiting = await assistant.session.bus.server.call("XLEN", outbox(front))
            assert waiting == (0 if front == "program" else 1)
        with pytest.raises(ConfigError, match="expected telegram:CHAT"):
            await assistant.notify("telegram:abc", "ready")


async def test_a_program_that_only_knows_the_server_learns_the_rest_from_its_workers(tmp_path: Path) -> None:
    class Webhook(Silent):
        name = "webhook"

    config = CONFIG.model_copy(update={"frontends": (Webhook,)})
    async with rolecall.run(config, app=tmp_path) as worker:
        url = worker.session.server.url
        async with rolecall.connect(url, tmp_path) as assistant:
            assert await assistant.notify("crm:42", "Your export is ready.")
            async with aclosing(assistant.notices("crm:42", "0-0")) as notices, asyncio.timeout(10):
                assert (await anext(notices)).text == "Your export is ready."
            for conversation, front in (("webhook:7", "webhook"), ("telegram:42", "telegram"), ("crm:42", "program")):
                made = await assistant.schedule("report", conversation=conversation, when="every day at 9")
                assert made.definition.front == front
            with pytest.raises(BadSchedule, match="there is no role 'nobody' to schedule; there are manager"):
                await assistant.schedule("report", conversation="crm:42", when="every day at 9", role="nobody")
            assert (await assistant.ask("/help", timeout=10)).text == "Hello, /help!"


async def test_a_program_schedules_a_turn_and_gets_its_answer(assistant: Assistant) -> None:
    soon = timedelta(seconds=0.2)
    async with aclosing(assistant.notices("crm:42", "0-0")) as notices:
        made = await assistant.schedule("Ann", conversation="crm:42", at=soon, idempotency="once")
        again = await assistant.schedule("Ann", conversation="crm:42", at=soon, idempotency="once")
        assert made.id == again.id
        assert [one.text for one in await assistant.schedules("crm:42")] == ["Ann"]
        async with asyncio.timeout(10):
            assert (await anext(notices)).text == "Hello, Ann!"
    assert await assistant.schedules("crm:42") == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda assistant: assistant.ask(None), "the text of a message is of type NoneType: expected a text"),
        (lambda assistant: assistant.ask(b"hi"), "the text of a message is of type bytes: expected a text"),
        (lambda assistant: assistant.ask("hi", conversation=5), "a conversation id is a text of 1 to 200 characters"),
        (lambda assistant: assistant.ask("hi", user=["Ann"]), "user is of type list: expected a text"),
        (lambda assistant: assistant.ask("hi", role=5), "role is of type int: expected a text"),
        (lambda assistant: assistant.ask("hi", payload="text"), "payload is of type str: expected a dict"),
        (lambda assistant: assistant.ask("hi", payload={"a": DEEP}), "the payload is nested deeper than 32 levels"),
        (lambda assistant: assistant.ask("hi", timeout="5"), "timeout is of type str: expected a number of seconds"),
        (lambda assistant: assistant.ask("hi", on_event=print), "what on_event returned is of type NoneType"),
        (lambda assistant: assistant.send("hi", priority=5.5), "priority is of type float: expected an integer"),
        (lambda assistant: assistant.ask("hi", priority=500), "priority=500 is invalid: expected an integer from 0 to"),
        (lambda assistant: assistant.answer("crm:42", "1-0-2", True), "option is of type bool: expected a text"),
        (lambda assistant: assistant.reply("1"), "ref is of type str: expected a TurnRef, as send() returns it"),
        (lambda assistant: anext(assistant.follow(5, "1")), "a conversation id is a text of 1 to 200 characters"),
        (lambda assistant: anext(assistant.follow("crm:42", 1)), "turn is of type int: expected a text"),
        (lambda assistant: anext(assistant.notices(5)), "a conversation id is a text of 1 to 200 characters"),
        (lambda assistant: assistant.cancel("crm:42", 1), "turn is of type int: expected a text"),
        (lambda assistant: assistant.stop(None), "a conversation id is a text of 1 to 200 characters"),
        (lambda assistant: assistant.unschedule("crm:42", 5), "the id of a schedule is of type int: expected a text"),
        (
            lambda assistant: assistant.conversations(grep="("),
            "grep ( is invalid: expected a regular expression",
        ),
        (lambda assistant: assistant.notify("crm:42", None), "the text of a notice is of type NoneType"),
        (
            lambda assistant: assistant.schedule("hi", conversation="crm:42", when="tomorrow", role="nobody"),
            "there is no role 'nobody' to schedule; there are manager",
        ),
        (
            lambda assistant: assistant.schedule("hi", conversation=5, when="tomorrow"),
            "a conversation id is a text of 1 to 200 characters",
        ),
    ],
)
async def test_what_a_program_asks_for_wrongly_is_named(
    assistant: Assistant, wrong: Callable[[Assistant], Awaitable[object]], said: str
) -> None:
    with pytest.raises((TypeError, RolecallError), match=re.escape(said)):
        await wrong(assistant)


async def test_a_program_lists_and_removes_schedules_of_any_conversation(assistant: Assistant) -> None:
    weekly = await assistant.schedule("report", conversation="telegram:42", cron="0 9 * * 1", zone="Europe/Berlin")
    await assistant.schedule("tea", conversation="telegram:42", when="every day at 9")
    assert weekly.definition.front == "telegram" and weekly.when.endswith("09:00 ↻ 0 9 * * 1")
    assert await assistant.unschedule("telegram:42", weekly.id) == 1
    assert [one.text for one in await assistant.schedules("telegram:42")] == ["tea"]
    assert (await assistant.unschedule("telegram:42"), await assistant.unschedule("telegram:42")) == (1, 0)
    for wrong in ({"cron": "61 * * * *"}, {"every": timedelta(seconds=5)}, {"when": "at 9", "zone": "Mars/Olympus"}):
        with pytest.raises(BadSchedule, match=r"invalid|too often|unknown"):
            await assistant.schedule("x", conversation="crm:1", **wrong)


async def test_a_program_lists_the_conversations(assistant: Assistant) -> None:
    await assistant.ask("Ann", conversation="crm:42")

    async def listed() -> bool:
        return [one.conversation for one in await assistant.conversations(user="crm")] == ["crm:42"]

    await wait_until(listed)
    assert not await assistant.conversations(grep="nobody said this")


async def test_connect_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.py in"):
        async with rolecall.connect(app=tmp_path):
            pass
    (tmp_path / "config.py").write_text("from tests.integration.test_client import CONFIG as config\n")
    with pytest.raises((NothingRunning, ConfigError), match=r"nothing is running|was imported from"):
        async with rolecall.connect(app=tmp_path):
            pass


async def test_what_the_block_of_a_worker_raises_is_raised_as_it_is(tmp_path: Path) -> None:
    own = ExceptionGroup("of the program itself", [ValueError("one"), ValueError("two")])
    for error in (KeyError("a mistake"), own):
        with pytest.raises(type(error)) as raised:
            async with rolecall.run(CONFIG, app=tmp_path):
                raise error
        assert raised.value is error
    with pytest.raises(TurnFailed, match="I was asked to"):
        async with rolecall.run(CONFIG, app=tmp_path) as assistant:
            await assistant.ask("reject")


class FragileAgent(ManagerAgent):
    """Needs what is not there."""

    role = "manager"

    def __init__(self) -> None:
        raise OSError("no such database")


async def test_an_agent_that_cannot_be_made_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="role manager: its agent cannot be made: OSError: no such database"):
        async with rolecall.run(Config(roles=(Role(FragileAgent),)), app=tmp_path):
            pass


async def test_without_a_role_for_commands_the_manager_gets_them(assistant: Assistant) -> None:
    assert (await assistant.ask("/help", timeout=10)).text == "Hello, /help!"


async def test_what_still_waits_when_the_block_is_left_ends_with_an_error(tmp_path: Path) -> None:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        ref = await assistant.send("wait")
        waiting = [asyncio.create_task(assistant.reply(ref)), asyncio.create_task(anext(assistant.notices("crm:1")))]
        channels = {assistant.session.bus.shard(name).channel(name) for name in (ref.conversation, "crm:1")}
        await wait_until(lambda: channels <= assistant.wakeups._listeners.keys())
    async with asyncio.timeout(10):
        for task in waiting:
            with pytest.raises(RolecallError, match="the connection to the server was closed"):
                await task
        with pytest.raises(RolecallError, match="the connection to the server is closed"):
            await assistant.session.server.call("PING")


async def test_a_thread_asks_through_the_event_loop_of_the_assistant(assistant: Assistant) -> None:
    loop = asyncio.get_running_loop()
    reply = await asyncio.to_thread(
        lambda: asyncio.run_coroutine_threadsafe(assistant.ask("Ann"), loop).result(timeout=10)
    )
    assert reply.text == "Hello, Ann!"
    with pytest.raises(RolecallError, match=r"opened in another event loop: from a thread, use asyncio\.run_coroutine"):
        await asyncio.to_thread(lambda: asyncio.run(assistant.ask("Ann")))


def test_errors_can_be_pickled_and_copied() -> None:
    for error in (
        Refused("full", "FULL"),
        TurnFailed("Sorry.", "crm:1", "7", cancelled=True),
        Retry(5),
    ):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


async def test_an_assistant_says_that_it_is_closed(tmp_path: Path) -> None:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        await assistant.ask("Ann")
    async with asyncio.timeout(10):
        with pytest.raises(RolecallError, match="this assistant is closed"):
            await assistant.ask("Ann")
