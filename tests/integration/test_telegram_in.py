"""The way in: what users send becomes turns, once and in order, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from telegram import Update

from agents.voice import VoiceAgent
from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.bus import Bus
from rolecall.bus.wakeups import Wakeups
from rolecall.frontends.telegram import grouping
from rolecall.frontends.telegram.admitter import CUT_NOTE
from rolecall.frontends.telegram.updates import Poller
from rolecall.frontends.texts import say
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.deployment import Deployment, deployed
from tests.integration.test_telegram_groups import ANONYMOUS
from tests.telegram.api import TelegramApi
from tests.telegram.entities import found
from tests.telegram.way_in import WayIn, updates, way_in
from tests.unit.test_telegram_documents import pdf
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
ANN, GROUP = 7, -100
HERE = f"telegram:{ANN}"


def agents(gate: asyncio.Event) -> tuple[Role, ...]:
    class ManagerAgent(Agent):
        """Sends everything on, what is spoken through voice."""

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            spoken = any(one["type"].startswith("audio") for one in envelope.payload.get("files", ()))
            return envelope.via("voice", "answer") if spoken else envelope.via("answer")

    class AnswerAgent(Agent):
        """Says what it was asked, when the gate is open."""

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            await gate.wait()
            images = await ctx.images(envelope)
            return envelope.reply(f"{await ctx.question(envelope)}{'|image' * len(images)}")

    return Role(ManagerAgent), Role(VoiceAgent), Role(AnswerAgent, instances=4)


@asynccontextmanager
async def at_work(
    api: TelegramApi, directory: Path, gate: asyncio.Event, **settings: Any
) -> AsyncIterator[tuple[WayIn, Deployment]]:
    options = {
        "telegram_bot_token": api.token, "telegram_api_url": api.url, "telegram_allowed": f"{ANN},8",
        "heartbeat_seconds": 0.5,
    }  # fmt: skip
    async with (
        deployed(directory, agents(gate), **{**options, **settings}) as deployment,
        way_in(api, deployment.session.bus, deployment.runtime.wakeups) as way,
    ):
        yield way, deployment


@pytest.fixture
def gate() -> asyncio.Event:
    """Open from the start; a test may close it."""
    gate = asyncio.Event()
    gate.set()
    return gate


@pytest.fixture
async def way(api: TelegramApi, tmp_path: Path, gate: asyncio.Event) -> AsyncIterator[WayIn]:
    """A way in that polls."""
    async with at_work(api, tmp_path, gate, voice_model="echo@test") as (way, _), way.polling():
        yield way


def answers(api: TelegramApi, chat: int = ANN) -> list[str]:
    return [message.text for message in api.chat(chat).answers]


# Once, in order, side by side


async def test_every_message_is_a_turn_in_its_order_and_has_a_placeholder(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    for number in range(3):
        api.user(ANN).write(f"question {number}")
    api.user(8).write("mine")
    await api.wait_for(lambda: len(answers(api)) == 3 and len(answers(api, 8)) == 1)
    gate.set()
    assert [await way.answer(HERE, turn) for turn in (1, 2, 3)] == [f"question {number}" for number in range(3)]
    assert await way.answer("telegram:8", 1) == "mine"


async def test_the_offset_waits_for_what_is_being_received_and_others_do_not(api: TelegramApi, way: WayIn) -> None:
    api.delay(1.5, "getFile")
    api.user(ANN).send_photo(PNG, caption="first")
    api.user(ANN).write("second")
    api.user(8).write("quick")
    assert await way.answer("telegram:8", 1) == "quick"
    assert await way.turns(HERE) == 0
    assert len(api.world.updates.waiting) == 3
    api.user(8).write("quick again")
    assert await way.answer("telegram:8", 2) == "quick again"
    assert await way.turns(HERE) == 0
    assert await way.answer(HERE, 1) == "first|image"
    assert await way.answer(HERE, 2) == "second"
    await api.wait_for(lambda: not api.world.updates.waiting)


async def test_an_update_that_comes_again_after_a_crash_is_answered_once(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    async with at_work(api, tmp_path, gate) as (way, deployment):
        admitted = asyncio.Event()

        async def receive_and_freeze(update: Update) -> None:
            await way.receiver.receive(update)
            admitted.set()
            await asyncio.get_running_loop().create_future()

        gate.clear()
        api.user(ANN).write("hello")
        async with way.polling(Poller(way.bot, receive_and_freeze)):
            await admitted.wait()
        assert len(api.world.updates.waiting) == 1  # not confirmed: it comes again
        bus = Bus(deployment.session.server, deployment.session.application.settings, "host:9~cccccc")
        async with way_in(api, bus, deployment.runtime.wakeups) as other, other.polling():
            await api.wait_for(lambda: not api.world.updates.waiting)
            api.user(ANN).write("again")
            gate.set()
            assert await other.answer(HERE, 2) == "again"
            assert await other.answer(HERE, 1) == "hello"
            assert await other.turns(HERE) == 2
            await api.wait_for(lambda: len(answers(api)) == 2)


async def test_a_message_while_the_server_is_away_waits_and_nothing_is_confirmed(api: TelegramApi) -> None:
    with tempfile.TemporaryDirectory(prefix="rolecall") as directory:
        process = ValkeyProcess(Path(directory), durable=True)
        process.start()
        server = RedisServer(process.url, patience=0.2)
        settings = Settings.model_validate(
            {"telegram_bot_token": api.token, "telegram_api_url": api.url, "telegram_allowed": str(ANN)}
        )
        bus, wakeups = Bus(server, settings, "host:1~aaaaaa"), Wakeups(server.pubsub())
        try:
            async with way_in(api, bus, wakeups) as way, way.polling() as poller:
                await api.wait_for(lambda: api.polling)
                process.kill()
                api.user(ANN).write("hello")
                polled = api.calls["getUpdates"]
                await api.wait_for(lambda: api.calls["getUpdates"] > polled + 1)
                assert len(api.world.updates.waiting) == 1
                process.start()
                await api.wait_for(lambda: not api.world.updates.waiting)
                assert await way.turns(HERE) == 1
                assert poller.last > 0
        finally:
            await server.aclose()
            process.kill()


async def test_polling_goes_on_when_telegram_was_away_or_asked_to_wait(api: TelegramApi, way: WayIn) -> None:
    api.down()
    api.user(ANN).write("hello")
    api.up()
    assert await way.answer(HERE, 1) == "hello"


# While busy


async def test_messages_wait_join_or_interrupt_as_the_chat_prefers(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    ann, preferences = api.user(ANN), way.bus.shard(HERE).preferences(HERE)
    ann.write("one")
    ann.write("two")
    await wait_until(lambda: _turns(way, 2))
    await way.bus.server.call("HSET", preferences, "queue", "collect")
    ann.write("three")
    await wait_until(lambda: _taken(way, 3))
    assert await way.turns(HERE) == 2
    await way.bus.server.call("HSET", preferences, "queue", "interrupt")
    ann.write("four")
    await wait_until(lambda: _turns(way, 3))
    assert (await way.ended(HERE, 1))["kind"] == "cancelled"
    gate.set()
    assert [await way.answer(HERE, turn) for turn in (2, 3)] == ["two\nthree", "four"]


async def test_what_a_full_mailbox_has_no_place_for_joins_what_waits(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate, mailbox_limit=1) as (way, _), way.polling():
        for text in ("one", "two", "three", "four"):
            api.user(ANN).write(text)
        await wait_until(lambda: _taken(way, 4))
        gate.set()
        assert [await way.answer(HERE, turn) for turn in (1, 2)] == ["one", "two\nthree\nfour"]
        assert say("en", "full") not in answers(api)


async def test_a_message_that_nothing_can_take_is_refused_and_the_next_ones_in_silence(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate, user_limit=1) as (way, _), way.polling():
        for text in ("one", "two", "three"):
            api.user(ANN).write(text)
        await api.wait_for(lambda: say("en", "full") in answers(api) and not api.world.updates.waiting)
        gate.set()
        assert await way.answer(HERE, 1) == "one"
        assert answers(api).count(say("en", "full")) == 1
        assert await way.turns(HERE) == 1


async def test_too_many_messages_in_a_minute_are_refused_once_and_cost_nothing(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    async with at_work(api, tmp_path, gate, telegram_per_minute=2) as (way, _), way.polling():
        for number in range(5):
            api.user(ANN).write(f"question {number}")
        await api.wait_for(lambda: not api.world.updates.waiting)
        await api.wait_for(lambda: any("too fast" in text for text in answers(api)))
        assert await way.turns(HERE) == 2
        assert sum("too fast" in text for text in answers(api)) == 1


async def test_what_belongs_to_a_message_that_came_too_fast_is_not_answered_either(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    async with at_work(api, tmp_path, gate, telegram_per_minute=1) as (way, _), way.polling():
        ann = api.user(ANN)
        ann.write("one")
        await api.wait_for(lambda: not api.world.updates.waiting)
        for number, caption in enumerate(("which?", "", "")):
            ann.send_photo(PNG + bytes([number]), caption=caption, media_group_id="a3")
        for piece in ("a" * 4096, "and that is all"):
            ann.write(piece)
        api.user(8).write("behind them")
        assert await way.answer("telegram:8", 1) == "behind them"
        await api.wait_for(lambda: not api.world.updates.waiting)
        assert await way.turns(HERE) == 1
        assert sum("too fast" in text for text in answers(api)) == 1


async def test_an_edit_that_asks_again_counts_as_a_message(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    options = {"telegram_per_minute": 3, "while_busy": "interrupt"}
    async with at_work(api, tmp_path, gate, **options) as (way, _), way.polling():
        ann = api.user(ANN)
        message = ann.write("one")
        for number, text in enumerate(("two", "three", "four"), 1):
            await wait_until(lambda turn=str(number): is_running(way, turn))
            ann.edit(message, text)
        await api.wait_for(lambda: any("too fast" in text for text in answers(api)))
        gate.set()
        assert await way.answer(HERE, 3) == "three"
        assert await way.turns(HERE) == 3


# Pieces and edits


async def test_a_long_paste_and_an_album_are_one_turn_each(api: TelegramApi, way: WayIn) -> None:
    ann = api.user(ANN)
    paste = ["a" * 4096, "b" * 4096, "and that is all"]
    for piece in paste:
        ann.write(piece)
    assert await way.answer(HERE, 1) == "\n".join(paste)
    for number in range(3):
        ann.send_photo(PNG + bytes([number]), caption="which?" if number == 0 else "", media_group_id="a1")
    assert await way.answer(HERE, 2) == "which?|image|image|image"
    assert await way.turns(HERE) == 2


async def test_of_an_album_in_a_group_all_pictures_count_wherever_its_caption_stands(
    api: TelegramApi, way: WayIn
) -> None:
    api.group(GROUP)
    ann = api.user(ANN, name="Ann")
    for number, caption in enumerate(("", "look", "@rolecall_bot which?", "")):
        ann.send_photo(PNG + bytes([number]), caption=caption, media_group_id="a2", chat=GROUP)
    assert await way.answer(f"telegram:{GROUP}", 1) == "Ann: look\nAnn: which?|image|image|image|image"


async def test_a_caption_under_a_document_that_cannot_be_read_asks_about_the_others_of_the_album(
    api: TelegramApi, way: WayIn
) -> None:
    for number, (name, caption) in enumerate((("a.txt", ""), ("b.txt", ""), ("c.zip", "compare them"))):
        api.user(ANN).send_document(b"%d" % number, name=name, mime_type="x/y", caption=caption, media_group_id="a4")
    answer = await way.answer(HERE, 1)
    assert answer.endswith("compare them") and "a.txt" in answer and "b.txt" in answer
    assert say("en", "file_unknown", name="c.zip") in answers(api)
    assert await way.turns(HERE) == 1


async def test_the_model_is_told_of_a_file_that_cannot_be_read_also_where_it_is_the_first_of_its_album(
    api: TelegramApi, way: WayIn
) -> None:
    for number, name in enumerate(("c.zip", "a.txt")):
        api.user(ANN).send_document(b"%d" % number, name=name, mime_type="x/y", media_group_id="a5")
    answer = await way.answer(HERE, 1)
    assert "c.zip" in answer and "(this file could not be read)" in answer and "a.txt" in answer
    assert say("en", "file_unknown", name="c.zip") in answers(api)
    assert await way.turns(HERE) == 1


async def test_of_a_paste_that_is_too_long_model_and_user_know_that_the_end_is_missing(
    api: TelegramApi, way: WayIn
) -> None:
    pieces = [f"{number:02}" + "a" * 4094 for number in range(20)]
    for piece in (*pieces, "the end"):
        api.user(ANN).write(piece)
    got = (await way.answer(HERE, 1)).split("\n")
    assert got == [*pieces[: len(got) - 1], CUT_NOTE]
    assert 10 < len(got) < 20
    await api.wait_for(lambda: not api.world.updates.waiting and say("en", "message_cut") in answers(api))
    assert answers(api).count(say("en", "message_cut")) == 1
    assert await way.turns(HERE) == 1


async def test_a_comment_and_its_forwards_are_one_turn_and_keep_their_origins(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    news = {"type": "channel", "chat": {"id": -9, "type": "channel", "title": "News"}, "message_id": 1}
    bob = {"type": "user", "sender_user": {"id": 9, "is_bot": False, "first_name": "Bob"}}
    rain = "<forwarded from='News'>\nit rains\n</forwarded>"
    async with at_work(api, tmp_path, gate) as (_, deployment):
        wakeups = deployment.runtime.wakeups
        async with way_in(api, deployment.session.bus, wakeups, comment_seconds=0.2) as way, way.polling():
            ann = api.user(ANN)
            ann.write("is that true?")
            ann.forward(news, "it rains")
            assert await way.answer(HERE, 1) == f"is that true?\n{rain}"
            ann.write("and this?")
            await wait_until(lambda: _turns(way, 2))  # held, while nothing else has come
            api.delay(0.4, "getFile")
            note = {**api.world.keep(b"snow", "note.txt"), "file_name": "note.txt", "mime_type": "text/plain"}
            ann.forward(bob, document=note)
            ann.forward(news, "it rains")
            document = "<document name='note.txt' forwarded_from='Bob'>\nsnow\n</document>"
            assert await way.answer(HERE, 2) == f"{document}\n\nand this?\n{rain}"
            assert await way.turns(HERE) == 2


async def test_the_model_is_told_what_cannot_be_read_of_a_message_that_joins_another_and_whose_it_is(
    api: TelegramApi, way: WayIn
) -> None:
    way.receiver.groups.comment_seconds = 0.5
    ann, bob = api.user(ANN), {"type": "hidden_user", "sender_user_name": "Bob"}
    video = {"file_id": "v", "file_unique_id": "v", "width": 1, "height": 1, "duration": 1}
    ann.send_photo(PNG, caption="compare them", media_group_id="a6")
    ann.send_video(video, media_group_id="a6")
    unread = "<document name='{}'>\n(this file could not be read)\n</document>\n\n{}"
    assert await way.answer(HERE, 1) == unread.format("video", "compare them|image")
    ann.write("what does it say?")
    ann.forward(bob, document={**api.world.keep(b"PK", "c.zip"), "file_name": "c.zip", "mime_type": "application/zip"})
    assert await way.answer(HERE, 2) == unread.format("c.zip' forwarded_from='Bob", "what does it say?")
    assert await way.turns(HERE) == 2
    assert say("en", "file_unknown", name="c.zip") in answers(api)


@pytest.mark.parametrize("anonymous", [False, True])
async def test_a_pasted_text_is_read_whole_wherever_in_it_the_bot_is_named(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event, anonymous: bool
) -> None:
    group, ann = api.group(GROUP, title="Us"), api.user(ANN, name="Us")
    first, last = "a" * 4080, "b" * 4080
    async with at_work(api, tmp_path, gate, telegram_allowed=str(GROUP)) as (way, _), way.polling():
        for pieces in ((first, last, "@rolecall_bot sum it up"), (f"@rolecall_bot {first}", last, "the end")):
            for piece in pieces:
                if anonymous:
                    message = group.add(ANONYMOUS, piece, found(piece))
                    api.world.updates.push("message", message.as_json() | {"sender_chat": group.as_json()})
                else:
                    ann.write(piece, chat=GROUP)
            await api.wait_for(lambda: not api.world.updates.waiting)
        for turn, end in ((1, "sum it up"), (2, "the end")):
            whole = "\n".join(f"Us: {piece}" for piece in (first, last, end))
            assert await way.answer(f"telegram:{GROUP}", turn) == whole


async def test_a_command_of_a_role_is_asked_with_all_of_its_album_and_its_pasted_text(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    ann, long = api.user(ANN), "/weigh " + "a" * 4080
    for number in range(3):
        ann.send_photo(PNG + bytes([number]), caption="/weigh them" if number == 1 else "", media_group_id="a8")
    assert await way.answer(HERE, 1) == "/weigh them|image|image|image"
    ann.write(long)
    ann.write("the end")
    assert await way.answer(HERE, 2) == f"{long}\nthe end"
    gate.clear()
    await way.bus.server.call("HSET", way.bus.shard(HERE).preferences(HERE), "queue", "collect")
    for text in ("one", "two", long, "the end", "three", "four"):
        ann.write(text)
    await wait_until(lambda: _taken(way, 6))
    gate.set()
    answers = [await way.answer(HERE, turn) for turn in (3, 4, 5, 6)]
    assert answers == ["one", "two", f"{long}\nthe end", "three\nfour"]


async def test_a_turn_waits_for_all_of_its_files_however_slowly_they_come(
    api: TelegramApi, way: WayIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "ALBUM_SECONDS", 1.2)
    way.receiver.groups.comment_seconds = 0.3
    ann, bob = api.user(ANN), {"type": "hidden_user", "sender_user_name": "Bob"}
    api.delay(3, "getFile", when=lambda fields: fields["file_id"] != "file0")
    for name in ("a.txt", "b.txt"):
        ann.send_document(b"x", name=name, media_group_id="a5", caption="compare them" if name == "a.txt" else "")
    answer = await way.answer(HERE, 1)
    assert answer.endswith("compare them") and "a.txt" in answer and "b.txt" in answer
    ann.write("and this?")
    await wait_until(lambda: _turns(way, 2))
    note = {**api.world.keep(b"snow", "note.txt"), "file_name": "note.txt", "mime_type": "text/plain"}
    ann.forward(bob, document=note)
    assert "note.txt" in await way.answer(HERE, 2)
    assert await way.turns(HERE) == 2


async def test_a_quote_of_a_message_that_joins_another_is_kept(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    ann, bob = api.user(ANN), {"type": "hidden_user", "sender_user_name": "Bob"}
    await way.bus.server.call("HSET", way.bus.shard(HERE).preferences(HERE), "queue", "collect")
    first = ann.write("one")
    ann.write("two")
    ann.write("three", reply_to=first)
    ann.forward(bob, photo=[api.world.keep(PNG, "p.jpg") | {"width": 9, "height": 9}])
    await wait_until(lambda: _taken(way, 4))
    gate.set()
    joined = "two\n<quoted from='User 7'>\none\n</quoted>\n\nthree\n<forwarded from='Bob'>"
    assert (await way.answer(HERE, 2)).startswith(joined)
    assert (await way.answer(HERE, 2)).endswith("|image")


async def test_an_edit_of_what_waits_replaces_it_and_a_late_one_offers_an_answer(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    ann = api.user(ANN)
    running, waiting = ann.write("one"), ann.write("twoo")
    await wait_until(lambda: _turns(way, 2))
    ann.edit(waiting, "two")
    ann.edit(running, "ONE")
    await api.wait_for(lambda: any(message.buttons for message in _offers(api)))
    gate.set()
    assert [await way.answer(HERE, turn) for turn in (1, 2)] == ["one", "two"]
    (offer,) = _offers(api)
    ann.press(offer, offer.buttons[0]["callback_data"])
    assert await way.answer(HERE, 3) == "ONE"


async def test_an_edit_that_makes_a_turn_too_long_is_refused_for_that_reason(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    ann = api.user(ANN)
    ann.write("one")
    pieces = [ann.write(f"{number:02}" + "a" * 4094) for number in range(15)]
    await wait_until(lambda: _taken(way, 16))
    ann.edit(pieces[1], "я" * 4096)
    await api.wait_for(lambda: say("en", "message_large") in answers(api))
    gate.set()
    assert "\n01" in await way.answer(HERE, 2)


async def test_an_edit_of_what_runs_takes_its_place_where_that_is_wanted(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate, while_busy="interrupt") as (way, _), way.polling():
        message = api.user(ANN).write("one")
        await wait_until(lambda: _turns(way, 1))
        api.user(ANN).edit(message, "ONE")
        await wait_until(lambda: _turns(way, 2))
        gate.set()
        assert (await way.ended(HERE, 1))["kind"] == "cancelled"
        assert await way.answer(HERE, 2) == "ONE"
        assert not _offers(api)


# Files


async def test_documents_are_context_and_what_cannot_be_read_is_said(api: TelegramApi, way: WayIn) -> None:
    ann = api.user(ANN)
    ann.send_document(b"x = 1", name="a.py", mime_type="text/x-python", caption="sum it up")
    assert await way.answer(HERE, 1) == "<document name='a.py'>\nx = 1\n</document>\n\nsum it up"
    ann.send_document(pdf("Hello PDF"), name="b.pdf", mime_type="application/pdf")
    assert "Hello PDF" in await way.answer(HERE, 2)
    ann.send_document(b"PK\3\4", name="c.zip", mime_type="application/zip")
    ann.send_document(b"\0\1\2", name="d.txt", caption="and this?")
    ann.send_document(b"<html>not found</html>", name="e.png", mime_type="image/png", caption="what is it?")
    await api.wait_for(lambda: {text.partition(":")[0] for text in answers(api)} >= {"c.zip", "d.txt", "e.png"})
    ann.write("next")
    assert (await way.answer(HERE, 3)).endswith("\n\nnext"), "a caption is not answered without its file"
    assert await way.turns(HERE) == 3


async def test_a_document_is_known_to_later_questions_until_it_is_forgotten(api: TelegramApi, way: WayIn) -> None:
    ann = api.user(ANN)
    ann.send_document(b"x = 1", name="a.py", mime_type="text/x-python", caption="sum it up")
    assert await way.answer(HERE, 1) == "<document name='a.py'>\nx = 1\n</document>\n\nsum it up"
    ann.write("what is x?")
    assert await way.answer(HERE, 2) == "<document name='a.py' sent='earlier'>\nx = 1\n</document>\n\nwhat is x?"
    ann.send_document(b"x = 2", name="b.py")
    asked = await way.answer(HERE, 3)
    assert asked.index("a.py") < asked.index("b.py")
    ann.write("/clear")
    await api.wait_for(lambda: any("Cleared" in text for text in answers(api)))
    ann.write("what is x?")
    assert await way.answer(HERE, 4) == "what is x?"


async def test_a_file_over_the_limit_is_refused_before_it_is_fetched(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    async with at_work(api, tmp_path, gate, blob_megabytes=1) as (way, _), way.polling():
        api.user(ANN).send_photo(PNG + bytes(1_100_000))
        await api.wait_for(lambda: any("too large" in text for text in answers(api)))
        assert not api.calls["getFile"]
        assert await way.turns(HERE) == 0


async def test_a_file_that_telegram_does_not_give_at_once_is_asked_for_again(api: TelegramApi, way: WayIn) -> None:
    api.lose(1, "getFile", times=2)
    api.user(ANN).send_photo(PNG, caption="look")
    assert await way.answer(HERE, 1) == "look|image"


async def test_voice_is_heard_by_the_configured_model(api: TelegramApi, way: WayIn) -> None:
    api.user(ANN).send_voice(b"what is said")
    assert await way.answer(HERE, 1) == "what is said"


async def test_each_recording_is_told_as_the_words_of_who_spoke(api: TelegramApi, way: WayIn) -> None:
    way.receiver.groups.comment_seconds = 0.5
    group, ann, ben = api.group(GROUP), api.user(ANN, name="Ann"), api.user(8, name="Ben")
    for name, words in (("Bob", b"OggS one"), ("Cy", b"OggS two")):
        origin = {"type": "hidden_user", "sender_user_name": name}
        ann.forward(origin, voice={**api.world.keep(words, "v.oga"), "duration": 1, "mime_type": "audio/ogg"})
    said = "<{} from='{}'>\nOggS {}\n</{}>"
    forwards = [said.format("forwarded", name, words, "forwarded") for name, words in (("Bob", "one"), ("Cy", "two"))]
    assert await way.answer(HERE, 1) == "\n".join(forwards)
    there = ben.send_voice(b"OggS at nine", chat=GROUP)
    ann.write("@rolecall_bot when?", chat=GROUP, reply_to=there)
    quoted = said.format("quoted", "Ben", "at nine", "quoted")
    assert await way.answer(f"telegram:{GROUP}", 1) == f"Ann: when?\n{quoted}"
    await api.wait_for(lambda: group.answers)
    ann.send_voice(b"OggS thanks", chat=GROUP, reply_to=group.answers[-1])
    assert (await way.answer(f"telegram:{GROUP}", 2)).endswith("Ann: OggS thanks")


async def test_without_a_model_that_hears_voice_is_refused_at_once(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    async with at_work(api, tmp_path, gate) as (way, _), way.polling():
        api.user(ANN).send_voice(b"what is said")
        await api.wait_for(lambda: any("can't listen" in text for text in answers(api)))
        assert await way.turns(HERE) == 0 == api.calls["getFile"]


# Groups, strangers, commands


async def test_in_a_group_each_topic_is_a_conversation_and_only_what_is_meant_costs_anything(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    api.group(GROUP, topics={5: "Cooking"})
    ann = api.user(ANN, name="Ann")
    ann.write("nice weather", chat=GROUP, topic=5)
    ann.write("@rolecall_bot what shall we eat?", chat=GROUP, topic=5)
    await api.wait_for(lambda: answers(api, GROUP))
    gate.set()
    assert await way.answer(f"telegram:{GROUP}:5", 1) == "Ann: what shall we eat?"
    (placeholder,) = api.chat(GROUP).answers
    assert placeholder.thread == 5 and placeholder.reply_to is not None
    assert await way.turns(f"telegram:{GROUP}:5") == 1


async def test_a_reply_brings_what_it_replies_to(api: TelegramApi, way: WayIn) -> None:
    api.group(GROUP)
    said = api.user(9, name="Bob").write("the moon is cheese", chat=GROUP)
    api.user(ANN, name="Ann").write("@rolecall_bot true?", chat=GROUP, reply_to=said)
    expected = "<quoted from='Bob'>\nthe moon is cheese\n</quoted>\n\nAnn: true?"
    assert await way.answer(f"telegram:{GROUP}", 1) == expected


async def test_a_stranger_is_answered_once_and_costs_no_envelope(api: TelegramApi, way: WayIn) -> None:
    stranger = api.user(99)
    for text in ("hello", "anyone?"):
        stranger.write(text)
    stranger.send_photo(PNG)
    stranger.write("/stop")
    await api.wait_for(lambda: not api.world.updates.waiting)
    await api.wait_for(lambda: len(answers(api, 99)) == 1)
    assert "99" in answers(api, 99)[0]
    shard = way.bus.shard("telegram:99")
    assert not await way.bus.server.fetch("EXISTS", shard.conversation("telegram:99"), shard.journal("telegram:99"))
    assert not api.calls["getFile"]


async def test_what_comes_with_an_invitation_is_answered_with_the_rights_it_gives(api: TelegramApi, way: WayIn) -> None:
    code, admin = [await way.receiver.access.invite(rank) for rank in ("user", "admin")]
    api.user(99).write(f"/start {code}")
    api.user(99).write("hello")
    api.user(98).write(f"/start {code}")
    api.user(98).send_photo(PNG, caption="what is that?")
    api.user(ANN).write(f"/start {admin}")
    api.user(ANN).write("/invite")
    assert await way.answer("telegram:99", 1) == "hello"
    await api.wait_for(lambda: any("private" in text for text in answers(api, 98)))
    await api.wait_for(lambda: any("?start=" in text for text in answers(api)))
    assert await way.turns("telegram:98") == 0


async def test_stop_ends_what_came_before_it_and_when_it_comes_again_nothing_else(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate) as (way, _):
        ann = api.user(ANN, language_code="de")
        for text in ("one", "two", "/stop", "three"):
            ann.write(text)
        came = updates(api, way.bot)
        for _ in range(2):
            for update in came:
                await way.receiver.receive(update)
        gate.set()
        assert [(await way.ended(HERE, turn))["kind"] for turn in (1, 2, 3)] == ["cancelled", "cancelled", "final"]
        assert await way.turns(HERE) == 3
        await api.wait_for(lambda: say("de", "stopped") in answers(api))


async def test_a_command_of_the_control_lane_passes_what_runs(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    gate.clear()
    api.user(ANN).write("one")
    await wait_until(lambda: _turns(way, 1))
    api.user(ANN).write("/help")
    await api.wait_for(lambda: any("/stop" in text for text in answers(api)))
    gate.set()
    assert await way.answer(HERE, 1) == "one"


def _offers(api: TelegramApi) -> list[Any]:
    return [m for m in api.chat(ANN).answers if any(b["callback_data"].startswith("edit:") for b in m.buttons)]


async def _turns(way: WayIn, number: int) -> bool:
    return await way.turns(HERE) == number


async def is_running(way: WayIn, turn: str) -> bool:
    """Whether this turn of Ann's runs, no longer held."""
    current, at = await way.bus.server.fetch("HMGET", way.bus.shard(HERE).conversation(HERE), "cur", "at")
    return current == turn.encode() and not at.startswith(b"z")


async def _taken(way: WayIn, number: int) -> bool:
    """Whether so many messages were taken in, parts of turns included."""
    return len(await way.bus.server.call("KEYS", "*:k:*tg:4242:*")) == number
