"""The local Telegram keeps Telegram's rules, seen through the real python-telegram-bot."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from telegram import (
    Bot,
    BotCommand,
    BotCommandScopeChat,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    MessageEntity,
    ReplyParameters,
)
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, RetryAfter

from rolecall.frontends.telegram.markdown.render import message_entities, render
from tests.listening import listening
from tests.telegram.api import TelegramApi
from tests.telegram.bot import connected, refused
from tests.telegram.chats import User
from tests.telegram.entities import Refused, accepted
from tests.waiting import wait_until

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


@pytest.fixture
async def bot(api: TelegramApi) -> AsyncIterator[Bot]:
    async with connected(api) as bot:
        yield bot


@pytest.fixture
def ada(api: TelegramApi) -> User:
    """Someone who has said hello."""
    ada = api.user(7, name="Ada", language_code="es")
    ada.write("Hello")
    return ada


# Updates


async def test_updates_come_again_until_a_later_offset_confirms_them(bot: Bot, ada: User) -> None:
    ada.write("again")
    first, second = await bot.get_updates()
    assert [u.update_id for u in await bot.get_updates()] == [first.update_id, second.update_id]
    assert [u.update_id for u in await bot.get_updates(offset=second.update_id)] == [second.update_id]
    assert [u.update_id for u in await bot.get_updates(offset=first.update_id)] == [second.update_id]
    assert not await bot.get_updates(offset=second.update_id + 1)
    assert first.message and first.message.text == "Hello"
    assert first.message.from_user and first.message.from_user.language_code == "es"


async def test_a_long_poll_returns_when_something_comes_and_empty_when_nothing_does(
    api: TelegramApi, bot: Bot, ada: User
) -> None:
    await bot.get_updates(offset=-1)
    poll = asyncio.create_task(bot.get_updates(offset=2_000_000_000, timeout=20))
    await wait_until(lambda: api.polling)
    ada.write("now")
    assert [u.message and u.message.text for u in await poll] == ["now"]
    assert not await bot.get_updates(offset=2_000_000_000, timeout=1)


async def test_limit_and_allowed_updates_choose(api: TelegramApi, bot: Bot, ada: User) -> None:
    message = ada.write("one")
    assert len(await bot.get_updates(limit=1)) == 1
    ada.react(message, "👍")
    assert len(await bot.get_updates(allowed_updates=["message_reaction"])) == 2
    ada.write("unheard of")
    ada.react(message, "👎")
    *_, reaction = await bot.get_updates()
    assert reaction.message_reaction and reaction.message_reaction.message_id == message.id


async def test_of_two_polls_the_waiting_one_is_refused(api: TelegramApi, bot: Bot) -> None:
    poll = asyncio.create_task(bot.get_updates(timeout=20))
    await wait_until(lambda: api.polling)
    await bot.get_updates()
    await refused(poll, Conflict, "terminated by other getUpdates request")  # type: ignore[arg-type]


async def test_a_poll_ends_with_its_client(api: TelegramApi, bot: Bot, ada: User) -> None:
    poll = asyncio.create_task(bot.get_updates(offset=2_000_000_000, timeout=20))
    await wait_until(lambda: api.polling)
    poll.cancel()
    await wait_until(lambda: not api.polling)
    ada.write("kept")
    assert len(await bot.get_updates()) == 1


async def test_a_webhook_gets_each_update_with_the_secret_until_it_answers_200(
    api: TelegramApi, bot: Bot, ada: User
) -> None:
    heard: list[str] = []

    async def hook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
        status = b"500 No" if len(heard) == 1 else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async with listening(hook) as port:
        await bot.set_webhook(f"http://127.0.0.1:{port}/t", secret_token="s3cret")
        await refused(bot.get_updates(), Conflict, "webhook is active")
        await api.wait_for(lambda: not api.world.updates.waiting)
        assert len(heard) == 2
        assert all("x-telegram-bot-api-secret-token: s3cret" in head.lower() for head in heard)
        assert (await bot.get_webhook_info()).pending_update_count == 0
        await bot.delete_webhook()
    assert not await bot.get_updates()


async def test_the_token_is_checked(api: TelegramApi) -> None:
    async with connected(api, "1:wrong") as other:
        await refused(other.get_me(), InvalidToken, "unauthorized")


# Texts


async def test_a_text_has_1_to_4096_utf16_units(api: TelegramApi, bot: Bot, ada: User) -> None:
    await bot.send_message(7, "🦉" * 2048)
    await refused(bot.send_message(7, "🦉" * 2048 + "a"), BadRequest, "message is too long")
    for empty in (" \n ", "\u200b\u00a0"):
        await refused(bot.send_message(7, empty), BadRequest, "message text is empty")


async def test_texts_are_trimmed_and_cleaned_and_their_entities_move_along(
    api: TelegramApi, bot: Bot, ada: User
) -> None:
    bold = MessageEntity("bold", 5, 4)
    await bot.send_message(7, " \na\tb\rb\x00c\u202ed  ", entities=[bold])
    assert api.chat(7).answers[-1].text == "a bb cd"
    assert api.chat(7).answers[-1].entity("bold") == ["b c"]


REFUSED_ENTITIES = {
    "after the end": ("ab", [("bold", 3, 1)]),
    "ends after the end": ("ab", [("bold", 0, 3)]),
    "begins in a middle": ("🦉", [("bold", 1, 1)]),
    "ends in a middle": ("🦉", [("bold", 0, 1)]),
    "overlaps": ("abcdef", [("bold", 0, 3), ("italic", 2, 3)]),
    "within code": ("abcdef", [("code", 0, 6), ("bold", 2, 2)]),
    "within blockquote": ("abcdef", [("blockquote", 0, 6), ("blockquote", 2, 2)]),
    "within text_link": ("abcdef", [("text_link", 0, 6), ("code", 2, 2)]),
    "within bold": ("abcdef", [("bold", 0, 6), ("pre", 2, 2)]),
    "unsupported type": ("ab", [("blink", 0, 1)]),
}


@pytest.mark.parametrize("words", REFUSED_ENTITIES)
async def test_entities_are_checked(bot: Bot, ada: User, words: str) -> None:
    text, given = REFUSED_ENTITIES[words]
    entities = [MessageEntity(kind, first, length, url="http://a.b") for kind, first, length in given]
    await refused(bot.send_message(7, text, entities=entities), BadRequest, words)


@pytest.mark.parametrize(
    "url", ["javascript:1", "/relative", "#part", "http://localhost:8000", "http://", "ftp://a.b/c"]
)
async def test_a_link_needs_a_host_with_a_dot(bot: Bot, ada: User, url: str) -> None:
    await refused(bot.send_message(7, "a", entities=[MessageEntity("text_link", 0, 1, url=url)]), BadRequest, "url")


def test_entities_that_nest_well_are_kept_in_order_and_only_a_hundred_of_them() -> None:
    nested = [("italic", 2, 2), ("text_link", 2, 4), ("bold", 0, 6), ("blockquote", 0, 8), ("pre", 6, 2)]
    given = [{"type": kind, "offset": at, "length": n, "url": "http://a.b"} for kind, at, n in nested]
    kinds = [one["type"] for one in accepted("abcdefgh", given)[1]]
    assert kinds == ["blockquote", "bold", "text_link", "italic", "pre"]
    many = [{"type": "bold", "offset": 2 * n, "length": 1} for n in range(150)]
    assert len(accepted("a " * 150, many)[1]) == 100
    with pytest.raises(Refused, match="ENTITIES_TOO_LONG"):
        accepted("a " * 99, [{**one, "type": "text_link", "url": "http://a.b/" + "x" * 99} for one in many[:99]])


async def test_what_an_answer_is_rendered_to_is_kept_as_it_is(api: TelegramApi, bot: Bot, ada: User) -> None:
    (part,) = render(
        "# Title\n\n- **one** `two`\n\n```py\n\tx = 1\n```\n\n|a|b|\n|-|-|\n|🦉|2|\n\n[l](http://localhost)"
    )
    sent = await bot.send_message(7, part.text, entities=message_entities(part))
    assert (api.chat(7).answers[-1].text, sent.text) == (part.text, part.text)
    assert api.chat(7).answers[-1].entity("pre")[0] == "x = 1"
    again = bot.edit_message_text(part.text, 7, sent.message_id, entities=message_entities(part))
    await refused(again, BadRequest, "message is not modified")


async def test_no_parse_mode_is_taken(bot: Bot, ada: User) -> None:
    await refused(bot.send_message(7, "*a*", parse_mode="MarkdownV2"), BadRequest, "can't parse entities")


# Messages and chats


async def test_an_edit_that_changes_nothing_is_refused_and_others_are_kept_with_their_times(
    api: TelegramApi, bot: Bot, ada: User
) -> None:
    sent = await bot.send_message(7, "Thinking…")
    await refused(bot.edit_message_text("Thinking… ", 7, sent.message_id), BadRequest, "message is not modified")
    await bot.edit_message_text("Done", 7, sent.message_id)
    (message,) = api.chat(7).answers
    assert [look.text for look in message.looks] == ["Thinking…", "Done"]
    assert message.looks[0].at <= message.looks[1].at <= time.monotonic()


async def test_what_is_gone_or_old_or_of_others_is_not_edited(api: TelegramApi, bot: Bot, ada: User) -> None:
    sent = await bot.send_message(7, "a")
    await refused(bot.edit_message_text("b", 7, 1), BadRequest, "message can't be edited")
    api.chat(7).every[sent.message_id].old = True
    await refused(bot.edit_message_text("b", 7, sent.message_id), BadRequest, "message can't be edited")
    ada.delete(api.chat(7).every[sent.message_id])
    await refused(bot.edit_message_text("b", 7, sent.message_id), BadRequest, "message to edit not found")
    await refused(bot.delete_message(7, sent.message_id), BadRequest, "message to delete not found")


async def test_who_blocked_the_bot_or_is_gone_or_unknown_gets_nothing(api: TelegramApi, bot: Bot, ada: User) -> None:
    ada.block()
    await refused(bot.send_message(7, "a"), Forbidden, "bot was blocked by the user")
    ada.unblock()
    ada.deactivated = True
    await refused(bot.send_message(7, "a"), Forbidden, "user is deactivated")
    await refused(bot.send_message(8, "a"), BadRequest, "chat not found")
    changes = [u.my_chat_member.new_chat_member.status for u in await bot.get_updates() if u.my_chat_member]
    assert changes == ["kicked", "member"]


async def test_a_topic_is_named_when_sending_but_for_the_general_one(api: TelegramApi, bot: Bot, ada: User) -> None:
    forum = api.group(-100, title="Team", topics={5: "Plans"})
    ada.write("hi", chat=-100, topic=5)
    *_, update = await bot.get_updates()
    assert update.message and (update.message.message_thread_id, update.message.is_topic_message) == (5, True)
    await bot.send_message(-100, "a", message_thread_id=5)
    assert forum.answers[-1].thread == 5
    for chat, thread in ((-100, 6), (-100, 1), (7, 5)):
        await refused(bot.send_message(chat, "a", message_thread_id=thread), BadRequest, "message thread not found")
    await bot.send_chat_action(-100, "typing", message_thread_id=1)
    assert [(action, thread) for _, action, thread in forum.actions] == [("typing", 1)]


async def test_a_reply_needs_its_message(api: TelegramApi, bot: Bot, ada: User) -> None:
    said = ada.write("a question")
    answer = await bot.send_message(7, "an answer", reply_parameters=ReplyParameters(said.id))
    assert answer.reply_to_message and answer.reply_to_message.text == "a question"
    ada.delete(said)
    lost = ReplyParameters(said.id)
    await refused(bot.send_message(7, "b", reply_parameters=lost), BadRequest, "message to be replied not found")
    await bot.send_message(7, "b", reply_parameters=ReplyParameters(said.id, allow_sending_without_reply=True))


async def test_buttons_are_pressed_and_answered_once(api: TelegramApi, bot: Bot, ada: User) -> None:
    keyboard = InlineKeyboardMarkup([[InlineKeyboardButton("Stop", callback_data="stop:1")]])
    await bot.send_message(7, "a", reply_markup=keyboard)
    query = ada.press(api.chat(7).answers[-1], "stop:1")
    *_, update = await bot.get_updates()
    assert update.callback_query and update.callback_query.data == "stop:1"
    await bot.answer_callback_query(query, "stopped")
    assert api.world.queries[query] == {"text": "stopped", "show_alert": False}
    await refused(bot.answer_callback_query(query), BadRequest, "query is too old")
    long = InlineKeyboardMarkup([[InlineKeyboardButton("x", callback_data="ä" * 33)]])
    await refused(bot.send_message(7, "a", reply_markup=long), BadRequest, "button_data_invalid")
    await bot.edit_message_reply_markup(7, update.callback_query.message.message_id)  # type: ignore[union-attr]
    assert api.chat(7).answers[-1].buttons == []


async def test_reactions_drafts_and_commands(api: TelegramApi, bot: Bot, ada: User) -> None:
    await bot.set_message_reaction(7, 1, "👀")
    assert api.chat(7).every[1].reactions[api_bot(api)] == ["👀"]
    await refused(bot.set_message_reaction(7, 1, "🧊"), BadRequest, "reaction_invalid")
    await bot.send_message_draft(7, 1, "so far")
    assert [text for _, _, text in api.chat(7).drafts] == ["so far"]
    commands = [BotCommand("help", "Ayuda")]
    await bot.set_my_commands(commands, BotCommandScopeChat(7), "es")
    assert await bot.get_my_commands(BotCommandScopeChat(7), "es") == tuple(commands)
    assert await bot.get_my_commands() == ()
    await refused(bot.set_my_commands([BotCommand("Help", "x")]), BadRequest, "bot_command_invalid")


def api_bot(api: TelegramApi) -> int:
    return int(api.token.partition(":")[0])


async def test_files_go_both_ways(api: TelegramApi, bot: Bot, ada: User) -> None:
    album = [ada.send_photo(PNG, caption=text, media_group_id="g1") for text in ("look", "")]
    ada.send_voice(b"OggS\r\n\0" * 9)
    ada.send_document(b"a,b\r\n", name="t.csv", mime_type="text/csv")
    photo, other, voice, document = [u.message for u in await bot.get_updates()][1:]
    assert photo and other and photo.caption == "look" and photo.media_group_id == other.media_group_id == "g1"
    assert await (await photo.photo[-1].get_file()).download_as_bytearray() == PNG
    assert voice and voice.voice and await (await voice.voice.get_file()).download_as_bytearray() == b"OggS\r\n\0" * 9
    assert document and document.document and document.document.file_name == "t.csv"
    assert album[0].media["media_group_id"] == "g1"
    await bot.send_photo(7, PNG, caption="bold", caption_entities=[MessageEntity("bold", 0, 4)])
    sent = await bot.send_document(7, b"--x\r\n\r\n--\n" * 50, filename="réport.txt")
    assert api.chat(7).answers[-2].entity("bold") == ["bold"]
    assert sent.document and api.world.files[sent.document.file_id] == ("réport.txt", b"--x\r\n\r\n--\n" * 50)
    await refused(bot.send_photo(7, b"no picture"), BadRequest, "image_process_failed")
    await refused(bot.send_photo(7, PNG, caption="x" * 1025), BadRequest, "message caption is too long")


async def test_chats_and_members_are_known(bot: Bot, ada: User) -> None:
    assert (await bot.get_chat(7)).first_name == "Ada"
    assert (await bot.get_chat_member(7, 7)).user.language_code == "es"
    assert (await bot.get_me()).username == "rolecall_bot"


async def test_commands_and_mentions_are_marked_in_what_people_write(bot: Bot, ada: User) -> None:
    ada.write("/stop@rolecall_bot 🦉 @rolecall_bot, http://a.b/c")
    *_, update = await bot.get_updates()
    assert update.message
    marked = {str(entity.type): text for entity, text in update.message.parse_entities().items()}
    assert marked == {"bot_command": "/stop@rolecall_bot", "mention": "@rolecall_bot"}


async def test_an_edited_message_is_an_update(bot: Bot, ada: User) -> None:
    ada.edit(ada.write("helo"), "hello")
    *_, update = await bot.get_updates()
    assert update.edited_message and update.edited_message.text == "hello" and update.edited_message.edit_date


# What goes wrong when a test wants it


@pytest.mark.filterwarnings("ignore::telegram.warnings.PTBDeprecationWarning")
async def test_a_flooded_chat_is_refused_alone_and_told_for_how_long(api: TelegramApi, bot: Bot, ada: User) -> None:
    api.user(8).write("hi")
    api.flood(7, 30)
    await refused(bot.send_message(7, "a"), RetryAfter, "30")
    await bot.send_message(8, "a")


@pytest.mark.filterwarnings("ignore::telegram.warnings.PTBDeprecationWarning")
async def test_the_rate_of_a_chat_is_limited_when_switched_on(api: TelegramApi, bot: Bot, ada: User) -> None:
    api.rate(per_second=1, burst=2, group_per_minute=3)
    api.group(-5)
    for count, chat in ((2, 7), (3, -5)):
        for n in range(count):
            await bot.send_message(chat, str(n))
        await refused(bot.send_message(chat, "one more"), RetryAfter, "flood control exceeded")
    await api.wait_for(sending(bot, 7))


def sending(bot: Bot, chat: int) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def sent() -> bool:
        with contextlib.suppress(RetryAfter):
            return bool(await bot.send_message(chat, "later"))
        return False

    return sent


async def test_an_answer_can_be_lost_after_the_thing_was_done(api: TelegramApi, bot: Bot, ada: User) -> None:
    api.lose(1.0, "sendMessage", times=1)
    with pytest.raises(NetworkError):
        await bot.send_message(7, "once")
    await bot.send_message(7, "twice")
    assert [message.text for message in api.chat(7).answers] == ["once", "twice"]
    assert [call.lost for call in api.log if call.method == "sendMessage"] == [True, False]


async def test_the_same_seed_loses_the_same_answers(ada: User) -> None:
    async def outcomes(seed: int) -> list[bool]:
        async with TelegramApi(seed=seed) as api, connected(api) as bot:
            api.user(7).write("hi")
            api.lose(0.5)
            await asyncio.gather(*(bot.send_message(7, str(n)) for n in range(20)), return_exceptions=True)
            return [call.lost for call in api.log]

    assert await outcomes(1) == await outcomes(1) != await outcomes(2)


async def test_while_it_is_down_nothing_is_done(api: TelegramApi, bot: Bot, ada: User) -> None:
    poll = asyncio.create_task(bot.get_updates(offset=2_000_000_000, timeout=20))
    await wait_until(lambda: api.polling)
    api.down()
    for asked in (poll, bot.send_message(7, "a")):
        with pytest.raises(NetworkError):
            await asked
    api.up()
    await bot.send_message(7, "b")
    assert [message.text for message in api.chat(7).answers] == ["b"]


async def test_a_delay_holds_up_only_the_methods_it_names(api: TelegramApi, bot: Bot, ada: User) -> None:
    api.delay(0.2, "sendMessage")
    began = time.monotonic()
    await bot.get_me()
    assert time.monotonic() - began < 0.2
    await bot.send_message(7, "a")
    assert time.monotonic() - began >= 0.2


async def test_the_log_counts_and_times_each_call(api: TelegramApi, bot: Bot, ada: User) -> None:
    await bot.send_message(7, "a")
    await refused(bot.send_message(9, "b"), BadRequest, "chat not found")
    assert api.calls["sendMessage"] == 2
    assert [(call.method, call.chat, call.status) for call in api.log] == [
        ("sendMessage", 7, 200),
        ("sendMessage", 9, 400),
    ]
    with pytest.raises(AssertionError, match=r"sendMessage 9 400"):
        await api.wait_for(lambda: False, seconds=0.01)


async def test_a_hundred_people_at_once(api: TelegramApi, bot: Bot) -> None:
    for number in range(1, 121):
        api.user(number).write(f"I am {number}")
    updates = [*await bot.get_updates(limit=100)]
    updates += await bot.get_updates(offset=updates[-1].update_id + 1)

    async def answer(chat: int) -> None:
        sent = await bot.send_message(chat, "Thinking…")
        for text in ("It", "It is", "It is done"):
            await bot.edit_message_text(text, chat, sent.message_id)

    await asyncio.gather(*(answer(u.effective_chat.id) for u in updates if u.effective_chat))
    assert all(api.chat(number).texts[-1] == "It is done" for number in range(1, 121))
    assert api.calls["editMessageText"] == 360
