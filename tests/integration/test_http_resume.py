"""Streams that break off: what is resumed at any replica is told once, in order, whatever ended in between."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest
import pytest_asyncio
from fastapi import routing

from rolecall.bus.conversation import notify
from rolecall.bus.turn import turns_in_flight
from rolecall.config import Application
from rolecall.frontends.http import hosting, problems
from rolecall.frontends.sockets import listen
from rolecall.redis import pipeline, reader, subscriber
from rolecall.settings import Settings
from tests.deployment import Deployment
from tests.http.server import serving
from tests.http.stage import ROLES, Events, GateAgent, stage
from tests.proxy import Proxy
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
CUTS = 20
MOST_SECONDS = 6.0
"""A connection to the bus that falls silent works again after 15.2 s at most; with a fifth of its limits after 3 s."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with stage(tmp_path_factory.mktemp("http")) as running:
        yield running


class Replica:
    """An HTTP server that can be ended and started again."""

    def __init__(self, deployment: Deployment) -> None:
        self._application = deployment.session.application
        self._serving = AsyncExitStack()
        self.client: httpx2.AsyncClient

    async def start(self) -> None:
        url = await self._serving.enter_async_context(serving(self._application))
        self.client = httpx2.AsyncClient(base_url=url, timeout=20)

    async def stop(self) -> None:
        await self._serving.aclose()
        await self.client.aclose()

    async def __aenter__(self) -> Replica:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def some(replica: Replica, where: str, after: str, count: int) -> list[tuple[str, str, Any]]:
    """The next ``count`` events after one, or all that are left; then the connection is cut."""
    found = []
    async with replica.client.stream("GET", where, headers={"Last-Event-ID": after} if after else {}) as response:
        assert response.status_code == 200
        async for event in Events(response):
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_a_stream_cut_twenty_times_tells_everything_once_and_in_order(deployment: Deployment) -> None:
    GateAgent.gate.clear()
    async with Replica(deployment) as one, Replica(deployment) as other:
        task = (await one.client.post("/chat/async", json={"text": "go", "role": "count"})).json()
        where, found = f"/chat/task/{task['id']}/events", list[tuple[str, str, Any]]()
        for cut in range(CUTS):
            replica = (one, other)[cut % 2]
            if cut in (7, 14):
                await replica.stop()
                await replica.start()
            found += await some(replica, where, found[-1][0] if found else "", 1)
        GateAgent.gate.set()
        found += await some(one, where, found[-1][0], 10_000)
        assert (await other.client.get(where, headers={"Last-Event-ID": found[-1][0]})).status_code == 204
    assert [name for _, name, _ in found].count("snapshot") == 1
    text = found[0][2]["text"]
    for _, _, data in (event for event in found if event[1] == "delta"):
        assert data["position"] == len(text)
        text += data["text"]
    assert found[-1][1] == "done"
    assert found[-1][2]["text"].startswith(text)
    order = [place_of(event_id) for event_id, _, _ in found]
    assert order == sorted(set(order))
    stored = [place for place in await deltas_of(deployment, task) if place > order[0]]
    assert [place_of(event_id) for event_id, name, _ in found if name == "delta"] == stored
    assert len(stored) >= CUTS - 5  # the others were accepted, started and the like


def place_of(event_id: str) -> tuple[int, ...]:
    return tuple(map(int, event_id.split("-")))


async def deltas_of(deployment: Deployment, task: dict[str, Any]) -> list[tuple[int, ...]]:
    """All deltas of a turn, as the bus keeps them."""
    shard = deployment.session.bus.shard(task["conversation_id"])
    stored = await deployment.session.server.call("XRANGE", shard.events(task["conversation_id"]), "-", "+")
    return [place_of(event_id.decode()) for event_id, fields in stored if b"delta" in fields]


async def test_a_server_that_ends_ends_its_streams_and_they_go_on_elsewhere(deployment: Deployment) -> None:
    GateAgent.gate.clear()
    bus = deployment.session.bus

    async def all_three() -> bool:
        return await turns_in_flight(bus, bus.shards[0]) == 3

    async with Replica(deployment) as staying:
        leaving = Replica(deployment)
        await leaving.start()
        waiting = asyncio.create_task(leaving.client.post("/chat", json={"text": "hello", "role": "gate"}))
        completion = {"model": "gate", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        telling = asyncio.create_task(leaving.client.post("/v1/chat/completions", json=completion))
        found = []
        async with leaving.client.stream("POST", "/chat/stream", json={"text": "hi", "role": "gate"}) as response:
            where = response.headers["location"]
            ending: asyncio.Task[None] | None = None
            async for event in Events(response):
                found.append(event)
                if event[1] == "delta" and ending is None:
                    await wait_until(all_three)
                    ending = asyncio.create_task(leaving.stop())
        assert found[-1][1] == "delta"
        later = await waiting
        assert later.status_code == 202
        assert '"server_stopping"' in (await telling).text
        assert ending is not None
        await ending
        GateAgent.gate.set()
        rest = await some(staying, f"{where}/events", found[-1][0], 10)
        assert [name for _, name, _ in rest] == ["done"]
        answer = await staying.client.get(later.headers["location"], params={"wait": 20})
        assert answer.json()["text"] == "one two"


async def test_events_that_are_not_kept_any_more_are_made_up_for_by_a_snapshot(deployment: Deployment) -> None:
    GateAgent.gate.clear()
    async with Replica(deployment) as replica:
        found = []
        async with replica.client.stream("POST", "/chat/stream", json={"text": "hi", "role": "gate"}) as response:
            async for event in Events(response):
                found.append(event)
                if event[1] == "delta":
                    break
        task, where = found[0][2], f"{response.headers['location']}/events"
        shard, valkey = deployment.session.bus.shard(task["conversation_id"]), deployment.session.server
        await valkey.call("XTRIM", shard.events(task["conversation_id"]), "MAXLEN", 1)
        (snapshot,) = await some(replica, where, found[1][0], 1)
        assert (snapshot[1], snapshot[2]["text"]) == ("snapshot", "one ")
        GateAgent.gate.set()
        assert [name for _, name, _ in await some(replica, where, found[1][0], 9)][-1] == "done"
        await valkey.call("DEL", shard.events(task["conversation_id"]))
        late = await some(replica, where, found[1][0], 9)
        assert [(name, data["text"]) for _, name, data in late] == [("snapshot", "one two"), ("done", "one two")]


async def test_a_piece_that_is_stored_twice_is_told_once(deployment: Deployment) -> None:
    GateAgent.gate.clear()
    async with Replica(deployment) as replica:
        body = {"text": "hi", "role": "gate"}
        async with replica.client.stream("POST", "/chat/stream", json=body) as response:
            events = aiter(Events(response))
            while (first := await anext(events))[1] != "delta":
                pass
            conversation = response.headers["x-conversation-id"]
            stream = deployment.session.bus.shard(conversation).events(conversation)
            for piece, position in (("one ", "0"), ("e tw", "2")):
                fields = ("t", "1", "k", "delta", "x", piece, "p", position)
                await deployment.session.server.call("XADD", stream, "*", *fields)
            channel = deployment.session.bus.shard(conversation).channel(conversation)
            await deployment.session.server.call("PUBLISH", channel, "delta")
            GateAgent.gate.set()
            told = [first, *[event async for event in events]]
        resumed = [first, *await some(replica, f"{response.headers['location']}/events", first[0], 99)]
    for found in (told, resumed):
        assert [name for _, name, _ in found] == ["delta", "delta", "done"]
        assert [data for _, _, data in found[:2]] == [{"position": 0, "text": "one "}, {"position": 4, "text": "tw"}]


async def test_notices_are_followed_across_replicas_while_turns_go_on(deployment: Deployment) -> None:
    bus, name, conversation = deployment.session.bus, "told now & then", "http:local:told now & then"
    where = f"/chat/notices/{quote(name)}"
    assert await notify(bus, conversation, "too early") == "OK"
    async with Replica(deployment) as replica, Replica(deployment) as other:
        async with replica.client.stream("GET", where) as response:
            events = aiter(Events(response))

            assert (await anext(events))[1] == "listening"

            async def next_one() -> tuple[str, str, Any]:
                return await anext(events)

            telling = asyncio.create_task(next_one())
            await wait_until(lambda: _listened(deployment, conversation))
            await replica.client.post("/chat", json={"text": "hi", "role": "tell", "conversation_id": name})
            assert await notify(bus, conversation, "the *report* is ready") == "OK"
            first = await telling
        assert (first[1], first[2]) == ("notice", {"text": "the *report* is ready", "plain": False, "turn": ""})
        assert await notify(bus, conversation, "and the next") == "OK"
        async with other.client.stream("GET", where, headers={"Last-Event-ID": first[0]}) as response:
            assert (await anext(aiter(Events(response))))[2]["text"] == "and the next"
        assert (await other.client.get(where, params={"after": "x"})).status_code == 422


async def test_a_client_that_was_cut_off_before_the_first_notice_misses_none(deployment: Deployment) -> None:
    bus, name, conversation = deployment.session.bus, "cut off", "http:local:cut off"
    where = f"/chat/notices/{quote(name)}"
    for number in range(2):  # in a conversation without events, and in one that has some
        async with Replica(deployment) as replica:
            async with replica.client.stream("GET", where) as response:
                began = await anext(aiter(Events(response)))
            assert began[1] == "listening"
            assert await notify(bus, conversation, f"told meanwhile {number}") == "OK"
            async with replica.client.stream("GET", where, headers={"Last-Event-ID": began[0]}) as response:
                assert (await anext(aiter(Events(response))))[2]["text"] == f"told meanwhile {number}"


async def _listened(deployment: Deployment, conversation: str) -> bool:
    channel = deployment.session.bus.shard(conversation).channel(conversation)
    found = await deployment.session.server.call("PUBSUB", "NUMSUB", channel)
    return bool(found[1])


async def test_a_stream_cut_after_its_first_event_is_resumed_too(deployment: Deployment) -> None:
    GateAgent.gate.set()
    async with Replica(deployment) as replica:
        async with replica.client.stream("POST", "/chat/stream", json={"text": "hi", "role": "gate"}) as response:
            event = await anext(aiter(Events(response)))
        rest = await some(replica, f"{response.headers['location']}/events", event[0], 99)
        assert (rest[0][1], rest[-1][1]) == ("snapshot", "done")


async def test_the_head_of_a_stream_ends_at_once_and_leaves_its_connection_and_its_place_free(
    deployment: Deployment,
) -> None:
    application = deployment.session.application
    few = Application(
        application.directory, application.roles, application.settings.model_copy(update={"http_streams": 1}), {}
    )
    limits = httpx2.Limits(max_connections=1)
    async with serving(few) as url, httpx2.AsyncClient(base_url=url, timeout=5, limits=limits) as client:
        asked = await client.post("/chat/async", json={"text": "1 60", "role": "slow"})
        task = asked.json()["id"]
        for path in (
            f"/chat/task/{task}/events", "/chat/notices/heads", f"/web/chat/tasks/{task}/events",
            "/web/conversations/events", "/web/now/events", "/web/log/events",
        ):  # fmt: skip

            async def is_stream(path: str = path) -> bool:
                head = await client.head(path)
                return (head.status_code, head.headers["content-type"][:17]) == (200, "text/event-stream")

            await wait_until(is_stream)
        assert (await client.post(f"/chat/task/{task}/cancel")).json()["state"] == "cancelled"


async def test_while_the_bus_is_away_one_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "BUS_SECONDS", 0.3)
    with tempfile.TemporaryDirectory(prefix="rc") as directory:
        valkey = ValkeyProcess(Path(directory))
        valkey.start()
        settings = Settings.model_validate({"redis_url": valkey.url})
        async with (
            serving(Application(Path(directory), ROLES, settings, {})) as url,
            httpx2.AsyncClient(base_url=url, timeout=20) as client,
        ):
            taken = await client.post("/chat/async", json={"text": "hello"})
            assert taken.status_code == 202
            valkey.kill()
            messages = [{"role": "user", "content": "hello"}]
            for answer in (
                await client.post("/chat/async", json={"text": "hello"}),
                await client.get(taken.headers["location"]),
                await client.post("/v1/chat/completions", json={"messages": messages}),
            ):
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["code"] == "bus_unavailable"
            assert (await client.get("/health/live")).status_code == 200
            ending = time.monotonic()
        assert time.monotonic() - ending < 15


LIMITS = ((pipeline, "CONNECT_SECONDS"), (reader, "SILENCE_SECONDS"), (subscriber, "PING_SECONDS"),
          (subscriber, "ANSWER_SECONDS"))  # fmt: skip
"""What bounds the silence of a connection to the bus; a fifth of it here."""


@pytest.mark.parametrize("kind", ["subscriber", "commands", ""])
async def test_streams_go_on_when_a_connection_to_the_bus_falls_silent(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for module, name in LIMITS:
        monkeypatch.setattr(module, name, getattr(module, name) * 0.2)
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.05)
    with tempfile.TemporaryDirectory(prefix="rc") as directory:
        valkey = ValkeyProcess(Path(directory))
        valkey.start()
        proxy = Proxy(valkey.socket)
        await proxy.start()
        there = Settings.model_validate({"redis_url": proxy.url, "redis_socket_timeout": 1})
        application = Application(Path(directory), ROLES, there, {})
        async with (
            stage(Path(directory), redis_url=valkey.url, redis_socket_timeout=5),
            serving(application) as url,
            httpx2.AsyncClient(base_url=url, timeout=20) as client,
        ):
            body = {"text": "hi", "role": "gate"}
            async with client.stream("POST", "/chat/stream", json=body) as response:
                events = Events(response)
                reading = aiter(events)
                while (await anext(reading))[1] != "delta":
                    pass
                assert proxy.silence(kind) >= 1
                GateAgent.gate.set()
                async with asyncio.timeout(MOST_SECONDS):
                    assert [event[1] async for event in reading][-1] == "done"
            async with asyncio.timeout(MOST_SECONDS):
                await client.post("/chat", json={"text": "hi", "role": "tell"})
            began = time.monotonic()
            assert (await client.post("/chat", json={"text": "hi", "role": "tell"})).status_code == 200
            assert time.monotonic() - began < 1
        await proxy.stop()
        valkey.kill()


async def test_a_client_that_takes_nothing_is_hung_up_on(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "STALLED_SECONDS", 0.3)
    async with serving(deployment.session.application) as url:
        address = urlsplit(url)
        client = socket.create_connection((address.hostname, address.port), timeout=20)
        with client:
            request = f"GET /openapi.json HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()

            def hung_up() -> bool:
                try:
                    client.send(request)
                except (ConnectionError, TimeoutError):
                    return True
                return False

            client.settimeout(0.05)
            await wait_until(lambda: asyncio.to_thread(hung_up), what="the server hangs up")


async def test_small_answers_leave_at_once(deployment: Deployment) -> None:
    with listen("127.0.0.1", 0) as listener:
        # Else asyncio sets no TCP_NODELAY, and what follows the head of an answer waits 40 ms for its confirmation.
        assert listener.proto == socket.IPPROTO_TCP
