"""Telegram: a placeholder at once, the answer in its place, Stop, and a bot that only serves whom you let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rolecall import Agent, Context, Envelope, Role
from rolecall.frontends.telegram.bot import open_bot
from rolecall.frontends.telegram.telegram_front import TelegramFront
from tests.deployment import deployed
from tests.telegram.api import TelegramApi

ANN, STRANGER = 11, 99


class ManagerAgent(Agent):
    """Answers at once; ``wait`` takes long."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "wait":
            await asyncio.sleep(600)
        return envelope.reply(f"echo: {envelope.text}")


@asynccontextmanager
async def bot(directory: Path) -> AsyncIterator[TelegramApi]:
    """A bot that serves Ann, on a local Bot API server."""
    async with TelegramApi() as api:
        settings: dict[str, Any] = {
            "telegram_bot_token": api.token, "telegram_api_url": api.url, "telegram_allowed": str(ANN),
            "telegram_edit_seconds": 0.05, "drain_seconds": 0.1,
        }  # fmt: skip
        async with deployed(directory, (Role(ManagerAgent, instances=2),), **settings) as app:
            client = open_bot(app.session.application.settings)
            front = TelegramFront(client, app.session, app.runtime.wakeups, lambda line: None)
            running = asyncio.create_task(front.run())
            try:
                yield api
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


async def test_the_answer_takes_the_place_of_the_placeholder(tmp_path: Path) -> None:
    async with bot(tmp_path) as api:
        api.user(ANN).write("hello")

        chat = api.chat(ANN)
        await api.wait_for(lambda: [answer.text for answer in chat.answers] == ["echo: hello"])
        assert chat.answers[0].looks[0].text == "Thinking…"


async def test_messages_are_answered_in_the_order_they_came(tmp_path: Path) -> None:
    async with bot(tmp_path) as api:
        for text in ("one", "two", "three"):
            api.user(ANN).write(text)

        wanted = ["echo: one", "echo: two", "echo: three"]
        await api.wait_for(lambda: [answer.text for answer in api.chat(ANN).answers] == wanted)


async def test_stop_ends_a_running_answer(tmp_path: Path) -> None:
    async with bot(tmp_path) as api:
        api.user(ANN).write("wait")
        chat = api.chat(ANN)
        await api.wait_for(lambda: [answer.text for answer in chat.answers] == ["Thinking…"])
        api.user(ANN).write("/stop")

        await api.wait_for(lambda: "Stopped." in [answer.text for answer in chat.answers])


async def test_a_stranger_is_turned_away(tmp_path: Path) -> None:
    async with bot(tmp_path) as api:
        api.user(STRANGER).write("hello")
        api.user(ANN).write("hello")

        await api.wait_for(lambda: [answer.text for answer in api.chat(ANN).answers] == ["echo: hello"])
        assert "echo: hello" not in [answer.text for answer in api.chat(STRANGER).answers]
