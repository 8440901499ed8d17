"""What Prometheus makes of the metrics: a real one scrapes the real endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
import yaml

from rolecall import Agent, Context, Envelope, Reject
from rolecall.agent.role import Role
from rolecall.bus.bus import Bus, count_soon
from rolecall.bus.leases import Demand, take
from rolecall.worker.runtime import Runtime
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.http.stage import ManagerAgent
from tests.prometheus import Prometheus, prometheus
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/monitoring/alerts.yml"
DASHBOARD = ROOT / "deploy/monitoring/grafana.json"
SCALING = ROOT / "deploy/kubernetes/overlays/production/scaling.yaml"
WAITING = 14


class HeldAgent(Agent):
    """Answers when the test opens the gate."""

    role: ClassVar[str] = "samplellm"
    gate: ClassVar[asyncio.Event]

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await self.gate.wait()
        return envelope.reply("at last")


def scaled(name: str) -> tuple[str, float]:
    """Query and threshold of a ScaledObject."""
    found = {one["metadata"]["name"]: one for one in yaml.safe_load_all(SCALING.read_text())}
    metadata = found[name]["spec"]["triggers"][0]["metadata"]
    return str(metadata["query"]), float(metadata["threshold"])


@pytest.mark.timeout(120)
async def test_the_autoscaler_asks_for_the_work_of_its_group_whichever_pods_are_scraped(tmp_path: Path) -> None:
    HeldAgent.gate = asyncio.Event()
    roles = (Role(ManagerAgent), Role(HeldAgent, instances=4))
    async with (
        deployed(tmp_path / "app", roles) as deployment,
        serving(deployment.session.application) as one,
        serving(deployment.session.application) as two,
        prometheus(tmp_path / "prometheus", [url.removeprefix("http://") for url in (one, two)]) as found,
    ):
        query, _ = scaled("answer")

        async def value_is(expected: float, query: str = query) -> bool:
            return await found.value(query) == expected

        async def seen() -> bool:  # the query is right before the second pod is scraped, so wait for both
            return await found.value('sum(up{job="rolecall"})') == 2

        await wait_until(seen, seconds=20)
        await wait_until(lambda: value_is(0), seconds=20)
        for number in range(WAITING):
            await deployment.say(f"terminal:{number}", "hello")
        await wait_until(lambda: value_is(WAITING), seconds=20)  # four are being handled, ten wait
        await wait_until(lambda: value_is(0, scaled("route")[0]), seconds=20)
        HeldAgent.gate.set()
        await wait_until(lambda: value_is(0), seconds=20)


@pytest.mark.timeout(120)
async def test_every_panel_of_the_dashboard_is_answered(tmp_path: Path) -> None:
    HeldAgent.gate = asyncio.Event()
    HeldAgent.gate.set()
    async with (
        deployed(tmp_path / "app", (Role(ManagerAgent), Role(HeldAgent, models=("echo@test",)))) as deployment,
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url) as client,
        prometheus(tmp_path / "prometheus", [url.removeprefix("http://")]) as found,
    ):

        async def scraped() -> bool:
            await client.post("/chat", json={"text": "hello"})
            rates = [f"rate(rolecall_{name}[5s]) > 0" for name in ("turn_seconds_count", "http_requests_total")]
            return all([await found.query(rate) for rate in rates])

        await wait_until(scraped, seconds=30)
        empty = []
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "5s").replace("$job", "rolecall")
                if not await found.query(query):
                    empty.append(panel["title"])
        # no model was called, and nothing failed
        assert set(empty) <= {"Answer time, p95", "Failures survived"}, empty


# ── each alert, by a real fault ─────────────────────────────────────────────────────────────────


class FaultyAgent(Agent):
    """Waits at the gate for ``wait``, gives ``bury`` up, asks its model otherwise."""

    role: ClassVar[str] = "samplellm"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "bury":
            raise Reject("it was asked for")
        if envelope.text == "wait":
            await HeldAgent.gate.wait()
            return envelope.reply("at last")
        return envelope.reply(await ctx.ask(ctx.model, (), envelope.text))


@dataclass
class Stage:
    """A deployment that is scraped, with windows of seconds in place of minutes."""

    deployment: Deployment
    client: httpx2.AsyncClient
    found: Prometheus
    fired: set[str]
    leave: Callable[[], Awaitable[None]]
    """Ends the HTTP server."""

    async def fires(self, name: str, more: Callable[[], Awaitable[object]] | None = None) -> None:
        async def firing() -> bool:
            if more is not None:
                await more()
            return name in await self.found.firing()

        await wait_until(firing, seconds=40, what=f"{name} fires")
        self.fired.add(name)


def hurried(directory: Path) -> Path:
    """The alerts with windows of 6 s, no delays, and times a hundredth of theirs."""
    text = re.sub(r"\[\d+m\]", "[6s]", ALERTS.read_text())
    text = re.sub(r"offset \d+m", "offset 6s", re.sub(r"for: \d+m", "for: 0s", text))
    text = re.sub(r"(quantile\(.*) > (\d+)$", lambda found: f"{found[1]} > {int(found[2]) / 100}", text, flags=re.M)
    text = text.replace("entries) > 10000", "entries) > 100")
    text = text.replace("allowed) > 0.9", "allowed) > 0.5")  # a process opens three of at least four
    directory.mkdir()
    (directory / "alerts.yml").write_text(text)
    return directory / "alerts.yml"


@asynccontextmanager
async def stage(directory: Path, fired: set[str], **settings: Any) -> AsyncIterator[Stage]:
    HeldAgent.gate = asyncio.Event()
    roles = (Role(ManagerAgent), Role(FaultyAgent, instances=2, models=("gone@openai",)))
    given = {"openai_base_url": "http://127.0.0.1:9/v1", "openai_api_key": "none", "max_attempts": 100, **settings}
    async with deployed(directory / "app", roles, **given) as deployment, AsyncExitStack() as leaving:
        url = await leaving.enter_async_context(serving(deployment.session.application))
        targets, rules = [url.removeprefix("http://")], [hurried(directory / "rules")]
        async with (
            httpx2.AsyncClient(base_url=url, timeout=30) as client,
            prometheus(directory / "found", targets, rules) as found,
        ):
            playing = Stage(deployment, client, found, fired, leaving.aclose)

            async def scraped() -> bool:
                return await found.value('up{job="rolecall"}') == 1 and "RolecallDown" not in await found.firing()

            await wait_until(scraped, seconds=20)
            yield playing
            HeldAgent.gate.set()


async def turns_go_wrong(at: Stage) -> None:
    bus, number = at.deployment.session.bus, iter(range(10_000))

    async def say(text: str) -> None:
        await at.deployment.say(f"terminal:{next(number)}", text)

    async def ask() -> None:
        assert (await at.client.post("/chat", json={"text": "bury"})).status_code == 502

    async def slowly() -> None:
        HeldAgent.gate.clear()
        await say("wait")
        await asyncio.sleep(1)
        HeldAgent.gate.set()

    # there is no scribe in this deployment
    await at.fires("RolecallTranscriptsWait", lambda: say("bury"))
    await at.fires("RolecallTurnsFail", lambda: say("bury"))
    await at.fires("RolecallDeadLetters", lambda: say("bury"))
    await at.fires("RolecallHttpFails", ask)
    await at.fires("RolecallModelFails", lambda: say("model"))
    await at.fires("RolecallModelAway", lambda: say("model"))
    count_soon(bus.server, "failures", "outbox:test")
    await at.fires("RolecallLoopFails")
    count_soon(bus.server, "set_aside", "update")
    await at.fires("RolecallSetAside")
    for _ in range(8):
        await say("wait")
    await at.fires("RolecallQueueStands")
    HeldAgent.gate.set()  # those behind them have waited for seconds by now
    await at.fires("RolecallWaitsLong")
    await at.fires("RolecallAnswersSlow", slowly)


async def processes_die(at: Stage) -> None:
    session = at.deployment.session
    await at.fires("RolecallConnectionsShort")
    await at.deployment.runtime.stop()
    await at.fires("RolecallRoleMissing")
    for number in range(8):
        await at.deployment.say(f"terminal:{number}", "bury")
    ghost = Bus(session.server, session.bus.settings, "ghost:1~bbbbbb")  # takes them and is never heard of again
    assert len(await take(ghost, ghost.shards[0], [Demand("manager", 8)])) == 8
    heir = Runtime(session.application, session.server, "heir:1~cccccc")
    working = asyncio.create_task(heir.run())
    await at.fires("RolecallWorkersDie")
    await heir.stop()
    await working
    await at.leave()
    await at.fires("RolecallDown")


@pytest.mark.timeout(600)
@pytest.mark.skipif("ROLECALL_ALERTS" not in os.environ, reason="two minutes; a part of make proof")
async def test_each_fault_fires_its_alert(tmp_path: Path) -> None:
    fired: set[str] = set()
    async with stage(tmp_path / "one", fired) as at:
        await turns_go_wrong(at)
    quick = {"lease_seconds": 2, "scan_seconds": 0.5, "heartbeat_seconds": 0.5, "redis_max_connections": 4}
    async with stage(tmp_path / "two", fired, **quick) as at:
        await processes_die(at)
    assert fired == {rule["alert"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
