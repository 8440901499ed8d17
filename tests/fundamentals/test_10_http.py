"""HTTP: ask and wait, ask and come back later, stream, and any OpenAI client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from rolecall import Agent, Context, Envelope, Role
from tests.deployment import deployed
from tests.http.server import serving


class ManagerAgent(Agent):
    """Answers with its model."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.stream(ctx.model, (), envelope.text))


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with (
        deployed(tmp_path, (Role(ManagerAgent, models=("echo@test",)),)) as app,
        serving(app.session.application) as url,
    ):
        yield url


async def test_one_request_asks_and_waits_for_the_answer(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answer = await client.post("/chat", json={"text": "hello"})

        assert answer.status_code == 200
        assert answer.json()["text"] == "echo: hello"


async def test_a_task_is_accepted_at_once_and_fetched_later(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        accepted = await client.post("/chat/async", json={"text": "hello"})
        assert accepted.status_code == 202

        async with asyncio.timeout(10):
            while (task := (await client.get(accepted.headers["Location"])).json())["state"] != "done":
                await asyncio.sleep(0.05)
        assert task["text"] == "echo: hello"


async def test_the_same_idempotency_key_is_answered_once(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        body = {"text": "hello", "conversation_id": "crm-42"}
        first, second = [
            (await client.post("/chat", json=body, headers={"Idempotency-Key": "order-7"})).json() for _ in range(2)
        ]

        assert first["id"] == second["id"]


async def test_any_openai_client_works_with_the_base_url(url: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none-yet", http_client=httpx_client())
    async with client:
        answer = await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hello"}])

        assert answer.choices[0].message.content == "echo: hello"


def httpx_client() -> openai.DefaultAsyncHttpxClient:
    """Past any proxy of this machine."""
    return openai.DefaultAsyncHttpxClient(trust_env=False)
