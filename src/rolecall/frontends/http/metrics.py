"""Prometheus metrics. They describe the whole deployment, whichever process answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from rolecall import stats
from rolecall.frontends.http.auth import operator
from rolecall.frontends.http.services import ServicesDep
from rolecall.stats import BUCKETS, Histogram, MetricTotals, metric_totals
from rolecall.version import __version__

router = APIRouter(tags=["operators"])
MAX_USERS = 100
"""Users with metrics of their own: those with the most turns today."""
BOUNDS = (*(str(bound) for bound in BUCKETS), "+Inf")


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def read_metrics(services: ServicesDep, _: Annotated[object, Depends(operator)]) -> Response:
    """Counters of "today" restart at midnight UTC, as a counter does when its process restarts."""
    roles, models = [role.name for role in services.application.roles], services.application.model_names
    figures, depths, found = await asyncio.gather(
        stats.summary(services.bus, roles, models),
        stats.band_depths(services.bus, roles),
        metric_totals(services.bus.server),
    )
    collected = _Collected(
        [*_of_now(figures, depths), *_of_turns(figures), *_of_models(figures), *_of_work(found, roles)]
    )
    return Response(generate_latest(collected), media_type=CONTENT_TYPE_LATEST)


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_now(figures: Mapping[str, Any], depths: Mapping[str, Mapping[str, int]]) -> list[Metric]:
    instances, connections = figures["instances"].items(), figures["connections"].items()
    by_band = [((role, band), depth) for role, bands in depths.items() for band, depth in bands.items()]
    return [
        _gauge("build_info", "The version that answers", ("version",), [((__version__,), 1)]),
        _gauge("instances", "Live instances", ("role",), [((role,), row["instances"]) for role, row in instances]),
        _gauge("instances_busy", "Instances that handle an envelope", ("role",),
               [((role,), row["busy"]) for role, row in instances]),
        _gauge("queue_depth", "Envelopes that wait or are being handled", ("role", "priority"), by_band),
        _gauge("turns_in_flight", "Turns that run or sleep", (), [((), figures["turns"]["in_flight"])]),
        _gauge("turns_deferred", "Turns that sleep until their time or a model comes back", (),
               [((), figures["deferred"])]),
        _gauge("dead_letters", "Envelopes given up on and kept", (), [((), figures["dead_letters"])]),
        _gauge("users", "Users with a turn that is not finished", (), [((), figures["users_now"])]),
        _gauge("connections", "Connections of a process to the server of the bus", ("process",),
               [((process,), row["open"]) for process, row in connections]),
        _gauge("connections_allowed", "How many it may have", ("process",),
               [((process,), row["allowed"]) for process, row in connections]),
    ]  # fmt: skip


def _of_turns(figures: Mapping[str, Any]) -> list[Metric]:
    turns, tokens = figures["turns"], figures["tokens"]
    failed, cancelled = turns["errors"], turns["cancelled"]
    outcomes = {"answered": turns["today"] - failed - cancelled, "failed": failed, "cancelled": cancelled}
    users = sorted(figures["users"].items(), key=lambda item: -item[1].get("turns", 0))[:MAX_USERS]
    by_user = SummaryMetricFamily(
        "rolecall_user_response_seconds", "From a user's message to its end, today; the 100 busiest", labels=("user",)
    )
    for user, row in users:
        by_user.add_metric((user,), row.get("turns", 0), row.get("ms", 0) / 1000)
    return [
        _counter("turns", "Turns that ended, today", ("outcome",), _rows(outcomes)),
        _counter("tokens", "Tokens of the answers, today", ("direction",), _rows(tokens)),
        by_user,
    ]


def _of_models(figures: Mapping[str, Any]) -> list[Metric]:
    models = figures["models"].items()
    label = ("model",)

    def of(field: str) -> list[tuple[tuple[str, ...], float]]:
        return [((name,), row[field]) for name, row in models]

    tokens = [((name, direction), row[direction]) for name, row in models for direction in ("in", "out")]
    ready = [((name,), row["state"] == "ready") for name, row in models]
    return [
        _counter("model_calls", "Calls of a model, today", label, of("calls")),
        _counter("model_failures", "Calls of a model that failed, today", label, of("failed")),
        _counter("model_tokens", "Tokens of a model's calls, today", ("model", "direction"), tokens),
        _counter("model_cost", "Money spent on a model, today", label, of("cost")),
        _counter("cost", "Money spent on all models, today", (), [((), figures["cost"])]),
        _gauge("model_calls_in_flight", "Calls of a model that run", label, of("in_flight")),
        _gauge("model_turns_waiting", "Turns that sleep until a model is back", label, of("waiting")),
        _gauge("model_ready", "1 while a model may be asked, 0 while it is away or asks to wait", label, ready),
    ]


def _of_work(found: MetricTotals, names: list[str]) -> list[Metric]:
    roles, both, none = ("role",), ("role", "model"), {(name,): 0 for name in names}
    errors, takeovers = ({**none, **found.counts.get(what, {})} for what in ("errors", "takeovers"))
    return [
        _counter("errors", "Envelopes that an instance gave up on", roles, errors.items()),
        _counter("leases_taken_over", "Envelopes taken over from an instance that was gone", roles, takeovers.items()),
        _histogram("wait_seconds", "From an envelope's being written to an instance's beginning", roles, found, "wait"),
        _histogram("handling_seconds", "From an instance's beginning to its being free", roles, found, "handling"),
        _histogram("model_seconds", "How long a model spoke for one question", both, found, "model"),
        _histogram("turn_seconds", "From a user's message to its answer", (), found, "turn"),
    ]  # fmt: skip


def _rows(values: Mapping[str, float]) -> list[tuple[tuple[str, ...], float]]:
    return [((name,), value) for name, value in values.items()]


def _gauge(name: str, what: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(f"rolecall_{name}", what, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, what: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = CounterMetricFamily(f"rolecall_{name}", what, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(name: str, what: str, labels: tuple[str, ...], found: MetricTotals, key: str) -> Metric:
    family = HistogramMetricFamily(f"rolecall_{name}", what, labels=labels)
    for values, times in sorted(found.times.get(key, {}).items()):
        family.add_metric(values, _cumulative(times), times.seconds)
    return family


def _cumulative(times: Histogram) -> list[tuple[str, float]]:
    total, rows = 0, []
    for bound, count in zip(BOUNDS, times.buckets, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows
