"""What Prometheus makes of the metrics: a real one scrapes the real endpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from rolecall import Agent, Context, Envelope
from rolecall.config import Role
from tests.deployment import deployed
from tests.http.server import serving
from tests.http.stage import ManagerAgent
from tests.prometheus import prometheus
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
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
