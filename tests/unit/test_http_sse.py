"""Server-sent events: the wire format, pings while nothing happens, the limit, and every way a stream can end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, routing
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, ServerSentEvent

from rolecall.errors import ServerUnavailable
from rolecall.frontends.http import problems
from rolecall.frontends.http.auth import LOCAL, user
from rolecall.frontends.http.services import get_services
from rolecall.frontends.http.sse import Events, Streaming, event, until_stopped
from tests.waiting import wait_until


class Client:
    """One GET of ``/``, at the level of ASGI: what was sent, and a way to hang up."""

    def __init__(self, app: FastAPI) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.whole = False
        self._gone = asyncio.Event()
        self._requested = False
        self.task = asyncio.create_task(app(self._scope(), self._receive, self._send), name="request")

    @staticmethod
    def _scope() -> dict[str, Any]:
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "scheme": "http", "root_path": "",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip

    async def _receive(self) -> dict[str, Any]:
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.pieces += [message["body"]] if message["body"] else []
            self.whole = not message.get("more_body", False)

    def hang_up(self) -> None:
        self._gone.set()

    async def ended(self) -> None:
        async with asyncio.timeout(10):
            await self.task


class App(FastAPI):
    """Streams whatever ``events`` yields."""

    def __init__(self, events: Any, farewell: ServerSentEvent | None = None) -> None:
        super().__init__()
        self.services = SimpleNamespace(
            streams=Counter[str](), stopping=asyncio.Event(), settings=SimpleNamespace(http_streams=1)
        )
        self.dependency_overrides = {get_services: lambda: self.services, user: lambda: LOCAL}
        problems.add_handlers(self)

        async def stream() -> Events:
            async with aclosing(until_stopped(self.services, events(), farewell)) as found:  # type: ignore[arg-type]
                async for one in found:
                    yield one

        self.get("/", response_class=EventSourceResponse, dependencies=[Streaming])(stream)


@asynccontextmanager
async def requested(app: FastAPI) -> AsyncGenerator[Client]:
    client = Client(app)
    yield client
    client.hang_up()
    await client.ended()


async def wire_of(*events: ServerSentEvent) -> list[bytes]:
    async def all_of_them() -> Events:
        for one in events:
            yield one

    async with requested(App(all_of_them)) as client:
        await client.ended()
    assert client.whole
    return client.pieces


def lines(piece: bytes) -> list[str]:
    return sorted(piece.decode().removesuffix("\n\n").split("\n"))


async def test_an_event_is_its_id_its_name_and_its_data_as_json() -> None:
    delta, done = await wire_of(event("delta", {"text": "a\nb ü"}, "1-0"), event("done", {}))
    assert lines(delta) == ['data: {"text":"a\\nb ü"}', "event: delta", "id: 1-0"]
    assert lines(done) == ["data: {}", "event: done"]
    assert delta.endswith(b"\n\n") and done.endswith(b"\n\n")


async def test_a_stream_is_not_stored_or_buffered_on_its_way() -> None:
    async with requested(App(lambda: ticks())) as client:
        await wait_until(lambda: client.status == 200)
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.headers["cache-control"] == "no-store"
        assert client.headers["x-accel-buffering"] == "no"


async def ticks(seconds: float = 0.01) -> Events:
    number = 0
    while True:
        yield event("tick", number := number + 1)
        await asyncio.sleep(seconds)


async def test_silence_is_filled_with_comments_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PING_INTERVAL", 0.01)
    go_on = asyncio.Event()

    async def events() -> Events:
        yield event("one", {})
        await go_on.wait()
        yield event("two", {})

    async with requested(App(events)) as client:
        await wait_until(lambda: client.pieces.count(KEEPALIVE_COMMENT) >= 3)
        go_on.set()
        await client.ended()
    named = [piece for piece in client.pieces if piece != KEEPALIVE_COMMENT]
    assert named == [b"event: one\ndata: {}\n\n", b"event: two\ndata: {}\n\n"]


async def test_a_client_that_leaves_ends_what_was_waited_for() -> None:
    ended = asyncio.Event()

    async def events() -> Events:
        try:
            yield event("one", {})
            await asyncio.Event().wait()
        finally:
            ended.set()

    app = App(events)
    async with requested(app) as client:
        await wait_until(lambda: len(client.pieces) == 1)
        client.hang_up()
        await client.ended()
        async with asyncio.timeout(10):
            await ended.wait()
    assert not app.services.streams.total()


@pytest.mark.parametrize("farewell", [None, event("bye", {})])
async def test_a_process_that_stops_ends_its_streams_whole(farewell: ServerSentEvent | None) -> None:
    for events in (lambda: ticks(60), lambda: ticks(0)):
        app = App(events, farewell)
        async with requested(app) as client:
            await wait_until(lambda client=client: len(client.pieces) >= 1)
            app.services.stopping.set()
            await client.ended()
        assert client.whole
        assert (client.pieces[-1] == b"event: bye\ndata: {}\n\n") is (farewell is not None)


async def test_a_lost_bus_ends_a_stream_whole() -> None:
    async def events() -> Events:
        yield event("one", {})
        raise ServerUnavailable("away")

    async with requested(App(events)) as client:
        await client.ended()
    assert client.whole and len(client.pieces) == 1


async def test_a_key_has_only_so_many_streams() -> None:
    app = App(ticks)
    async with requested(app) as first:
        await wait_until(lambda: first.status == 200)
        async with requested(app) as second:
            await second.ended()
        assert second.status == 429
    async with requested(app) as third:
        await wait_until(lambda: third.status == 200)
