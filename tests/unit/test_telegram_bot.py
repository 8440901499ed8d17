"""The connection to Telegram: what it brings, what it refuses, and what is left out when much is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from telegram import Update
from telegram.error import BadRequest, Forbidden, TelegramError

from rolecall.frontends.telegram.bot import AT_ONCE, UNREADABLE, FloodWait, QuietBot, explain, open_bot
from rolecall.frontends.telegram.outlet import is_lost
from rolecall.frontends.telegram.updates import Poller
from rolecall.settings import Settings
from tests.telegram.api import TelegramApi


@pytest.fixture
async def bot(api: TelegramApi) -> AsyncIterator[QuietBot]:
    bot = open_bot(Settings.model_validate({"telegram_bot_token": api.token, "telegram_api_url": api.url}))
    await bot.initialize()
    yield bot
    await bot.shutdown()


async def test_an_update_that_cannot_be_read_says_why_and_stops_none_behind_it(api: TelegramApi, bot: QuietBot) -> None:
    ada = api.user(7)
    received: list[str] = []

    async def receive(update: Update) -> None:
        received.append(str(update.message.text if update.message else update.api_kwargs[UNREADABLE]))

    ada.write("before")
    for body in ({"message_id": "x", "chat": 7}, {"text": "of tomorrow"}):
        api.world.updates.push("message", dict(body))
    ada.write("after")
    polling = asyncio.create_task(Poller(bot, receive).run())
    try:
        await api.wait_for(lambda: not api.world.updates.waiting and api.polling)
        api.world.updates.push("message", {"last": True})
        await api.wait_for(lambda: not api.world.updates.waiting and api.polling)
    finally:
        polling.cancel()
        await asyncio.wait([polling])
    strange = [text for text in received if text.startswith("message cannot be read: ")]
    assert received == ["before", *strange[:2], "after", strange[2]]
    assert bot.unreadable == 3


async def test_being_asked_to_wait_is_an_error_with_its_seconds(api: TelegramApi, bot: QuietBot) -> None:
    api.user(7).write("hello")
    api.flood(7, 30)
    with pytest.raises(FloodWait) as caught:
        await bot.send_message(7, "a")
    assert caught.value.seconds == 30
    assert explain(caught.value) == "Telegram asks to wait 30 s"


async def test_only_some_requests_are_on_their_way_at_once_and_typing_gives_way(
    api: TelegramApi, bot: QuietBot
) -> None:
    api.user(7).write("hello")
    api.delay(0.05, "sendMessage")
    sending = [asyncio.create_task(bot.send_message(7, str(number))) for number in range(AT_ONCE * 2)]
    await asyncio.sleep(0)
    with pytest.raises(TelegramError, match="others wait"):
        await bot.send_chat_action(7, "typing")
    await asyncio.gather(*sending)
    assert len(api.chat(7).answers) == AT_ONCE * 2
    assert "sendChatAction" not in api.calls
    await bot.send_chat_action(7, "typing")
    assert api.calls["sendChatAction"] == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (Forbidden("Forbidden: bot was blocked by the user"), True),
        (Forbidden("Forbidden: bot was kicked from the supergroup chat"), True),
        (BadRequest("Bad Request: message thread not found"), True),
        (BadRequest("Bad Request: CHAT_WRITE_FORBIDDEN"), False),
        (BadRequest("Bad Request: not enough rights to send text messages to the chat"), False),
        (BadRequest("Bad Request: TOPIC_CLOSED"), False),
    ],
)
def test_a_chat_that_only_mutes_the_bot_is_not_closed_to_it_for_good(error: TelegramError, lost: bool) -> None:
    assert is_lost(str(error)) == lost
