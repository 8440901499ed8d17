"""Updates that Telegram brings: who may, and when they count as received."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from starlette.applications import Starlette
from telegram import Update
from telegram.error import InvalidToken

from rolecall.frontends.telegram.bot import QuietBot, open_bot
from rolecall.frontends.telegram.updates import Updates, Webhook
from rolecall.settings import Settings
from tests.proxy import free_port
from tests.telegram.api import TelegramApi

SECRET = "only-telegram-knows_42"
HEADERS = {"X-Telegram-Bot-Api-Secret-Token": SECRET}


@pytest.fixture
async def bot(api: TelegramApi) -> AsyncIterator[QuietBot]:
    bot = open_bot(Settings.model_validate({"telegram_bot_token": api.token, "telegram_api_url": api.url}))
    await bot.initialize()
    yield bot
    await bot.shutdown()


class Received:
    """Takes updates in when it may."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.may = asyncio.Event()
        self.may.set()

    async def __call__(self, update: Update) -> None:
        self.updates.append(update)
        await self.may.wait()

    @property
    def texts(self) -> list[str | None]:
        return [update.message.text if update.message else None for update in self.updates]


@asynccontextmanager
async def serving(bot: QuietBot, receive: Received) -> AsyncIterator[str]:
    hook = Webhook(bot, receive, secret=SECRET)
    await hook.start()
    task = asyncio.create_task(hook.run(), name="webhook of a test")
    try:
        yield f"http://127.0.0.1:{hook.port}/telegram"
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_telegram_brings_updates_and_one_counts_when_it_was_received(api: TelegramApi, bot: QuietBot) -> None:
    received = Received()
    async with serving(bot, received) as url:
        await bot.set_webhook(url, secret_token=SECRET)
        received.may.clear()
        api.user(7).write("one")
        api.user(7).write("two")
        await api.wait_for(lambda: received.texts == ["one"])
        assert len(api.world.updates.waiting) == 2
        received.may.set()
        await api.wait_for(lambda: not api.world.updates.waiting)
        assert received.texts == ["one", "two"]
        await bot.set_webhook(url, secret_token="another")
        api.user(7).write("three")
        await api.wait_for(lambda: "403" in api.world.updates.failure)
        assert received.texts == ["one", "two"]


@pytest.mark.parametrize(
    ("method", "headers", "body", "status"),
    [
        ("POST", {}, b"{}", 403),
        ("POST", {"X-Telegram-Bot-Api-Secret-Token": SECRET[:-1]}, b"{}", 403),
        ("POST", {"X-Telegram-Bot-Api-Secret-Token": "größe".encode()}, b"{}", 403),
        ("GET", {}, b"", 403),
        ("GET", HEADERS, b"", 405),
        ("POST", HEADERS, b"no json", 400),
        ("POST", HEADERS, b"[1]", 400),
        ("POST", HEADERS, b'{"message": 7}', 400),
        ("POST", HEADERS, b'{"update_id": 1, "message": 7}', 200),
        ("POST", HEADERS, b"x" * (1024 * 1024 + 1), 413),
        ("POST", HEADERS, b'{"update_id": 1}', 200),
    ],
)
async def test_who_is_not_telegram_is_refused(
    bot: QuietBot, method: str, headers: dict[str, str | bytes], body: bytes, status: int
) -> None:
    received = Received()
    async with serving(bot, received) as url, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, url, headers=headers, content=body)  # type: ignore[arg-type]
        assert answer.status_code == status
    assert len(received.updates) == (status == 200)


async def test_what_is_no_http_is_dropped_and_the_next_is_served(bot: QuietBot) -> None:
    received = Received()
    async with serving(bot, received) as url, httpx.AsyncClient(trust_env=False) as client:
        port = int(url.split(":")[2].split("/")[0])
        for junk in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"POST / HTTP/1.1\r\n" + b"a" * 70_000, b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(junk)
            writer.write_eof()
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
        answer = await client.post(url, headers=HEADERS, content=b'{"update_id": 1}')
        assert answer.status_code == 200


async def test_an_update_brought_twice_at_once_is_received_once(bot: QuietBot) -> None:
    received = Received()
    received.may.clear()
    body = json.dumps({"update_id": 5}).encode()
    async with serving(bot, received) as url, httpx.AsyncClient(trust_env=False) as client:
        async with asyncio.TaskGroup() as group:
            posts = [group.create_task(client.post(url, headers=HEADERS, content=body)) for _ in range(2)]
            done, _ = await asyncio.wait(posts, timeout=0.1)
            assert not done and len(received.updates) == 1
            received.may.set()
        assert [post.result().status_code for post in posts] == [200, 200]


async def test_another_application_serves_the_webhook_as_a_route(bot: QuietBot) -> None:
    received = Received()
    app = Starlette(routes=[Webhook(bot, received, secret=SECRET).route("/telegram/webhook")])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot") as client:
        answer = await client.post("/telegram/webhook", headers=HEADERS, content=b'{"update_id": 1}')
        stranger = await client.post("/telegram/webhook", content=b'{"update_id": 2}')
    assert (answer.status_code, stranger.status_code) == (200, 403)
    assert [update.update_id for update in received.updates] == [1]


async def test_a_webhook_that_another_program_took_is_set_again_and_its_failures_are_told(
    api: TelegramApi, bot: QuietBot
) -> None:
    url, told = "https://127.0.0.1:9/hook", list[str]()
    given = {"telegram_webhook_url": url, "telegram_webhook_secret": SECRET, "telegram_webhook_port": free_port()}
    updates = Updates(bot, Received(), Settings.model_validate(given), told.append, webhook_seconds=0.05)
    running = asyncio.create_task(updates.run(), name="updates of a test")
    try:
        await api.wait_for(lambda: api.calls["getWebhookInfo"] > 1)
        assert told == []
        await bot.delete_webhook()
        await api.wait_for(lambda: api.world.updates.url == url and told, what="the webhook is set again")
        assert told == ["another program changed the webhook of the bot; it is set again"]
        api.user(7).write("one")
        await api.wait_for(lambda: told[1:] and told[-1].startswith("Telegram cannot bring updates to the webhook: Co"))
        api.token = "4242:revoked"
        with pytest.raises(InvalidToken):
            await asyncio.wait_for(running, 10)
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize("secret", [None, "not good", "x" * 257])
def test_a_webhook_without_a_good_secret_is_refused_at_the_start(secret: str | None) -> None:
    given = {"telegram_webhook_url": "https://bot.example.org/hook", "telegram_webhook_secret": secret}
    with pytest.raises(ValueError, match="TELEGRAM_WEBHOOK_URL needs TELEGRAM_WEBHOOK_SECRET") as refused:
        Settings.model_validate(given)
    assert secret is None or secret not in str(refused.value.errors()[0]["msg"])  # type: ignore[attr-defined]
