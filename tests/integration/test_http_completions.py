"""The OpenAI-compatible API, as OpenAI's own client uses it: nothing but the base URL is changed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote

import httpx2
import openai
import pytest
import pytest_asyncio
from fastapi import routing

from rolecall.bus.access_keys import create_key
from rolecall.bus.conversation import active_conversations
from tests.deployment import Deployment
from tests.http.server import open_again, serving
from tests.http.stage import GateAgent, stage
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with stage(tmp_path_factory.mktemp("http")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none is needed here", timeout=20) as client:
        yield client


async def told(client: openai.AsyncOpenAI, messages: Any, **options: Any) -> dict[str, Any]:
    """What the role ``tell`` was given."""
    answer = await client.chat.completions.create(model="tell", messages=messages, **options)
    found: dict[str, Any] = json.loads(answer.choices[0].message.content or "")
    return found


async def test_a_chat_is_answered(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="auto", messages=HELLO, temperature=0.5, max_tokens=9)
    assert answer.choices[0].message.content == "echo: hello there"
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", "auto", "chat.completion")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 3, 5)


async def test_a_stream_brings_the_answer_as_it_is_made(client: openai.AsyncOpenAI) -> None:
    GateAgent.gate.clear()
    pieces = []
    async for chunk in await client.chat.completions.create(model="gate", messages=HELLO, stream=True):
        if piece := chunk.choices[0].delta.content:
            pieces.append(piece)
            GateAgent.gate.set()
    assert pieces == ["one ", "two"]


async def test_who_names_a_model_that_does_not_exist_is_told_all_that_do(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-0", messages=HELLO)
    assert {model.id async for model in client.models.list()} <= set(re.findall(r"[\w@.-]*\w", str(caught.value)))


async def test_comments_in_the_silence_disturb_nobody(
    client: openai.AsyncOpenAI, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.02)
    GateAgent.gate.clear()
    theirs = await client.chat.completions.create(model="gate", messages=HELLO, stream=True)
    async with httpx2.AsyncClient(base_url=url, timeout=20) as plain:
        body = {"model": "gate", "messages": HELLO, "stream": True}
        async with plain.stream("POST", "/v1/chat/completions", json=body) as response:
            comments = 0
            async for line in response.aiter_lines():
                comments += line == ": ping"
                if comments == 3:
                    GateAgent.gate.set()
    assert comments >= 3
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in theirs]) == "one two"


async def test_a_stream_ends_with_the_tokens_where_they_are_asked_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="samplellm", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "echo: hello there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_several_answers_are_choices_of_one_completion(client: openai.AsyncOpenAI) -> None:
    once = {"Idempotency-Key": "three choices"}
    for _ in range(2):
        answer = await client.chat.completions.create(model="samplellm", messages=HELLO, n=3, extra_headers=once)
        said = [(choice.index, choice.message.content, choice.finish_reason) for choice in answer.choices]
        assert said == [(index, "echo: hello there", "stop") for index in range(3)]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 9)


async def test_several_answers_are_streamed_at_the_same_time(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "3 0.1"}]
    stream = await client.chat.completions.create(
        model="slow", messages=messages, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    for index in range(2):
        mine = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "0 1 2 "
        assert (mine[0].delta.role, mine[-1].finish_reason) == ("assistant", "stop")
    order = [choice.index for choice in choices if choice.delta.content]
    assert order not in ([0] * 3 + [1] * 3, [1] * 3 + [0] * 3)
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_one_failed_choice_fails_the_completion(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "bury me"}]
    for stream in (False, True):
        with pytest.raises(openai.APIError, match="it was asked for"):
            answer = await client.chat.completions.create(model="samplellm", messages=messages, n=2, stream=stream)
            async for _ in answer:  # type: ignore[union-attr]  # reached by the stream alone
                pass


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_are_completed_for_clients_that_know_no_chats(client: openai.AsyncOpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "samplellm", "n": 2, "echo": True, "max_tokens": 50, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    answer = await client.completions.create(prompt=["one", "two"], **asked)
    if stream:
        texts, finishes = [""] * 4, [""] * 4
        async for chunk in answer:
            assert chunk.object == "text_completion"
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                finishes[choice.index] = choice.finish_reason or finishes[choice.index]
            usage = chunk.usage
    else:
        assert (answer.object, answer.id.startswith("cmpl-")) == ("text_completion", True)
        texts = [choice.text for choice in answer.choices]
        finishes, usage = [choice.finish_reason for choice in answer.choices], answer.usage
    assert texts == ["oneecho: one"] * 2 + ["twoecho: two"] * 2
    assert finishes == ["stop"] * 4
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 8)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"), ({"prompt": ["a"] * 5, "n": 2}, "prompt"), ({"n": 10**6}, "n"),
        ({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"logprobs": 1}, "logprobs"),
        ({"stop": list("abcde")}, "stop"), ({"max_tokens": 0}, "max_tokens"),
    ],
)  # fmt: skip
async def test_what_no_text_is_completed_with_is_a_bad_request(
    client: openai.AsyncOpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{"model": "auto", "prompt": "x", **change})
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


async def test_on_the_wire_a_stream_ends_with_done(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert "usage" not in answer.text
    assert answer.headers["x-task-id"]


async def test_the_models_are_auto_the_answering_roles_and_the_configured_models(client: openai.AsyncOpenAI) -> None:
    names = [model.id async for model in client.models.list()]
    assert names == ["auto", "samplellm", "echo@test"]
    assert (await client.models.retrieve("tell")).id == "tell"
    assert (await client.models.retrieve("auto")).owned_by == "rolecall"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")


async def test_a_model_the_deployment_names_can_be_asked_for(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="echo@test", messages=HELLO)
    assert (answer.model, answer.system_fingerprint) == ("echo@test", "echo@test")


async def test_the_messages_sent_are_the_history(client: openai.AsyncOpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]
    found = await told(client, messages, metadata={"a": "b"})
    assert found["history"] == [["system", "Be brief."], ["user", "one"], ["assistant", "1"]]
    assert (found["text"], found["metadata"]) == ("two", {"a": "b"})


async def test_a_named_conversation_is_remembered_here(client: openai.AsyncOpenAI) -> None:
    named: Any = {"extra_headers": {"X-Conversation-Id": "trip"}}
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, **named)
    assert raw.headers["x-conversation-id"] == "http:local:trip"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    found = await told(client, messages, **named)
    assert found["history"] == [["system", "Be brief."], ["user", "hello there"], ["assistant", "echo: hello there"]]


@pytest.mark.parametrize("header", [quote("日本 é 100%").encode(), "日本 é 100%".encode(), "日本 é 100%25".encode()])
async def test_a_conversation_has_the_same_name_in_a_header_as_in_a_body(url: str, header: bytes) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as plain:
        answer = await plain.post(
            "/v1/chat/completions", json={"model": "auto", "messages": HELLO}, headers={b"X-Conversation-Id": header}
        )
        assert unquote(answer.headers["x-conversation-id"]) == "http:local:日本 é 100%"


USERS: list[dict[str, Any]] = [
    {"user": "ann"}, {"user": "http:local:trip"}, {"user": "a\nb"}, {"user": "x" * 400}, {"safety_identifier": "ann"},
    {"prompt_cache_key": "ann"}, {"metadata": {"conversation_id": "ann"}}, {"store": True},
]  # fmt: skip


@pytest.mark.parametrize("same", USERS)
async def test_no_field_of_the_body_selects_a_conversation(client: openai.AsyncOpenAI, same: dict[str, Any]) -> None:
    create = client.chat.completions.with_raw_response.create
    secret: Any = [{"role": "user", "content": "the code is 4711"}]
    first = await create(model="auto", messages=secret, extra_body=same)
    messages: Any = [{"role": "system", "content": "Make a title."}, {"role": "user", "content": "weather?"}]
    second = await create(model="tell", messages=messages, extra_body=same)
    assert first.headers["x-conversation-id"] != second.headers["x-conversation-id"]
    content = json.loads(second.parse().choices[0].message.content or "")
    assert content["history"] == [["system", "Make a title."]]


async def test_requests_of_one_user_do_not_wait_for_each_other(client: openai.AsyncOpenAI) -> None:
    asked = (client.chat.completions.create(model="auto", messages=HELLO, user="user-7") for _ in range(20))
    assert {answer.choices[0].message.content for answer in await asyncio.gather(*asked)} == {"echo: hello there"}


async def test_a_prompt_is_a_command_only_in_a_conversation_that_has_a_name(client: openai.AsyncOpenAI) -> None:
    for prompt in ("/etc what is it?", "/clear", "/stop", "/lang de", "/tell me"):
        messages: Any = [{"role": "user", "content": prompt}]
        answer = await client.chat.completions.create(model="samplellm", messages=messages)
        assert answer.choices[0].message.content == f"echo: {prompt}"


async def test_two_chats_without_a_name_are_two_conversations(client: openai.AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(client.chat.completions.with_raw_response.create(model="auto", messages=HELLO) for _ in range(2))
    )
    assert len({answer.headers["x-conversation-id"] for answer in answers}) == 2


async def test_pictures_reach_the_agent(client: openai.AsyncOpenAI) -> None:
    picture = f"data:image/png;base64,{base64.b64encode(b'GIF89').decode()}"
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": picture}}]
    found = await told(client, [{"role": "user", "content": content}])
    assert (found["text"], found["images"]) == ("what is it?", [5])
    found = await told(client, [{"role": "user", "content": content}, *HELLO])
    assert (found["history"], found["seen"]) == ([["user", "what is it?"]], [5])


async def test_commands_work_in_a_conversation_with_a_name(client: openai.AsyncOpenAI) -> None:
    stop: Any = [{"role": "user", "content": "/stop"}]
    named = {"X-Conversation-Id": "commands"}
    answer = await client.chat.completions.create(model="auto", messages=stop, extra_headers=named)
    assert answer.choices[0].message.content == "There is nothing to stop."
    stream = await client.chat.completions.create(model="auto", messages=stop, stream=True, extra_headers=named)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "There is nothing to stop."


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 1_000_000}, "n"),
        ({"n": 2, "extra_headers": {"X-Conversation-Id": "two answers"}}, "n"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_what_cannot_be_done_is_a_bad_request(
    client: openai.AsyncOpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": "auto", "messages": HELLO, **change})
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


async def test_what_is_unknown_is_ignored(client: openai.AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    answer = await client.chat.completions.create(
        model="auto", messages=HELLO, tools=tools, seed=7, extra_body={"flavour": "sweet"}
    )
    assert answer.choices[0].message.content == "echo: hello there"


async def test_an_unknown_address_is_named(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Unknown request URL: /v1/moderations\.") as caught:
        await client.moderations.create(input="Hello")
    assert (caught.value.code, caught.value.type) == ("unknown_url", "invalid_request_error")


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "samplellm" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_turn_is_an_error_and_not_asked_again(
    client: openai.AsyncOpenAI, deployment: Deployment, stream: bool
) -> None:
    messages: Any = [{"role": "user", "content": "bury me"}]
    name = f"bad {stream}"
    with pytest.raises(openai.APIError) as caught:
        answer = await client.chat.completions.create(
            model="auto", messages=messages, stream=stream, extra_headers={"X-Conversation-Id": name}
        )
        async for _ in answer:  # type: ignore[union-attr]  # reached by the stream alone
            pass
    assert "it was asked for" in caught.value.message
    conversation = f"http:local:{name}"
    shard = deployment.session.bus.shard(conversation)
    assert await deployment.session.server.call("HGET", shard.conversation(conversation), "seq") == b"1"


async def test_too_much_is_a_rate_limit_error(url: str) -> None:
    busy: Any = [{"role": "user", "content": "1 60"}]
    named = {"X-Conversation-Id": "full"}
    body = {"text": "1 60", "role": "slow", "conversation_id": "full"}
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        httpx2.AsyncClient(base_url=url) as plain,
    ):
        for _ in range(9):
            await plain.post("/chat/async", json=body)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="slow", messages=busy, extra_headers=named)
        assert caught.value.response.headers["retry-after"]
        await plain.post("/chat", json={"text": "/stop", "conversation_id": "full"})


async def test_a_stopped_answer_is_an_error_too(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "9 60"}]
    named = {"X-Conversation-Id": "stopped"}
    stream = await client.chat.completions.create(model="slow", messages=messages, stream=True, extra_headers=named)
    stop: Any = [{"role": "user", "content": "/stop"}]
    with pytest.raises(openai.APIError, match="stopped"):
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                await client.chat.completions.create(model="auto", messages=stop, extra_headers=named)


async def test_an_answer_begun_again_with_the_same_words_goes_on(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "the same"}]
    stream = await client.chat.completions.create(model="fickle", messages=messages, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "It is the same, attempt 1"


async def test_an_answer_begun_again_with_other_words_is_never_a_second_beginning(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "other"}]
    stream = await client.chat.completions.create(model="fickle", messages=messages, stream=True)
    text = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "It is other"
    assert caught.value.code == "answer_restarted"


async def test_an_answer_longer_than_is_stored_is_streamed_whole_and_else_says_that_it_is_cut(
    client: openai.AsyncOpenAI,
) -> None:
    messages: Any = [{"role": "user", "content": "everything"}]
    stream = await client.chat.completions.create(model="long", messages=messages, stream=True)
    text, finish = "", None
    async for chunk in stream:
        text, finish = text + (chunk.choices[0].delta.content or ""), chunk.choices[0].finish_reason
    assert (len(text), text[-10:], finish) == (100_000, "000009999\n", "length")
    whole = (await client.chat.completions.create(model="long", messages=messages)).choices[0]
    assert whole.finish_reason == "length" and len((whole.message.content or "").encode()) == 64 * 1024
    events = [event async for event in await client.responses.create(model="long", input="everything", stream=True)]
    assert events[-1].type == "response.incomplete"


async def test_a_repeat_with_the_same_key_is_the_same_answer(client: openai.AsyncOpenAI) -> None:
    once = {"Idempotency-Key": "completion 1"}
    first, second = [
        await client.chat.completions.create(model="auto", messages=HELLO, extra_headers=once) for _ in range(2)
    ]
    assert (first.id, first.choices) == (second.id, second.choices)
    stream = await client.chat.completions.create(model="auto", messages=HELLO, stream=True, extra_headers=once)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "echo: hello there"


async def test_a_wrong_key_is_refused_as_openai_does(deployment: Deployment, url: str) -> None:
    bus = deployment.session.bus
    _, secret = await create_key(bus, "ann")
    async with serving(deployment.session.application) as here:
        async with openai.AsyncOpenAI(base_url=f"{here}/v1", api_key="rk_wrong") as stranger:
            with pytest.raises(openai.AuthenticationError) as caught:
                await stranger.models.list()
            assert caught.value.code == "invalid_api_key"
        async with openai.AsyncOpenAI(base_url=f"{here}/v1", api_key=secret) as ann:
            assert (await ann.models.list()).data
    await open_again(bus, url)


async def test_who_leaves_an_answer_without_a_name_ends_it(
    client: openai.AsyncOpenAI, deployment: Deployment, url: str
) -> None:
    async def running() -> set[str]:
        return set(await active_conversations(deployment.session.bus))

    async def leave(headers: dict[str, str], stream: bool) -> str:
        before = await running()
        body = {"model": "slow", "stream": stream, "messages": [{"role": "user", "content": "1 60"}]}
        async with httpx2.AsyncClient(base_url=url) as leaving:
            asking = asyncio.create_task(leaving.post("/v1/chat/completions", json=body, headers=headers))
            await wait_until(lambda: _grown(running, before))
            (mine,) = await running() - before
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        return mine

    for stream in (False, True):
        mine = await leave({}, stream)

        async def ended(mine: str = mine) -> bool:
            return mine not in await running()

        await wait_until(ended)
    for headers in ({"X-Conversation-Id": "left behind"}, {"Idempotency-Key": "left behind"}):
        mine = await leave(headers, True)
        await asyncio.sleep(0.5)
        assert mine in await running()
        await deployment.front.stop(mine)


async def _grown(running: Any, before: set[str]) -> bool:
    return bool(await running() - before)


PHOTO = b"\xff\xd8\xff" + os.urandom(1_499_997)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_photo_is_taken_at_every_place_of_a_chat(client: openai.AsyncOpenAI, stream: bool) -> None:
    picture = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
    seen: Any = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": picture}}]
    messages: Any = [{"role": "user", "content": seen}, {"role": "assistant", "content": "a cat"}, *HELLO]
    cases: tuple[tuple[Any, str], ...] = (([{"role": "user", "content": seen}], "images"), (messages, "seen"))
    for asked, where in cases:
        answer = await client.chat.completions.create(model="tell", messages=asked, stream=stream)
        if stream:
            pieces = [chunk.choices[0].delta.content or "" async for chunk in answer]  # type: ignore[union-attr]
            found = json.loads("".join(pieces))
        else:
            found = json.loads(answer.choices[0].message.content or "")  # type: ignore[union-attr]
        assert found[where] == [len(PHOTO)]


async def test_a_photo_is_taken_by_the_native_api_and_one_too_large_is_named(url: str, deployment: Deployment) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=30) as plain:
        for data, status in ((PHOTO, 200), (bytes(21 * 1024 * 1024), 413)):
            picture = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            answer = await plain.post("/chat", json={"text": "?", "role": "tell", "images": [picture]})
            assert answer.status_code == status
            if status == 200:
                assert json.loads(answer.json()["text"])["images"] == [len(PHOTO)]
            else:
                assert (answer.json()["code"], "20 MB" in answer.json()["detail"]) == ("image_too_large", True)
        for wrong in ("@" * 300_000, base64.b64encode(PHOTO).decode()[:-3], base64.b64encode(PHOTO).decode() + "AA=A"):
            picture = f"data:image/png;base64,{wrong}"
            answer = await plain.post("/chat", json={"text": "?", "images": [picture]})
            assert answer.status_code == 422 and "base64" in answer.text


async def test_strangers_send_nothing_large(deployment: Deployment, url: str) -> None:
    await create_key(deployment.session.bus, "ann")
    async with serving(deployment.session.application) as here, httpx2.AsyncClient(base_url=here) as stranger:
        picture = f"data:image/png;base64,{base64.b64encode(PHOTO).decode()}"
        refused = await stranger.post("/chat", json={"text": "?", "images": [picture]})
        assert refused.status_code == 401
    await open_again(deployment.session.bus, url)


async def test_a_long_history_is_cut_and_never_ends_the_chat(client: openai.AsyncOpenAI) -> None:
    rules: Any = {"role": "system", "content": "Be brief."}
    for count, size in ((100, 3_000), (10_000, 10), (40, 90_000), (4, 2_900_000)):
        history = [
            {"role": ("user", "assistant")[number % 2], "content": f"{number} {'x' * size}"} for number in range(count)
        ]
        create = client.chat.completions.with_raw_response.create
        raw = await create(model="tell", messages=[rules, *history, *HELLO])  # type: ignore[list-item]
        found = json.loads(raw.parse().choices[0].message.content or "")
        kept = [text for role, text in found["history"] if role != "system"]
        assert kept[-1].startswith(f"{count - 1} ") and found["history"][0] == ["system", "Be brief."]
        cut = int(raw.headers.get("x-history-cut", "0"))
        assert len(kept) + cut == count
        if cut:
            assert found["history"][1] == ["system", f"[{cut} earlier messages of this conversation are left out here, "
                                           "because they did not fit]"]  # fmt: skip
