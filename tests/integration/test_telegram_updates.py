"""Whatever one update does, those behind it are answered: poison is set aside, edits without a change do nothing."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.agent.memory import Memory
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.wakeups import Wakeups
from rolecall.frontends.texts import say
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.integration.test_telegram_control import ADA, BEN, CY, data_of, staged
from tests.integration.test_telegram_control import GROUP as SHARED
from tests.integration.test_telegram_in import ANN, GROUP, HERE, PNG, answers, at_work, is_running
from tests.telegram.api import Message, TelegramApi
from tests.telegram.fuzz import Fuzz
from tests.telegram.way_in import WayIn, way_in
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

UPDATES = int(os.environ.get("ROLECALL_FUZZ_UPDATES", 1000))
"""``make proof`` sets it to 100,000."""
SEED = int(os.environ.get("ROLECALL_FUZZ_SEED", 1))
SIDE_BY_SIDE = 100


@pytest.fixture
def gate() -> asyncio.Event:
    """Open from the start; a test may close it."""
    gate = asyncio.Event()
    gate.set()
    return gate


@pytest.fixture
async def way(api: TelegramApi, tmp_path: Path, gate: asyncio.Event) -> AsyncIterator[WayIn]:
    """A way in that polls."""
    async with at_work(api, tmp_path, gate, telegram_allowed=f"{ANN},8,{GROUP}") as (way, _), way.polling():
        yield way


def push_edit(api: TelegramApi, message: Message, **changes: Any) -> None:
    """Telegram says that ``message`` was edited."""
    body = message.as_json()
    api.world.updates.push("edited_message", {**body, "edit_date": body["date"] + 1, **changes})


async def quiet(api: TelegramApi, way: WayIn) -> None:
    """All that came is taken in, and one more message after it was answered."""
    await api.wait_for(lambda: not api.world.updates.waiting)
    marker = api.user(8).write("are you there?")
    await wait_until(lambda: any(one.id > marker.id for one in api.chat(8).answers), what="the marker's placeholder")


# The boundary


async def test_a_sender_without_a_name_is_answered_and_so_are_all_behind_it(api: TelegramApi, way: WayIn) -> None:
    api.group(GROUP)
    nameless = api.user(9)
    nameless.name = ""
    said = nameless.write("the moon is cheese", chat=GROUP)
    api.user(ANN, name="Ann").write("@rolecall_bot true?", chat=GROUP, reply_to=said)
    nameless.write("@rolecall_bot and me?", chat=GROUP)
    for number in range(105):
        api.user(8).write(f"behind it {number}")
    quoted = "<quoted from='?'>\nthe moon is cheese\n</quoted>\n\nAnn: true?"
    assert await way.answer(f"telegram:{GROUP}", 1) == quoted
    assert await way.answer(f"telegram:{GROUP}", 2) == "?: and me?"
    await api.wait_for(lambda: not api.world.updates.waiting)
    assert way.receiver.set_aside == 0


async def test_a_poison_update_is_set_aside_its_user_is_told_and_those_behind_it_are_answered(
    api: TelegramApi, way: WayIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def explode(*args: object) -> None:
        raise ExceptionGroup("files", [ValueError("poison")])

    monkeypatch.setattr(way.receiver.admitter.media, "fetch", explode)
    api.user(ANN, language_code="de").send_document(b"x", caption="poison")
    api.user(ANN).write("behind it")
    api.world.updates.push("message", {"message_id": "x", "chat": 7})
    assert await way.answer(HERE, 1) == "behind it"
    await api.wait_for(lambda: say("de", "not_received") in answers(api))
    await api.wait_for(lambda: not api.world.updates.waiting)
    assert way.receiver.set_aside == 2
    letters = await dead_letters(way.bus)
    assert [(one.kind, one.source) for one in letters] == [("update", "telegram")] * 2
    assert any("poison" in one.reason and "caption" in one.envelope for one in letters)
    assert any("message cannot be read" in one.reason for one in letters)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("telegram: update ") for line in lines) == 4


async def test_a_document_waits_for_a_server_that_is_away_as_a_text_does(api: TelegramApi) -> None:
    with tempfile.TemporaryDirectory(prefix="rolecall") as directory:
        process = ValkeyProcess(Path(directory), durable=True)
        process.start()
        server = RedisServer(process.url, patience=0.2)
        settings = Settings.model_validate(
            {"telegram_bot_token": api.token, "telegram_api_url": api.url, "telegram_allowed": str(ANN)}
        )
        bus, wakeups = Bus(server, settings, "host:1~aaaaaa"), Wakeups(server.pubsub())
        try:
            async with way_in(api, bus, wakeups) as way, way.polling():
                await api.wait_for(lambda: api.polling)
                api.user(ANN).write("first")
                await api.wait_for(lambda: not api.world.updates.waiting)
                api.delay(2, "getFile")
                api.user(ANN).send_document(b"x = 1", name="a.py", caption="read it")
                await api.wait_for(lambda: api.begun["getFile"])
                process.kill()
                polled = api.calls["getUpdates"]
                await api.wait_for(lambda: api.calls["getUpdates"] > polled + 3)
                process.start()
                await api.wait_for(lambda: not api.world.updates.waiting)
                assert await way.turns(HERE) == 2
                assert say("en", "not_received") not in answers(api)
        finally:
            await server.aclose()
            process.kill()


@pytest.mark.timeout(7200 if UPDATES > 10_000 else 120)
@pytest.mark.filterwarnings("ignore::telegram.warnings.PTBDeprecationWarning")
async def test_no_legal_update_ends_the_loop_or_blocks_those_behind_it(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    options = {"telegram_allowed": f"{ANN},8,{GROUP}", "telegram_per_minute": 100_000, "voice_model": "echo@test"}
    fuzz, markers = Fuzz(SEED, (ANN,), (GROUP,)), 0
    api.group(GROUP, topics={5: "Cooking"})
    async with at_work(api, tmp_path, gate, **options) as (way, _):
        for _ in range(UPDATES // SIDE_BY_SIDE):
            raws = [fuzz.update() for _ in range(SIDE_BY_SIDE)]
            api.user(8).write(f"marker {markers}")
            markers += 1
            raws += [{"update_id": n, kind: body} for n, kind, body in api.world.updates.waiting]
            api.world.updates.waiting.clear()
            async with asyncio.timeout(60):
                await asyncio.gather(*(way.receiver.receive(way.bot.read(raw)) for raw in raws))
            assert await way.answer("telegram:8", markers) == f"marker {markers - 1}"
        assert (way.receiver.set_aside, way.bot.unreadable) == (0, 0)


# Edits


@pytest.mark.parametrize("mode", ["queue", "collect", "interrupt"])
async def test_an_edit_that_changes_nothing_does_nothing_while_it_runs_and_afterwards(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event, mode: str
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate, while_busy=mode) as (way, _), way.polling():
        message = api.user(ANN).write("one")
        photo = api.user(ANN).send_photo(b"\x89PNG\r\n\x1a\n", caption="two")
        await wait_until(lambda: way.turns(HERE))
        push_edit(api, message)
        await quiet(api, way)
        gate.set()
        turns = await way.turns(HERE)
        assert (await way.ended(HERE, turns))["kind"] == "final"
        push_edit(api, message)
        push_edit(api, photo)
        await quiet(api, way)
        assert await way.turns(HERE) == turns
        assert say("en", "edited") not in answers(api)


async def test_an_edit_that_changes_nothing_comes_while_its_file_is_fetched(api: TelegramApi, way: WayIn) -> None:
    api.delay(0.2, "getFile")
    push_edit(api, api.user(ANN).send_photo(PNG, caption="what is it?"))
    assert await way.answer(HERE, 1) == "what is it?|image"
    await quiet(api, way)
    assert say("en", "edited") not in answers(api)


async def test_an_edit_of_a_command_is_a_new_one_only_if_it_changed(api: TelegramApi, way: WayIn) -> None:
    helped = api.user(ANN).write("/whoami")
    await api.wait_for(lambda: len(answers(api)) == 1)
    push_edit(api, helped)
    await quiet(api, way)
    assert len(answers(api)) == 1
    push_edit(api, helped, text="/help", entities=[{"type": "bot_command", "offset": 0, "length": 5}])
    await api.wait_for(lambda: len(answers(api)) == 2)


@pytest.mark.parametrize(("command", "said"), [("/stop", "stopped"), ("/clear", "forgotten")])
async def test_a_waiting_message_that_is_edited_into_a_command_does_what_the_command_says(
    tmp_path: Path, command: str, said: str
) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        await stage.answered(ada, "one")
        ada.write("long question")
        running = await stage.until(ADA, "half an answer")
        waiting = ada.write("two")
        await stage.until(ADA, "Queued: number 1")
        ada.edit(waiting, command)
        await stage.until(ADA, say("en", said))
        await stage.api.wait_for(lambda: "Stopped." in running.text)
        if said == "forgotten":
            assert (await stage.answered(ada, "three")).text == "three by any after []"


@pytest.mark.parametrize("changed", ["/whoami", "/stats", "/model", "/lang de", "never mind"])
async def test_a_waiting_message_that_is_edited_into_no_question_is_not_answered(tmp_path: Path, changed: str) -> None:
    async with staged(tmp_path) as stage:
        group, ben = stage.api.group(SHARED), stage.api.user(BEN, name="Ben")
        ben.write("@rolecall_bot long question", chat=SHARED)
        running = await stage.until(group, "half an answer")
        waiting = ben.write("@rolecall_bot second", chat=SHARED)
        queued = await stage.until(group, "Queued: number 1")
        ben.edit(waiting, changed)
        await stage.api.wait_for(lambda: "Stopped." in queued.text)
        assert running.text == "half an answer"
        ben.edit(waiting, "@rolecall_bot second")
        await stage.until(group, say("en", "edited"))


@pytest.mark.parametrize("mode", ["queue", "collect"])
async def test_an_album_whose_caption_no_longer_names_the_bot_asks_nothing(tmp_path: Path, mode: str) -> None:
    async with staged(tmp_path, while_busy=mode) as stage:
        group, ben = stage.api.group(SHARED), stage.api.user(BEN, name="Ben")
        ben.write("@rolecall_bot long question", chat=SHARED)
        running = await stage.until(group, "half an answer")
        if mode == "collect":
            ben.write("@rolecall_bot second", chat=SHARED)
        photos = [
            ben.send_photo(PNG, caption=caption, media_group_id="a1", chat=SHARED)
            for caption in ("", "@rolecall_bot which?", "")
        ]
        await stage.received()
        ben.edit(photos[1], "@other_bot which?")
        await stage.received()
        await stage.toast(ben, running, data_of(running, "⏹ Stop"))
        if mode == "collect":
            past = ["Ben: long question", "half an answer"]
            await stage.until(group, f"Ben: second by any after {past}")
        else:
            await stage.api.wait_for(lambda: [one.text for one in group.answers[1:]] == ["Stopped."])


async def test_a_collected_message_that_is_edited_into_a_command_leaves_the_others(tmp_path: Path) -> None:
    async with staged(tmp_path, while_busy="collect") as stage:
        ada = stage.api.user(ADA)
        ada.write("long question")
        running = await stage.until(ADA, "half an answer")
        two, three, _ = [ada.write(text) for text in ("two", "three", "four")]
        await stage.received()
        ada.edit(two, "/whoami")
        ada.edit(three, "/weather here")
        ada.edit(three, "/weather there")
        await stage.received()
        await stage.toast(ada, running, data_of(running, "⏹ Stop"))
        past = ["long question", "half an answer"]
        answers = [await stage.until(ADA, text) for text in (f"four by any after {past}", "command /weather there")]
        assert [one.id for one in answers] == sorted(one.id for one in answers)
        assert not any("here" in one.text.split() for one in stage.api.chat(ADA).answers)


async def test_a_waiting_command_of_a_role_is_edited_with_all_that_joined_it(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate, while_busy="collect") as (way, _), way.polling():
        ann = api.user(ANN)
        ann.write("one")
        await wait_until(lambda: is_running(way, "1"))
        pictures = [ann.send_photo(PNG, caption=text, media_group_id="album") for text in ("/weather here", "")]
        await wait_until(lambda: not api.world.updates.waiting)
        ann.edit(pictures[0], "/weather there")
        await wait_until(lambda: not api.world.updates.waiting)
        ann.write("three")
        gate.set()
        assert await way.answer(HERE, 2) == "/weather there|image|image"
        assert await way.answer(HERE, 3) == "three"


async def test_an_agent_asks_about_a_message_that_was_edited_while_it_waited(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        ada.write("long question")
        running = await stage.until(ADA, "half an answer")
        waiting = ada.write("ask you")
        await stage.until(ADA, "Queued: number 1")
        ada.edit(waiting, "ask me")
        await stage.received()
        await stage.toast(ada, running, data_of(running, "⏹ Stop"))
        assert [one["text"] for one in (await stage.until(ADA, "Which colour?")).buttons] == ["red", "green"]


async def test_a_second_edit_concerns_the_turn_of_the_first(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        await stage.answered(ada, "one")
        question = stage.api.chat(ADA).messages[0]
        ada.edit(question, "long")
        offer = await stage.until(ADA, say("en", "edited"))
        await stage.toast(ada, offer, data_of(offer, "🔄 Answer again"))
        running = await stage.until(ADA, "half an answer")
        ada.edit(question, "short")
        offer = await stage.until(ADA, say("en", "edited"))
        await stage.toast(ada, offer, data_of(offer, "🔄 Answer again"))
        await stage.until(ADA, "short by any after []")
        await stage.api.wait_for(lambda: say("en", "replaced") in running.text)


async def test_each_edit_interrupts_and_keeps_what_came_with_the_message(
    api: TelegramApi, tmp_path: Path, gate: asyncio.Event
) -> None:
    gate.clear()
    async with at_work(api, tmp_path, gate, while_busy="interrupt") as (way, _), way.polling():
        ann = api.user(ANN)
        message = ann.write("one")
        await wait_until(lambda: way.turns(HERE))
        for turn, text in enumerate(("two", "three"), 1):
            ann.edit(message, text)
            assert (await way.ended(HERE, turn))["kind"] == "cancelled"
        pictures = [ann.send_photo(PNG, caption=text, media_group_id="album") for text in ("four", "")]
        await wait_until(lambda: is_running(way, "4"))
        ann.edit(pictures[0], "five")
        await wait_until(lambda: is_running(way, "5"))
        gate.set()
        assert await way.answer(HERE, 5) == "five|image|image"
        past = [(one.turn, one.role) for one in await Memory(way.bus, HERE).entries()]
        assert past == [("3", "user"), ("5", "user"), ("5", "assistant")]
        assert say("en", "edited") not in answers(api)


async def test_a_broadcast_that_is_edited_is_sent_as_the_bot_says(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        await stage.answered(stage.api.user(BEN), "hello")
        await stage.answered(ada, "/broadcast We are bak.")
        message = stage.api.chat(ADA).messages[0]
        ada.edit(message, "/broadcast We are back.")
        await stage.until(BEN, "We are bak.")
        await stage.until(BEN, "We are back.")


async def test_an_offer_to_answer_an_edited_message_is_used_once_and_cancels_nothing_for_others(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group, ben, cy = stage.api.group(SHARED), stage.api.user(BEN, name="Ben"), stage.api.user(CY)
        question = ben.write("@rolecall_bot long question", chat=SHARED)
        running = await stage.until(group, "half an answer")
        ben.edit(question, "@rolecall_bot short")
        offer = await stage.until(group, say("en", "edited"))
        again = data_of(offer, "🔄 Answer again")
        assert await stage.toast(cy, offer, again) == say("en", "not_yours")
        assert (running.text, offer.deleted) == ("half an answer", False)
        for press in [ben.press(offer, again), ben.press(offer, again)]:
            assert await stage.popped(press) == say("en", "again")
        await stage.until(group, "Ben: short by any after []")
        assert (await stage.answered(ben, "@rolecall_bot next", chat=SHARED)).text.startswith("Ben: next by")
        assert sum(one.text.startswith("Ben: short by") for one in group.answers) == 1


async def test_a_location_is_answered_once_however_often_it_moves(api: TelegramApi, way: WayIn) -> None:
    ann = api.user(ANN)
    message = ann._send("", None, None, None, {"location": {"latitude": 48.1, "longitude": 11.5, "live_period": 60}})
    assert await way.answer(HERE, 1) == "📍 48.1, 11.5"
    for step in range(4):
        push_edit(api, message, location={"latitude": 48.1, "longitude": 11.6 + step, "live_period": 60})
    await quiet(api, way)
    assert await way.turns(HERE) == 1


async def test_a_question_has_one_open_offer_which_answers_its_newest_words(
    api: TelegramApi, way: WayIn, gate: asyncio.Event
) -> None:
    message = api.user(ANN).write("one")
    assert await way.answer(HERE, 1) == "one"
    for text in ("two", "three"):
        api.user(ANN).edit(message, text)
    await quiet(api, way)
    offers = [one for one in api.chat(ANN).answers if one.text == say("en", "edited")]
    assert [one.reply_to for one in offers] == [message]
    api.user(ANN).press(offers[0], offers[0].buttons[0]["callback_data"])
    assert await way.answer(HERE, 2) == "three"
    api.user(ANN).edit(message, "four")
    await api.wait_for(lambda: say("en", "edited") in answers(api))
