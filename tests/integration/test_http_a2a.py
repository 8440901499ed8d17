"""The Agent2Agent protocol, as the official SDK's client speaks it, in both versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("a2a", reason="the extra a2a is not installed")

import httpx
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.helpers import get_artifact_text
from a2a.types import a2a_pb2 as wire
from a2a.utils.errors import A2AError

from rolecall.bus.access_keys import create_key
from tests.deployment import Deployment
from tests.http.server import closed, open_again
from tests.http.stage import GateAgent, stage
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
VERSIONS = ("1.0", "0.3")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with stage(tmp_path_factory.mktemp("a2a")) as running:
        yield running


@asynccontextmanager
async def client_of(url: str, version: str = "1.0", streaming: bool = True, key: str = "") -> AsyncIterator[Client]:
    """The official client, which finds the way by the agent card; only that of ``version`` is left there."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, timeout=20, trust_env=False) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        kept = [one for one in card.supported_interfaces if one.protocol_version == version]
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(kept)
        yield ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)


def saying(text: str, role: str = "", **fields: Any) -> wire.SendMessageRequest:
    message = wire.Message(message_id="m1", role=wire.ROLE_USER, parts=[wire.Part(text=text)], **fields)
    if role:
        message.metadata.update({"role": role})
    return wire.SendMessageRequest(message=message)


async def sent(client: Client, request: wire.SendMessageRequest) -> list[wire.StreamResponse]:
    return [event async for event in client.send_message(request)]


async def task_of(client: Client, request: wire.SendMessageRequest) -> wire.Task:
    """The task that a client which does not stream is given."""
    (event,) = await sent(client, request)
    assert event.HasField("task")
    return event.task


def text_of(task: wire.Task) -> str:
    return "".join(get_artifact_text(artifact) for artifact in task.artifacts)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_message_is_a_turn_and_its_answer_an_artifact(url: str, version: str) -> None:
    async with client_of(url, version, streaming=False) as client:
        task = await task_of(client, saying("hello there"))
        assert (task.status.state, text_of(task)) == (wire.TASK_STATE_COMPLETED, "echo: hello there")
        again = await client.get_task(wire.GetTaskRequest(id=task.id))
        assert (again.status.state, text_of(again), again.context_id) == (
            wire.TASK_STATE_COMPLETED, "echo: hello there", task.context_id,
        )  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_context_is_a_conversation_that_is_remembered(url: str, version: str) -> None:
    async with client_of(url, version, streaming=False) as client:
        first = await task_of(client, saying("I am Ann", context_id=f"trip {version}"))
        assert first.context_id == f"trip {version}"
        second = await task_of(client, saying("?", "tell", context_id=first.context_id))
        assert '[["user", "I am Ann"], ["assistant", "echo: I am Ann"]]' in text_of(second)
        unnamed = await task_of(client, saying("I am Bob"))
        other = await task_of(client, saying("?", "tell", context_id=unnamed.context_id))
        assert '["user", "I am Bob"]' in text_of(other) and "Ann" not in text_of(other)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_brings_the_answer_as_it_is_made(url: str, version: str) -> None:
    GateAgent.gate.clear()
    async with client_of(url, version) as client:
        states, pieces = [], []
        async for event in client.send_message(saying("?", "gate")):
            if event.HasField("task"):
                states.append(event.task.status.state)
            elif event.HasField("status_update"):
                states.append(event.status_update.status.state)
            elif event.HasField("artifact_update"):
                update = event.artifact_update
                pieces.append((get_artifact_text(update.artifact), update.append, update.last_chunk))
                GateAgent.gate.set()
        assert [(text, append) for text, append, _ in pieces] == [("one ", False), ("two", True)]
        assert pieces[-1][2]
        assert (states[0], states[-1]) == (wire.TASK_STATE_SUBMITTED, wire.TASK_STATE_COMPLETED)
        assert wire.TASK_STATE_WORKING in states


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_task_can_be_left_found_again_followed_and_cancelled(url: str, version: str) -> None:
    async with client_of(url, version, streaming=False) as client:
        request = saying("100 0.1", "slow")
        request.configuration.return_immediately = True
        task = await task_of(client, request)
        assert task.status.state in (wire.TASK_STATE_SUBMITTED, wire.TASK_STATE_WORKING)

        async def working() -> bool:
            found = await client.get_task(wire.GetTaskRequest(id=task.id))
            return found.status.state == wire.TASK_STATE_WORKING and text_of(found).startswith("0 ")

        await wait_until(working)
        async with client_of(url, version) as other:
            seen = []

            async def follow() -> None:
                async for event in other.subscribe(wire.SubscribeToTaskRequest(id=task.id)):
                    seen.append(event)

            following = asyncio.create_task(follow())
            await wait_until(lambda: bool(seen))
            cancelled = await client.cancel_task(wire.CancelTaskRequest(id=task.id))
            assert cancelled.status.state == wire.TASK_STATE_CANCELED
            await following
        assert seen[-1].status_update.status.state == wire.TASK_STATE_CANCELED
        with pytest.raises(A2AError):
            await client.cancel_task(wire.CancelTaskRequest(id=task.id))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_question_of_an_agent_waits_for_input(url: str, version: str) -> None:
    async with client_of(url, version, streaming=False) as client:
        asking = await task_of(client, saying("?", "ask"))
        assert asking.status.state == wire.TASK_STATE_INPUT_REQUIRED
        assert asking.status.message.parts[0].text == "Which colour?\nred / green"
        with pytest.raises(A2AError, match="red / green"):
            await task_of(client, saying("blue", task_id=asking.id, context_id=asking.context_id))
        answered = await task_of(client, saying("Green", task_id=asking.id, context_id=asking.context_id))
        assert (answered.status.state, answered.id, text_of(answered)) == (
            wire.TASK_STATE_COMPLETED,
            asking.id,
            "green",
        )
        with pytest.raises(A2AError, match="asks nothing"):
            await task_of(client, saying("red", task_id=asking.id, context_id=asking.context_id))


async def test_pictures_and_documents_are_parts(url: str) -> None:
    async with client_of(url, streaming=False) as client:
        request = saying("What is it?", "tell")
        request.message.parts.append(wire.Part(raw=b"GIF89a".ljust(1_000_000), media_type="image/png"))
        request.message.parts.append(wire.Part(raw=b"buy milk", media_type="text/plain", filename="notes.txt"))
        told = text_of(await task_of(client, request))
        assert '"images": [1000000]' in told and "buy milk" in told and "notes.txt" in told


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_fails_says_why(url: str, version: str) -> None:
    async with client_of(url, version, streaming=False) as client:
        failed = await task_of(client, saying("bury me", "samplellm"))
        assert failed.status.state == wire.TASK_STATE_FAILED
        assert "it was asked for" in failed.status.message.parts[0].text
        for request in (saying(" "), saying("x", "nobody"), saying("x" * 70_000)):
            with pytest.raises(A2AError):
                await sent(client, request)
        for task_id in ("nonsense", "aHR0cDpsb2NhbDo1ZjNj.1"):
            with pytest.raises(A2AError):
                await client.get_task(wire.GetTaskRequest(id=task_id))


async def test_a_command_is_answered_by_a_message(url: str) -> None:
    async with client_of(url, streaming=False) as client:
        (event,) = await sent(client, saying("/stop", context_id="commands"))
        assert event.message.parts[0].text == "There is nothing to stop."


async def test_the_card_shows_the_roles_to_those_who_may_ask_them(deployment: Deployment, url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        card = (await http.get("/.well-known/agent-card.json")).json()
        assert [skill["id"] for skill in card["skills"]] == ["ask", "samplellm"]
        assert card["url"] == f"{url}/a2a" and card["capabilities"]["streaming"]
    _, secret = await create_key(deployment.session.bus, "ann")
    try:
        await closed(url)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            card = (await http.get("/.well-known/agent-card.json")).json()
            assert [skill["id"] for skill in card["skills"]] == ["ask"]
            assert (await http.post("/a2a", json={})).status_code == 401
        async with client_of(url, streaming=False, key=secret) as client:
            task = await task_of(client, saying("hello"))
            assert text_of(task) == "echo: hello"
            extended = await client.get_extended_agent_card(wire.GetExtendedAgentCardRequest())
            assert [skill.id for skill in extended.skills] == ["ask", "samplellm"]
        _, other = await create_key(deployment.session.bus, "bob")
        async with client_of(url, streaming=False, key=other) as client:
            with pytest.raises(A2AError):
                await client.get_task(wire.GetTaskRequest(id=task.id))
    finally:
        await open_again(deployment.session.bus, url)
