"""The metrics: what ``GET /metrics`` tells, from a deployment in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from reference.markdown import code, table
from rolecall import stats
from rolecall.bus.bus import Bus
from rolecall.frontends.http.metrics import families
from rolecall.settings import Settings
from rolecall.stats import MetricTotals
from rolecall.testing import FakeServer

HEAD = """\
# Metrics

Generated from the code. `GET /metrics` describes the whole deployment, whichever process answers;
[Operations](../operators.md#scrape-metrics) says how to scrape it, which reset at midnight UTC, and what is lost with a
killed process.
"""


def page() -> str:
    """The page."""
    rows = [(code(name), kind, code(*labels), text) for name, kind, labels, text in sorted(asyncio.run(found()))]
    return "\n".join([HEAD, *table(("metric", "type", "labels", "what"), rows)]).rstrip() + "\n"


async def found() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and description of each metric."""
    server = FakeServer()
    bus = Bus(server, Settings(), "reference:1~fake")
    try:
        await bus.prepare()
        summary = await stats.summary(bus, ())
    finally:
        await server.aclose()
    collected: list[Any] = families(summary, {}, MetricTotals(), [])
    return [
        (f"{family.name}{'_total' if family.type == 'counter' else ''}", family.type, tuple(family._labelnames),
         family.documentation)
        for family in collected
    ]  # fmt: skip
