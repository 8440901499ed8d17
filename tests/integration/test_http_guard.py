"""What is turned away before a route sees it: foreign hosts and pages, bodies too large or too slow, too much."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio

from rolecall.frontends.http.body import BODY_BYTES, LARGE_BYTES, PICTURES_MEGABYTES
from tests.deployment import deployed
from tests.http.server import serving
from tests.integration.test_http_app import ROLES

pytestmark = pytest.mark.asyncio(loop_scope="module")
MEGABYTES = int(os.environ.get("ROLECALL_BODY_MB", "64"))
HEAD = "POST /chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    settings: dict[str, Any] = {"http_read_seconds": 0.3, "http_origins": "https://friend.example"}
    directory = tmp_path_factory.mktemp("guard")
    async with deployed(directory, ROLES, **settings) as running, serving(running.session.application) as url:
        yield url


async def spoken(url: str, *sent: str | bytes) -> str:
    """What the server answers to the raw ``sent``, until it closes the connection."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    for part in sent:
        writer.write(part if isinstance(part, bytes) else part.encode())
        await writer.drain()
    answer = (await reader.read()).decode()
    writer.close()
    return answer


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "[::2]", "", "evil@x:y"])
async def test_a_forged_host_is_refused(url: str, host: str) -> None:
    answer = await spoken(url, f"GET /health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert " 403 " in answer.splitlines()[0]


async def test_two_hosts_are_refused(url: str) -> None:
    answer = await spoken(
        url, "GET /health/live HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n"
    )
    assert answer.splitlines()[0].split()[1] in ("400", "403")


async def test_a_health_check_by_http_1_0_needs_no_host(url: str) -> None:
    for sent, status in (
        ("/health/live HTTP/1.0", 200), ("/health/live HTTP/1.0\r\nHost: evil.example", 403),
        ("/health/live HTTP/1.0\r\nHost:", 403), ("/health/live HTTP/1.0\r\nOrigin: null", 403),
        ("/health/live HTTP/1.1", 400), ("/info HTTP/1.0", 401),
    ):  # fmt: skip
        answer = await spoken(url, f"GET {sent}\r\n\r\n")
        assert answer.splitlines()[0].split()[1] == str(status), sent


async def test_a_tunnel_to_this_machine_is_no_forgery(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/health/live", headers={"host": "localhost:8080"})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil"])
async def test_another_web_page_is_refused(url: str, origin: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post("/chat", json={"text": "hi"}, headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        crossing = {"sec-fetch-site": "cross-site"}
        assert (await client.post("/chat", json={"text": "hi"}, headers=crossing)).status_code == 403


async def test_our_own_page_and_those_named_in_the_settings_come_through(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/health/live", headers={"origin": url})).status_code == 200
        answer = await client.get("/health/live", headers={"origin": "https://friend.example"})
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        asked = {"origin": "https://friend.example", "access-control-request-method": "POST"}
        assert (await client.options("/chat", headers=asked)).status_code == 200


async def test_every_answer_tells_the_browser_to_be_strict(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        for path in ("/health/live", "/nowhere"):
            headers = (await client.get(path)).headers
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "announced"),
    [("/login", BODY_BYTES + 1), ("/chat", LARGE_BYTES + PICTURES_MEGABYTES * 2 * 1024**2), ("/v1/x", 10**12)],
)
async def test_a_body_announced_too_large_is_refused_unread(url: str, path: str, announced: int) -> None:
    head = HEAD.format(host="localhost").replace("/chat", path) + f"Content-Length: {announced}\r\n\r\n"
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write(head.encode() + b"x")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in await reader.readuntil(b"}")
    writer.close()


@pytest.mark.parametrize(("path", "kilobytes"), [("/login", 1024), ("/chat", 3 * LARGE_BYTES // 1024)])
async def test_an_endless_body_is_refused_and_takes_no_memory(url: str, path: str, kilobytes: int) -> None:
    for _ in range(3):  # the client is in this process, too: its buffers and ours are as large as they get
        await endless(url, path, 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (await endless(url, path, MEGABYTES)).startswith("HTTP/1.1 413")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < kilobytes


async def endless(url: str, path: str, megabytes: int) -> str:
    """What is answered to a chunked body of so many MB, of which the server may well hear only the beginning."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write((HEAD.format(host="localhost").replace("/chat", path) + "Transfer-Encoding: chunked\r\n\r\n").encode())
    answer = asyncio.create_task(reader.readuntil(b"}"))
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    try:
        for _ in range(megabytes * 16):
            writer.write(chunk)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    except ConnectionError:
        pass  # it need not hear us out
    text = (await answer).decode()
    writer.close()
    return text


MISTAKES = [
    ("/v1/chat/completions", '{"messages": [{"role": "user", "content": [', '{"type": 1}'),
    ("/v1/responses", '{"input": [', '{"content": [1]}'),
    ("/v1/embeddings", '{"input": [', "{}"),
    ("/a2a", '{"jsonrpc": "2.0", "method": "message/send", "params": {"message": {"parts": [', '{"kind": 1}'),
]
"""Routes, how a body begins there, and an item that is none."""


async def test_very_many_mistakes_in_a_body_hold_up_nobody(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path, ROLES, http_read_seconds=60) as running,
        serving(running.session.application) as url,
        httpx2.AsyncClient(base_url=url, timeout=60) as client,
    ):
        for path, beginning, item in MISTAKES:
            opened = beginning.translate(str.maketrans("{[", "}]", "".join(set(beginning) - set("{["))))
            for kilobytes in (200, 3000):
                body = beginning + ", ".join([item] * (kilobytes * 1024 // (len(item) + 2))) + opened[::-1]
                began = time.process_time()
                answer = await client.post(path, content=body, headers={"content-type": "application/json"})
                assert answer.status_code in (400, 413) and len(answer.content) < 100_000
                assert time.process_time() - began < 2.0


async def test_a_body_that_does_not_come_is_not_waited_for(url: str) -> None:
    answer = await spoken(url, HEAD.format(host="localhost") + "Content-Length: 10\r\n\r\n", "{")
    assert answer.startswith("HTTP/1.1 408")


async def test_a_head_that_does_not_come_is_not_waited_for(url: str) -> None:
    assert await spoken(url, "GET /health/live HTT") == ""
    assert await spoken(url) == ""


async def test_a_slash_too_many_leads_to_the_path_whatever_a_proxy_calls_this_server(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        answer = await client.get("/health/live/?a=1")
    assert (answer.status_code, answer.headers["location"]) == (307, "/health/live?a=1")


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/info", "/v1/models", "/nowhere"])
async def test_head_answers_as_get_does_without_a_body(url: str, path: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


async def test_a_head_too_large_is_refused(url: str) -> None:
    head = f"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: {'x' * 20_000}\r\n\r\n"
    assert (await spoken(url, head)).startswith("HTTP/1.1 431")
