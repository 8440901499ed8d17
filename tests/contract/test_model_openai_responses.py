"""What the openai adapter puts on the wire of the Responses API, and what it takes from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rolecall.errors import (
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelRefused,
    ModelUnauthorised,
    ModelUnavailable,
    RateLimited,
    Truncated,
)
from rolecall.models import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.openai import OpenAIModel
from rolecall.settings import Settings
from tests.contract.model_vendor import Connection, Script, Vendor
from tests.contract.model_wires import OpenAIWire

HELLO = Request((Message("user", "Hi"),))
WEATHER = ToolSpec("weather", "The weather at a place.", {"type": "object", "properties": {"at": {"type": "string"}}})
USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 9,
}


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(OpenAIWire())
    vendor.script = saying(text("Hi"), closing())
    await vendor.start()
    yield vendor
    await vendor.stop()


def text(piece: str, item: int = 0) -> dict[str, Any]:
    return {
        "type": "response.output_text.delta",
        "item_id": f"msg_{item}",
        "output_index": item,
        "content_index": 0,
        "delta": piece,
        "logprobs": [],
    }


def called(call: str, arguments: str, item: int = 0) -> dict[str, Any]:
    made = {"id": f"fc_{item}", "type": "function_call", "status": "completed", "call_id": call, "name": "weather"}
    return {"type": "response.output_item.done", "output_index": item, "item": {**made, "arguments": arguments}}


def closing(status: str = "completed", **rest: Any) -> dict[str, Any]:
    """The event that ends a whole answer."""
    return {"type": f"response.{status}", "response": response(status, usage=USAGE, **rest)}


def response(status: str, **rest: Any) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": "m", "output": [], **rest}


def wire(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def saying(*events: dict[str, Any]) -> Script:
    """A script that opens a response as OpenAI does and sends ``events``."""

    async def script(connection: Connection) -> None:
        await connection.begin()
        opening = ("response.created", "response.in_progress")
        before = [{"type": kind, "response": response("in_progress", usage=None)} for kind in opening]
        for number, event in enumerate([*before, *events]):
            await connection.say(wire({**event, "sequence_number": number}))
        await connection.close()

    return script


async def answered(vendor: Vendor, request: Request, name: str = "gpt-5-pro", **settings: Any) -> list[ModelEvent]:
    given = Settings(openai_base_url=f"{vendor.url}/v1", **settings)
    model = OpenAIModel.open(f"responses:{name}", given, Path())
    try:
        return [event async for event in model.stream(request)]
    finally:
        await model.aclose()


async def asked(vendor: Vendor, request: Request, name: str = "gpt-5-pro") -> dict[str, Any]:
    await answered(vendor, request, name)
    return vendor.connections[-1].body


# ── which models ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    [
        "o1-pro", "o3-pro-2025-06-10", "gpt-5-pro", "gpt-5.5-pro-2026-04-23", "gpt-5-codex", "gpt-5.1-codex-max",
        "codex-mini-latest", "o3-deep-research", "o4-mini-deep-research-2025-06-26", "computer-use-preview",
        "gpt-6-cyber", "gpt-rosalind-research", "gpt-6.2-astra-law", "responses:gpt-4o",
    ],
)  # fmt: skip
def test_openai_is_asked_by_it_for_models_that_need_it(name: str) -> None:
    assert OpenAIModel.open(name, Settings(openai_api_key=SecretStr("k")), Path()).responses


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-5-mini", "o3", "gpt-5-chat-latest", "gpt-6-sol"])
def test_openai_is_asked_by_chat_completions_for_the_others(name: str) -> None:
    assert not OpenAIModel.open(name, Settings(openai_api_key=SecretStr("k")), Path()).responses


def test_another_server_is_asked_by_it_only_where_the_name_says_so() -> None:
    settings = Settings(openai_base_url="http://127.0.0.1:1/v1")
    assert not OpenAIModel.open("gpt-5-pro", settings, Path()).responses
    named = OpenAIModel.open("responses:gpt-5-pro", settings, Path())
    assert (named.responses, named.name) == (True, "responses:gpt-5-pro@openai")


# ── what is asked ───────────────────────────────────────────────────────────────────────────────


async def test_the_request_names_model_messages_and_limits_and_stores_nothing(vendor: Vendor) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hi"))
    request = Request(messages, max_tokens=9, temperature=0.5, top_p=0.9)
    assert await asked(vendor, request, "gpt-4o") == {
        "model": "gpt-4o",
        "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "store": False,
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
    }


async def test_a_reasoning_model_has_no_temperature_and_a_developer(vendor: Vendor) -> None:
    body = await asked(vendor, Request((Message("system", "Be brief."), Message("user", "Hi")), temperature=0.5))
    assert [item["role"] for item in body["input"]] == ["developer", "user"]
    assert "temperature" not in body


async def test_images_travel_as_data_urls(vendor: Vendor) -> None:
    body = await asked(vendor, Request((Message("user", "What is it?", (b"GIF89a...",)),)))
    words, image = body["input"][0]["content"]
    assert words == {"type": "input_text", "text": "What is it?"}
    assert image["type"] == "input_image"
    assert image["image_url"].startswith("data:image/gif;base64,")


async def test_tools_calls_and_results_are_items(vendor: Vendor) -> None:
    messages = (
        Message("user", "Is it raining?"),
        Message("assistant", "Let me see.", calls=(ToolCall("call_1", "weather", "{}"),)),
        Message("tool", "It rains.", call="call_1"),
    )
    body = await asked(vendor, Request(messages, tools=(WEATHER,), must_call=True))
    assert body["input"][1:] == [
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "It rains."},
    ]
    tool = {"name": "weather", "description": "The weather at a place.", "parameters": WEATHER.parameters}
    assert body["tools"] == [{"type": "function", **tool, "strict": False}]
    assert body["tool_choice"] == "required"


async def test_a_schema_is_passed_on(vendor: Vendor) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    body = await asked(vendor, Request(HELLO.messages, schema=schema))
    assert body["text"]["format"] == {"type": "json_schema", "name": "answer", "schema": schema, "strict": False}


async def test_a_model_for_research_is_given_the_web(vendor: Vendor) -> None:
    body = await asked(vendor, HELLO, "o3-deep-research")
    assert body["tools"] == [{"type": "web_search_preview"}]


# ── what comes back ─────────────────────────────────────────────────────────────────────────────


async def test_an_answer_comes_as_deltas_then_usage_then_done(vendor: Vendor) -> None:
    vendor.script = saying(text("Hel"), text("lo"), closing())
    assert await answered(vendor, HELLO) == [Delta("Hel"), Delta("lo"), Usage(7, 2), Done("stop")]


async def test_two_parts_of_an_answer_are_two_paragraphs(vendor: Vendor) -> None:
    vendor.script = saying(text("Let me see."), text("It", 2), text(" rains.", 2), closing())
    said = [event.text for event in await answered(vendor, HELLO) if isinstance(event, Delta)]
    assert "".join(said) == "Let me see.\n\nIt rains."


async def test_calls_come_whole_after_the_text(vendor: Vendor) -> None:
    vendor.script = saying(text("Let me see."), called("a", '{"at": "Bonn"}', 1), called("b", "", 2), closing())
    assert await answered(vendor, Request(HELLO.messages, tools=(WEATHER,))) == [
        Delta("Let me see."),
        ToolCall("a", "weather", '{"at": "Bonn"}'),
        ToolCall("b", "weather", "{}"),
        Usage(7, 2),
        Done("tool_calls"),
    ]


async def test_an_answer_that_only_the_last_event_has_is_read_there(vendor: Vendor) -> None:
    said = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
    made = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
    vendor.script = saying(closing(output=[said, made]))
    whole = [Delta("Hello"), ToolCall("a", "weather", "{}"), Usage(7, 2), Done("tool_calls")]
    assert await answered(vendor, Request(HELLO.messages, tools=(WEATHER,))) == whole


async def test_an_answer_at_its_limit_says_so_and_makes_no_calls(vendor: Vendor) -> None:
    cut = closing("incomplete", incomplete_details={"reason": "max_output_tokens"})
    vendor.script = saying(text("Hel"), called("a", "{", 1), cut)
    assert await answered(vendor, HELLO) == [Delta("Hel"), Usage(7, 2), Done("length")]


async def test_a_content_filter_is_a_refusal(vendor: Vendor) -> None:
    vendor.script = saying(text("Hel"), closing("incomplete", incomplete_details={"reason": "content_filter"}))
    with pytest.raises(ContentRefused, match="content filter"):
        await answered(vendor, HELLO)


async def test_a_refusal_in_the_model_s_own_words_is_one(vendor: Vendor) -> None:
    refusal = {"type": "response.refusal.delta", "item_id": "m", "output_index": 0, "content_index": 0}
    vendor.script = saying({**refusal, "delta": "I cannot "}, {**refusal, "delta": "do that."}, closing())
    with pytest.raises(ContentRefused, match=r"the model refuses: I cannot do that\."):
        await answered(vendor, HELLO)


async def test_an_answer_without_its_closing_event_is_truncated(vendor: Vendor) -> None:
    vendor.script = saying(text("Hel"), called("a", "{}", 1))
    with pytest.raises(Truncated, match="without its finish marker") as caught:
        await answered(vendor, HELLO)
    assert caught.value.text == "Hel"


async def test_a_connection_broken_amid_the_answer_keeps_its_text(vendor: Vendor) -> None:
    async def breaking(connection: Connection) -> None:
        await connection.begin()
        await connection.say(wire({**text("Hel"), "sequence_number": 1}))
        await connection.writer.drain()
        connection.writer.close()

    vendor.script = breaking
    with pytest.raises(Truncated) as caught:
        await answered(vendor, HELLO)
    assert caught.value.text == "Hel"


async def test_thinking_is_a_sign_of_life_and_not_shown(vendor: Vendor) -> None:
    thought = {"type": "response.reasoning_summary_text.delta", "item_id": "r", "output_index": 0, "summary_index": 0}

    async def thinking(connection: Connection) -> None:
        await connection.begin()
        for number in range(8):
            await connection.say(wire({**thought, "delta": "hm", "sequence_number": number}))
            await asyncio.sleep(0.1)
        await connection.say(wire({**text("Hi", 1), "sequence_number": 8}), wire({**closing(), "sequence_number": 9}))
        await connection.close()

    vendor.script = thinking
    assert await answered(vendor, HELLO, first_token_seconds=0.5) == [Delta("Hi"), Usage(7, 2), Done("stop")]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("server_error", ModelUnavailable),
        ("rate_limit_exceeded", RateLimited),
        ("insufficient_quota", ModelUnauthorised),
        ("context_length_exceeded", ContextTooLong),
        ("invalid_prompt", ContentRefused),
        ("bio_policy", ContentRefused),
        ("image_content_policy_violation", ContentRefused),
        ("invalid_image_format", ModelRefused),
        ("image_too_large", ModelRefused),
    ],
)
@pytest.mark.parametrize("how", ["response.failed", "error", "an error object"])
async def test_a_failure_within_the_answer_is_told_by_its_kind(
    vendor: Vendor, how: str, code: str, expected: type[ModelError]
) -> None:
    said = {"code": code, "message": "No, sk-verysecret!"}
    failed = response("failed", error=said)
    events: dict[str, dict[str, Any]] = {
        "response.failed": {"type": "response.failed", "response": failed},
        "error": {"type": "error", "param": None, **said},
        "an error object": {"type": "error", "error": said},
    }
    vendor.script = saying(events[how])
    with pytest.raises(ModelError) as caught:
        await answered(vendor, HELLO, openai_api_key="sk-verysecret")
    assert type(caught.value) is expected
    assert "sk-verysecret" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"data: {nonsense\n\n", b"data: 3\n\n", b'data: {"type": "response.failed"}\n\n'])
async def test_what_is_not_the_protocol_is_unavailable(vendor: Vendor, raw: bytes) -> None:
    async def nonsense(connection: Connection) -> None:
        await connection.begin()
        await connection.say(raw)
        await connection.close()

    vendor.script = nonsense
    with pytest.raises(ModelUnavailable, match="protocol"):
        await answered(vendor, HELLO)


async def test_leaving_the_stream_closes_the_connection(vendor: Vendor) -> None:
    async def stalling(connection: Connection) -> None:
        await connection.begin()
        await connection.say(wire({**text("Hel"), "sequence_number": 1}))
        await connection.gone.wait()

    vendor.script = stalling
    model = OpenAIModel.open("responses:m", Settings(openai_base_url=f"{vendor.url}/v1"), Path())
    async for _ in model.stream(HELLO):
        break
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 5)
    await model.aclose()
