"""Each chat has its order and pace, its penalties are its own, and only what nobody knows of is swept away."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import pytest
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from rolecall.bus.bus import Bus
from rolecall.bus.chat_messages import Placeholders
from rolecall.frontends.telegram.bot import open_bot
from rolecall.frontends.telegram.chats import Chats, OutgoingFile, Unreachable
from rolecall.frontends.telegram.markdown.entities import Entity, TextPart
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.placeholders import ORPHANS, OrphanRange, Orphans, TurnMessages
from rolecall.settings import Settings
from tests.telegram.api import TelegramApi
from tests.telegram.chats import BOT
from tests.waiting import wait_until

GAP = 0.05
ADA, BOB = Address(7), Address(8)
LARGE_GROUP = -1_001_234_567_890


@pytest.fixture
async def api() -> AsyncIterator[TelegramApi]:
    async with TelegramApi() as api:
        for number in (7, 8):
            api.user(number).write("hello")
        yield api


@pytest.fixture
async def chats(api: TelegramApi) -> AsyncIterator[Chats]:
    bot = open_bot(Settings.model_validate({"telegram_bot_token": api.token, "telegram_api_url": api.url}))
    await bot.initialize()
    chats = Chats(bot, edit_seconds=GAP)
    yield chats
    await bot.shutdown()


async def sent(chats: Chats, address: Address = ADA, text: str = "…") -> int:
    message_id = await chats.send(address, TextPart(text))
    assert isinstance(message_id, int), message_id
    return message_id


def edits(api: TelegramApi, chat: int) -> list[float]:
    return [call.at for call in api.log if call.method == "editMessageText" and call.chat == chat]


# ── order and pace ──────────────────────────────────────────────────────────────────────────────


async def test_edits_of_a_chat_keep_their_distance_whatever_they_edit(api: TelegramApi, chats: Chats) -> None:
    first, second = await sent(chats), await sent(chats)
    texts = [(first, "a"), (second, "b"), (first, "c"), (second, "d")]
    assert await asyncio.gather(*(chats.edit(ADA, number, TextPart(text)) for number, text in texts)) == ["OK"] * 4
    assert all(b - a >= GAP for a, b in itertools.pairwise(edits(api, 7)))
    assert [message.text for message in api.chat(7).answers] == ["c", "d"]


async def test_a_chat_does_not_wait_for_another(api: TelegramApi, chats: Chats) -> None:
    mine, his = await sent(chats), await sent(chats, BOB)
    api.flood(7, 1)
    waiting = asyncio.create_task(chats.edit(ADA, mine, TextPart("late")))
    await wait_until(lambda: chats.stalled(ADA) > GAP)
    assert await chats.edit(BOB, his, TextPart("soon")) == "OK"
    assert not waiting.done()
    before = len([call for call in api.log if call.chat == 7])
    await chats.typing(ADA)
    assert await chats.edit(ADA, mine, TextPart("partial"), partial=True, wanted=lambda: False) == "DROPPED"
    assert await waiting == "OK"
    assert len([call for call in api.log if call.chat == 7]) == before + 1  # nothing was sent while it was known


async def test_a_partial_text_is_tried_once_and_a_whole_one_until_it_is_there(api: TelegramApi, chats: Chats) -> None:
    message = await sent(chats)
    api.lose(1, "editMessageText", times=1)
    assert await chats.edit(ADA, message, TextPart("part"), partial=True) == "DROPPED"
    api.lose(1, "editMessageText", times=2)
    assert await chats.edit(ADA, message, TextPart("whole")) == "OK"
    assert [look.text for look in api.chat(7).answers[0].looks] == ["…", "part", "whole"]


async def test_what_is_not_wanted_any_more_is_not_sent(api: TelegramApi, chats: Chats) -> None:
    message, wanted = await sent(chats), [True]
    await chats.edit(ADA, message, TextPart("one"))
    late = asyncio.create_task(chats.edit(ADA, message, TextPart("two"), wanted=lambda: wanted[0]))
    wanted.clear()
    wanted.append(False)
    assert await late == "DROPPED"
    assert api.chat(7).answers[0].text == "one"


async def test_a_group_sees_partial_texts_less_often(api: TelegramApi, chats: Chats) -> None:
    api.group(-100)
    for address in (ADA, Address(-100)):
        await chats.edit(address, await sent(chats, address), TextPart("x"), partial=True)
    assert chats.stalled(Address(-100)) > GAP >= chats.stalled(ADA)


# ── what becomes of it ──────────────────────────────────────────────────────────────────────────


async def test_each_end_of_an_edit_has_its_word(api: TelegramApi, chats: Chats) -> None:
    keyboard = InlineKeyboardMarkup([[InlineKeyboardButton("x", callback_data="x")]])
    message = await sent(chats)
    assert await chats.edit(ADA, message, TextPart("a"), keyboard) == "OK"
    assert await chats.edit(ADA, message, TextPart("a"), keyboard) == "OK"  # not modified
    assert await chats.edit(ADA, 999, TextPart("a")) == "GONE"
    assert await chats.edit(ADA, 1, TextPart("a")) == "TOO_OLD"  # somebody else's
    assert await chats.edit_file(ADA, message, OutgoingFile(b"text", "text/plain", "a.txt")) == "OK"
    assert await chats.edit(ADA, message, TextPart("a")) == "TOO_OLD"  # no text in it any more
    api.user(7).block()
    assert await chats.edit(ADA, message, TextPart("a")) == "BLOCKED"
    assert isinstance(await chats.send(ADA, TextPart("a")), Unreachable)
    assert "blocked" in chats.reason(ADA)
    assert isinstance(await chats.send(Address(12345), TextPart("a")), Unreachable)
    assert await chats.delete(BOB, 999) is False


async def test_entities_that_telegram_refuses_are_left_out(api: TelegramApi, chats: Chats) -> None:
    bad = TextPart("text", (Entity("bold", 2, 40),))
    message = await chats.send(ADA, bad)
    assert isinstance(message, int)
    assert await chats.edit(ADA, message, TextPart("other", (Entity("bold", 2, 40),))) == "OK"
    assert [look.text for look in api.chat(7).answers[0].looks] == ["text", "other"]


async def test_the_general_topic_is_named_for_typing_alone(api: TelegramApi, chats: Chats) -> None:
    api.group(-100, topics={5: "Five"})
    general, five = Address(-100, 1), Address(-100, 5)
    for address in (general, five):
        await sent(chats, address)
        await chats.typing(address)
    assert [message.thread for message in api.chat(-100).answers] == [None, 5]
    assert [topic for _, _, topic in api.chat(-100).actions] == [1, 5]
    assert isinstance(await chats.send(Address(-100, 9), TextPart("x")), Unreachable)


# ── duplicate messages ───────────────────────────────────────────────────────────────────────────


async def test_a_search_deletes_duplicates_that_no_record_knows(api: TelegramApi, chats: Chats, bus: Bus) -> None:
    ours = [await sent(chats, text=str(number)) for number in range(5)]
    api.user(7).write("in between")
    placeholders = Placeholders(bus)
    await placeholders.record(ADA.conversation, "1", str(ours[1]))
    process = Orphans(Chats(chats.bot, edit_seconds=GAP), placeholders)
    api.down()
    await process.add(ADA, "2", "0", OrphanRange(ours[0], ours[2], ours[4] + 2))
    await process.aclose()
    api.up()

    successor = Orphans(Chats(chats.bot, edit_seconds=GAP), placeholders)
    for _ in range(2):
        await successor.resume("telegram", lambda conversation: True)
        await successor.drain()
        assert api.chat(7).texts == ["hello", "0", "1", "in between"]
    assert not await placeholders.of("telegram:0", ORPHANS)


async def test_a_search_spares_messages_recorded_in_another_topic(api: TelegramApi, chats: Chats, bus: Bus) -> None:
    api.group(LARGE_GROUP, topics={5: "Five", 6: "Six"})
    turn_messages = TurnMessages(chats, Placeholders(bus))
    await turn_messages.create(Address(LARGE_GROUP, 5), "1", TextPart("the answer of five"))
    api.lose(1, "sendMessage", times=1)  # an orphan, then its process dies
    making = asyncio.create_task(turn_messages.create(Address(LARGE_GROUP, 6), "1", TextPart("…")))
    await wait_until(lambda: api.calls["sendMessage"] == 2)
    making.cancel()
    await asyncio.wait([making])

    successor = TurnMessages(Chats(chats.bot, edit_seconds=GAP), Placeholders(bus))
    successor.orphans.late_seconds = 0.5
    made = await successor.create(Address(LARGE_GROUP, 6), "1", TextPart("…"))
    await successor.orphans.drain()
    texts = [(message.id, message.text) for message in api.chat(LARGE_GROUP).answers]
    assert texts[0] == (1, "the answer of five")
    assert texts[-1] == (made, "…")
    assert [text for _, text in texts].count("…") == 1


async def test_concurrent_creates_make_one_message(api: TelegramApi, chats: Chats, bus: Bus) -> None:
    processes = [TurnMessages(Chats(chats.bot, edit_seconds=GAP), Placeholders(bus)) for _ in range(3)]
    made = await asyncio.gather(*(one.create(ADA, "1", TextPart("…")) for one in processes * 3))
    assert len(set(made)) == 1
    await wait_until(lambda: [message.id for message in api.chat(7).answers] == [made[0]])


async def test_an_outage_ends_in_one_message(api: TelegramApi, chats: Chats, bus: Bus) -> None:
    api.down()
    making = asyncio.create_task(TurnMessages(chats, Placeholders(bus)).create(ADA, "1", TextPart("…")))
    began = time.monotonic()
    await wait_until(lambda: chats.stalled(ADA) > 0)
    api.up()
    await making
    assert time.monotonic() - began < 5
    assert len(api.chat(7).answers) == 1


async def test_a_message_that_telegram_sends_late_is_found_and_removed(
    api: TelegramApi, chats: Chats, bus: Bus
) -> None:
    turn_messages = TurnMessages(chats, Placeholders(bus))
    turn_messages.orphans.late_seconds = 0.5
    api.lose(1, "sendMessage", times=1)
    made = await turn_messages.create(ADA, "1", TextPart("…"))
    late = api.chat(7).add(BOT, "…")  # as if a third request had been executed only now
    assert isinstance(made, int) and late.id > made
    api.user(7).write("and something else")
    await turn_messages.orphans.drain()
    assert [message.id for message in api.chat(7).answers] == [made]


async def test_the_messages_of_a_second_are_divided_by_the_processes_and_edits_do_not_count(api: TelegramApi) -> None:
    api.user(7).write("hello")
    settings = {"telegram_bot_token": api.token, "telegram_api_url": api.url, "telegram_per_second": 10}
    bot = open_bot(Settings.model_validate(settings))
    await bot.initialize()
    try:
        bot.share(2, 10)
        sent = await asyncio.gather(*(bot.send_message(7, str(number)) for number in range(11)))
        edits = (bot.edit_message_text(f"{one.text}!", 7, one.message_id) for one in sent)
        await asyncio.gather(*edits)
    finally:
        await bot.shutdown()
    at = {
        method: [call.at for call in api.log if call.method == method] for method in ("sendMessage", "editMessageText")
    }
    assert all(later - earlier > 0.5 for earlier, later in zip(at["sendMessage"], at["sendMessage"][5:], strict=False))
    assert at["editMessageText"][-1] - at["editMessageText"][0] < 1.5
