"""Writing down what is said, by OpenAI or a server that speaks its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rolecall.errors import ConfigError, ModelError, ModelUnauthorised, OverBudget
from rolecall.models.gate import Gate
from rolecall.models.model import Caller
from rolecall.models.speech import transcribe
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings, Terms
from tests.listening import listening

KEY = "sk-not-to-be-seen"


@asynccontextmanager
async def provider(status: int, body: bytes, requests: list[bytes]) -> AsyncIterator[str]:
    """Answers every request so, and keeps what came."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        requests.append(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n" % status)
        writer.write(b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}/v1"


def settings(url: str, model: str = "whisper-1@openai") -> Settings:
    return Settings.model_validate({"voice_model": model, "openai_base_url": url, "openai_api_key": KEY, "proxy": "NO"})


async def test_what_is_said_comes_back_as_text() -> None:
    requests: list[bytes] = []
    async with provider(200, b'{"text": " Hello there. "}', requests) as url:
        assert await transcribe(b"OggS sound", "audio/ogg", settings(url)) == "Hello there."
    (request,) = requests
    assert request.startswith(b"POST /v1/audio/transcriptions ")
    for piece in (b"OggS sound", b"whisper-1", b'filename="sound.ogg"'):
        assert piece in request


async def test_a_refused_key_is_said_without_it() -> None:
    async with provider(401, b'{"error": {"message": "bad key %s"}}' % KEY.encode(), []) as url:
        with pytest.raises(ModelUnauthorised) as refused:
            await transcribe(b"sound", "audio/ogg", settings(url))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"no json"), (200, b"[]")])
async def test_any_failure_is_a_model_error(status: int, body: bytes) -> None:
    async with provider(status, body, []) as url:
        with pytest.raises(ModelError):
            await transcribe(b"sound", "audio/ogg", settings(url))


async def test_without_a_model_that_hears_it_is_said_which_setting_names_one() -> None:
    with pytest.raises(ConfigError, match="VOICE_MODEL"):
        await transcribe(b"sound", "audio/ogg", Settings())


async def test_what_is_heard_counts_in_the_budget_of_who_speaks(server: RedisServer) -> None:
    async def wake(conversation: str) -> bool:
        return True

    ann, ben = (Caller(f"telegram:{n}", "1", f"telegram:user:{n}") for n in (7, 8))
    async with provider(200, b'{"text": "Hello there."}', []) as url:
        given = settings(url).model_copy(update={"user_tokens_per_day": 100})
        gate = Gate(server, "whisper-1@openai", Terms(), given, wake)
        assert await transcribe(b"s" * 20_000, "audio/ogg", given, gate, ann) == "Hello there."
        with pytest.raises(OverBudget):
            await transcribe(b"s" * 20_000, "audio/ogg", given, gate, ann)
        assert await transcribe(b"s", "audio/ogg", given, gate, ben) == "Hello there."
        await gate.aclose()
