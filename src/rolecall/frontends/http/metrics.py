"""Prometheus metrics and the samples of the web page. They describe the whole deployment, whichever process answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Response
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
from rolecall.errors import ServerError, ServerRefused
from rolecall.frontends.http.auth import operator
from rolecall.frontends.http.operators import list_queues
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.redis import keys
from rolecall.stats import BUCKETS, Measured, Times, measured
from rolecall.version import __version__

router = APIRouter(tags=["operators"])
MAX_USERS = 100
"""Users with metrics of their own: those with the most turns today."""
BOUNDS = (*(str(bound) for bound in BUCKETS), "+Inf")
logger = logging.getLogger(__name__)
EVERY_MS = 5000
KEPT = 192
"""Sixteen minutes."""


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def read_metrics(services: ServicesDep, _: Annotated[object, Depends(operator)]) -> Response:
    """Counters of "today" restart at midnight UTC, as a counter does when its process restarts."""
    roles, models = [role.name for role in services.application.roles], services.application.model_names
    figures, depths, found = await asyncio.gather(
        stats.statistics(services.bus, roles, models),
        stats.band_depths(services.bus, roles),
        measured(services.bus.server),
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


def _of_work(found: Measured, names: list[str]) -> list[Metric]:
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


def _histogram(name: str, what: str, labels: tuple[str, ...], found: Measured, key: str) -> Metric:
    family = HistogramMetricFamily(f"rolecall_{name}", what, labels=labels)
    for values, times in sorted(found.times.get(key, {}).items()):
        family.add_metric(values, _cumulative(times), times.seconds)
    return family


def _cumulative(times: Times) -> list[tuple[str, float]]:
    total, rows = 0, []
    for bound, count in zip(BOUNDS, times.buckets, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


class Sample(msgspec.Struct, frozen=True):
    """What was at ``ms`` since 1970: entries in each role's queues, those being handled included; instances and the
    busy ones; turns in flight; turns and errors since the day began (UTC)."""

    ms: int
    queues: dict[str, int]
    busy: int
    instances: int
    in_flight: int
    turns: int
    errors: int


@asynccontextmanager
async def sampling(app: FastAPI) -> AsyncIterator[None]:
    """Samples are taken for as long."""
    task = asyncio.create_task(_keep_taking(app.state.services), name="http samples")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def read(services: Services) -> list[Sample]:
    """The samples there are, oldest first."""
    entries = await services.bus.server.fetch("XRANGE", keys.SERIES, "-", "+")
    return [msgspec.json.decode(flat[1], type=Sample) for _, flat in entries]


async def newest(services: Services) -> Sample | None:
    """The last sample."""
    for _, flat in await services.bus.server.fetch("XREVRANGE", keys.SERIES, "+", "-", "COUNT", 1):
        return msgspec.json.decode(flat[1], type=Sample)
    return None


async def take(services: Services) -> int:
    """Take the sample of this time unless another process has; returns ms until the next is due."""
    (seconds, micros), last = await asyncio.gather(services.bus.server.fetch("TIME"), newest(services))
    now = int(seconds) * 1000 + int(micros) // 1000
    due = now - now % EVERY_MS
    if last is None or last.ms < due:
        sample = msgspec.json.encode(await _measure(services, due))
        try:
            await services.bus.server.call("XADD", keys.SERIES, "MAXLEN", KEPT, f"{due}-1", "s", sample)
        except ServerRefused:
            logger.debug("another process took the sample of %d", due)  # in the same moment
    return due + EVERY_MS - now


async def _keep_taking(services: Services) -> None:
    while True:
        wait = EVERY_MS
        try:
            wait = await take(services)
        except ServerError as error:
            logger.info("no sample: %s", error)
        # Not all at the same moment: then one finds what another took, and is done.
        await asyncio.sleep(wait / 1000 + random.uniform(0, 0.4))


async def _measure(services: Services, due: int) -> Sample:
    day, shards, fetch = (
        time.strftime("%Y%m%d", time.gmtime(due / 1000)),
        services.bus.shards,
        services.bus.server.fetch,
    )
    alive, counts, active = await asyncio.gather(
        stats.processes(services.bus),
        asyncio.gather(*(fetch("HMGET", shard.statistics(day), "turns", "error") for shard in shards)),
        asyncio.gather(*(fetch("ZCARD", shard.active) for shard in shards)),
    )
    instances = [instance for state in alive for instance in state.instances]
    turns, errors = (sum(int(count[n] or 0) for count in counts) for n in (0, 1))
    return Sample(
        ms=due,
        queues=await _queues(services) if sum(active) else {role.name: 0 for role in services.application.roles},
        busy=sum(instance.busy for instance in instances),
        instances=len(instances),
        in_flight=sum(active),
        turns=turns,
        errors=errors,
    )


async def _queues(services: Services) -> dict[str, int]:
    """Not asked for where nothing is in flight: the queues are empty then."""
    queues = await list_queues(services)
    return {role: sum(depths.values()) for role, depths in queues["roles"].items()}
