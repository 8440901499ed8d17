"""Requests to Telegram: connections are kept, answers read, failures reported, proxies used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from telegram.error import InvalidToken, NetworkError, TimedOut
from telegram.request import HTTPXRequest, RequestData
from telegram.request._requestparameter import RequestParameter

from rolecall.frontends.telegram import bot
from rolecall.settings import Settings
from tests.listening import listening

DONE = b'{"ok":true}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + DONE
TOKEN = "4242:not-to-be-seen"


@asynccontextmanager
async def server(*answers: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Gives these answers, on each connection from the first; None is silence, an empty one the end of it. The bodies
    that came, with the number of their connection in front."""
    came: list[bytes] = []
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count, number = count + 1, count
        for answer in answers:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
            )
            came.append(b"%d " % number + await reader.readexactly(length))
            if answer is None:
                await reader.read()
                break
            writer.write(answer)
            await writer.drain()

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}", came


@asynccontextmanager
async def requests(url: str, seconds: float = 5) -> AsyncIterator[Callable[[], Awaitable[tuple[int, bytes]]]]:
    """Sends one request with each call."""
    own, data = bot.BotRequests(url, None, seconds), RequestData([RequestParameter("a", 1, None)])
    yield lambda: own.do_request(f"{url}/bot{TOKEN}/sendMessage", "POST", data)
    await own.shutdown()


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with server(OK, OK) as (url, came), requests(url) as post:
        assert [await post(), await post()] == [(200, DONE)] * 2
    assert came == [b"0 a=1", b"0 a=1"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + DONE + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n" + DONE,
    ],
)
async def test_an_answer_is_read_in_every_form(answer: bytes) -> None:
    async with server(answer, answer) as (url, _), requests(url) as post:
        assert [await post(), await post()] == [(200, DONE)] * 2


async def test_a_kept_connection_that_the_server_closed_is_not_used_again() -> None:
    async with server(OK) as (url, came), requests(url) as post:
        assert await post() == (200, DONE)
        await asyncio.sleep(0.05)
        assert await post() == (200, DONE)
    assert came == [b"0 a=1", b"1 a=1"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", b"no http at all\r\n\r\n"])
async def test_a_broken_answer_is_a_network_error(answer: bytes) -> None:
    async with server(answer) as (url, _), requests(url) as post:
        with pytest.raises(NetworkError) as failed:
            await post()
        assert failed.type is NetworkError


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500])
@pytest.mark.parametrize("page", [b"<html>sorry</html>", b"", b'{"error":"no such route"}', b"[1]"])
async def test_a_page_of_a_proxy_refuses_nothing_in_telegrams_name(status: int, page: bytes) -> None:
    answer = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(page)) + page
    async with server(answer) as (url, _), requests(url) as post:
        with pytest.raises(NetworkError, match=f"HTTP status {status}") as failed:
            await post()
        assert failed.type is NetworkError


async def test_a_request_that_times_out_closes_its_connection() -> None:
    async with server(None) as (url, came), requests(url, 0.05) as post:
        for _ in range(2):
            with pytest.raises(TimedOut):
                await post()
    assert came == [b"0 a=1", b"1 a=1"]


@pytest.mark.parametrize(("answer", "error"), [(b"", NetworkError), (None, TimedOut)])
async def test_a_bot_tells_failures_as_its_library_does_and_without_its_token(
    answer: bytes | None, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "SECONDS", 0.2)
    async with server(answer) as (url, came):
        mine = bot.open_bot(Settings.model_validate({"telegram_bot_token": TOKEN, "telegram_api_url": url}))
        with pytest.raises(error) as failed:
            await mine.send_message(7, "a & b")
        assert failed.type is error
        assert TOKEN.partition(":")[2] not in f"{failed.value!r}{failed.value.__cause__!r}"
        assert came == [b"0 chat_id=7&text=a+%26+b"]
        await mine.shutdown()


async def test_a_bot_that_telegram_does_not_know_leaves_no_connection_open() -> None:
    refusal = b'{"ok":false,"error_code":401,"description":"Unauthorized"}'
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n" % len(refusal) + refusal
    async with server(answer, None) as (url, _):
        unknown = bot.open_bot(Settings.model_validate({"telegram_bot_token": TOKEN, "telegram_api_url": url}))
        with pytest.raises(InvalidToken):
            await unknown.initialize()
        await unknown.shutdown()  # the server ends with the last connection


@pytest.mark.parametrize(
    ("url", "proxy", "environment", "used"),
    [
        ("https://api.telegram.org", "SYSTEM", {}, None),
        ("https://api.telegram.org", "SYSTEM", {"https_proxy": "http://10.0.0.1:8080"}, "http://10.0.0.1:8080"),
        ("https://api.telegram.org", "SYSTEM", {"all_proxy": "10.0.0.1:8080"}, "http://10.0.0.1:8080"),
        ("https://api.telegram.org", "SYSTEM", {"https_proxy": "10.0.0.1:80", "no_proxy": "telegram.org"}, None),
        ("https://api.telegram.org", "NO", {"https_proxy": "http://10.0.0.1:8080"}, None),
        ("https://api.telegram.org", "10.0.0.1:8080", {}, "http://10.0.0.1:8080"),
        ("http://127.0.0.1:8081", "10.0.0.1:8080", {}, None),
    ],
)
def test_requests_go_through_the_configured_proxy(
    url: str, proxy: str, environment: dict[str, str], used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked: list[str | None] = []

    def made(url: str, proxy: str | None, *rest: object) -> HTTPXRequest:
        asked.append(proxy)
        return HTTPXRequest()

    monkeypatch.setattr(bot, "BotRequests", made)
    bot.open_bot(Settings.model_validate({"telegram_bot_token": TOKEN, "telegram_api_url": url, "proxy": proxy}))
    assert asked == [used] * 2


async def test_nothing_is_asked_past_a_proxy() -> None:
    async with server(OK) as (proxy, came):
        own = bot.BotRequests("http://telegram.invalid", proxy, 5)
        assert await own.do_request(f"http://telegram.invalid/bot{TOKEN}/getMe", "POST") == (200, DONE)
        await own.shutdown()
    assert came == [b"0 "]
