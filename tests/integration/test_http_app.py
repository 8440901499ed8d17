"""The HTTP server itself: who may come in, what is turned away, how it begins and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from rolecall import Agent, Context, Envelope, Reject
from rolecall.agent.role import Role
from rolecall.bus.process.processes import ProcessState, register
from tests.deployment import Deployment, deployed
from tests.http.server import serving


class ManagerAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("samplellm")


class SampleLLMAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "bury me":
            raise Reject("it was asked for")
        return envelope.reply(await ctx.stream(ctx.model, (), envelope.text))


ROLES = (Role(ManagerAgent), Role(SampleLLMAgent, instances=2, models=("echo@test",)))


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, ROLES) as running:
        yield running


async def test_it_is_alive_and_ready(deployment: Deployment) -> None:
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/health/live")).json() == {"status": "ok"}
        ready = await client.get("/health/ready")
        assert ready.status_code == 200, ready.text


async def test_a_scribe_that_cannot_write_and_records_that_wait_are_warnings(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = deployment.session.bus
    await register(bus, ProcessState("host:9~aaaaaa", scribe=True, problem="no space for transcripts in /log"))
    monkeypatch.setattr("rolecall.stats.MAX_RECORDS", 2)
    await bus.server.call("XADD", bus.shards[0].log, "*", "c", "a")
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        ready = await client.get("/health")
        assert ready.status_code == 200
        scribe, waiting = ready.json()["warnings"]
        assert scribe == "host:9: no space for transcripts in /log"
        assert waiting.endswith("log records wait to be written; beyond 2 the oldest are lost")
