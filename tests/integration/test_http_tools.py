"""Chat completions with what the client brings: tools, a JSON schema, sampling, results of its own tools.

OpenAI's own client, a real application with the shipped agents, and a provider on the loopback behind them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pydantic
import pytest
import pytest_asyncio
from openai.lib.streaming.chat import ChatCompletionStreamState

from agents import samplellm
from agents.lang import LangAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.conversation import history
from tests.deployment import Deployment, deployed
from tests.http.upstream import Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NO_PARAMETERS: Any = {"type": "function", "function": {"name": "now"}}
HELLO: Any = [{"role": "user", "content": "Hello"}]
ASKED: Any = [{"role": "user", "content": "What is the weather?"}]


def clock(city: str) -> str:
    """Tell the time."""
    return f"noon in {city}"


class ClockAgent(Agent):
    """Answers with a tool of its own beside those of the client, and does with the answer what it likes."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        answer = await ctx.stream(ctx.model, (), envelope.text, tools=[clock], temperature=0.1)
        return envelope.reply(answer.text or "The model gave no answer.", remember=False)


ROLES = (
    Role(ManagerAgent),
    Role(LangAgent),
    Role(SampleLLMAgent, instances=4, models=("mirror@openai",)),
    Role(ClockAgent, models=("mirror@openai",)),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Deployment]:
    directory = tmp_path_factory.mktemp("tools")
    shutil.copytree(Path(samplellm.__file__).parent / "prompts", directory / "agents" / "prompts")
    async with deployed(directory, ROLES, openai_base_url=upstream.url) as running:
        yield running


async def completed(client: openai.AsyncOpenAI, stream: bool, **options: Any) -> Any:
    """The completion, whole or put together from its stream as OpenAI's client does."""
    options = {"model": "auto", **options}
    if not stream:
        return await client.chat.completions.create(**options)
    state = ChatCompletionStreamState()
    async for chunk in await client.chat.completions.create(**options, stream=True):
        state.handle_chunk(chunk)
    return state.get_final_completion()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_ends_the_turn_and_its_result_goes_on(
    client: openai.AsyncOpenAI, upstream: Upstream, stream: bool
) -> None:
    answer = await completed(client, stream, messages=ASKED, tools=[WEATHER])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content or None) == ("tool_calls", None)
    calls = choice.message.tool_calls
    assert [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("call_0", "weather", {"city": "city 0"}), ("call_1", "weather", {"city": "city 1"}),
    ]  # fmt: skip
    offered = upstream.bodies[-1]["tools"][0]["function"]
    assert (offered["name"], offered["parameters"]) == ("weather", WEATHER["function"]["parameters"])
    results = [{"role": "tool", "tool_call_id": call.id, "content": f"{call.id}: sun"} for call in calls]
    said = choice.message.model_dump(exclude_none=True)
    messages = [{"role": "developer", "content": "Be brief."}, *ASKED, said, *results]
    last = await completed(client, stream, messages=messages, tools=[WEATHER])
    assert (last.choices[0].message.content, last.choices[0].finish_reason) == ("The tool says call_1: sun", "stop")
    sent = upstream.bodies[-1]["messages"]
    assert [message["role"] for message in sent] == ["system", "system", "user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[3]["tool_calls"]] == ["call_0", "call_1"]
    assert [message["tool_call_id"] for message in sent[4:]] == ["call_0", "call_1"]


async def test_a_history_of_calls_reaches_the_model_as_it_was(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages: Any = [
        *ASKED, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "18 C"}]},
        {"role": "assistant", "content": "It is 18."}, {"role": "user", "content": "Hello again", "name": "ann"},
    ]  # fmt: skip
    answer = await completed(client, False, messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "You said Hello again"
    sent = upstream.bodies[-1]["messages"][1:]
    assert [(message["role"], message["content"]) for message in sent] == [
        ("user", "What is the weather?"), ("assistant", None), ("tool", "18 C"), ("assistant", "It is 18."),
        ("user", "Hello again"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "offered", "required"),
    [
        ("none", None, None),
        ("auto", ["weather", "now"], None),
        ("required", ["weather", "now"], "required"),
        ({"type": "function", "function": {"name": "now"}}, ["now"], "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}, ["weather", "now"], "required"),
    ],
)
async def test_the_choice_of_tools_reaches_the_model(
    client: openai.AsyncOpenAI, upstream: Upstream, choice: Any, offered: list[str] | None, required: str | None
) -> None:
    await completed(client, False, messages=ASKED, tools=[WEATHER, NO_PARAMETERS], tool_choice=choice)
    body = upstream.bodies[-1]
    names = [tool["function"]["name"] for tool in body["tools"]] if "tools" in body else None
    assert (names, body.get("tool_choice")) == (offered, required)


async def test_one_call_at_a_time_is_one_call(client: openai.AsyncOpenAI) -> None:
    answer = await completed(client, False, messages=ASKED, tools=[WEATHER], parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1


async def test_an_agent_with_tools_of_its_own_still_runs_them(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    answer = await completed(client, False, model="clock", messages=ASKED, temperature=1.5)
    assert answer.choices[0].message.content == "The tool says noon in city 1"
    assert upstream.bodies[-1]["temperature"] == 0.1
    only: Any = {"type": "function", "function": {"name": "weather"}}
    answer = await completed(client, True, model="clock", messages=ASKED, tools=[WEATHER], tool_choice=only)
    assert {tool["function"]["name"] for tool in upstream.bodies[-1]["tools"]} == {"clock", "weather"}


async def test_a_turn_that_ends_in_a_call_is_remembered_once_it_is_answered(
    client: openai.AsyncOpenAI, deployment: Deployment
) -> None:
    named = {"X-Conversation-Id": "calls"}
    answer = await completed(client, False, messages=ASKED, tools=[WEATHER], extra_headers=named)
    said = answer.choices[0].message.model_dump(exclude_none=True)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in said["tool_calls"]]
    await completed(client, False, messages=[*ASKED, said, *results], tools=[WEATHER], extra_headers=named)
    kept = await history(deployment.session.bus, "http:local:calls", 9)
    assert [(entry.role, entry.text) for entry in kept] == [
        ("user", "What is the weather?"), ("assistant", "The tool says sun"),
    ]  # fmt: skip


async def test_the_sampling_a_client_wants_reaches_the_model(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    options: dict[str, Any] = {"temperature": 0.3, "top_p": 0.8, "seed": 5, "stop": ["END", "STOP"], "max_tokens": 1}
    answer = await completed(client, False, messages=[{"role": "user", "content": "Hello"}], **options)
    assert {name: upstream.bodies[-1][name] for name in options} == options
    assert answer.choices[0].finish_reason == "length"
    stream = await client.chat.completions.create(
        model="auto", messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=1, stop="END", stream=True
    )
    last = [chunk async for chunk in stream][-1]
    assert (upstream.bodies[-1]["max_tokens"], upstream.bodies[-1]["stop"]) == (1, ["END"])
    assert (last.choices[0].finish_reason, last.system_fingerprint) == ("length", "mirror@openai")


class Place(pydantic.BaseModel):
    """Where something is."""

    city: str
    people: int


ROME = '{"city": "Rome", "people": 3}'


@pytest.mark.parametrize(
    ("answers", "asked"),
    [([ROME], 1), ([f"Here it is:\n```json\n{ROME}\n```"], 1), (["sorry", ROME], 2), (['{"city": 7}', ROME], 2)],
)
async def test_an_answer_in_the_form_of_a_schema_is_valid(
    client: openai.AsyncOpenAI, upstream: Upstream, answers: list[str], asked: int
) -> None:
    before, upstream.answers = len(upstream.bodies), list(answers)
    parsed = await client.chat.completions.parse(model="auto", messages=ASKED, response_format=Place)
    assert parsed.choices[0].message.parsed == Place(city="Rome", people=3)
    bodies = upstream.bodies[before:]
    assert len(bodies) == asked
    assert bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["city", "people"]
    assert parsed.usage is not None and parsed.usage.total_tokens == 10 * asked


async def test_a_stream_in_the_form_of_a_schema_shows_only_what_is_valid(
    client: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    upstream.answers = ["no JSON at all", ROME]
    async with client.chat.completions.stream(model="auto", messages=ASKED, response_format=Place) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Place(city="Rome", people=3)


async def test_any_json_object_is_one_and_what_is_twice_none_is_an_error(
    client: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    upstream.answers = ["[1]", '{"a": 1}']
    answer = await completed(client, False, messages=ASKED, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"a": 1}
    upstream.answers = ["no", "never"]
    with pytest.raises(openai.APIStatusError) as caught:
        await completed(client, False, messages=ASKED, response_format={"type": "json_object"})
    assert (caught.value.status_code, caught.value.response.headers["x-should-retry"]) == (502, "false")


async def test_a_schema_that_takes_forever_or_leads_elsewhere_stops_nobody(
    client: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    evil = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "evil", "schema": evil, "strict": True}}
    upstream.answers = [json.dumps({"a": "a" * 40 + "!"})]
    async with asyncio.timeout(5):
        await completed(client, False, messages=ASKED, response_format=form)
    away = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/schema.json"}}}
    form["json_schema"]["schema"] = away
    upstream.answers = ['{"a": 1}']
    with pytest.raises(openai.APIStatusError):
        await completed(client, False, messages=ASKED, response_format=form)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top", [None, 2])
async def test_log_probabilities_come_from_a_model_that_has_them(
    client: openai.AsyncOpenAI, upstream: Upstream, stream: bool, top: int | None
) -> None:
    options = {"top_logprobs": top} if top else {}
    answer = await completed(client, stream, messages=HELLO, logprobs=True, n=2, **options)
    assert (upstream.bodies[-1]["logprobs"], upstream.bodies[-1].get("top_logprobs")) == (True, top)
    for choice in answer.choices:
        (token,) = choice.logprobs.content
        assert (token.token, token.logprob, len(token.top_logprobs)) == (choice.message.content, -0.5, top or 0)
    plain = await completed(client, stream, messages=HELLO)
    assert plain.choices[0].logprobs is None and "logprobs" not in upstream.bodies[-1]


def calling(*ids: str) -> dict[str, Any]:
    calls = [{"id": one, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(of: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": of, "content": "sun"}


def picture_at(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


DEEP: Any = {"type": "object", "properties": {}}
for _ in range(40):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": [*ASKED, result("c1")]}, "messages.1.role", "invalid_messages"),
        ({"messages": [result("c1")]}, "messages.0.role", "invalid_messages"),
        ({"messages": [picture_at("http://169.254.169.254/latest/meta-data")]}, "images", "invalid_request"),
        ({"messages": [picture_at("https://example.org/a.png")]}, "images", "invalid_request"),
        ({"messages": [picture_at("file:///etc/passwd")]}, "images", "invalid_request"),
        ({"messages": ASKED * 20_001}, "messages", "invalid_request"),
        ({"messages": [*ASKED, calling("c1"), result("c2")]}, "messages.2.role", "invalid_messages"),
        ({"messages": [*ASKED, calling("c1"), *ASKED]}, "messages.2.role", "invalid_messages"),
        ({"messages": [*ASKED, calling("c1", "c2"), result("c1")]}, "messages.3.role", "invalid_messages"),
        ({"messages": [*ASKED, calling("c1"), result("c1"), result("c1")]}, "messages.3.role", "invalid_messages"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type", "invalid_request"),
        ({"tools": [tool(name="a b")]}, "tools.0", "invalid_tool"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools.1", "unsupported_tool"),
        ({"tools": [tool(name="a", parameters={"type": "string"})]}, "tools.0.function.parameters",
         "invalid_function_parameters"),
        ({"tools": [tool(name="a", parameters={"properties": 7})]}, "tools.0.function.parameters",
         "invalid_function_parameters"),
        ({"tools": [tool(name="a", parameters={"properties": {"x": {"type": "bogus"}}})]},
         "tools.0.function.parameters", "invalid_function_parameters"),
        ({"tools": [tool(name="a", parameters=DEEP)]}, "tools.0.function.parameters", "invalid_function_parameters"),
        ({"tools": [tool(name=f"t{n}") for n in range(200)]}, "tools", "invalid_request"),
        ({"tools": [tool(name="a", description="x" * 600_000)]}, "tools", "tools_too_large"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice",
         "invalid_tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice", "invalid_tool_choice"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "invalid_json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}},
         "response_format.json_schema.schema", "invalid_json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_request"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": 10**9}, "n", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_request"),
        ({"top_p": -1}, "top_p", "invalid_request"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "unsupported_parameter"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_one_clear_error(
    plain: httpx2.AsyncClient, change: dict[str, Any], param: str, code: str
) -> None:
    answer = await plain.post("/v1/chat/completions", json={"messages": ASKED, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)


async def test_tools_larger_than_an_envelope_reach_the_model(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    tools = [tool(name=f"tool_{n}", description="x" * 3000) for n in range(100)]
    answer = await completed(client, False, messages=ASKED, tools=tools)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert len(upstream.bodies[-1]["tools"]) == 100


@pytest.mark.parametrize("last", [{"role": "assistant", "content": "It is"}, {"role": "system", "content": "Go on."}])
async def test_the_last_message_need_not_be_the_users(
    client: openai.AsyncOpenAI, upstream: Upstream, last: Any
) -> None:
    answer = await completed(client, False, messages=[*ASKED, last])
    assert answer.choices[0].message.content == f"You said {last['content']}"
    assert upstream.bodies[-1]["messages"][-1]["role"] == last["role"]
    alone = await completed(client, False, messages=[last])
    assert alone.choices[0].finish_reason == "stop"
