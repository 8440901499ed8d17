"""Small requests to Telegram without a client between: connections kept, answers read, failures told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from telegram.error import InvalidToken, NetworkError, TimedOut

from rolecall.frontends.telegram import bot
from rolecall.frontends.telegram.bot import FAILURES, Direct
from rolecall.settings import Settings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TOKEN = "4242:not-to-be-seen"


@asynccontextmanager
async def server(*answers: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Gives these answers, on each connection from the first; None is silence, an empty one the end of it. The bodies
    that came, with the number of their connection in front."""
    came: list[bytes] = []
    count, serving = 0, set[asyncio.Task[object] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        serving.add(asyncio.current_task())
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
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", came
    await asyncio.gather(*filter(None, serving))


async def post(direct: Direct, url: str, body: bytes = b"a=1", answer: float = 5) -> tuple[int, bytes]:
    return await direct.post(f"{url}/bot{TOKEN}/sendMessage", body, connect=5, answer=answer)


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with server(OK, OK) as (url, came):
        direct = Direct(url, None)
        assert [await post(direct, url), await post(direct, url)] == [(200, b"ok")] * 2
        await direct.aclose()
    assert came == [b"0 a=1", b"0 a=1"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_an_answer_is_read_in_every_form(answer: bytes) -> None:
    async with server(answer, answer) as (url, _):
        direct = Direct(url, None)
        assert [await post(direct, url), await post(direct, url)] == [(200, b"ok")] * 2
        await direct.aclose()


async def test_a_kept_connection_that_the_server_closed_is_not_used_again() -> None:
    async with server(OK) as (url, came):
        direct = Direct(url, None)
        assert await post(direct, url) == (200, b"ok")
        await asyncio.sleep(0)
        while direct.kept and direct.kept[0].good:
            await asyncio.sleep(0.005)
        assert await post(direct, url) == (200, b"ok")
        await direct.aclose()
    assert came == [b"0 a=1", b"1 a=1"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", b"no http at all\r\n\r\n"])
async def test_who_breaks_off_is_a_failure(answer: bytes) -> None:
    async with server(answer) as (url, _):
        with pytest.raises(FAILURES):
            await post(Direct(url, None), url)


async def test_who_does_not_answer_in_time_is_a_failure_and_the_connection_is_gone() -> None:
    async with server(None) as (url, _):
        direct = Direct(url, None)
        with pytest.raises(TimeoutError):
            await post(direct, url, answer=0.05)
        assert not direct.kept


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
    ("url", "proxy", "environment", "direct"),
    [
        ("https://api.telegram.org", "SYSTEM", {}, True),
        ("https://api.telegram.org", "SYSTEM", {"https_proxy": "http://10.0.0.1:8080"}, False),
        ("https://api.telegram.org", "NO", {"https_proxy": "http://10.0.0.1:8080"}, True),
        ("https://api.telegram.org", "10.0.0.1:8080", {}, False),
        ("http://127.0.0.1:8081", "10.0.0.1:8080", {}, True),
    ],
)
async def test_where_a_proxy_stands_between_nothing_is_asked_past_it(
    url: str, proxy: str, environment: dict[str, str], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    monkeypatch.setattr(bot, "Direct", _noting(asked))
    bot.open_bot(Settings.model_validate({"telegram_bot_token": TOKEN, "telegram_api_url": url, "proxy": proxy}))
    assert asked == ([url] if direct else [])


def _noting(asked: list[str]) -> Callable[..., None]:
    def made(url: str, *_: object) -> None:
        asked.append(url)

    return made
