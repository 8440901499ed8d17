"""Vectors by each provider's protocol: what is asked, what is made of the answer and of refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import ConfigError, ModelError, OverBudget
from rolecall.models.gate import Gate
from rolecall.models.model import Caller, Model
from rolecall.models.registry import open_model
from rolecall.models.vectors import Embedder, embed, embedding_model
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings, Terms
from tests.contract.test_model_openai_voice import provider

KEY = "sk-not-to-be-seen"
OPENAI = {"data": [{"index": 1, "embedding": [0.5, 1]}, {"index": 0, "embedding": [0.25, 2]}],
          "usage": {"prompt_tokens": 7, "total_tokens": 7}}  # fmt: skip
GEMINI = {"embeddings": [{"values": [0.25, 2]}, {"values": [0.5, 1]}]}
OLLAMA = {"model": "m", "embeddings": [[0.25, 2], [0.5, 1]], "prompt_eval_count": 7}
ANSWERS: list[tuple[str, Any]] = [("m@openai", OPENAI), ("m@gemini", GEMINI), ("m@ollama", OLLAMA)]


def opened(name: str, url: str) -> Model:
    root = url.removesuffix("/v1")
    settings = Settings.model_validate({
        "openai_base_url": url, "openai_api_key": KEY, "gemini_api_key": KEY, "gemini_base_url": root,
        "ollama_url": root, "proxy": "NO",
    })  # fmt: skip
    return open_model(name, settings, Path())


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
async def test_texts_become_vectors_in_their_order(name: str, answer: Any) -> None:
    requests: list[bytes] = []
    async with provider(200, json.dumps(answer).encode(), requests) as url:
        model = opened(name, url)
        assert isinstance(model, Embedder)
        found = await model.embed(["one", "two"], dimensions=2)
        await model.aclose()
    assert found.vectors == ((0.25, 2.0), (0.5, 1.0))
    sent = requests[0].decode()
    assert '"one"' in sent and '"two"' in sent and "imension" in sent


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
@pytest.mark.parametrize(("status", "body"), [(401, b'{"error": {"message": "no"}}'), (500, b"{}"), (200, b"no json")])
async def test_a_refusal_is_an_error_without_the_key(name: str, answer: Any, status: int, body: bytes) -> None:
    async with provider(status, body, []) as url:
        model = opened(name, url)
        assert isinstance(model, Embedder)
        with pytest.raises(ModelError) as refused:
            await model.embed(["one"])
        await model.aclose()
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(("name", "answer"), ANSWERS)
async def test_a_vector_too_few_is_an_error(name: str, answer: Any) -> None:
    async with provider(200, json.dumps(answer).encode(), []) as url:
        model = opened(name, url)
        with pytest.raises(ModelError, match="2 vectors for 3 texts"):
            await embed(model, ["one", "two", "three"], None)
        await model.aclose()


async def test_vectors_count_in_the_budget(server: RedisServer) -> None:
    async def wake(_: str) -> bool:
        return True

    settings = Settings(user_tokens_per_day=3)
    gate = Gate(server, "m@test", Terms(), settings, wake)
    model, caller = open_model("m@test", settings, Path()), Caller("http:local:1", "1", "ann")
    await embed(model, ["five words are in this"], None, gate, caller)
    with pytest.raises(OverBudget):
        await embed(model, ["and more"], None, gate, caller)
    await gate.aclose()


async def test_a_model_without_vectors_is_named() -> None:
    class Mute:
        name = "mute@own"

    with pytest.raises(ConfigError, match="EMBEDDING_MODEL=mute@own"):
        await embed(Mute(), ["one"], None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ""),
        ({"gemini_api_key": "x"}, "gemini-embedding-001@gemini"),
        ({"gemini_api_key": "x", "openai_api_key": "x"}, "text-embedding-3-small@openai"),
        ({"openai_api_key": "x", "embedding_model": "m@ollama"}, "m@ollama"),
    ],
)
def test_the_model_is_the_setting_or_that_of_the_first_key(given: Any, expected: str) -> None:
    assert embedding_model(Settings.model_validate(given)) == expected
