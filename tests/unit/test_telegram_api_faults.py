"""What goes wrong at the local Telegram when a test wants it, seen through the real python-telegram-bot."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from telegram import Bot
from telegram.error import BadRequest, NetworkError, RetryAfter

from tests.telegram.api import TelegramApi
from tests.telegram.bot import connected, refused
from tests.telegram.chats import User
from tests.waiting import wait_until


@pytest.fixture
async def api() -> AsyncIterator[TelegramApi]:
    async with TelegramApi() as api:
        yield api


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
