"""A real Prometheus inside a test: scrapes an address of the loopback, evaluates rules, answers queries."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rolecall.frontends.sockets import listen
from tests.waiting import wait_until

CONFIG = {
    "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
}


def binary(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``. Skips the test where this machine has none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine: apt install prometheus")
    return found


@dataclass
class Prometheus:
    """A running Prometheus."""

    client: httpx2.AsyncClient

    async def query(self, expression: str) -> dict[str, float]:
        """The value of each series of an instant query, by its labels as JSON."""
        answer = await self.client.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        found = answer.json()["data"]["result"]
        return {json.dumps(one["metric"], sort_keys=True): float(one["value"][1]) for one in found}

    async def value(self, expression: str) -> float | None:
        """The value of a query with one series; None without any."""
        found = list((await self.query(expression)).values())
        assert len(found) <= 1, found
        return found[0] if found else None

    async def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = (await self.client.get("/api/v1/alerts")).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@asynccontextmanager
async def prometheus(
    directory: Path, targets: Sequence[str], rules: Sequence[Path] = (), **job: Any
) -> AsyncIterator[Prometheus]:
    """Scrapes ``targets`` (``127.0.0.1:<port>``) as the job rolecall; ``job`` are further fields of the job."""
    directory.mkdir(parents=True, exist_ok=True)
    jobs = [{"job_name": "rolecall", "static_configs": [{"targets": [*targets]}], **job}]
    config = directory / "prometheus.yml"
    config.write_text(json.dumps({**CONFIG, "rule_files": [str(path) for path in rules], "scrape_configs": jobs}))
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    log = (directory / "log").open("wb")
    process = await asyncio.create_subprocess_exec(
        binary("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

            async def ready() -> bool:
                assert process.returncode is None, (directory / "log").read_text()
                try:
                    return (await client.get("/-/ready")).status_code == 200
                except httpx2.TransportError:
                    return False

            await wait_until(ready, seconds=30, what="Prometheus is ready")
            yield Prometheus(client)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        log.close()
