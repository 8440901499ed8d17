"""Alerts and the dashboard: their rules by promtool, their metrics by what the endpoint really exposes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deployment import deployed
from tests.http.server import serving
from tests.integration.test_http_app import ROLES
from tests.prometheus import binary
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
UNTIL_NEEDED = {"rolecall_failures_total", "rolecall_set_aside_total"}
"""Metrics without a series before the first event."""
BUCKETS = ("0.1", "1", "10", "60", "300", "+Inf")


def histogram(name: str, slow: bool, labels: dict[str, str]) -> dict[str, str]:
    """A thousand events a minute, all of them slow or all of them fast."""
    counts = {le: 0 if slow and le not in ("300", "+Inf") else 1000 for le in BUCKETS}
    rows = [series(f"{name}_bucket", f"0+{count}x60", le=le, **labels) for le, count in counts.items()]
    return {key: values for row in rows for key, values in row.items()}


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    inside = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    return {f"rolecall_{name}{{{inside}}}": values}


ROLE, MODEL = {"role": "samplellm"}, {"model": "m@openai"}
QUEUE = series("queue_depth", "7x60", priority="low", **ROLE)
FAILED, FAILURES = series("turns_total", "0+1x60", outcome="failed"), "model_failures_total"
CALLS, SHORT = series("model_calls_total", "0+10x60", **MODEL), series("connections_allowed", "64x60", process="p")
ANSWERS, TAKEN = series("http_requests_total", "0+9x60", status="200"), "leases_taken_over_total"
FAULTS: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "RolecallDown": ({'up{job="rolecall"}': "0x60"}, {'up{job="rolecall"}': "1x60"}, {}),
    "RolecallRoleMissing": (series("instances", "0x60", **ROLE), series("instances", "2x60", **ROLE), ROLE),
    "RolecallWaitsLong": (histogram("wait_seconds", True, ROLE), histogram("wait_seconds", False, ROLE), ROLE),
    "RolecallQueueStands": (
        QUEUE | series("handling_seconds_count", "9x60", **ROLE),
        QUEUE | series("handling_seconds_count", "0+1x60", **ROLE),
        ROLE,
    ),
    "RolecallAnswersSlow": (histogram("turn_seconds", True, {}), histogram("turn_seconds", False, {}), {}),
    "RolecallTurnsFail": (
        FAILED | series("turns_total", "0+10x60", outcome="answered"),
        FAILED | series("turns_total", "0+100x60", outcome="answered"),
        {},
    ),
    "RolecallDeadLetters": (series("dead_letters", "0+1x60"), series("dead_letters", "3x60"), {}),
    "RolecallModelAway": (series("model_ready", "0x60", **MODEL), series("model_ready", "1x60", **MODEL), MODEL),
    "RolecallModelFails": (
        CALLS | series(FAILURES, "0+3x60", **MODEL), CALLS | series(FAILURES, "0+1x60", **MODEL), MODEL,
    ),
    "RolecallWorkersDie": (series(TAKEN, "0+1x60", **ROLE), series(TAKEN, "9x60", **ROLE), {}),
    "RolecallLoopFails": (
        series("failures_total", "_x25 1x30", loop="scribe"), series("failures_total", "1x60", loop="scribe"),
        {"loop": "scribe"},
    ),
    "RolecallSetAside": (
        series("set_aside_total", "_x20 1x40", kind="update"), series("set_aside_total", "1x60", kind="update"),
        {"kind": "update"},
    ),
    "RolecallHttpFails": (
        ANSWERS | series("http_requests_total", "0+1x60", status="503"),
        ANSWERS | series("http_requests_total", "0+1x60", status="404"),
        {},
    ),
    "RolecallTranscriptsWait": (series("transcript_entries", "20000x60"), series("transcript_entries", "900x60"), {}),
    "RolecallConnectionsShort": (
        SHORT | series("connections", "60x60", process="p"), SHORT | series("connections", "8x60", process="p"),
        {"process": "p"},
    ),
}  # fmt: skip
"""For each alert, by the minute: series that raise it, series that do not, and the labels it then has."""


def expressions() -> Iterator[str]:
    for rule in RULES:
        yield rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_each_alert_is_raised_by_its_fault_and_not_without_it(tmp_path: Path) -> None:
    promtool = binary("promtool")
    assert set(FAULTS) == {rule["alert"] for rule in RULES}
    tests = []
    for rule in RULES:
        raising, quiet, labels = FAULTS[rule["alert"]]
        told = {"exp_labels": {**rule["labels"], **labels}}
        for given, expected in ((raising, [told]), (quiet, [])):
            # two processes report the same
            both = {
                name.replace("{", f'{{instance="{i}", ', 1).replace(", }", "}"): values
                for name, values in given.items()
                for i in ("a", "b")
            }
            tests.append({
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in both.items()],
                "alert_rule_test": [{"eval_time": "30m", "alertname": rule["alert"], "exp_alerts": expected}],
            })  # fmt: skip
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        del rule["annotations"]  # promtool compares them word by word
    (tmp_path / "alerts.yml").write_text(json.dumps(rules))
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": ["alerts.yml"], "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_says_what_it_means_and_what_to_do() -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["summary"]) < 60 and rule["annotations"]["description"].endswith(".")
        assert f"| `{rule['alert']}` |" in page, rule["alert"]


async def test_alerts_and_panels_ask_for_metrics_that_exist_with_labels_they_have(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path, ROLES) as deployment,
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url) as client,
    ):
        await client.post("/chat", json={"text": "hello"})

        wanted = {name for expression in expressions() for name in re.findall(r"rolecall_[a-z_]+", expression)}

        async def labels_of_all() -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for family in text_string_to_metric_families((await client.get("/metrics")).text):
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
            return found

        async def told() -> bool:  # processes add what they counted once a second
            return wanted - UNTIL_NEEDED <= set(await labels_of_all())

        await wait_until(told)
        labels = await labels_of_all()
    for expression in expressions():
        names = set(re.findall(r"rolecall_[a-z_]+", expression))
        assert names <= set(labels) | UNTIL_NEEDED, expression
        known = {"job", "instance", "loop", "kind"}.union(*(labels.get(name, set()) for name in names))
        grouped = {
            word.strip() for words in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for word in words.split(",")
        }
        selected = set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
        assert grouped | selected <= known, expression


def test_the_dashboard_has_no_holes_and_names_each_panel_once() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) == 23
    for panel in panels:
        for target in panel.get("targets", ()):
            assert 'job="$job"' in target["expr"] and target["datasource"] == {
                "type": "prometheus",
                "uid": "${datasource}",
            }
