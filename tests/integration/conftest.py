"""What tests of the HTTP API share. A module has a ``deployment`` of its own, and where it needs none of its own, these
reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import openai
import pytest_asyncio

from tests.deployment import Deployment
from tests.http.server import serving
from tests.http.upstream import Upstream, provider


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    """A provider that speaks OpenAI's protocol."""
    async with provider() as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(deployment: Deployment) -> AsyncIterator[str]:
    """Where the HTTP API of the module's deployment is."""
    async with serving(deployment.session.application) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client of that API."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", timeout=20, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Requests to that API, as they are. A client takes 20 ms to make: tests with many cases share this one."""
    async with httpx2.AsyncClient(base_url=url) as plain:
        yield plain
