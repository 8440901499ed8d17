"""What the openai adapter puts on the wire of chat completions, and what it takes from it."""

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
    ImagesRefused,
    ModelError,
    ModelRefused,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    QuotaTooSmall,
    RateLimited,
    Truncated,
)
from rolecall.models import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.endpoint import Endpoint
from rolecall.models.providers.openai import OpenAIModel, list_models
from rolecall.models.providers.openai_wire import chat_body, chats
from rolecall.settings import Settings
from tests.contract.model_lists import answering, openai_list
from tests.contract.model_vendor import Connection, Script, Vendor
from tests.contract.model_wires import OpenAIWire

HELLO = Request((Message("user", "Hi"),))
WEATHER = ToolSpec("weather", "The weather at a place.", {"type": "object", "properties": {"at": {"type": "string"}}})
ASKING = Request((Message("user", "Is it raining?"),), tools=(WEATHER,))
IMAGE = Request((Message("user", "What is it?", (b"\x89PNG...",)),))


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(OpenAIWire())
    vendor.script = saying({"content": "Hi"}, finish="stop")
    await vendor.start()
    yield vendor
    await vendor.stop()


def saying(*deltas: dict[str, Any], finish: str | None = None) -> Script:
    """A script that sends ``deltas`` and, unless it is None, ``finish``."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]

    async def script(connection: Connection) -> None:
        await connection.begin()
        for choice in choices:
            chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            await connection.say(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if finish:
            await connection.say(connection.wire.end(finish, (7, 2)))
        await connection.close()

    return script


def refusing(status: int, message: str, **error: Any) -> Script:
    async def script(connection: Connection) -> None:
        body = {"error": {"message": message, "type": "invalid_request_error", "code": None, **error}}
        await connection.answer(status, json.dumps(body).encode())

    return script


async def answered(vendor: Vendor, request: Request, name: str = "org/model:8b", **settings: Any) -> list[ModelEvent]:
    given = Settings(**{"openai_base_url": f"{vendor.url}/v1/", **settings})
    model = OpenAIModel.open(name, given, Path())
    try:
        return [event async for event in model.stream(request)]
    finally:
        await model.aclose()


async def asked(vendor: Vendor, request: Request, name: str = "org/model:8b", **settings: Any) -> Connection:
    await answered(vendor, request, name, **settings)
    return vendor.connections[-1]


def call(
    index: int | None = 0, id: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    """A delta with a piece of a tool call, in which what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    known = {"index": index, "id": id}
    return {"tool_calls": [{**{k: v for k, v in known.items() if v is not None}, "function": function}]}


# ── what is asked ───────────────────────────────────────────────────────────────────────────────


async def test_the_request_names_model_messages_and_limits(vendor: Vendor) -> None:
    request = Request((Message("system", "Be brief."), Message("user", "Hi")), max_tokens=9, temperature=0.5, timeout=5)
    connection = await asked(vendor, request, openai_api_key="sk-1")
    assert connection.body == {
        "model": "org/model:8b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.5,
    }
    assert connection.headers["authorization"] == "Bearer sk-1"


TOOL = ToolSpec("weather", "Tell the weather", {"type": "object", "properties": {}})


async def test_sampling_stop_words_and_names_are_passed_on(vendor: Vendor) -> None:
    options: dict[str, Any] = {"top_p": 0.9, "seed": 7, "stop": ("END",), "parallel": False, "tools": (TOOL,)}
    body = (await asked(vendor, Request((Message("user", "Hi", name="ann"),), **options))).body
    assert (body["top_p"], body["seed"], body["stop"], body["parallel_tool_calls"]) == (0.9, 7, ["END"], False)
    assert body["messages"] == [{"role": "user", "content": "Hi", "name": "ann"}]
    body = (await asked(vendor, Request(HELLO.messages, **options), "gpt-5")).body
    assert not {"top_p", "stop"} & set(body)


async def test_what_the_request_leaves_open_is_left_to_the_server(vendor: Vendor) -> None:
    connection = await asked(vendor, HELLO)
    assert set(connection.body) == {"model", "messages", "stream", "stream_options"}


async def test_a_server_that_refuses_to_be_asked_for_counts_is_not_asked_again(vendor: Vendor) -> None:
    answer = vendor.script

    async def script(connection: Connection) -> None:
        if "stream_options" not in connection.body:
            return await answer(connection)
        extra = {"loc": ["body", "stream_options", "include_usage"], "msg": "Extra inputs are not permitted"}
        await connection.answer(422, json.dumps({"object": "error", "message": {"detail": [extra]}}).encode())

    vendor.script = script
    model = OpenAIModel.open("mistral", Settings(openai_base_url=f"{vendor.url}/v1"), Path())
    for _ in range(2):
        assert [event async for event in model.stream(HELLO)] == [Delta("Hi"), Usage(7, 2), Done("stop")]
    assert ["stream_options" in connection.body for connection in vendor.connections] == [True, False, False]
    await model.aclose()


@pytest.mark.parametrize("field", ["seed", "parallel_tool_calls"])
async def test_an_option_that_a_server_refuses_is_left_out(vendor: Vendor, field: str) -> None:
    answer = vendor.script

    async def script(connection: Connection) -> None:
        if field not in connection.body:
            return await answer(connection)
        await connection.answer(400, json.dumps({"error": {"message": f"Unsupported parameter: '{field}'"}}).encode())

    vendor.script = script
    request = Request(HELLO.messages, seed=7, parallel=False, tools=(TOOL,))
    assert (await answered(vendor, request))[0] == Delta("Hi")
    assert len(vendor.connections) == 2


async def test_where_a_server_takes_no_schemas_the_words_of_the_question_are_left(vendor: Vendor) -> None:
    answer = vendor.script

    async def script(connection: Connection) -> None:
        if "response_format" not in connection.body:
            return await answer(connection)
        words = b'{"error": {"message": "This response_format type is unavailable now"}}'
        await connection.answer(400, words)

    vendor.script = script
    assert await answered(vendor, Request(HELLO.messages, schema={"type": "object"})) == [
        Delta("Hi"), Usage(7, 2), Done("stop"),
    ]  # fmt: skip
    assert ["response_format" in connection.body for connection in vendor.connections] == [True, False]

    async def refusing_all(connection: Connection) -> None:
        await connection.answer(400, b'{"error": {"message": "response_format and stream_options are refused"}}')

    vendor.script = refusing_all
    with pytest.raises(ModelRefused):
        await answered(vendor, Request(HELLO.messages, schema={"type": "object"}))
    assert len(vendor.connections) == 4, "once more, not for ever"


async def test_images_travel_as_data_urls(vendor: Vendor) -> None:
    connection = await asked(vendor, IMAGE)
    text, image = connection.body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("name", ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "openai/gpt-5-mini", "gpt-6.2-sol"])
async def test_a_reasoning_model_is_asked_in_its_own_way(vendor: Vendor, name: str) -> None:
    request = Request((Message("system", "Be brief."), Message("user", "Hi")), max_tokens=9, temperature=0.5)
    body = (await asked(vendor, request, name)).body
    assert [message["role"] for message in body["messages"]] == ["developer", "user"]
    assert body["max_completion_tokens"] == 9
    assert not {"max_tokens", "temperature"} & set(body)


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-5-chat-latest", "gpt-oss:20b", "olmo2", "org/model"])
async def test_a_model_that_does_not_reason_keeps_its_temperature(vendor: Vendor, name: str) -> None:
    body = (await asked(vendor, Request(HELLO.messages, temperature=0.5), name)).body
    assert body["temperature"] == 0.5


def test_openai_s_own_server_gets_the_newer_name_of_the_limit() -> None:
    limited = Request(HELLO.messages, max_tokens=9)
    assert Endpoint("https://api.openai.com/v1", "k").official
    assert Endpoint("https://eu.api.openai.com/v1", "k").official
    assert not Endpoint("https://api.openai.com.example/v1", "k").official
    assert chat_body("gpt-4o", limited, official=True)["max_completion_tokens"] == 9


async def test_tools_and_an_obligation_to_call_one_are_offered(vendor: Vendor) -> None:
    body = (await asked(vendor, Request(ASKING.messages, tools=(WEATHER,), must_call=True))).body
    function = {"name": "weather", "description": "The weather at a place.", "parameters": WEATHER.parameters}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == "required"
    assert "tool_choice" not in (await asked(vendor, ASKING)).body


async def test_calls_and_their_results_go_back_as_messages(vendor: Vendor) -> None:
    calls = (ToolCall("call_1", "weather", '{"at": "Bonn"}'), ToolCall("call_2", "weather", "{}"))
    messages = (
        Message("user", "Is it raining?"),
        Message("assistant", "", calls=calls),
        Message("tool", "It rains.", call="call_1"),
        Message("tool", "No.", call="call_2"),
    )
    sent = (await asked(vendor, Request(messages, tools=(WEATHER,)))).body["messages"]
    assert sent[1]["content"] is None
    assert sent[1]["tool_calls"][0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"at": "Bonn"}'},
    }
    assert sent[2:] == [
        {"role": "tool", "content": "It rains.", "tool_call_id": "call_1"},
        {"role": "tool", "content": "No.", "tool_call_id": "call_2"},
    ]


async def test_a_schema_is_passed_on(vendor: Vendor) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    body = (await asked(vendor, Request(HELLO.messages, schema=schema))).body
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


async def test_a_server_on_this_machine_is_reached_past_any_proxy(vendor: Vendor) -> None:
    connection = await asked(vendor, HELLO, proxy="127.0.0.1:9")
    assert connection.body["messages"]


async def test_a_server_elsewhere_is_reached_by_the_proxy_that_is_named(vendor: Vendor) -> None:
    connection = await asked(
        vendor, HELLO, openai_base_url="http://models.example/v1", proxy=vendor.url.removeprefix("http://")
    )
    assert connection.headers["host"] == "models.example"


# ── what comes back ─────────────────────────────────────────────────────────────────────────────


async def test_a_call_comes_whole_after_the_text(vendor: Vendor) -> None:
    vendor.script = saying(
        {"role": "assistant", "content": "Let me see."},
        call(id="call_1", name="weather", arguments=""),
        call(arguments='{"at": '),
        call(arguments='"Bonn"}'),
        finish="tool_calls",
    )
    assert await answered(vendor, ASKING) == [
        Delta("Let me see."),
        ToolCall("call_1", "weather", '{"at": "Bonn"}'),
        Usage(7, 2),
        Done("tool_calls"),
    ]


@pytest.mark.parametrize(
    "deltas",
    [
        (
            call(0, "a", "weather", '{"at":'),
            call(1, "b", "weather", '{"at":2'),
            call(0, arguments="1}"),
            call(1, arguments="}"),
        ),
        (call(0, "a", "weather", '{"at":1}'), call(0, "b", "weather", '{"at":2}')),
        (call(None, "a", "weather", '{"at":1}'), call(None, "b", "weather", '{"at":2}')),
        (
            call(0, "a", "weather", '{"at":'),
            call(0, "a", "weather", "1}"),
            call(1, "b", "weather", '{"at":'),
            call(1, "b", "weather", "2}"),
        ),
        ({"tool_calls": [*call(0, "a", "weather", {"at": 1})["tool_calls"]]}, call(1, "b", "weather", {"at": 2})),
    ],
    ids=["interleaved", "every index 0", "no index", "id and name repeated", "arguments as objects"],
)
async def test_calls_are_told_apart_however_a_server_writes_them(
    vendor: Vendor, deltas: tuple[dict[str, Any], ...]
) -> None:
    vendor.script = saying(*deltas, finish="tool_calls")
    calls = [ToolCall("a", "weather", '{"at":1}'), ToolCall("b", "weather", '{"at":2}')]
    assert await answered(vendor, ASKING) == [*calls, Usage(7, 2), Done("tool_calls")]


@pytest.mark.parametrize(
    "deltas",
    [
        (call(0, "", "weather", '{"at":1}'), call(0, "", "stock", "{}")),
        (call(None, None, "weather", '{"at":1}'), call(None, None, "stock", "{}")),
        (
            call(0, None, "weather", '{"at"'),
            call(0, None, "weather", ":1}"),
            call(0, "", "stock", ""),
            call(0, "", "stock"),
        ),
    ],
    ids=["empty ids and every index 0", "neither id nor index", "name repeated"],
)
async def test_calls_without_ids_are_told_apart_by_their_names(
    vendor: Vendor, deltas: tuple[dict[str, Any], ...]
) -> None:
    vendor.script = saying(*deltas, finish="tool_calls")
    calls = [event for event in await answered(vendor, ASKING) if isinstance(event, ToolCall)]
    assert [(one.name, one.arguments) for one in calls] == [("weather", '{"at":1}'), ("stock", "{}")]
    assert calls[0].id != calls[1].id


async def test_two_calls_of_one_tool_without_ids_are_two(vendor: Vendor) -> None:
    vendor.script = saying(call(0, "", "weather", '{"at":1}'), call(0, "", "weather", '{"at":2}'), finish="tool_calls")
    calls = [event for event in await answered(vendor, ASKING) if isinstance(event, ToolCall)]
    assert [one.arguments for one in calls] == ['{"at":1}', '{"at":2}']


async def test_what_a_server_sends_along_with_a_call_goes_back_with_it(vendor: Vendor) -> None:
    extra = {"extra_content": {"google": {"thought_signature": "c2lnbmVk"}}}
    (part,) = call(0, "a", "weather", "{}")["tool_calls"]
    vendor.script = saying({"tool_calls": [{**part, **extra}]}, finish="tool_calls")
    made = (await answered(vendor, ASKING))[0]
    assert isinstance(made, ToolCall)
    vendor.script = saying({"content": "Hi"}, finish="stop")
    plain = ToolCall("b", "weather", "{}", "anthropic:[]")
    sent = (await asked(vendor, Request((Message("assistant", "", calls=(made, plain)),)))).body["messages"][0]
    assert [one.get("extra_content") for one in sent["tool_calls"]] == [extra["extra_content"], None]


async def test_what_a_model_thought_before_a_call_goes_back_to_a_server_that_wants_it(vendor: Vendor) -> None:
    answer = vendor.script
    vendor.script = saying({"reasoning_content": "Hm, "}, {"reasoning_content": "Bern."}, call(0, "a", "weather", "{}"),
                           finish="tool_calls")  # fmt: skip
    made = (await answered(vendor, ASKING))[0]
    assert isinstance(made, ToolCall)

    async def script(connection: Connection) -> None:
        if "reasoning_content" in connection.body["messages"][0]:
            return await answer(connection)
        words = b'{"error": {"message": "thinking is enabled but reasoning_content is missing in message 0"}}'
        await connection.answer(400, words)

    vendor.script = script
    model = OpenAIModel.open("kimi", Settings(openai_base_url=f"{vendor.url}/v1"), Path())
    request = Request((Message("assistant", "", calls=(made,)), Message("tool", "sun", call="a")))
    for _ in range(2):
        events = [event async for event in model.stream(request)]
        assert events[0] == Delta("Hi")
    thoughts = [one.body["messages"][0].get("reasoning_content") for one in vendor.connections[1:]]
    assert thoughts == [None, "Hm, Bern.", "Hm, Bern."]
    await model.aclose()


async def test_reasoning_details_go_back_with_a_call_as_the_model_made_them(vendor: Vendor) -> None:
    def thought(text: str, index: int = 0, signature: str | None = None) -> dict[str, object]:
        return {"type": "reasoning.text", "text": text, "format": "claude", "index": index, "signature": signature}

    def piece(text: str, index: int = 0, signature: str | None = None) -> dict[str, object]:
        return {"reasoning": text, "reasoning_details": [thought(text, index, signature)]}

    secret = {"type": "reasoning.encrypted", "data": "c2VjcmV0", "id": "rs_1", "index": 0}
    thoughts = (piece("Hm, "), piece("Bern."), piece("", signature="c2ln"), piece("And?", 1))
    both = (call(0, "a", "weather", "{}"), call(1, "b", "weather", "{}"))
    vendor.script = saying(*thoughts, {"reasoning_details": [secret, secret]}, *both, finish="tool_calls")
    calls = [event for event in await answered(vendor, ASKING) if isinstance(event, ToolCall)]
    vendor.script = saying({"content": "Hi"}, finish="stop")
    sent = (await asked(vendor, Request((Message("assistant", "", calls=tuple(calls)),)))).body["messages"][0]
    assert sent["reasoning_details"] == [thought("Hm, Bern.", signature="c2ln"), thought("And?", 1), secret, secret]
    assert [one["id"] for one in sent["tool_calls"]] == ["a", "b"]

    vendor.script = saying(piece("Hm. " * 10_000), call(0, "a", "weather", "{}"), finish="tool_calls")
    (made,) = [event for event in await answered(vendor, ASKING) if isinstance(event, ToolCall)]
    assert made.signature == "", "what is too long to be kept is left out whole"


async def test_arguments_that_are_no_json_do_not_go_back(vendor: Vendor) -> None:
    calls = (ToolCall("a", "weather", '{"at": "Bo'), ToolCall("b", "weather", '{"at": 1}'))
    sent = (await asked(vendor, Request((Message("assistant", "", calls=calls),)))).body["messages"][0]["tool_calls"]
    assert [one["function"]["arguments"] for one in sent] == ["{}", '{"at": 1}'], (
        "servers refuse what they cannot parse"
    )


@pytest.mark.parametrize("finish", ["error", "abort", "insufficient_system_resource"])
async def test_an_answer_that_the_server_says_it_did_not_finish_is_broken_off(vendor: Vendor, finish: str) -> None:
    vendor.script = saying({"content": "Hel"}, finish=finish)
    with pytest.raises(Truncated) as caught:
        await answered(vendor, ASKING)
    assert caught.value.text == "Hel"


@pytest.mark.parametrize(
    "error", [{"message": "Reached context length of 4096 tokens"}, {"code": "rate_limit_exceeded"}]
)
async def test_an_answer_that_meets_a_limit_on_its_way_keeps_its_text(vendor: Vendor, error: dict[str, str]) -> None:
    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.say(connection.wire.delta("Hel"), b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        await connection.close()

    vendor.script = script
    with pytest.raises(Truncated) as caught:
        await answered(vendor, HELLO)
    assert caught.value.text == "Hel"


async def test_a_call_without_id_or_arguments_gets_some(vendor: Vendor) -> None:
    vendor.script = saying(call(name="weather"), finish="stop")
    made, _, done = await answered(vendor, ASKING)
    assert isinstance(made, ToolCall)
    assert (made.id[:5], made.name, made.arguments) == ("call_", "weather", "{}")
    assert done == Done("tool_calls"), "some servers end a call with stop"


async def test_a_call_cut_off_amid_its_arguments_is_truncated(vendor: Vendor) -> None:
    vendor.script = saying({"content": "Let me see."}, call(id="a", name="weather", arguments='{"at": "Bo'))
    with pytest.raises(Truncated) as caught:
        await answered(vendor, ASKING)
    assert caught.value.text == "Let me see."


async def test_a_call_that_reaches_the_limit_of_tokens_does_not_come(vendor: Vendor) -> None:
    vendor.script = saying(call(id="a", name="weather", arguments='{"at": "Bo'), finish="length")
    assert await answered(vendor, ASKING) == [Usage(7, 2), Done("length")]


async def test_what_a_model_thinks_aloud_is_not_shown(vendor: Vendor) -> None:
    vendor.script = saying({"reasoning_content": "The user says hi."}, {"content": "Hi"}, finish="stop")
    assert await answered(vendor, HELLO) == [Delta("Hi"), Usage(7, 2), Done("stop")]


async def test_thinking_is_a_sign_of_life(vendor: Vendor) -> None:
    async def thinking(connection: Connection) -> None:
        await connection.begin()
        for _ in range(8):
            choice = {"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}
            await connection.say(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            await asyncio.sleep(0.1)
        await connection.say(connection.wire.delta("Hi"), connection.wire.end("stop", (7, 2)))
        await connection.close()

    vendor.script = thinking
    assert await answered(vendor, HELLO, first_token_seconds=0.5) == [Delta("Hi"), Usage(7, 2), Done("stop")]


async def test_a_refusal_in_the_model_s_own_words_is_one(vendor: Vendor) -> None:
    vendor.script = saying({"refusal": "I cannot "}, {"refusal": "do that."}, finish="stop")
    with pytest.raises(ContentRefused, match=r"the model refuses: I cannot do that\."):
        await answered(vendor, HELLO)


@pytest.mark.parametrize(
    ("status", "message", "error", "expected"),
    [
        (404, "The model does not exist", {"code": "model_not_found"}, NoSuchModel),
        (403, "Project has no access to model", {"code": "model_not_found"}, NoSuchModel),
        (400, "too long", {"code": "context_length_exceeded"}, ContextTooLong),
        (400, "request (9 tokens) exceeds", {"code": 400, "type": "exceed_context_size_error"}, ContextTooLong),
        (400, "This model's maximum context length is 8 tokens", {"type": "BadRequestError"}, ContextTooLong),
        (400, "Filtered by policy", {"code": "content_filter"}, ContentRefused),
        (400, "Your prompt was flagged", {"code": "invalid_prompt"}, ContentRefused),
        (400, "No", {"code": "content_policy_violation"}, ContentRefused),
        (429, "No credit", {"type": "insufficient_quota"}, ModelUnauthorised),
        (402, "Insufficient Balance", {}, ModelUnauthorised),
        (400, "Unsupported value: temperature", {}, ModelRefused),
    ],
)
async def test_a_refusal_is_told_by_its_kind(
    vendor: Vendor, status: int, message: str, error: dict[str, Any], expected: type[ModelError]
) -> None:
    vendor.script = refusing(status, message, **error)
    with pytest.raises(ModelError) as caught:
        await answered(vendor, HELLO)
    assert type(caught.value) is expected


LONG = "This model's maximum prompt length is 8192 but the request contains 9000 tokens."
TPM = "Request too large for m on tokens per min (TPM): Limit 6000, Requested 9012, please reduce your message size"


ERRORS: list[tuple[int, Any, type[ModelError], str]] = [
    (400, {"error": LONG}, ContextTooLong, "9000"),
    (
        400,
        {"error": {"message": "It failed", "metadata": {"raw": json.dumps({"error": LONG})}}},
        ContextTooLong,
        ": This",
    ),
    (422, {"error": "Input validation error: `inputs` must have less than 4095 tokens."}, ContextTooLong, "4095"),
    (200, {"error": {"message": "the model is loaded with context length of only 4096"}}, ContextTooLong, "4096"),
    (429, {"error": {"message": TPM, "type": "tokens", "code": "rate_limit_exceeded"}}, QuotaTooSmall, "9012"),
    (413, {"error": {"message": TPM, "type": "tokens", "code": "rate_limit_exceeded"}}, QuotaTooSmall, "9012"),
    (400, [{"error": {"code": 400, "details": [{"reason": "API_KEY_INVALID"}]}}], ModelUnauthorised, "refuses the key"),
    (400, {"code": "x", "error": "Incorrect API key provided: xa***aa."}, ModelUnauthorised, "refuses the key"),
    (400, {"error": {"message": "Your organization must be verified to stream this"}}, ModelUnauthorised, "verified"),
    (403, {"error": {"message": "Country not supported"}}, ModelUnauthorised, "Country not supported"),
    (403, {"error": {"message": "Flagged", "metadata": {"reasons": ["violence"]}}}, ContentRefused, "Flagged"),
    (422, {"object": "error", "message": {"detail": [{"msg": "Extra inputs"}]}}, ModelRefused, "Extra inputs"),
    (422, {"detail": "Field required"}, ModelRefused, "Field required"),
    (200, {"detail": "Model not loaded"}, ModelUnavailable, "Model not loaded"),
    (200, {"choices": [{"delta": {}, "error": {"message": "It died"}}]}, ModelUnavailable, "It died"),
    (400, {"error": {"message": "Failed to call a function", "code": "tool_use_failed"}}, ModelUnavailable, "Failed"),
    (400, {"error": '"auto" tool choice requires --enable-auto-tool-choice'}, NoSuchModel, "cannot call tools"),
    (500, {"error": {"message": "tools param requires --jinja flag"}}, NoSuchModel, "cannot call tools"),
]


@pytest.mark.parametrize(("status", "body", "expected", "words"), ERRORS)
async def test_an_error_is_read_in_each_form_that_servers_give_it(
    vendor: Vendor, status: int, body: Any, expected: type[ModelError], words: str
) -> None:
    async def script(connection: Connection) -> None:
        await connection.answer(status, json.dumps(body).encode())

    vendor.script = script
    with pytest.raises(ModelError) as caught:
        await answered(vendor, ASKING)
    assert type(caught.value) is expected
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("Please try again in 8s. Visit", 8), ("try again in 350ms.", 0.35), ("try again in 14m24.5s.", 864.5),
     ("Please retry in 34.07s.", 34.07), ("try again in 2h3m", 7380), ("try again in a while", None)],
)  # fmt: skip
async def test_a_wait_that_only_the_words_name_is_kept(vendor: Vendor, words: str, seconds: float | None) -> None:
    vendor.script = refusing(429, words)
    with pytest.raises(RateLimited) as caught:
        await answered(vendor, HELLO)
    assert caught.value.retry_after == (seconds and pytest.approx(seconds))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Invalid content type. image_url is only supported by certain models."),
        (500, "image input is not supported - hint: you may need to provide the mmproj"),
        (400, "org/model:8b is not a multimodal model"),
        (404, "No endpoints found that support image input"),
    ],
)
async def test_an_image_that_the_model_cannot_see_is_a_refusal(vendor: Vendor, status: int, message: str) -> None:
    vendor.script = refusing(status, message)
    with pytest.raises(ImagesRefused, match="takes no images, or not these"):
        await answered(vendor, IMAGE)


async def test_a_model_that_needs_the_responses_api_says_how_it_is_named(vendor: Vendor) -> None:
    vendor.script = refusing(404, "This model is only supported in v1/responses and not in v1/chat/completions.")
    with pytest.raises(NoSuchModel, match="name it responses:new-model@openai"):
        await answered(vendor, HELLO, "new-model")


# ── what there is ───────────────────────────────────────────────────────────────────────────────


async def test_the_models_of_a_server_are_listed() -> None:
    with answering(openai_list("org/b:8b", "a-embedding")) as url:
        found = await list_models(Settings(openai_base_url=f"{url}/v1"))
    assert found == ["a-embedding@openai", "org/b:8b@openai"]


async def test_a_bare_list_of_models_is_one() -> None:
    with answering({"/v1/models": [{"id": "b"}, {"id": None}, {"id": "a"}]}) as url:
        assert await list_models(Settings(openai_base_url=f"{url}/v1")) == ["a@openai", "b@openai"]


def test_of_openai_s_own_models_those_that_chat_are_listed() -> None:
    offered = ("gpt-5-mini", "o3-pro", "gpt-4o", "gpt-6-sol", "text-embedding-3-small", "whisper-1", "gpt-4o-mini-tts",
               "gpt-image-1", "gpt-realtime", "gpt-4o-audio-preview", "omni-moderation-latest", "sora-2", "davinci-002",
               "gpt-3.5-turbo-instruct", "dall-e-3")  # fmt: skip
    assert [name for name in offered if chats(name)] == ["gpt-5-mini", "o3-pro", "gpt-4o", "gpt-6-sol"]


async def test_a_list_that_is_refused_is_an_error_without_the_key() -> None:
    refusal = {"/v1/models": {"error": {"message": "Incorrect API key provided: sk-verysecret"}}}
    with answering(refusal, status=401) as url:
        settings = Settings(openai_base_url=f"{url}/v1", openai_api_key=SecretStr("sk-verysecret"))
        with pytest.raises(ModelUnauthorised, match=r"^openai: 127\.0\.0\.1 refuses the key") as caught:
            await list_models(settings)
    assert "sk-verysecret" not in str(caught.value)
