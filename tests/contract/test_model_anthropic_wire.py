"""What the anthropic adapter puts on the wire, and what it takes from it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, TypeAdapter

from rolecall.errors import ConfigError, ContentRefused, ImagesRefused, ModelError, ModelUnauthorised, RateLimited
from rolecall.models import Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.anthropic import MAX_TOKENS, AnthropicModel
from rolecall.settings import Settings
from tests.contract.model_vendor import Connection, Vendor, refusing, saying
from tests.contract.model_wires import AnthropicWire

WIRE = AnthropicWire()
MODEL = "claude-haiku-5-5"
NESTED = {"type": "object", "properties": {"at": {"type": "object", "properties": {"city": {"type": "string"}}}}}


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(WIRE)
    vendor.script = saying(WIRE.delta("Hi"), WIRE.end("stop", (7, 2)))
    await vendor.start()
    yield vendor
    await vendor.stop()


async def answered(vendor: Vendor, request: Request, name: str = MODEL, prefix: str = "") -> list[ModelEvent]:
    settings = Settings(anthropic_base_url=f"{vendor.url}{prefix}", anthropic_api_key=SecretStr("a-1"))
    model = AnthropicModel.open(name, settings, Path())
    try:
        return [event async for event in model.stream(request)]
    finally:
        await model.aclose()


async def asked(vendor: Vendor, request: Request, name: str = MODEL) -> Connection:
    await answered(vendor, request, name)
    return vendor.connections[-1]


async def test_the_request_names_model_messages_and_limits(vendor: Vendor) -> None:
    messages = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("user", "and hello"),
        Message("assistant", "Hi!"),
        Message("system", "Be kind."),
        Message("user", "Bye"),
    )
    connection = await asked(vendor, Request(messages, max_tokens=9, stop=("END",)))
    assert connection.path == "/v1/messages"
    assert connection.headers["authorization"] == "Bearer a-1"
    assert connection.body == {
        "model": MODEL,
        "system": "Be brief.\n\nBe kind.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "and hello"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hi!"}]},
            {"role": "user", "content": [{"type": "text", "text": "Bye"}]},
        ],
        "max_tokens": 9,
        "stop_sequences": ["END"],
        "stream": True,
    }


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("claude-3-haiku-20240307", True),
        ("claude-sonnet-4-6", True),
        ("claude-opus-4-6", True),
        ("qwen3", True),
        ("claude-opus-4-7", False),
        ("claude-haiku-5-5", False),
        ("claude-fable-5", False),
        ("claude-mythos-5", False),
    ],
)
async def test_a_temperature_is_sent_to_the_models_that_take_one(vendor: Vendor, name: str, taken: bool) -> None:
    body = (await asked(vendor, Request((Message("user", "Hi"),), temperature=0.5, top_p=0.9), name)).body
    assert (body.get("temperature"), body.get("top_p")) == (0.5 if taken else None, None)
    assert body["max_tokens"] == MAX_TOKENS  # which the API insists on


@pytest.mark.parametrize("prefix", ["/v1/", "/v1", "/"])
async def test_an_address_may_name_the_version(vendor: Vendor, prefix: str) -> None:
    await answered(vendor, Request((Message("user", "Hi"),)), prefix=prefix)
    assert vendor.connections[-1].path == "/v1/messages"


async def test_instructions_alone_are_a_question_and_a_history_begins_with_the_user(vendor: Vendor) -> None:
    body = (await asked(vendor, Request((Message("system", "Greet."),)))).body
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Greet."}]}]
    assert "system" not in body
    cut = (Message("system", "Be brief."), Message("assistant", "Hi!"), Message("user", "Bye"))
    body = (await asked(vendor, Request(cut))).body
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["system"] == "Be brief."


async def test_images_travel_with_their_type_and_before_the_text(vendor: Vendor) -> None:
    image, text = (await asked(vendor, Request((Message("user", "What?", (b"GIF8...",)),)))).body["messages"][0][
        "content"
    ]
    assert text == {"type": "text", "text": "What?"}
    source = {"type": "base64", "media_type": "image/gif", "data": "R0lGOC4uLg=="}
    assert image == {"type": "image", "source": source}


async def test_tools_are_declared_whole_and_one_can_be_insisted_on(vendor: Vendor) -> None:
    tool = ToolSpec("weather", "Tells it.", NESTED)
    body = (await asked(vendor, Request((Message("user", "?"),), tools=(tool,), must_call=True))).body
    assert body["tools"] == [{"name": "weather", "description": "Tells it.", "input_schema": NESTED}]
    assert body["tool_choice"] == {"type": "any"}
    body = (await asked(vendor, Request((Message("user", "?"),), tools=(tool,), parallel=False))).body
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


class Part(BaseModel):
    """A part of an answer."""

    name: str = Field(min_length=1)
    kind: Literal["a", "b"] = "a"


class Whole(BaseModel):
    """An answer with limits, a default and a definition, none of which the API takes as it is."""

    age: int | None = Field(None, ge=0)
    parts: list[Part] = Field(min_length=2)


class Tree(BaseModel):
    """A part that has parts."""

    parts: list[Tree]


async def test_a_schema_is_sent_as_the_api_takes_it(vendor: Vendor) -> None:
    """Real servers answer 400 to objects that are not closed, and to limits."""
    body = (await asked(vendor, Request((Message("user", "?"),), schema=Whole.model_json_schema()))).body
    schema = body["output_config"]["format"]["schema"]
    assert (schema["additionalProperties"], schema["$defs"]["Part"]["additionalProperties"]) == (False, False)
    assert not {"minItems", "minimum", "minLength", "default"} & set(json.dumps(schema).split('"')[1::2])
    assert schema["required"] == ["parts"]


@pytest.mark.parametrize(
    "schema",
    [
        TypeAdapter(dict[str, int]).json_schema(),
        {"type": "object"},
        Tree.model_json_schema(),
        {"type": ["string", "null"]},
        {"properties": {"a": {}}},
        {"$ref": "#/$defs/lost"},
    ],
)
async def test_a_schema_that_the_api_has_no_words_for_is_left_to_the_question(
    vendor: Vendor, schema: dict[str, Any]
) -> None:
    assert "output_config" not in (await asked(vendor, Request((Message("user", "?"),), schema=schema))).body


async def test_a_call_takes_the_thoughts_that_led_to_it_there_and_back(vendor: Vendor) -> None:
    vendor.script = saying(
        WIRE.thought("Bern, then."), WIRE.call("weather", {"at": "Bern"}), WIRE.end("tool_calls", (7, 2))
    )
    question = Message("user", "?")
    call, usage, done = await answered(vendor, Request((question,)))
    assert isinstance(call, ToolCall)
    assert (call.id, call.name, json.loads(call.arguments)) == ("call_1", "weather", {"at": "Bern"})
    assert (usage, done) == (Usage(7, 2), Done("tool_calls"))
    known = (question, Message("assistant", "Let me see.", calls=(call,)), Message("tool", "sun", call=call.id))
    call_again, result = (await asked(vendor, Request(known))).body["messages"][1:]
    assert call_again["content"] == [
        {"type": "thinking", "thinking": "Bern, then.", "signature": "c2ln"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"at": "Bern"}},
    ]
    assert result["content"] == [{"type": "tool_result", "tool_use_id": "call_1", "content": "sun"}]


async def test_ids_of_another_model_s_calls_are_made_ids_that_the_api_takes(vendor: Vendor) -> None:
    calls = (ToolCall("functions.weather:0", "weather", "{}"),)
    messages = (Message("user", "?"), Message("assistant", "", calls=calls), Message("tool", "sun", call=calls[0].id))
    sent = (await asked(vendor, Request(messages))).body["messages"]
    assert sent[1]["content"][0]["id"] == sent[2]["content"][0]["tool_use_id"] == "functions_weather_0"


async def test_calls_of_another_model_go_without_its_signature(vendor: Vendor) -> None:
    calls = (ToolCall("a", "weather", "{}", "c2lnbmVk"), ToolCall("b", "weather", "not json"))
    messages = (
        Message("user", "?"),
        Message("assistant", "", calls=calls),
        *(Message("tool", "", call=c) for c in "ab"),
    )
    sent = (await asked(vendor, Request(messages))).body["messages"]
    assert [block["type"] for block in sent[1]["content"]] == ["tool_use", "tool_use"]
    assert [block["tool_use_id"] for block in sent[2]["content"]] == ["a", "b"]


async def test_tokens_from_the_cache_count_as_read(vendor: Vendor) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4}}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
    vendor.script = saying(*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (start, end)))
    assert await answered(vendor, Request((Message("user", "?"),))) == [Usage(7, 2), Done("stop")]


@pytest.mark.parametrize(
    ("status", "kind", "words", "error"),
    [
        (529, "overloaded_error", "Overloaded", ModelError),
        (429, "rate_limit_error", "slow down", RateLimited),
        (402, "billing_error", "pay", ModelUnauthorised),
        (401, "authentication_error", "invalid x-api-key a-1", ModelUnauthorised),
        (400, "invalid_request_error", "You have reached your specified API usage limits.", ModelUnauthorised),
        (400, "invalid_request_error", "This organization has been disabled.", ModelUnauthorised),
        (400, "invalid_request_error", "Output blocked by content filtering policy", ContentRefused),
    ],
)
async def test_an_error_means_the_same_before_and_within_a_stream(
    vendor: Vendor, status: int, kind: str, words: str, error: type[ModelError]
) -> None:
    vendor.script = refusing(status, WIRE.refusal(status, words, kind))
    with pytest.raises(error) as before:
        await answered(vendor, Request((Message("user", "?"),)))
    event = {"type": "error", "error": {"type": kind, "message": words}}
    vendor.script = saying(b"data: " + json.dumps(event).encode() + b"\n\n")
    with pytest.raises(error) as within:
        await answered(vendor, Request((Message("user", "?"),)))
    assert type(before.value) is type(within.value)
    assert "a-1" not in f"{before.value}{within.value}"


async def test_a_refusal_of_the_content_and_of_an_image_are_said(vendor: Vendor) -> None:
    vendor.script = saying(WIRE.delta("No"), WIRE.end("filter", (7, 1)))
    with pytest.raises(ContentRefused):
        await answered(vendor, Request((Message("user", "?"),)))
    vendor.script = refusing(400, WIRE.refusal(400, "Could not process image", "invalid_request_error"))
    with pytest.raises(ImagesRefused):
        await answered(vendor, Request((Message("user", "?", (b"GIF8",)),)))


def test_without_a_key_or_an_address_one_line_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="m@anthropic needs ANTHROPIC_API_KEY"):
        AnthropicModel.open("m", Settings(), Path())
