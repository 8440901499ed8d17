"""Answers reach their users once, in order and at their pace, whatever Telegram and this side's processes do."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.blobs import Blobs
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.chat_messages import Placeholders
from rolecall.bus.conversation import notify
from rolecall.frontends.telegram.placeholders import INTENT
from rolecall.frontends.texts import say
from tests.bus.steps import log_records
from tests.telegram.stage import THINKING, Stage, staged
from tests.waiting import wait_until

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


class ManagerAgent(Agent):
    """Answers at once, or as its question says; ``go`` lets those go on that wait."""

    go: asyncio.Event

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        text = envelope.text
        if text.startswith("wait"):
            await self.go.wait()
        if text.startswith("stream"):
            for number in range(8):
                await ctx.emit(f"word{number} ")
                await asyncio.sleep(0.02)
        if text.startswith("stream and wait"):
            await self.go.wait()
        if text.endswith("long"):
            return envelope.reply("\n\n".join(letter * 3000 for letter in "abc"))
        if text.startswith("file"):
            return envelope.reply("look", images=[text.split()[1]], files=[{"blob": text.split()[2], "name": "a.txt"}])
        return envelope.reply("" if text == "nothing" else f"**re:** {text}")


ROLES = (Role(ManagerAgent, instances=8),)


@pytest.fixture(autouse=True)
def go() -> asyncio.Event:
    ManagerAgent.go = asyncio.Event()
    return ManagerAgent.go


async def intents(stage: Stage, conversation: str = "telegram:7", turn: str = "1") -> list[str]:
    parts = await Placeholders(stage.bus).of(conversation, turn)
    return [name for name in parts if name.startswith(INTENT)]


async def log_words(stage: Stage) -> list[str]:
    return [entry["w"] for entry in await log_records(stage.bus)]


# ── a turn as its user sees it ──────────────────────────────────────────────────────────────────


async def test_a_placeholder_in_the_users_language_becomes_the_answer(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7, language_code="de-AT"), "wait")
        await wait_until(lambda: stage.texts() == ["Ich denke nach…"])
        (message,) = stage.api.chat(7).answers
        assert [button["callback_data"] for button in message.buttons] == ["stop:1"]
        go.set()
        await stage.quiet()

        assert stage.texts() == ["re: wait"]
        assert message.entity("bold") == ["re:"]
        assert [button["callback_data"] for button in message.buttons] == ["again:1", "up:1", "down:1"]
        assert (await log_words(stage))[-1] == "DELIVERED"
        assert not await intents(stage)


async def test_one_who_waits_is_told_his_place_and_when_it_is_his_turn(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        for number in range(3):
            await stage.say(ada, f"wait {number}")
        place = "Queued: number {}".format
        await wait_until(lambda: sorted(stage.texts()) == sorted([THINKING, place(1), place(2)]))
        go.set()
        await stage.quiet()
        assert sorted(stage.texts()) == [f"re: wait {n}" for n in range(3)]


async def test_typing_is_shown_in_the_topic_of_the_question(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.group(-100, topics={5: "Five"})
        await stage.say(stage.api.user(7), "wait", chat=-100, topic=5)
        await wait_until(lambda: stage.api.chat(-100).actions)
        go.set()
        await stage.quiet()
        assert {(action, topic) for _, action, topic in stage.api.chat(-100).actions} == {("typing", 5)}
        (answer,) = stage.api.chat(-100).answers
        assert (answer.text, answer.thread) == ("re: wait", 5)


async def test_an_answer_grows_in_edits_that_keep_their_distance(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES, edit_seconds=0.12) as stage:
        await stage.say(stage.api.user(7), "stream and wait")
        await stage.api.wait_for(lambda: any(text.endswith("word7") for text in stage.texts()))
        go.set()
        await stage.quiet()
        (message,) = stage.api.chat(7).answers
        assert message.text == "re: stream and wait"
        assert all(b.at - a.at >= 0.12 for a, b in itertools.pairwise(message.edits))


async def test_growing_answers_can_be_drafts(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES, drafts=True) as stage:
        await stage.say(stage.api.user(7), "stream and wait")
        await stage.api.wait_for(lambda: stage.api.chat(7).drafts[-1:] and stage.api.chat(7).drafts[-1][2])
        go.set()
        await stage.quiet()
        texts = [text for _, _, text in stage.api.chat(7).drafts]
        assert texts[0] == ""
        assert texts[-1].startswith("word0")
        assert stage.texts() == ["re: stream and wait"]


async def test_only_the_process_that_holds_the_chat_shows_and_delivers_also_what_was_received_before(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.process.holds = False
        await stage.say(stage.api.user(7), "stream")
        await wait_until(stage.process.outbox.waiting)
        assert stage.texts() == []
        stage.process.holds = True
        await stage.quiet()
        assert stage.texts() == ["re: stream"]


async def test_what_was_read_of_a_stopped_answer_stays(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        received = await stage.say(stage.api.user(7), "stream")
        await stage.api.wait_for(lambda: any("word1" in text for text in stage.texts()))
        await cancel_turn(stage.bus, received.conversation, received.turn, text="Stopped.")
        await stage.quiet()
        (text,) = stage.texts()
        assert text.startswith("word0 word1")
        assert text.endswith("⏹ Stopped.")


async def test_a_long_answer_is_several_messages_with_the_buttons_under_the_last(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "long")
        await stage.quiet()
        assert stage.texts() == [letter * 3000 for letter in "abc"]
        assert [bool(message.buttons) for message in stage.api.chat(7).answers] == [False, False, True]


async def test_pictures_and_files_of_an_answer_follow_its_text(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        blobs = Blobs(stage.bus)
        picture = await blobs.put("telegram:7", PNG, "image/png")
        text = await blobs.put("telegram:7", b"hello", "text/plain")
        stage.api.lose(1, "editMessageMedia", times=1)  # and then its process dies
        await stage.say(stage.api.user(7), f"file {picture} {text}")
        await wait_until(lambda: stage.api.calls["editMessageMedia"] == 1)
        await stage.crash()
        await stage.quiet()
        answers = stage.api.chat(7).answers
        assert [sorted(message.media) for message in answers] == [[], ["photo"], ["document"]]
        assert answers[2].media["document"]["file_name"] == "a.txt"
        assert answers[0].text == "look"


async def test_a_picture_that_telegram_refuses_becomes_a_document(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        blob = await Blobs(stage.bus).put("telegram:7", b"no picture", "image/png")
        await stage.say(stage.api.user(7), f"file {blob} {blob}")
        await stage.quiet()
        assert [sorted(message.media) for message in stage.api.chat(7).answers] == [[], ["document"], ["document"]]


async def test_a_file_that_telegram_does_not_take_is_not_kept_quiet_about(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        blobs = Blobs(stage.bus)
        picture = await blobs.put("telegram:7", PNG, "image/png")
        empty = await blobs.put("telegram:7", b"", "text/plain")
        await stage.say(stage.api.user(7, language_code="de"), f"file {picture} {empty}")
        await stage.quiet()
        await stage.crash()
        await stage.quiet()
        assert stage.texts()[2] == "a.txt: Telegram hat diese Datei abgelehnt."
        assert (await log_words(stage))[-1] == "DELIVERED"


async def test_in_a_group_that_takes_no_files_the_rest_of_an_answer_comes_and_says_so(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        group, place = stage.api.group(-100), "telegram:-100"
        group.texts_only = True
        picture = await Blobs(stage.bus).put(place, PNG, "image/png")
        text = await Blobs(stage.bus).put(place, b"x", "text/plain")
        await stage.say(stage.api.user(7), f"file {picture} {text}", chat=-100)
        await stage.quiet()
        assert stage.texts(-100)[1:] == [say("en", "file_unsent", name=name) for name in ("1.png", "a.txt")]
        assert group.answers[-1].buttons
        assert (await log_words(stage))[-1] == "DELIVERED"


async def test_an_answer_without_text_says_so(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7, language_code="fr"), "nothing")
        await stage.quiet()
        assert stage.texts() == ["(La réponse est vide.)"]


# ── ringing ─────────────────────────────────────────────────────────────────────────────────────


async def test_placeholders_are_silent_and_a_long_turn_rings_at_its_end(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES, ring_seconds=0.1) as stage:
        ada = stage.api.user(7, language_code="es")
        await stage.say(ada, "stream")
        await stage.api.wait_for(lambda: len(stage.texts()) == 2)
        assert stage.texts() == ["re: stream", "Tu respuesta está lista ⬆"]
        sent = [call.fields.get("disable_notification") for call in stage.api.log if call.method == "sendMessage"]
        assert [flag == "true" for flag in sent] == [True, False]
        answer, notice = stage.api.chat(7).answers
        assert notice.reply_to is answer
        await stage.say(ada, "hi")  # whoever writes has seen it
        await stage.quiet()
        await wait_until(lambda: notice.deleted)
        assert "re: hi" in stage.texts()


async def test_a_notice_rings_and_comes_once(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.user(7).write("/start")
        for _ in range(2):
            await notify(stage.bus, "telegram:7", "the *timer* is over", idempotency="k", front="telegram")
        await stage.quiet()
        await stage.crash()
        await stage.quiet()
        assert stage.texts() == ["the timer is over"]
        (sent,) = [call for call in stage.api.log if call.method == "sendMessage"]
        assert sent.fields.get("disable_notification", "false") == "false"
        assert not stage.api.chat(7).answers[0].buttons


# ── stopped anywhere ────────────────────────────────────────────────────────────────────────────


async def test_a_placeholder_sent_by_a_process_that_died_is_found_and_removed(
    tmp_path: Path, go: asyncio.Event
) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.lose(1, "sendMessage", times=1)
        await stage.say(stage.api.user(7), "wait")
        await wait_until(lambda: stage.api.calls["sendMessage"] == 1)
        await stage.crash()
        await wait_until(lambda: stage.api.calls["sendMessage"] == 2)
        go.set()
        await stage.quiet()
        assert stage.texts() == ["re: wait"]
        assert not await intents(stage)


async def test_a_lost_answer_to_a_send_leaves_no_second_placeholder(tmp_path: Path, go: asyncio.Event) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.lose(1, "sendMessage", times=2)
        await stage.say(stage.api.user(7), "wait")
        await stage.api.wait_for(lambda: stage.api.calls["sendMessage"] == 3)
        await stage.api.wait_for(lambda: stage.texts() == [THINKING])
        go.set()
        await stage.quiet()
        assert stage.texts() == ["re: wait"]


async def test_recorded_but_not_edited_a_successor_edits(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.delay(30, "editMessageText")
        await stage.say(stage.api.user(7), "hi")
        await wait_until(lambda: stage.texts() == [THINKING])
        await wait_until(stage.process.outbox.waiting)
        await stage.crash(deliver=False)
        stage.api.delay(0, "editMessageText")
        await stage.crash()
        await stage.quiet()
        assert stage.texts() == ["re: hi"]
        assert stage.api.calls["sendMessage"] == 1


async def test_edited_but_not_told_to_the_outbox_it_is_not_modified(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.lose(1, "editMessageText", times=1)
        await stage.say(stage.api.user(7), "hi")
        await stage.api.wait_for(lambda: stage.texts() == ["re: hi"])
        await stage.crash()
        await stage.quiet()
        assert [look.text for look in stage.api.chat(7).answers[0].looks] == [THINKING, "re: hi"]
        assert (await log_words(stage)).count("DELIVERED") == 1


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_further_part_whose_sending_is_in_doubt_comes_once(
    tmp_path: Path, go: asyncio.Event, lost: int
) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "wait long")
        await stage.api.wait_for(lambda: stage.api.calls["sendMessage"] == 1)
        stage.api.lose(1, "sendMessage", times=lost)
        go.set()
        await wait_until(lambda: stage.api.calls["sendMessage"] == 1 + lost)
        await stage.crash()
        await stage.quiet()
        assert stage.texts() == [letter * 3000 for letter in "abc"]


async def test_a_successor_writes_the_answers_that_are_there_above_the_placeholders_of_later_questions(
    tmp_path: Path, go: asyncio.Event
) -> None:
    async with staged(tmp_path, ROLES, deliver=False) as stage:
        ada = stage.api.user(7)
        stage.api.down()
        await stage.say(ada, "first")
        await stage.api.wait_for(stage.process.outbox.waiting)
        await stage.say(ada, "wait")
        await stage.process.kill()
        stage.api.up()
        await stage.crash(deliver=False)
        await stage.process.progress.resume()
        stage.process.deliver()
        await stage.api.wait_for(lambda: stage.texts() == ["re: first", THINKING])
        go.set()
        await stage.quiet()
        assert stage.texts() == ["re: first", "re: wait"]


async def test_without_any_placeholder_the_answer_comes_all_the_same(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES, deliver=False) as stage:
        stage.api.down()
        await stage.say(stage.api.user(7), "hi")
        await wait_until(stage.process.outbox.waiting)
        await stage.process.kill()
        stage.api.up()
        await stage.crash()
        await stage.quiet()
        assert stage.texts() == ["re: hi"]


async def test_a_placeholder_that_comes_after_the_answer_goes_again(tmp_path: Path) -> None:
    """As when one process receives and another one delivers."""
    async with staged(tmp_path, ROLES) as stage:
        receiving = stage.process
        other = type(receiving)(stage.app, stage.bot, **stage.options)
        stage.api.delay(0.3, "sendMessage")
        other.holds = False
        stage.process = other
        received = await stage.say(stage.api.user(7), "hi")
        await stage.api.wait_for(lambda: "re: hi" in stage.texts())
        await wait_until(lambda: not other.progress.showing)
        await other.kill()
        stage.process = receiving
        await stage.quiet()
        await stage.api.wait_for(lambda: stage.texts() == ["re: hi"])
        assert received.turn == "1"


def _answers(stage: Stage, chat: int) -> int:
    return sum(text.startswith("re: ") for text in stage.texts(chat)) if chat in stage.api.world.chats else 0


@pytest.mark.parametrize("shards", [1, 4])
async def test_each_message_is_answered_once_and_in_order_through_losses_and_crashes(
    tmp_path: Path, shards: int
) -> None:
    people, turns, crashes = range(1, 9), 4, 4
    async with staged(tmp_path, ROLES, shards=shards) as stage:
        stage.api.lose(0.05)
        users = [stage.api.user(number) for number in people]

        async def chat(number: int) -> None:
            for turn in range(turns):
                await wait_until(lambda turn=turn: _answers(stage, number) >= turn - 1, seconds=20)
                await stage.say(users[number - 1], f"{number}.{turn}")

        talking = asyncio.gather(*(chat(number) for number in people))
        for _ in range(crashes):
            seen = len(stage.api.log)
            await wait_until(lambda seen=seen: len(stage.api.log) > seen + 20 or talking.done())
            await stage.crash()
        await talking
        await stage.quiet(seconds=40)
        orphans = 0
        for number in people:
            texts = stage.texts(number)
            answers = [text for text in texts if text.startswith("re: ")]
            assert sorted(answers) == [f"re: {number}.{turn}" for turn in range(turns)]
            finals = [
                look.at for m in stage.api.chat(number).answers for look in m.looks if look.text.startswith("re: ")
            ]
            ordered = [message for message in stage.api.chat(number).answers if message.text.startswith("re: ")]
            done = sorted(ordered, key=lambda message: next(o.at for o in message.looks if o.text.startswith("re: ")))
            assert [message.text for message in done] == sorted(answers)
            assert len(finals) == turns
            orphans += len(texts) - len(answers)
        assert orphans <= crashes  # the proof counts them over more turns


# ── what people and Telegram do ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gone", ["deleted", "old"])
async def test_a_placeholder_that_is_gone_or_too_old_is_replaced(tmp_path: Path, go: asyncio.Event, gone: str) -> None:
    async with staged(tmp_path, ROLES) as stage:
        await stage.say(stage.api.user(7), "wait")
        await stage.api.wait_for(lambda: stage.texts() == [THINKING])
        setattr(stage.api.chat(7).answers[0], gone, True)
        go.set()
        await stage.quiet()
        assert stage.texts()[-1] == "re: wait"
        assert len(stage.texts()) == (1 if gone == "deleted" else 2)
        assert (await Placeholders(stage.bus).of("telegram:7", "1"))["0"] == str(stage.api.chat(7).answers[-1].id)


@pytest.mark.parametrize("what", ["blocked", "deactivated"])
async def test_who_blocked_the_bot_is_left_alone_and_the_transcript_says_so(
    tmp_path: Path, go: asyncio.Event, what: str
) -> None:
    async with staged(tmp_path, ROLES) as stage:
        ada = stage.api.user(7)
        await stage.say(ada, "wait")
        await stage.api.wait_for(lambda: stage.texts() == [THINKING])
        setattr(ada, what, True)
        go.set()
        await stage.quiet()
        errors = [e["x"] for e in await log_records(stage.bus) if e["w"] == "ERROR"]
        assert len(errors) == 1
        assert errors[0].startswith("not delivered: Forbidden")
        assert len([call for call in stage.api.log if call.status == 403 and call.method != "sendChatAction"]) <= 2
        setattr(ada, what, False)
        await stage.say(ada, "hi")
        await stage.quiet()
        assert stage.texts()[-1] == "re: hi"


async def test_a_chat_that_has_to_wait_delays_no_other(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        users = [stage.api.user(number) for number in range(1, 8)]
        for user in users:
            await stage.say(user, "first")
        await stage.quiet()
        stage.api.flood(1, 600)
        began = len(stage.api.log)
        for turn in range(3):
            for user in users:
                await stage.say(user, f"again {turn}")
        await stage.api.wait_for(lambda: all("re: again 2" in stage.texts(user.id) for user in users[1:]))
        assert "re: again 0" not in stage.texts(1)
        stage.api.flood(1, 0)
        await stage.crash()  # a new process knows of no penalty
        await stage.quiet()
        assert stage.texts(1)[-3:] == [f"re: again {turn}" for turn in range(3)]
        refused = [call for call in stage.api.log[began:] if call.status == 429]
        assert len(refused) <= 3  # what was on its way when the first was refused


async def test_nothing_is_lost_while_telegram_is_away(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        stage.api.down()
        for number in (7, 8):
            await stage.say(stage.api.user(number), "hi")
        await wait_until(stage.process.outbox.waiting)
        stage.api.up()
        await stage.quiet()
        assert stage.texts(7) == stage.texts(8) == ["re: hi"]


async def test_what_cannot_be_delivered_stops_nothing_behind_it(tmp_path: Path) -> None:
    async with staged(tmp_path, ROLES) as stage:
        shard = stage.bus.shards[0]
        await stage.bus.server.call("XADD", shard.outbox("telegram"), "*", "nonsense", "1")
        await stage.bus.server.call("XADD", shard.outbox("telegram"), "*", "c", "nowhere", "t", "1", "e", "{}")
        await stage.say(stage.api.user(7), "hi")
        await stage.quiet()
        assert stage.texts() == ["re: hi"]
