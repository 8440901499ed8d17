"""Answers come before decorations and survive what Telegram fails at; growing answers span several messages."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.chat_messages import Placeholders
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.outbox import reply
from rolecall.frontends.telegram.placeholders import INTENT
from tests.bus.steps import log_records
from tests.telegram.stage import Stage, staged
from tests.waiting import wait_until

SECTIONS = [f"## Section {number}\n\n{'word ' * 30}\n\n" for number in range(60)]


class ManagerAgent(Agent):
    """Answers as its question says; ``go`` lets those go on that wait."""

    go: asyncio.Event
    more: asyncio.Event

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        text = envelope.text
        if text.startswith("stream"):
            await ctx.emit("word0 word1")
        if text.startswith("grow"):
            for number, section in enumerate(SECTIONS):
                if number == 5 and "later" in text:
                    await self.more.wait()
                await ctx.emit(section)
                await asyncio.sleep(0.02)
        if text.startswith(("wait", "stream", "grow")):
            await self.go.wait()
        if text.startswith("grow"):
            return envelope.reply("".join(SECTIONS) if "whole" in text else "Never mind.")
        return envelope.reply(f"**re:** {text}")


ROLES = (Role(ManagerAgent, instances=8),)


@pytest.fixture(autouse=True)
def go() -> asyncio.Event:
    ManagerAgent.go, ManagerAgent.more = asyncio.Event(), asyncio.Event()
    return ManagerAgent.go


def newest_text(stage: Stage) -> str:
    """What the user of chat 7 reads last: the newest message or draft."""
    return ["", *stage.texts(), *(text for _, _, text in stage.api.chat(7).drafts[-1:])][-1]


async def shown(stage: Stage) -> set[str]:
    """The parts of the first turn that messages or intents are recorded for."""
    parts = await Placeholders(stage.bus).of("telegram:7", "1")
    return {name for name in parts if name.isdecimal() or name.startswith(INTENT)}


async def log_words(stage: Stage) -> list[str]:
    return [entry["w"] for entry in await log_records(stage.bus)]


# ── answers that grow over several messages ─────────────────────────────────────────────────────


@pytest.mark.parametrize("drafts", [False, True])
async def test_an_answer_that_outgrows_a_message_goes_on_in_the_next_one(
    tmp_path: Path, go: asyncio.Event, drafts: bool
) -> None:
    async with staged(tmp_path, ROLES, drafts=drafts) as stage:
        await stage.say(stage.api.user(7), "grow whole")
        await stage.api.wait_for(lambda: "Section 59" in newest_text(stage))
        before = [message.text for message in stage.api.chat(7).answers]
        assert len(before) == (2 if drafts else 3)
        if not drafts:
            assert [bool(message.buttons) for message in stage.api.chat(7).answers] == [False, False, True]
        go.set()
        await stage.quiet()
        texts = stage.texts()
        assert len(texts) == 3
        assert texts[:2] == before[:2]  # those that were full have stayed as they were
        assert "".join(texts).count("Section") == 60
        refused = [call for call in stage.api.log if call.status == 400]
        assert not refused  # no edit to the same text
        assert [bool(message.buttons) for message in stage.api.chat(7).answers] == [False, False, True]


@pytest.mark.parametrize("drafts", [False, True])
async def test_a_growing_answer_goes_on_in_reply_to_itself_below_another_question(
    tmp_path: Path, go: asyncio.Event, drafts: bool
) -> None:
    async with staged(tmp_path, ROLES, drafts=drafts) as stage:
        ada = stage.api.user(7)
        await stage.say(ada, "grow whole later")
        await stage.api.wait_for(lambda: "Section 4" in newest_text(stage))
        await stage.say(ada, "wait 1")
        await stage.api.wait_for(lambda: stage.process.progress.showing == 2 and len(stage.texts()) == 2 - 2 * drafts)
        ManagerAgent.more.set()
        await stage.api.wait_for(lambda: "Section 59" in newest_text(stage))
        answers = [one for one in stage.api.chat(7).answers if "Section" in one.text]
        question = stage.api.chat(7).messages[0]
        expected = (question, None) if drafts else (None, answers[0], None)
        assert tuple(one.reply_to for one in answers) == expected
        go.set()
        await stage.quiet()


@pytest.mark.parametrize("grows", [True, False])
async def test_each_message_of_an_answer_in_a_group_replies_and_so_belongs_to_the_comments_on_a_post(
    tmp_path: Path, go: asyncio.Event, grows: bool
) -> None:
    async with staged(tmp_path, ROLES) as stage:
        group = stage.api.group(-1001)
        if not grows:
            go.set()
        await stage.say(stage.api.user(7), "grow whole", chat=-1001)
        if grows:
            await stage.api.wait_for(lambda: len(group.answers) == 2)
            go.set()
        await stage.quiet()
        assert [message.reply_to for message in group.answers] == group.messages[:3]


async def test_messages_that_only_the_growing_text_needed_are_removed(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "grow")
        await stage.api.wait_for(lambda: len(stage.texts()) == 3)
        go.set()
        await stage.quiet()
        assert stage.texts() == ["Never mind."]
        assert await shown(stage) == {"0"}


async def test_a_successor_removes_them_too(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "grow")
        await stage.api.wait_for(lambda: len(stage.texts()) == 1)
        stage.api.lose(1, "sendMessage", times=1)  # the second message is there, but nobody knows of it
        await stage.api.wait_for(lambda: len(stage.texts()) == 2)
        await stage.process.kill()
        go.set()
        await wait_until(stage.process.outbox.waiting)
        await stage.crash()
        await stage.quiet()
        await stage.api.wait_for(lambda: stage.texts() == ["Never mind."])


# ── answers come first ──────────────────────────────────────────────────────────────────────────


async def test_a_finished_answer_does_not_wait_behind_decorations(tmp_path: Path, go: asyncio.Event) -> None:
    """Several messages wait in a chat, and each answer moves all others up."""
    async with staged(tmp_path, ROLES, edit_seconds=1.2) as stage:
        ada = stage.api.user(7)
        for number in range(5):
            await stage.say(ada, f"wait {number}")
        await stage.api.wait_for(lambda: len(stage.texts()) == 5)
        waits = []
        for number in range(5):
            await asyncio.sleep(1.6)  # a turn that runs for a while says that it is thinking
            done = time.monotonic()
            ManagerAgent.go.set()
            await stage.api.wait_for(lambda n=number: f"re: wait {n}" in stage.texts())
            ManagerAgent.go.clear()
            waits.append(time.monotonic() - done)
        assert max(waits) <= 1.5, waits
        places = [look for message in stage.api.chat(7).answers for look in message.edits if "Queued" in look.text]
        assert all(look.text == "Queued: number 1" for look in places)
        assert len(places) <= 3  # one in ten seconds


async def test_a_group_keeps_room_for_answers_in_telegrams_limit(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.group(-100)
        stage.api.rate(group_per_minute=20)
        await stage.say(stage.api.user(7), "grow whole", chat=-100)
        await stage.api.wait_for(lambda: len([c for c in stage.api.log if c.chat == -100 and c.status == 200]) >= 12)
        go.set()
        await stage.quiet()
        assert not [call for call in stage.api.log if call.status == 429]


async def test_after_a_restart_a_finished_answer_comes_before_the_text_of_the_next(
    tmp_path: Path, go: asyncio.Event
) -> None:
    async with staged(tmp_path, ROLES, deliver=False) as stage:
        ada = stage.api.user(7)
        await stage.say(ada, "first")
        await stage.say(ada, "stream and wait")
        await wait_until(stage.process.outbox.waiting)
        before = {look.at for message in stage.api.chat(7).answers for look in message.looks}
        await stage.crash()
        await stage.api.wait_for(lambda: any(text.startswith("word0") for text in stage.texts()))
        go.set()
        await stage.quiet()
        looks = sorted((look.at, look.text) for message in stage.api.chat(7).answers for look in message.looks)
        texts = [text for at, text in looks if at not in before]
        first = texts.index("re: first")
        assert not any(text.startswith("word") for text in texts[:first])


# ── what Telegram fails at for good ─────────────────────────────────────────────────────────────


async def test_an_edit_that_telegram_never_makes_becomes_a_new_message(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        await stage.say(ada, "wait")
        await stage.say(ada, "wait too")
        await stage.api.wait_for(lambda: len(stage.texts()) == 2)
        cursed = stage.api.chat(7).answers[0].id
        stage.api.fail(500, "editMessageText", lambda fields: fields.get("message_id") == str(cursed))
        go.set()
        await stage.quiet()
        assert sorted(stage.texts()) == ["re: wait", "re: wait too"]
        assert cursed not in [message.id for message in stage.api.chat(7).answers]
        failed = [call for call in stage.api.log if call.status == 500]
        assert len(failed) <= 2 * 6
        assert (await log_words(stage)).count("DELIVERED") == 2


async def test_an_answer_takes_the_place_of_its_placeholder_when_telegram_answers_again(
    tmp_path: Path, go: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.frontends.telegram.outlet.LONGEST_WAIT", 0.2)
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "wait")
        await stage.api.wait_for(lambda: len(stage.texts()) == 1)
        (placeholder,) = stage.api.chat(7).answers
        stage.api.fail(502)
        go.set()
        await stage.api.wait_for(lambda: stage.api.calls["editMessageText"] > 2 * 6)  # failed, and failed again
        stage.api.fail(502, "none")
        await stage.quiet()
        assert [(one.id, one.text) for one in stage.api.chat(7).answers] == [(placeholder.id, "re: wait")]


async def test_placeholders_stand_in_the_order_of_the_questions_when_telegram_answers_again(
    tmp_path: Path, go: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.frontends.telegram.outlet.LONGEST_WAIT", 0.05)
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        await stage.say(ada, "wait 0")
        await stage.api.wait_for(lambda: len(stage.texts()) == 1)
        stage.api.fail(502, "sendMessage")
        for number in range(1, 5):
            await stage.say(ada, f"wait {number}")
        await stage.api.wait_for(lambda: stage.api.calls["sendMessage"] > 9)  # the first of them has been given up once
        stage.api.fail(502, "none")
        await stage.api.wait_for(lambda: len(stage.texts()) == 5)
        go.set()
        await stage.quiet()
        assert stage.texts() == [f"re: wait {number}" for number in range(5)]


async def test_a_placeholder_stands_below_the_answers_that_telegram_did_not_take_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.frontends.telegram.outlet.LONGEST_WAIT", 0.05)
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        stage.api.fail(502)
        await stage.say(ada, "one")
        await wait_until(stage.process.outbox.waiting)
        assert (await stage.say(ada, "two")).outcome == "RUN"
        failed = stage.api.begun["getMe"]
        await stage.api.wait_for(lambda: stage.api.begun["getMe"] > failed + 1)  # the delivery was tried in vain
        stage.api.fail(502, "none")
        await stage.quiet()
        assert stage.texts() == ["re: one", "re: two"]


async def test_an_answer_that_telegram_never_takes_is_a_dead_letter_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.frontends.telegram.deliverer.FAILING_SECONDS", 2)
    monkeypatch.setattr("rolecall.frontends.telegram.outlet.LONGEST_WAIT", 0.2)
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        stage.api.fail(502, "", lambda fields: "cursed" in fields.get("text", ""))
        await stage.say(ada, "cursed")
        await stage.say(ada, "fine")
        await stage.quiet(seconds=60)
        assert "re: fine" in stage.texts()
        assert not [text for text in stage.texts() if text.startswith("re: cursed")]
        errors = [e["x"] for e in await log_records(stage.bus) if e["w"] == "ERROR"]
        assert [error.startswith("not delivered: ") for error in errors] == [True]
        (letter,) = await dead_letters(stage.bus)
        assert (letter.kind, letter.turn, "re: cursed" in letter.envelope.replace("*", "")) == ("delivery", "1", True)


async def test_an_answer_that_cannot_be_rendered_is_delivered_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(markdown: str) -> list[object]:
        raise RecursionError("too deep")

    monkeypatch.setattr("rolecall.frontends.telegram.deliverer.render", broken)
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "hi")
        await stage.quiet()
        assert stage.texts() == ["**re:** hi"]


# ── what the front end itself says ──────────────────────────────────────────────────────────────


async def test_a_reply_of_the_front_end_comes_once_through_losses_crashes_and_repeated_updates(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.user(7).write("/invite")
        stage.api.flood(7, 1)
        stage.api.lose(1, "sendMessage", times=1)
        link = [[{"text": "x", "callback_data": "x"}]]
        for _ in range(2):
            await reply(
                stage.bus, "telegram", "telegram:7", "https://t.me/x", idempotency="tg:1:7:1", question=1, buttons=link
            )
        await stage.crash()
        await stage.api.wait_for(lambda: stage.api.calls["sendMessage"])
        await stage.crash()
        await stage.quiet()
        await stage.api.wait_for(lambda: stage.texts() == ["https://t.me/x"])
        assert [button["text"] for button in stage.api.chat(7).answers[0].buttons] == ["x"]
        assert not await log_words(stage)  # it is no part of the conversation


async def test_private_answers_quote_their_question_when_others_came_between(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        await stage.say(ada, "wait 0")
        await stage.api.wait_for(lambda: len(stage.texts()) == 1)
        await stage.say(ada, "wait 1")
        await stage.api.wait_for(lambda: len(stage.texts()) == 2)
        stage.api.chat(7).answers[0].deleted = True  # its place is taken by a new message, below the second question
        go.set()
        await stage.quiet()
        quoted = {message.text: message.reply_to and message.reply_to.text for message in stage.api.chat(7).answers}
        assert quoted == {"re: wait 0": "wait 0", "re: wait 1": "wait 1"}
