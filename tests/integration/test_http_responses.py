"""The Responses API, as OpenAI's own client and a real application use it, with a provider on the loopback behind."""

from __future__ import annotations

import asyncio
import base64
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

from agents import samplellm
from agents.lang import LangAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall.agent.role import Role
from rolecall.bus.access_keys import create_key
from rolecall.bus.cancel import erase_conversation
from tests.deployment import Deployment, deployed
from tests.http.server import closed, open_again
from tests.http.stage import GateAgent, TellAgent
from tests.http.upstream import Upstream
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
ROLES = (
    Role(ManagerAgent),
    Role(LangAgent),
    Role(SampleLLMAgent, instances=4, models=("mirror@openai",)),
    Role(TellAgent),
    Role(GateAgent, instances=4),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Deployment]:
    directory = tmp_path_factory.mktemp("responses")
    GateAgent.gate = asyncio.Event()
    shutil.copytree(Path(samplellm.__file__).parent / "prompts", directory / "agents" / "prompts")
    async with deployed(directory, ROLES, openai_base_url=upstream.url) as running:
        yield running


async def created(client: openai.AsyncOpenAI, stream: bool, **options: Any) -> Any:
    """The response, whole or as the last event of its stream has it."""
    options = {"model": "auto", **options}
    if not stream:
        return await client.responses.create(**options)
    async with client.responses.stream(**options) as events:
        return await events.get_final_response()


def roles_and_texts(upstream: Upstream) -> list[tuple[str, Any]]:
    """What the provider was asked last, without the prompt of the agent."""
    return [(message["role"], message.get("content")) for message in upstream.bodies[-1]["messages"][1:]]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_answered_and_continued(
    client: openai.AsyncOpenAI, upstream: Upstream, stream: bool
) -> None:
    first = await created(client, stream, input="Hello one", instructions="Be brief.", metadata={"a": "b"})
    assert (first.status, first.output_text, first.object) == ("completed", "You said Hello one", "response")
    assert (first.instructions, first.metadata, first.model) == ("Be brief.", {"a": "b"}, "auto")
    assert (first.usage.input_tokens, first.usage.output_tokens, first.usage.total_tokens) == (7, 3, 10)
    second = await created(client, stream, input="Hello two", previous_response_id=first.id)
    third = await created(client, stream, input="Hello three", previous_response_id=second.id, instructions="Be kind.")
    assert (third.output_text, third.previous_response_id) == ("You said Hello three", second.id)
    assert roles_and_texts(upstream) == [
        ("system", "Be kind."), ("user", "Hello one"), ("assistant", "You said Hello one"), ("user", "Hello two"),
        ("assistant", "You said Hello two"), ("user", "Hello three"),
    ]  # fmt: skip
    other = await created(client, stream, input="Hello else", previous_response_id=first.id)
    assert other.output_text == "You said Hello else"
    assert [text for _, text in roles_and_texts(upstream)] == ["Hello one", "You said Hello one", "Hello else"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_call_ends_the_response_and_its_output_goes_on(
    client: openai.AsyncOpenAI, upstream: Upstream, stream: bool, stored: bool
) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": "What is the weather?"}]}]
    first = await created(client, stream, input=asked, tools=[WEATHER], store=stored)
    calls = first.output
    assert [(call.type, call.call_id, call.name, json.loads(call.arguments)) for call in calls] == [
        ("function_call", "call_0", "weather", {"city": "city 0"}),
        ("function_call", "call_1", "weather", {"city": "city 1"}),
    ]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sun"} for call in calls]
    if stored:
        more: dict[str, Any] = {"previous_response_id": first.id, "input": results}
    else:
        more = {"input": [*asked, *(call.model_dump(exclude_none=True) for call in calls), *results], "store": False}
    last = await created(client, stream, tools=[WEATHER], **more)
    assert last.output_text == "The tool says sun"
    sent = upstream.bodies[-1]["messages"][1:]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_0", "call_1"]


async def test_items_of_a_stored_response_are_sent_by_reference(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    asked: Any = [{"role": "user", "content": "What is the weather?"}]
    first = await created(client, False, input=asked, tools=[WEATHER])
    pieces: list[Any] = [*asked, {"type": "reasoning", "id": "rs_1", "summary": []}]
    for call in first.output:
        pieces.append({"type": "item_reference", "id": call.id})
    pieces += [{"type": "function_call_output", "call_id": call.call_id, "output": "sun"} for call in first.output]
    last = await created(client, False, input=pieces, tools=[WEATHER])
    pieces += [{"type": "item_reference", "id": last.output[0].id}, {"role": "user", "content": "Hello again"}]
    await created(client, False, input=pieces, tools=[WEATHER])
    assert roles_and_texts(upstream)[-2:] == [("assistant", "The tool says sun"), ("user", "Hello again")]


async def test_a_stream_has_the_events_of_the_protocol_in_their_order(client: openai.AsyncOpenAI) -> None:
    events = [event async for event in await client.responses.create(model="auto", input="Hello", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    asked = await client.responses.create(model="auto", input="Weather?", tools=[WEATHER], stream=True)
    kinds = [event.type async for event in asked]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert kinds == [f"response.{kind}" for kind in ("created", "in_progress", *call, *call, "completed")]


class Place(pydantic.BaseModel):
    """Where something is."""

    city: str


async def test_an_answer_in_the_form_of_a_schema_is_valid(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    upstream.answers = ["sorry", '{"city": "Rome"}']
    parsed = await client.responses.parse(model="auto", input="Where?", text_format=Place)
    assert parsed.output_parsed == Place(city="Rome")
    upstream.answers = ['{"any": 1}']
    answer = await created(client, False, input="Where?", text={"format": {"type": "json_object"}})
    assert json.loads(answer.output_text) == {"any": 1}


async def test_a_cut_answer_is_incomplete(client: openai.AsyncOpenAI) -> None:
    answer = await created(client, False, input="Hello", max_output_tokens=1)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_a_response_is_kept_until_it_is_deleted(client: openai.AsyncOpenAI, deployment: Deployment) -> None:
    answer = await created(client, False, input="Hello", instructions="Be brief.", tools=[WEATHER], temperature=0.5)
    assert (await client.responses.retrieve(answer.id)).model_dump() == answer.model_dump()
    items: Any = (await client.responses.input_items.list(answer.id)).data
    assert [(item.role, item.content[0].text) for item in items] == [("user", "Hello")]
    await client.responses.delete(answer.id)
    for again in (client.responses.retrieve(answer.id), client.responses.delete(answer.id)):
        with pytest.raises(openai.NotFoundError):
            await again
    with pytest.raises(openai.BadRequestError) as caught:
        await created(client, False, input="Hello", previous_response_id=answer.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")
    raw = await client.responses.with_raw_response.create(model="auto", input="Hello")
    conversation = raw.headers["x-conversation-id"]
    await erase_conversation(deployment.session.bus, conversation, instance="http:h:1:0")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(raw.parse().id)


async def test_a_response_outlives_the_result_of_its_turn(client: openai.AsyncOpenAI, deployment: Deployment) -> None:
    raw = await client.responses.with_raw_response.create(model="auto", input="Hello")
    answer, conversation = raw.parse(), raw.headers["x-conversation-id"]
    shard = deployment.session.bus.shard(conversation)
    await deployment.session.server.fetch("DEL", shard.result(conversation, "1"), shard.events(conversation))
    assert (await client.responses.retrieve(answer.id)).output_text == "You said Hello"
    events = [event.type async for event in await client.responses.retrieve(answer.id, stream=True)]
    assert (events[0], events[-1]) == ("response.created", "response.completed")


async def test_what_is_not_stored_is_not_found(client: openai.AsyncOpenAI) -> None:
    answer = await created(client, False, input="Hello", store=False)
    for response_id in (answer.id, "resp_x", "resp_", answer.id.removeprefix("resp_"), "resp_aHR0cA.1"):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response_id)


async def test_a_response_in_the_background_is_fetched_followed_and_cancelled(client: openai.AsyncOpenAI) -> None:
    GateAgent.gate.clear()
    ask: Any = {"model": "gate", "input": "Hello", "background": True}
    first, second = await client.responses.create(**ask), await client.responses.create(**ask)
    assert first.status == "queued"
    seen: list[Any] = []
    async with client.responses.stream(**ask) as stream:
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    stopped = await client.responses.cancel(second.id)
    assert stopped.status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="auto", input="Hello", previous_response_id=first.id)
    GateAgent.gate.set()

    async def is_done() -> bool:
        return (await client.responses.retrieve(first.id)).status == "completed"

    await wait_until(is_done)
    assert (await client.responses.retrieve(first.id)).output_text == "one two"
    last = seen[-1].sequence_number
    rest = [one async for one in await client.responses.retrieve(
        seen[0].response.id, stream=True, starting_after=last)]  # fmt: skip
    assert rest[0].sequence_number == last + 1 and rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == "one two"
    assert (await client.responses.cancel(first.id)).status == "completed"


async def test_who_leaves_a_response_without_a_name_ends_it(client: openai.AsyncOpenAI) -> None:
    GateAgent.gate.clear()
    stream = await client.responses.create(model="gate", input="Hello", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
        if event.type == "response.created":
            left = event.response.id
    await stream.close()

    async def is_cancelled() -> bool:
        return (await client.responses.retrieve(left)).status == "cancelled"

    await wait_until(is_cancelled)


async def test_pictures_reach_the_agent_and_stay_in_the_conversation(client: openai.AsyncOpenAI) -> None:
    small, large = (base64.b64encode(b"GIF89".ljust(size)).decode() for size in (5, 2_000_000))
    content = [{"type": "input_text", "text": "what is it?"}]
    content += [{"type": "input_image", "image_url": f"data:image/png;base64,{data}"} for data in (small, large)]
    first = await created(client, False, model="tell", input=[{"role": "user", "content": content}])
    told = json.loads(first.output_text)
    assert (told["text"], told["images"]) == ("what is it?", [5, 2_000_000])
    second = await created(client, False, model="tell", input="and now?", previous_response_id=first.id)
    assert json.loads(second.output_text)["seen"] == [5, 2_000_000]


async def test_a_conversation_is_named_by_its_field_and_by_the_header(client: openai.AsyncOpenAI) -> None:
    first = await created(client, False, input="Hello there", conversation={"id": "named"})
    options: dict[str, Any] = {"extra_headers": {"X-Conversation-Id": "named"}, "model": "tell"}
    answer = await created(client, False, input="and now?", **options)
    for response in (first, answer, await client.responses.retrieve(first.id)):
        assert response.conversation is not None and response.conversation.id == "named"
    history = json.loads(answer.output_text)["history"]
    assert history == [["user", "Hello there"], ["assistant", "You said Hello there"]]


async def test_each_answer_to_a_command_has_an_id_of_its_own(client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"input": "/stop", "conversation": {"id": "commands"}}
    answers = [await created(client, stream, **options) for stream in (False, False, True, True)]
    assert {answer.output_text for answer in answers} == {"There is nothing to stop."}
    ids = [answer.id for answer in answers] + [item.id for answer in answers for item in answer.output]
    assert len(set(ids)) == 8 and not [one for one in ids if "None" in one]


async def test_what_openai_offers_beside_responses_is_an_unknown_url(client: openai.AsyncOpenAI) -> None:
    for asked in (
        client.responses.input_tokens.count(model="auto", input="Hello"),
        client.responses.compact(model="gpt-5"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await asked
        assert caught.value.code == "unknown_url"


async def test_a_failed_turn_is_an_error_and_not_asked_again(client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    form: Any = {"format": {"type": "json_object"}}
    upstream.answers = ["no", "never"]
    with pytest.raises(openai.APIStatusError) as caught:
        await created(client, False, input="Where?", text=form)
    assert (caught.value.status_code, caught.value.response.headers["x-should-retry"]) == (502, "false")
    upstream.answers = ["no", "never"]
    events = [event async for event in await client.responses.create(model="auto", input="x", text=form, stream=True)]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None and events[-1].response.status == "failed"


def with_items(*items: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "Hello"}, *items]}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_request"),
        ({"input": []}, "input", "invalid_request"),
        ({"input": " "}, "input", "invalid_messages"),
        (with_items({"type": "function_call_output", "call_id": "c1", "output": "x"}), "input", "invalid_messages"),
        (with_items({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}), "input",
         "invalid_messages"),
        (with_items({"type": "computer_call"}), "input.1", "unsupported_item"),
        (with_items({"type": "item_reference", "id": "msg_x"}), "input.1", "not_found"),
        (with_items({"role": "user", "content": [{"type": "input_audio"}]}), "input.1", "unsupported_content"),
        (with_items({"role": "user", "content": [{"type": "input_image", "image_url": "blob:x"}]}), "images",
         "invalid_request"),
        (with_items({"role": "wizard", "content": "x"}), "input.1.role", "invalid_request"),
        (with_items({"role": "user", "content": [{"text": "x"}]}), "input.1.content.0.type", "invalid_request"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "unsupported_tool"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0", "invalid_tool"),
        ({"tools": [{"type": "function", "name": "a", "parameters": {"type": "string"}}]}, "tools.0.parameters",
         "invalid_function_parameters"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 7}}}}, "text.format.schema",
         "invalid_json_schema"),
        ({"background": True, "store": False}, "background", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "previous_response_not_found"),
        ({"temperature": 3}, "temperature", "invalid_request"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_one_clear_error(
    plain: httpx2.AsyncClient, change: dict[str, Any], param: str, code: str
) -> None:
    answer = await plain.post("/v1/responses", json={"model": "auto", "input": "Hello", **change})
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error"), error
    assert answer.status_code == (404 if code == "not_found" else 400)


async def test_keys_see_nothing_of_each_others_responses(deployment: Deployment, url: str) -> None:
    bus = deployment.session.bus
    ann, bob = [(await create_key(bus, name))[1] for name in ("ann", "bob")]
    try:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ann) as hers,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=bob) as his,
        ):
            await closed(url)
            answer = await hers.responses.create(model="auto", input="Hello")
            for asked in (his.responses.retrieve(answer.id), his.responses.cancel(answer.id)):
                with pytest.raises(openai.NotFoundError):
                    await asked
            with pytest.raises(openai.BadRequestError):
                await his.responses.create(model="auto", input="Hello", previous_response_id=answer.id)
            stolen: Any = [{"type": "item_reference", "id": answer.output[0].id}, {"role": "user", "content": "x"}]
            with pytest.raises(openai.NotFoundError):
                await his.responses.create(model="auto", input=stolen)
    finally:
        await open_again(bus, url)
