"""Embeddings, transcriptions and files, as OpenAI's own client and a real application use them."""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio

from agents.embedding import EmbeddingAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from agents.voice import VoiceAgent
from rolecall.bus.access_keys import create_key
from rolecall.config import Role
from tests.deployment import Deployment, deployed
from tests.http.server import open_again, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROLES = (
    Role(ManagerAgent),
    Role(SampleLLMAgent, models=("echo@test",)),
    Role(EmbeddingAgent, instances=2),
    Role(VoiceAgent, instances=2),
)
SETTINGS: dict[str, Any] = {
    "embedding_model": "words@test", "voice_model": "whisper@test", "blob_megabytes": 2, "http_read_seconds": 3,
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path_factory.mktemp("embeddings"), ROLES, **SETTINGS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(deployment: Deployment) -> AsyncIterator[str]:
    async with serving(deployment.session.application) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", timeout=20, max_retries=0) as client:
        yield client


def product(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model", ["auto", "words@test", "words"])
async def test_texts_become_vectors_in_their_order(client: openai.AsyncOpenAI, model: str) -> None:
    found = await client.embeddings.create(model=model, input=["a cat", "a cat sat", "stocks fell"], dimensions=256)
    cat, sat, stocks = (one.embedding for one in found.data)
    assert len(cat) == 256 and product(cat, sat) > 0.7 > product(cat, stocks)
    assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("words@test", 7, 7)
    one = await client.embeddings.create(model=model, input="a cat", encoding_format="float")
    assert len(one.data) == 1 and len(one.data[0].embedding) == 64


async def test_both_formats_hold_the_same_vector(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as plain:
        asked = [{"input": "a cat", "encoding_format": form} for form in ("float", "base64")]
        floats, packed = [(await plain.post("/v1/embeddings", json=one)).json()["data"][0] for one in asked]
    assert list(struct.unpack("<64f", b64decode(packed["embedding"]))) == floats["embedding"]


async def test_many_requests_at_once_are_answered(client: openai.AsyncOpenAI) -> None:
    asked = (client.embeddings.create(model="auto", input=f"text {number}") for number in range(20))
    assert all(found.data for found in await asyncio.gather(*asked))


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"input": []}, 400, "input", "invalid_request"),
        ({"input": ""}, 400, "input", "invalid_request"),
        ({"input": ["a", ""]}, 400, "input", "invalid_request"),
        ({"input": [1, 2, 3]}, 400, "input", "unsupported_parameter"),
        ({"input": [[1, 2], [3]]}, 400, "input", "unsupported_parameter"),
        ({"input": ["x"] * 2049}, 400, "input", "invalid_request"),
        ({"input": ["x" * 5_000_000]}, 400, "input", "text_too_long"),
        ({"input": 7}, 400, "input", "invalid_request"),
        ({}, 400, "input", "invalid_request"),
        ({"input": "x", "dimensions": 0}, 400, "dimensions", "invalid_request"),
        ({"input": "x", "encoding_format": "hex"}, 400, "encoding_format", "invalid_request"),
        ({"input": "x", "model": "text-embedding-9"}, 404, "model", "model_not_found"),
    ],
)
async def test_what_cannot_be_embedded_is_one_clear_error(
    url: str, body: dict[str, Any], status: int, param: str, code: str
) -> None:
    async with httpx2.AsyncClient(base_url=url) as plain:
        answer = await plain.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error


async def test_a_recording_is_transcribed(client: openai.AsyncOpenAI) -> None:
    sound = ("note.ogg", b"what was said", "audio/ogg")
    heard = await client.audio.transcriptions.create(model="whisper", file=sound)
    assert heard.text == "what was said"
    plain: Any = await client.audio.transcriptions.create(
        model="auto", file=("note.mp3", b"by its name", "application/octet-stream"), response_format="text"
    )
    assert plain.strip() == "by its name"
    silent = await client.audio.transcriptions.create(model="auto", file=("note.ogg", b"  ", "audio/ogg"))
    assert silent.text == ""


@pytest.mark.parametrize(
    ("file", "form", "status", "param"),
    [
        (("a.txt", b"x", "text/plain"), {}, 400, "file"),
        (("a.ogg", b"", "audio/ogg"), {}, 400, "file"),
        (("a.ogg", b"x", "audio/ogg"), {"model": "whisper-9"}, 404, "model"),
        (("a.ogg", b"x", "audio/ogg"), {"response_format": "srt"}, 400, "response_format"),
        (("a.ogg", b"x" * 3_000_000, "audio/ogg"), {}, 413, None),
    ],
)
async def test_what_cannot_be_transcribed_is_one_clear_error(
    url: str, file: Any, form: dict[str, str], status: int, param: str | None
) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as plain:
        answer = await plain.post("/v1/audio/transcriptions", files={"file": file}, data=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


async def test_a_form_that_is_none_or_comes_too_slowly_is_refused(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as plain:
        answer = await plain.post("/v1/audio/transcriptions", json={"file": "x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")

        async def slowly() -> AsyncIterator[bytes]:
            yield b"--x\r\nContent-Disposition: form-data; name=file; filename=a.ogg\r\n\r\n"
            await asyncio.sleep(20)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        late = await plain.post("/v1/audio/transcriptions", content=slowly(), headers=headers)
        assert (late.status_code, late.json()["error"]["code"]) == (408, "request_timeout")


async def test_strangers_send_no_files(deployment: Deployment, url: str) -> None:
    bus = deployment.session.bus
    await create_key(bus, "ann")
    try:
        async with serving(deployment.session.application) as here, httpx2.AsyncClient(base_url=here) as stranger:
            answer = await stranger.post("/v1/audio/transcriptions", files={"file": ("a.ogg", b"x", "audio/ogg")})
        assert answer.status_code == 401
    finally:
        await open_again(bus, url)
