"""What the gemini adapter puts on the wire, and what it takes from it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rolecall.errors import (
    ConfigError,
    ContentRefused,
    ImagesRefused,
    ModelError,
    ModelRefused,
    ModelUnauthorised,
    ModelUnavailable,
)
from rolecall.models import Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.gemini import GeminiModel
from rolecall.settings import Settings
from tests.contract.model_vendor import Connection, Vendor, refusing, saying
from tests.contract.model_wires import GeminiWire

WIRE = GeminiWire()
NESTED = {"type": "object", "properties": {"at": {"type": "object", "properties": {"city": {"type": "string"}}}}}


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(WIRE)
    vendor.script = saying(WIRE.delta("Hi"), WIRE.end("stop", (7, 2)))
    await vendor.start()
    yield vendor
    await vendor.stop()


async def answered(
    vendor: Vendor, request: Request, name: str = "gemini-3-flash", prefix: str = ""
) -> list[ModelEvent]:
    settings = Settings(gemini_base_url=f"{vendor.url}/{prefix}", google_api_key=SecretStr("g-1"))
    model = GeminiModel.open(name, settings, Path())
    try:
        return [event async for event in model.stream(request)]
    finally:
        await model.aclose()


async def asked(vendor: Vendor, request: Request, name: str = "gemini-3-flash") -> Connection:
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
    connection = await asked(vendor, Request(messages, max_tokens=9, temperature=0.5, top_p=0.9, seed=7, stop=("END",)))
    assert connection.path == "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse"
    assert connection.headers["x-goog-api-key"] == "g-1"
    assert connection.body == {
        "systemInstruction": {"parts": [{"text": "Be brief.\n\nBe kind."}], "role": "user"},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}, {"text": "and hello"}]},
            {"role": "model", "parts": [{"text": "Hi!"}]},
            {"role": "user", "parts": [{"text": "Bye"}]},
        ],
        "generationConfig": {
            "maxOutputTokens": 9,
            "temperature": 0.5,
            "topP": 0.9,
            "seed": 7,
            "stopSequences": ["END"],
        },
    }


@pytest.mark.parametrize("prefix", ["v1beta/", "v1beta"])
async def test_an_address_may_name_the_version(vendor: Vendor, prefix: str) -> None:
    await answered(vendor, Request((Message("user", "Hi"),)), prefix=prefix)
    assert vendor.connections[-1].path.startswith("/v1beta/models/")


async def test_instructions_alone_are_a_question(vendor: Vendor) -> None:
    connection = await asked(vendor, Request((Message("system", "Greet."),)))
    assert connection.body["contents"] == [{"role": "user", "parts": [{"text": "Greet."}]}]
    assert "systemInstruction" not in connection.body


async def test_images_travel_with_their_type(vendor: Vendor) -> None:
    connection = await asked(vendor, Request((Message("user", "What is it?", (b"GIF8...",)),)))
    text, image = connection.body["contents"][0]["parts"]
    assert text == {"text": "What is it?"}
    assert image == {"inlineData": {"mime_type": "image/gif", "data": "R0lGOC4uLg=="}}


async def test_tools_are_declared_whole_and_one_can_be_insisted_on(vendor: Vendor) -> None:
    request = Request((Message("user", "?"),), tools=(ToolSpec("weather", "Tells it.", NESTED),), must_call=True)
    body = (await asked(vendor, request)).body
    # The SDK writes some names in one way and some in the other; the API takes both.
    declared = {"name": "weather", "description": "Tells it.", "parameters_json_schema": NESTED}
    assert body["tools"] == [{"functionDeclarations": [declared]}]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


async def test_a_schema_asks_for_json(vendor: Vendor) -> None:
    config = (await asked(vendor, Request((Message("user", "?"),), schema=NESTED))).body["generationConfig"]
    assert config == {"responseMimeType": "application/json", "responseJsonSchema": NESTED}


async def test_a_call_keeps_its_signature_on_the_way_there_and_back(vendor: Vendor) -> None:
    vendor.script = saying(WIRE.call("weather", {"at": "Bern"}), WIRE.end("stop", (7, 2)))
    question = Message("user", "?")
    call, usage, done = await answered(vendor, Request((question,)))
    assert isinstance(call, ToolCall)
    assert (call.signature, usage, done) == ("c2lnbmVk", Usage(7, 2), Done("tool_calls"))
    known = (question, Message("assistant", "Let me see.", calls=(call,)), Message("tool", "sun", call=call.id))
    called, result = (await asked(vendor, Request(known))).body["contents"][1:]
    wish = {"id": call.id, "name": "weather", "args": {"at": "Bern"}}
    assert called["parts"] == [{"text": "Let me see."}, {"functionCall": wish, "thoughtSignature": "c2lnbmVk"}]
    answer = {"id": call.id, "name": "weather", "response": {"output": "sun"}}
    assert result == {"role": "user", "parts": [{"functionResponse": answer}]}


@pytest.mark.parametrize(("name", "signed"), [("gemini-3-flash", [True, False]), ("gemini-2.5-pro", [False, False])])
async def test_calls_of_another_model_get_the_signature_that_gemini_3_insists_on(
    vendor: Vendor, name: str, signed: list[bool]
) -> None:
    calls = (ToolCall("a", "weather", "{}"), ToolCall("b", "weather", "not json"))
    messages = (
        Message("user", "?"),
        Message("assistant", "", calls=calls),
        *(Message("tool", "", call=c) for c in "ab"),
    )
    contents = (await asked(vendor, Request(messages), name)).body["contents"]
    assert ["thoughtSignature" in part for part in contents[1]["parts"]] == signed
    assert [part["functionResponse"]["id"] for part in contents[2]["parts"]] == ["a", "b"]


async def test_thoughts_are_counted_as_written(vendor: Vendor) -> None:
    counts = {"promptTokenCount": 7, "candidatesTokenCount": 2, "thoughtsTokenCount": 5, "toolUsePromptTokenCount": 1}
    last = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": counts}
    vendor.script = saying(b"data: " + json.dumps(last).encode() + b"\n\n")
    assert await answered(vendor, Request((Message("user", "?"),))) == [Usage(8, 7), Done("stop")]


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}, ContentRefused),
        ({"promptFeedback": {"blockReason": "OTHER"}}, ContentRefused),
        ({"candidates": [{"finishReason": "RECITATION"}]}, ContentRefused),
        ({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}, ModelUnavailable),
        ({"candidates": [{"finishReason": "MISSING_THOUGHT_SIGNATURE"}]}, ModelRefused),
        ({"candidates": [{"finishReason": "OTHER"}]}, ModelUnavailable),
        ({"error": {"code": 429, "message": "prepayment credits are depleted"}}, ModelUnauthorised),
    ],
)
async def test_an_answer_that_is_none_says_why(
    vendor: Vendor, chunk: dict[str, Any], expected: type[ModelError]
) -> None:
    vendor.script = saying(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    with pytest.raises(ModelError) as caught:
        await answered(vendor, Request((Message("user", "?"),)))
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    "error",
    [
        {"message": "API key not valid. g-1", "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]},
        {"message": "User location is not supported for the API use.", "status": "FAILED_PRECONDITION"},
    ],
)
async def test_a_bad_key_or_account_is_told_from_a_bad_request(vendor: Vendor, error: dict[str, Any]) -> None:
    vendor.script = refusing(400, json.dumps({"error": {"code": 400, **error}}).encode())
    with pytest.raises(ModelUnauthorised) as caught:
        await answered(vendor, Request((Message("user", "?"),)))
    assert "g-1" not in str(caught.value)


async def test_an_image_that_cannot_be_read_is_said(vendor: Vendor) -> None:
    vendor.script = refusing(
        400, json.dumps({"error": {"code": 400, "message": "Unable to process input image."}}).encode()
    )
    with pytest.raises(ImagesRefused):
        await answered(vendor, Request((Message("user", "?", (b"GIF8",)),)))


def test_a_bad_address_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="GEMINI_BASE_URL=localhost:1"):
        GeminiModel.open("m", Settings(gemini_base_url="localhost:1"), Path())


def test_the_name_of_a_setting_is_told_where_there_is_no_key() -> None:
    with pytest.raises(ConfigError, match="GEMINI_API_KEY or GOOGLE_API_KEY"):
        GeminiModel.open("m", Settings(gemini_api_key=SecretStr("")), Path())
