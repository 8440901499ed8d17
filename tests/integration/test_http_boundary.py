"""The boundary of a request: whatever it does is one answer with an id, counted, and without a secret."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from rolecall.bus.dead_letters import dead_letters
from rolecall.config import Application
from rolecall.errors import ModelError, ServerRefused, ServerUnavailable
from rolecall.frontends.http.app import build
from rolecall.frontends.http.hosting import HttpFrontEnd
from rolecall.frontends.sockets import listen
from rolecall.settings import Settings
from tests.deployment import Deployment, deployed
from tests.http.server import open_services, serving
from tests.integration.test_http_app import ROLES
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

SECRET = "sk-a-secret-of-the-settings"
FAILURES: dict[str, BaseException] = {
    "error": ValueError(f"the upstream answered {SECRET}"),
    "rolecall": ModelError(f"no answer with {SECRET}"),
    "group": ExceptionGroup("two", [ExceptionGroup("one", [ServerUnavailable("away")]), ValueError("x")]),
    "rights": ServerRefused("No permissions to access a key", "NOPERM"),
    "unknown-group": ExceptionGroup("two", [ValueError(SECRET)]),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "deep": RecursionError("maximum recursion depth exceeded"),
}
EXPECTED = {
    "error": (500, "error"), "rolecall": (422, "invalid_request"), "group": (503, "bus_unavailable"),
    "rights": (403, "bus_forbidden"), "unknown-group": (500, "error"), "exit": (500, "error"),
    "cancelled": (503, "server_stopping"), "deep": (500, "error"),
}  # fmt: skip


async def fail(request: Request) -> StreamingResponse:
    raise FAILURES[request.path_params["how"]]


async def fail_midway(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        yield "begun"
        raise ValueError(SECRET)

    return StreamingResponse(pieces())


@contextlib.asynccontextmanager
async def served(application: Application) -> AsyncIterator[tuple[FastAPI, HttpFrontEnd, str]]:
    """A replica with routes that fail."""
    routes = [Route("/fail/{how}", fail), Route("/v1/fail/{how}", fail), Route("/midway", fail_midway)]
    opening = lambda: open_services(application, "host:9~abcdef", "127.0.0.1")  # noqa: E731
    app = build(opening, application.settings, routes=routes)
    with listen("127.0.0.1", 0) as listener:
        front = HttpFrontEnd(app, listener)
        running = asyncio.create_task(front.run())
        await front.ready()
        try:
            yield app, front, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await front.drain()
            await running


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    settings: dict[str, Any] = {"openai_api_key": SECRET, "http_origins": "https://friend.example"}
    async with deployed(tmp_path, ROLES, **settings) as running:
        yield running


@pytest.mark.parametrize("how", list(FAILURES))
async def test_whatever_a_request_does_is_one_problem_with_an_id_and_no_secret(
    deployment: Deployment, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        served(deployment.session.application) as (_, _, url),
        httpx2.AsyncClient(base_url=url, headers={"origin": "https://friend.example"}) as client,
    ):
        plain, openai = await client.get(f"/fail/{how}"), await client.get(f"/v1/fail/{how}")
        assert (plain.status_code, plain.json()["code"]) == EXPECTED[how]
        assert plain.json()["request_id"] == plain.headers["x-request-id"]
        assert openai.json()["error"]["code"] == EXPECTED[how][1]
        assert openai.status_code == (400 if EXPECTED[how][0] == 422 else EXPECTED[how][0])
        for answer in (plain, openai):
            assert SECRET not in answer.text
            assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        if plain.status_code == 500:
            assert any(plain.headers["x-request-id"] in record.getMessage() for record in caplog.records)

        async def counted() -> bool:
            families = text_string_to_metric_families((await client.get("/metrics")).text)
            found = {(s.name, s.labels.get("status")): s.value for family in families for s in family.samples}
            return found.get(("rolecall_http_requests_total", str(plain.status_code)), 0) >= 1

        await wait_until(counted)


async def test_an_answer_that_fails_midway_is_cut_so_that_its_client_knows(deployment: Deployment) -> None:
    async with served(deployment.session.application) as (_, _, url), httpx2.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get("/midway")
        assert (await client.get("/health/live")).status_code == 200


@pytest.fixture
def bus_of_its_own() -> Iterator[tuple[ValkeyProcess, Application]]:
    with tempfile.TemporaryDirectory(prefix="rc") as directory:
        valkey = ValkeyProcess(Path(directory))
        valkey.start()
        yield valkey, Application(Path(directory), ROLES, Settings.model_validate({"redis_url": valkey.url}), {})
        valkey.kill()


async def test_a_replica_that_ends_while_the_bus_is_away_says_503(
    bus_of_its_own: tuple[ValkeyProcess, Application],
) -> None:
    valkey, application = bus_of_its_own
    messages = [{"role": "user", "content": "hello"}]
    async with httpx2.AsyncClient(timeout=30) as client:
        async with served(application) as (_, _, url):
            valkey.kill()
            asked = [
                asyncio.create_task(client.post(f"{url}{path}", json=body))
                for path, body in (
                    ("/chat", {"text": "hi"}), ("/chat/async", {"text": "hi"}), ("/chat/stream", {"text": "hi"}),
                    ("/v1/chat/completions", {"messages": messages}),
                    ("/v1/chat/completions", {"messages": messages, "stream": True}),
                )
                for _ in range(4)
            ]  # fmt: skip
            await asyncio.sleep(0.3)  # they wait for the bus
        for answer in await asyncio.gather(*asked):
            assert answer.status_code == 503, answer.text
            assert answer.headers["content-type"] in ("application/problem+json", "application/json")
            assert int(answer.headers["retry-after"]) > 0


DEEP = "[" * 200_000 + "]" * 200_000
"""Deeper than any Python reads: 3.14 reads some 90,000 levels, the ones before some 1,000."""
NESTED = "[" * 300 + "]" * 300


@pytest.mark.parametrize("garbage", [DEEP, NESTED, '{"id":', "\x00", '{"a": NaN}'])
async def test_one_dead_letter_of_any_shape_hides_no_other(deployment: Deployment, garbage: str) -> None:
    bus = deployment.session.bus
    fields = {"c": "http:a", "t": "1", "why": "garbage", "n": "1", "ms": "1", "e": garbage}
    flat = [part for pair in fields.items() for part in pair]
    await deployment.session.server.call("XADD", bus.shards[0].dead, "*", *flat)
    letter = (await dead_letters(bus))[0].id
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        for path in ("/dead", f"/dead/{letter}", "/web/dead"):
            answer = await client.get(path)
            assert answer.status_code == 200, path
        assert (await client.get("/dead")).json()["total"] == 1


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, b'{"text":"hi"}', 415, "unsupported_media_type"),
        ({"content-type": "text/plain"}, b'{"text":"hi"}', 415, "unsupported_media_type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"x", 415, "unsupported_media_type"),
        ({"content-type": "application/json"}, b'{"text":', 400, "invalid_json"),
        ({"content-type": "application/json"}, b'{"text":"\xff"}', 400, "invalid_json"),
        ({"content-type": "application/json"}, b"[" * 100_000, 400, "invalid_json"),
        ({"content-type": "application/json"}, b'{"priority":' + b"9" * 10_000 + b"}", 400, "invalid_json"),
        ({"content-type": "application/json"}, b'{"text": "' + b"x" * 65_537 + b'"}', 413, "text_too_long"),
        ({"content-type": "application/json"}, b'{"text": "' + "€".encode() * 30_000 + b'"}', 413,
         "text_too_long"),
        ({"content-type": "application/json"}, DEEP.encode(), 413, "request_too_large"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
async def test_a_body_that_cannot_be_used_is_told_by_what_is_wrong_with_it(
    deployment: Deployment, headers: dict[str, str], content: bytes, status: int, code: str, path: str
) -> None:
    if code == "text_too_long" and path.startswith("/v1"):
        content = content.replace(b'{"text": "', b'{"messages": [{"role": "user", "content": "')[:-1] + b"}]}"
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post(path, headers=headers, content=content)
        said = answer.json().get("error", answer.json())
        assert (answer.status_code, said["code"]) == (status, code), answer.text
