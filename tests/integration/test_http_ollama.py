"""Ollama's API, as Ollama's own client and a real application use it, with a provider on the loopback behind."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import ollama
import pytest
import pytest_asyncio

from agents import samplellm
from agents.embedding import EmbeddingAgent
from agents.lang import LangAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall.agent.role import Role
from rolecall.bus.conversation import active_conversations
from rolecall.frontends.http.ollama import ollama_api
from tests.deployment import Deployment, deployed
from tests.http.stage import GateAgent, TellAgent
from tests.http.upstream import Upstream
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO: Any = [{"role": "user", "content": "Hello"}]
ROLES = (
    Role(ManagerAgent), Role(LangAgent), Role(SampleLLMAgent, instances=4, models=("mirror@openai",)), Role(TellAgent),
    Role(GateAgent, instances=4), Role(EmbeddingAgent),
)  # fmt: skip


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return f"sun in {city}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Deployment]:
    directory = tmp_path_factory.mktemp("ollama")
    GateAgent.gate = asyncio.Event()
    shutil.copytree(Path(samplellm.__file__).parent / "prompts", directory / "agents" / "prompts")
    async with deployed(directory, ROLES, openai_base_url=upstream.url, embedding_model="words@test") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=url)
    yield client
    await client._client.aclose()


async def test_models_are_listed_and_shown(client: ollama.AsyncClient, url: str) -> None:
    names = [model.model for model in (await client.list()).models]
    assert names[0] == "auto" and {"samplellm", "mirror@openai"} < set(names)
    shown = await client.show("auto:latest")
    assert shown.capabilities == ["completion", "tools", "vision"]
    assert [model.model for model in (await client.ps()).models] == names
    with pytest.raises(ollama.ResponseError) as caught:
        await client.show("llama9")
    assert caught.value.status_code == 404 and "llama9" in caught.value.error
    async with httpx2.AsyncClient(base_url=url) as plain:
        assert (await plain.get("/api/version")).json()["version"].count(".") == 2


async def test_a_model_is_loaded_by_a_request_that_asks_nothing(client: ollama.AsyncClient, upstream: Upstream) -> None:
    asked = len(upstream.bodies)
    chat, prompt = await client.chat("auto"), await client.generate("auto", keep_alive="5m")
    assert (chat.message.content, chat.done, chat.done_reason) == ("", True, "load")
    assert (prompt.response, prompt.done, prompt.done_reason) == ("", True, "load")
    [line] = [one async for one in await client.generate("auto", stream=True)]
    assert line.done and len(upstream.bodies) == asked


async def test_a_chat_is_answered_whole_and_as_a_stream(client: ollama.AsyncClient) -> None:
    whole = await client.chat("auto:latest", HELLO)
    assert (whole.message.content, whole.done, whole.done_reason) == ("You said Hello", True, "stop")
    assert (whole.prompt_eval_count, whole.eval_count) == (7, 3)
    pieces = [piece async for piece in await client.chat("auto", HELLO, stream=True)]
    assert "".join(piece.message.content or "" for piece in pieces) == "You said Hello"
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    said = await client.generate("samplellm", "Hello", system="Be brief.")
    assert said.response == "You said Hello"


async def test_a_request_as_curl_sends_it_is_answered_and_streamed_through_proxies(url: str) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with httpx2.AsyncClient(base_url=url, timeout=20) as curl:
        asked = {"model": "auto", "prompt": "Hello"}
        answer = await curl.post("/api/generate", content=json.dumps(asked), headers=form)
    assert answer.headers["x-accel-buffering"] == "no"
    assert "".join(json.loads(line)["response"] for line in answer.text.splitlines()) == "You said Hello"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_goes_on(
    client: ollama.AsyncClient, upstream: Upstream, stream: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather?"}]
    if stream:
        pieces = [piece async for piece in await client.chat("auto", messages, tools=[weather], stream=True)]
        said = pieces[-1].message
    else:
        said = (await client.chat("auto", messages, tools=[weather])).message
    calls = said.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", {"city": "city 0"}), ("weather", {"city": "city 1"}),
    ]  # fmt: skip
    results = [{"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}
               for call in calls]  # fmt: skip
    last = await client.chat("auto", [*messages, said, *results], tools=[weather])
    assert last.message.content == "The tool says sun in city 1"
    sent = upstream.bodies[-1]["messages"][-3:]
    assert [call["id"] for call in sent[0]["tool_calls"]] == [one["tool_call_id"] for one in sent[1:]]


async def test_what_a_client_wants_reaches_the_model(client: ollama.AsyncClient, upstream: Upstream) -> None:
    options = {"temperature": 0.3, "top_p": 0.8, "seed": 5, "num_predict": 1, "stop": ["END"]}
    answer = await client.chat("auto", HELLO, options=options)
    assert answer.done_reason == "length"
    sent = {name: upstream.bodies[-1][name] for name in ("temperature", "top_p", "seed", "max_tokens", "stop")}
    assert sent == {"temperature": 0.3, "top_p": 0.8, "seed": 5, "max_tokens": 1, "stop": ["END"]}
    upstream.answers = ["no", '{"a": 1}']
    formed = await client.chat("auto", HELLO, format={"type": "object", "properties": {"a": {"type": "integer"}}})
    assert json.loads(formed.message.content or "") == {"a": 1}


async def test_pictures_and_texts_to_embed_are_taken(client: ollama.AsyncClient) -> None:
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 300_000).decode()
    told = await client.chat("tell", [{"role": "user", "content": "what is it?", "images": [picture]}])
    assert json.loads(told.message.content or "")["images"] == [300_008]
    found = await client.embed("words", ["a cat", "a dog"], dimensions=32)
    assert [len(vector) for vector in found.embeddings] == [32, 32]
    one = await client.embeddings("words", "a cat")
    assert list(one.embedding) == list((await client.embed("words", "a cat")).embeddings[0])


async def test_who_leaves_a_chat_ends_it(client: ollama.AsyncClient, deployment: Deployment) -> None:
    GateAgent.gate.clear()
    async for piece in await client.chat("gate", HELLO, stream=True):
        assert piece.message.content == "one "
        break
    bus = deployment.session.bus

    async def is_over() -> bool:
        return not await active_conversations(bus)

    await wait_until(is_over)


async def test_a_stream_is_not_quiet_for_as_long_as_a_proxy_may_wait(
    client: ollama.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_api, "QUIET_SECONDS", 0.05)
    GateAgent.gate.clear()
    said, empty = "", 0
    async for piece in await client.chat("gate", HELLO, stream=True):
        said, empty = said + (piece.message.content or ""), empty + (not piece.message.content)
        if empty == 3:
            GateAgent.gate.set()
    assert said == "one two" and empty >= 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "llama9", "messages": HELLO}, 404),
        ({"model": "llama9", "messages": []}, 404),
        ({"model": "auto", "messages": [{"role": "tool", "content": "x"}]}, 400),
        ({"model": "auto", "messages": HELLO, "format": {"type": 7}}, 400),
        ({"model": "auto", "messages": HELLO, "tools": [{"type": "web"}]}, 400),
        ({"model": "auto", "messages": HELLO, "options": {"top_p": 7}}, 400),
        ({"messages": "Hello"}, 400),
    ],
)
async def test_what_cannot_be_is_one_clear_error(url: str, body: dict[str, Any], status: int) -> None:
    async with httpx2.AsyncClient(base_url=url) as plain:
        answer = await plain.post("/api/chat", json=body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
