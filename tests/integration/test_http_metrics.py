"""The figures for Prometheus: what they count, and that any replica tells the same."""

from __future__ import annotations

from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from rolecall.bus.access_keys import create_key
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.integration.test_http_app import ROLES
from tests.waiting import wait_until

HOSTILE = 'b"\\\n<é>'
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(client: httpx2.AsyncClient) -> Figures:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(figures: Figures, name: str, **labels: str) -> float:
    return figures[f"rolecall_{name}", frozenset(labels.items())]


async def after_three_turns(deployment: Deployment, client: httpx2.AsyncClient) -> Figures:
    for user in ("ann", HOSTILE):
        await deployment.ask("terminal:a", "hello", principal=user)
    await deployment.ask("terminal:b", "bury me", principal="ann")

    async def told() -> bool:
        return (await scraped(client)).get(("rolecall_turn_seconds_count", frozenset())) == 3

    await wait_until(told)
    return await scraped(client)


async def test_figures_tell_of_turns_and_times_alike_at_any_replica_and_to_operators_only(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path, ROLES) as deployment,
        serving(deployment.session.application) as one,
        serving(deployment.session.application) as two,
        httpx2.AsyncClient(base_url=one) as client,
        httpx2.AsyncClient(base_url=two) as other,
    ):
        figures = await after_three_turns(deployment, client)
        assert of(figures, "turns_total", outcome="answered") == 2
        assert of(figures, "turns_total", outcome="failed") == of(figures, "errors_total", role="samplellm") == 1
        assert of(figures, "leases_taken_over_total", role="manager") == 0
        assert of(figures, "wait_seconds_count", role="samplellm") == 3
        assert of(figures, "handling_seconds_bucket", role="manager", le="+Inf") == 3
        assert of(figures, "model_seconds_count", role="samplellm", model="echo@test") == 2
        assert of(figures, "user_response_seconds_count", user="ann") == 2
        assert of(figures, "user_response_seconds_count", user=HOSTILE) == 1
        assert of(figures, "instances", role="samplellm") == 2
        assert of(figures, "dead_letters") == 1
        assert of(figures, "queue_depth", role="samplellm", priority="high") == 0
        assert of(figures, "tokens_total", direction="out") == 0  # test models use none
        assert {"rolecall_connections", "rolecall_cost_total", "rolecall_users"} <= {name for name, _ in figures}

        elsewhere = await scraped(other)
        same = [name for name in figures if not name[0].startswith("rolecall_connections")]
        assert [elsewhere[name] for name in same] == [figures[name] for name in same]

        _, secret = await create_key(deployment.session.bus, "ann")

        async def refused() -> bool:
            answer = await other.get("/metrics", headers={"authorization": f"Bearer {secret}"})
            return answer.status_code == 403

        await wait_until(refused)
