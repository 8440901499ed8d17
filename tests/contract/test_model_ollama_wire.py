"""What the ollama adapter puts on the wire, and how it waits for a model that is not loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.errors import ConfigError, ImagesRefused, NoSuchModel
from rolecall.models import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.ollama import OllamaModel
from rolecall.settings import Settings
from tests.contract.model_vendor import Connection, Vendor, refusing, saying
from tests.contract.model_wires import OllamaWire

WIRE = OllamaWire()
NESTED = {"type": "object", "properties": {"at": {"type": "object", "properties": {"city": {"type": "string"}}}}}
HELLO = Request((Message("user", "Hi"),))


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(OllamaWire())
    vendor.script = saying(WIRE.delta("Hi"), WIRE.end("stop", (7, 2)))
    await vendor.start()
    yield vendor
    await vendor.stop()


async def answered(vendor: Vendor, request: Request, name: str = "m", **settings: Any) -> list[ModelEvent]:
    host, _, port = vendor.url.removeprefix("http://").partition(":")
    model = OllamaModel.open(name, Settings(ollama_host=host, ollama_port=int(port), **settings), Path())
    try:
        return [event async for event in model.stream(request)]
    finally:
        await model.aclose()


async def test_the_request_names_model_messages_and_limits(vendor: Vendor) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hi"))
    request = Request(messages, max_tokens=9, temperature=0.5, top_p=0.9, seed=7, stop=("END",))
    await answered(vendor, request, "llama3.2:3b")
    assert vendor.connections[0].path == "/api/chat"
    assert vendor.connections[0].body == {
        "model": "llama3.2:3b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "options": {"num_predict": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"]},
    }
    assert "authorization" not in vendor.connections[0].headers


async def test_images_tools_calls_and_results_are_sent_as_the_server_wants_them(vendor: Vendor) -> None:
    messages = (
        Message("user", "?", (b"GIF8...",)),
        Message("assistant", "", calls=(ToolCall("call_7", "weather", '{"at": {"city": "Bern"}}'),)),
        Message("tool", "sun", call="call_7"),
    )
    await answered(vendor, Request(messages, tools=(ToolSpec("weather", "Tells it.", NESTED),), schema=NESTED))
    body = vendor.connections[0].body
    called = {"function": {"name": "weather", "arguments": {"at": {"city": "Bern"}}}}
    assert body["messages"] == [
        {"role": "user", "content": "?", "images": ["R0lGOC4uLg=="]},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "sun", "tool_name": "weather"},
    ]
    declared = {"name": "weather", "description": "Tells it.", "parameters": NESTED}
    assert body["tools"] == [{"type": "function", "function": declared}]
    assert body["format"] == NESTED


async def test_a_model_that_is_being_loaded_has_all_the_time_it_needs(vendor: Vendor) -> None:
    vendor.wire.loaded = False  # type: ignore[attr-defined]

    async def loading(connection: Connection) -> None:
        await connection.begin()
        await asyncio.sleep(0.4)
        await connection.say(WIRE.delta("Hi"), WIRE.end("stop", (7, 2)))
        await connection.close()

    vendor.script = loading
    assert await answered(vendor, HELLO, first_token_seconds=0.1) == [Delta("Hi"), Usage(7, 2), Done("stop")]


async def test_a_model_that_is_not_there_is_fetched_by_a_command_that_is_told(vendor: Vendor) -> None:
    vendor.script = refusing(404, WIRE.refusal(404, "model 'qwen3' not found"))
    with pytest.raises(NoSuchModel, match="`ollama pull qwen3`"):
        await answered(vendor, HELLO, "qwen3")


async def test_a_model_without_eyes_or_tools_says_so_and_is_not_asked_again(vendor: Vendor) -> None:
    vendor.script = refusing(500, WIRE.refusal(500, "this model is missing data required for image input"))
    with pytest.raises(ImagesRefused):
        await answered(vendor, Request((Message("user", "?", (b"GIF8...",)),)))
    vendor.script = refusing(400, WIRE.refusal(400, "library/m:latest does not support tools"))
    with pytest.raises(NoSuchModel, match="cannot call tools"):
        await answered(vendor, Request(HELLO.messages, tools=(ToolSpec("weather", "Tells it.", NESTED),)))


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, None),
        ({"ollama_host": "gpu"}, "http://gpu:11434"),
        ({"ollama_host": "gpu", "ollama_port": 1}, "http://gpu:1"),
        ({"ollama_host": "gpu:2"}, "http://gpu:2"),
        ({"ollama_host": "https://gpu"}, "https://gpu"),
        ({"ollama_host": "gpu", "ollama_url": "http://other:3"}, "http://other:3"),
    ],
)
def test_the_server_is_named_in_each_of_the_usual_ways(settings: dict[str, Any], address: str | None) -> None:
    assert Settings(**settings).ollama_address == address
    OllamaModel.open("m", Settings(**settings), Path())


def test_a_bad_address_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="OLLAMA_URL=localhost:1"):
        OllamaModel.open("m", Settings(ollama_url="localhost:1"), Path())
