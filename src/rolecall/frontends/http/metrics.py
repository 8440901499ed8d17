"""Prometheus metrics. They describe the whole deployment, whichever process answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Response
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
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import operator
from rolecall.frontends.http.services import ServicesDep
from rolecall.stats import BUCKETS, Histogram, MetricTotals, metric_totals
from rolecall.version import __version__

router = api_router(tags=["operators"])
MAX_USERS = 100
"""Users with metrics of their own: those with the most turns today."""
BOUNDS = (*(str(bound) for bound in BUCKETS), "+Inf")


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def read_metrics(services: ServicesDep, _: Annotated[object, Depends(operator)]) -> Response:
    """Counters of "today" restart at midnight UTC, as a counter does when its process restarts."""
    roles = services.application.role_names
    summary, depths, found, records = await asyncio.gather(
        stats.summary(services.bus, roles, services.application.model_names),
        stats.band_depths(services.bus, roles),
        metric_totals(services.bus.server),
        stats.waiting_records(services.bus),
    )
    waiting = _gauge("transcript_entries", "Entries waiting for the scribe", (), [((), records)])
    collected = _Families([*families(summary, depths, found, roles), waiting])
    return Response(generate_latest(collected), media_type=CONTENT_TYPE_LATEST)


def families(
    summary: Mapping[str, Any], depths: Mapping[str, Mapping[str, int]], found: MetricTotals, roles: list[str]
) -> list[Metric]:
    """Every metric, of what stats.summary, band_depths and metric_totals return."""
    return [
        *_of_now(summary, depths),
        *_of_turns(summary),
        *_of_models(summary),
        *_of_work(found, roles),
    ]


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_now(summary: Mapping[str, Any], depths: Mapping[str, Mapping[str, int]]) -> list[Metric]:
    instances, connections = summary["instances"].items(), summary["connections"].items()
    by_band = [((role, band), depth) for role, bands in depths.items() for band, depth in bands.items()]
    return [
        _gauge("build_info", "Version of the process that answers", ("version",), [((__version__,), 1)]),
        _gauge("instances", "Live instances", ("role",), [((role,), row["instances"]) for role, row in instances]),
        _gauge("instances_busy", "Instances handling an envelope", ("role",),
               [((role,), row["busy"]) for role, row in instances]),
        _gauge("queue_depth", "Envelopes waiting or being handled", ("role", "priority"), by_band),
        _gauge("turns_in_flight", "Turns running or deferred", (), [((), summary["turns"]["in_flight"])]),
        _gauge("turns_deferred", "Turns waiting for their time or for a model", (),
               [((), summary["deferred"])]),
        _gauge("turns_suspended", "Turns and calls waiting for calls, people or timers", (),
               [((), summary["suspended"]["turns"])]),
        _gauge("turns_suspended_oldest_seconds", "How long the oldest suspended turn has waited", (),
               [((), summary["suspended"]["oldest_seconds"])]),
        _gauge("dead_letters", "Dead letters", (), [((), summary["dead_letters"])]),
        _gauge("users", "Users with an unfinished turn", (), [((), summary["users_now"])]),
        _gauge("connections", "Open connections of a process to the server", ("process",),
               [((process,), row["open"]) for process, row in connections]),
        _gauge("connections_allowed", "Maximum connections of a process", ("process",),
               [((process,), row["allowed"]) for process, row in connections]),
    ]  # fmt: skip


def _of_turns(summary: Mapping[str, Any]) -> list[Metric]:
    turns, tokens = summary["turns"], summary["tokens"]
    failed, cancelled = turns["errors"], turns["cancelled"]
    outcomes = {"answered": turns["today"] - failed - cancelled, "failed": failed, "cancelled": cancelled}
    users = sorted(summary["users"].items(), key=lambda item: -item[1].get("turns", 0))[:MAX_USERS]
    by_user = SummaryMetricFamily(
        "rolecall_user_response_seconds",
        "Time from a user's message to the end of its turn, today, for the busiest users",
        labels=("user",),
    )
    for user, row in users:
        by_user.add_metric((user,), row.get("turns", 0), row.get("ms", 0) / 1000)
    return [
        _counter("turns", "Turns ended today", ("outcome",), _rows(outcomes)),
        _counter("tokens", "Tokens of all model calls today", ("direction",), _rows(tokens)),
        by_user,
    ]


def _of_models(summary: Mapping[str, Any]) -> list[Metric]:
    models = summary["models"].items()
    label = ("model",)

    def of(field: str) -> list[tuple[tuple[str, ...], float]]:
        return [((name,), row[field]) for name, row in models]

    tokens = [((name, direction), row[direction]) for name, row in models for direction in ("in", "out")]
    ready = [((name,), row["state"] == "ready") for name, row in models]
    return [
        _counter("model_calls", "Calls of a model today", label, of("calls")),
        _counter("model_failures", "Failed calls of a model today", label, of("failed")),
        _counter("model_tokens", "Tokens of a model's calls today", ("model", "direction"), tokens),
        _counter("model_cost", "Cost of a model's calls today", label, of("cost")),
        _counter("cost", "Cost of all model calls today", (), [((), summary["cost"])]),
        _counter(
            "saved_cost", "Cost of answers today that were replayed rather than paid for again", label, of("saved_cost")
        ),
        _gauge("model_calls_in_flight", "Calls of a model in flight", label, of("in_flight")),
        _gauge("model_turns_waiting", "Turns waiting for a model", label, of("waiting")),
        _gauge("model_ready", "1 if a model can be called, 0 if it is unavailable or rate-limited", label, ready),
    ]


def _of_work(found: MetricTotals, names: list[str]) -> list[Metric]:
    roles, both, none = ("role",), ("role", "model"), {(name,): 0 for name in names}
    errors, takeovers = ({**none, **found.counts.get(what, {})} for what in ("errors", "takeovers"))
    answers, failures, aside = (found.counts.get(what, {}) for what in ("http", "failures", "set_aside"))
    return [
        _counter("http_requests", "Answers of the HTTP server", ("status",), sorted(answers.items())),
        _counter("failures", "Failures of single items, survived by the loop that serves them", ("loop",),
                 sorted(failures.items())),
        _counter("set_aside", "Items that became dead letters without being a turn's envelope", ("kind",),
                 sorted(aside.items())),
        _counter("errors", "Envelopes an instance gave up on", roles, errors.items()),
        _counter("leases_taken_over", "Leases taken over from a dead instance", roles, takeovers.items()),
        _counter("steps", "Steps of handlers, recorded or replayed", ("outcome", "kind"),
                 sorted(found.counts.get("steps", {}).items())),
        _counter("replayed_tokens", "Tokens of model answers that were replayed rather than paid for again",
                 ("model", "direction"), sorted(found.counts.get("replayed_tokens", {}).items())),
        _histogram("wait_seconds", "Time an envelope waited for an instance", roles, found, "wait"),
        _histogram("handling_seconds", "Time an instance spent on an envelope", roles, found, "handling"),
        _histogram("model_seconds", "Duration of a model call", both, found, "model"),
        _histogram("turn_seconds", "Time from a user's message to its answer", (), found, "turn"),
    ]  # fmt: skip


def _rows(values: Mapping[str, float]) -> list[tuple[tuple[str, ...], float]]:
    return [((name,), value) for name, value in values.items()]


def _of_kind(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, what: str, labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:  # fmt: skip
    family = kind(f"rolecall_{name}", what, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


_gauge, _counter = partial(_of_kind, GaugeMetricFamily), partial(_of_kind, CounterMetricFamily)


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
