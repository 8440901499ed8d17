"""The running system in numbers: stats, usage of models, samples and metrics."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.bus.bus import Bus, add_counts, short_process
from rolecall.bus.dead_letters import count_dead_letters
from rolecall.bus.process.processes import ProcessState, live_processes
from rolecall.errors import ServerError, ServerRefused
from rolecall.models.gate import MICRO, UNGUARDED
from rolecall.redis import keys
from rolecall.redis.server import Server, pairs, server_ms, text_map
from rolecall.serving.directory import Directory
from rolecall.serving.spec import ModelServer

BAND_NAMES = dict(zip(keys.BANDS, ("high", "normal", "low"), strict=True))
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of a histogram in seconds; one more bucket holds the rest."""
FLUSH_SECONDS = 1.0
MAX_RECORDS = 200_000
"""Log records that a shard keeps for the scribe; see bus/scripts/lib/trace.lua."""
SAMPLE_MS = 5000
MAX_SAMPLES = 192
"""Sixteen minutes."""
MINUTE_MS = 60_000
MAX_MINUTES = 1450
"""A day and ten minutes."""
DAY_SECONDS = 86_400


async def queue_depths(bus: Bus, roles: Sequence[str]) -> dict[str, int]:
    """Entries per role that are waiting or being handled, over all shards and bands."""
    return {role: sum(bands.values()) for role, bands in (await band_depths(bus, roles)).items()}


async def band_depths(bus: Bus, roles: Sequence[str]) -> dict[str, dict[str, int]]:
    """``queue_depths`` by role and then by priority: ``high``, ``normal``, ``low``."""
    rows = [(shard, role, band) for shard in bus.shards for role in roles for band in keys.BANDS]
    lengths = await asyncio.gather(*(bus.server.fetch("XLEN", shard.stream(role, band)) for shard, role, band in rows))
    depths = {role: dict.fromkeys(BAND_NAMES.values(), 0) for role in roles}
    for (_, role, band), length in zip(rows, lengths, strict=True):
        depths[role][BAND_NAMES[band]] += length
    return depths


async def totals(bus: Bus) -> dict[str, Any]:
    """The turns that are deferred, suspended and in flight, and the dead letters, over all shards. ``suspended`` are
    the turns and calls that wait for calls, people or timers: how many, and how long the oldest has waited."""
    sleeping, planned, in_flight, dead, suspended = await asyncio.gather(
        _cardinality(bus, [shard.deferred for shard in bus.shards]),
        _cardinality(bus, [shard.planned for shard in bus.shards]),
        _in_flight(bus),
        count_dead_letters(bus),
        _suspended(bus),
    )
    deferred = max(0, sleeping - planned - suspended["turns"])
    return {"deferred": deferred, "suspended": suspended, "in_flight": in_flight, "dead_letters": dead}


async def _suspended(bus: Bus) -> dict[str, float]:
    sets = [shard.suspended for shard in bus.shards]
    count, *oldest = await asyncio.gather(
        _cardinality(bus, sets), *(bus.server.fetch("ZRANGE", key, 0, 0, "WITHSCORES") for key in sets)
    )
    since = min((float(flat[1]) for flat in oldest if flat), default=0)
    seconds = max(0.0, await server_ms(bus.server) - since) / 1000 if since else 0.0
    return {"turns": count, "oldest_seconds": round(seconds, 1)}


async def _in_flight(bus: Bus) -> int:
    return await _cardinality(bus, [shard.active for shard in bus.shards])


async def _cardinality(bus: Bus, sets: Sequence[str]) -> int:
    return sum(await asyncio.gather(*(bus.server.fetch("ZCARD", key) for key in sets)))


async def problems(bus: Bus, alive: Iterable[ProcessState]) -> list[str]:
    """What to look after in the deployment: what keeps a scribe or a front end of ``alive`` from its work, and how many
    records wait for a scribe."""
    found = [f"{short_process(state.process)}: {state.problem}" for state in alive if state.problem]
    lengths = await asyncio.gather(*(bus.server.fetch("XLEN", shard.log) for shard in bus.shards))
    if (waiting := max(lengths)) >= MAX_RECORDS / 2:
        found.append(f"{waiting} log records wait to be written; beyond {MAX_RECORDS} the oldest are lost")
    return found


async def waiting_records(bus: Bus) -> int:
    """The entries of the log streams that are not in the transcripts yet, over all shards."""
    return sum(await asyncio.gather(*(bus.server.fetch("XLEN", shard.log) for shard in bus.shards)))


async def summary(bus: Bus, roles: Sequence[str], models: Sequence[str] = ()) -> dict[str, Any]:
    """What ``rolecall stats`` shows: instances, queues, turns of today (UTC), tokens, users, connections, and the usage
    of ``models``."""
    alive = await live_processes(bus)
    counters = await _counters(bus)
    users: set[str] = set()
    found = await totals(bus)
    unfinished = 0
    for shard in bus.shards:
        for name, count in pairs(await bus.server.call("HGETALL", shard.principals)):
            users.add(name.decode())
            unfinished += int(count)
    return {
        "instances": by_role(alive, roles),
        "queues": await queue_depths(bus, roles),
        "turns": {
            "today": counters.get("turns", 0),
            "errors": counters.get("error", 0),
            "cancelled": counters.get("cancelled", 0),
            "in_flight": found["in_flight"],
            "waiting": max(0, unfinished - found["in_flight"]),
            "average_ms": _average(counters),
        },
        "feedback": {"up": counters.get("up", 0), "down": counters.get("down", 0)},
        "users_now": len(users),
        "users": {user: {**own, "average_ms": _average(own)} for user, own in _by_user(counters).items()},
        "connections": {
            state.process: {"open": state.connections, "allowed": state.max_connections} for state in alive
        },
        "dead_letters": found["dead_letters"],
        "deferred": found["deferred"],
        "suspended": found["suspended"],
        **await model_usage(bus.server, models),
    }


def by_role(alive: Sequence[ProcessState], roles: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per role: the number of instances and of busy ones, handled envelopes, errors, and utilisation, the share of the
    time that they were busy."""
    rows = {role: {"instances": 0, "busy": 0, "handled": 0, "errors": 0, "utilisation": 0.0} for role in roles}
    seconds = dict.fromkeys(roles, 0.0)
    for state in alive:
        for instance in state.instances:
            row = rows.setdefault(instance.role, {"instances": 0, "busy": 0, "handled": 0, "errors": 0})
            row["instances"] += 1
            row["busy"] += instance.busy
            row["handled"] += instance.handled
            row["errors"] += instance.errors
            row["utilisation"] = row.get("utilisation", 0.0) + instance.busy_seconds
            seconds[instance.role] = seconds.get(instance.role, 0.0) + state.uptime
    for role, row in rows.items():
        row["utilisation"] = round(row["utilisation"] / seconds[role], 3) if seconds.get(role) else 0.0
    return rows


def _by_user(counters: dict[str, int]) -> dict[str, dict[str, int]]:
    """Those of each user, without the others."""
    users: dict[str, dict[str, int]] = {}
    for name, value in counters.items():
        if name.startswith("u:"):
            user, _, counter = name[2:].rpartition(":")
            users.setdefault(user, {})[counter] = value
    return users


def _average(counters: dict[str, int]) -> int:
    turns = counters.get("turns", 0)
    return round(counters.get("ms", 0) / turns) if turns else 0


async def _counters(bus: Bus) -> dict[str, int]:
    day, total = keys.today(), dict[str, int]()
    for shard in bus.shards:
        flat = await bus.server.call("HGETALL", shard.statistics(day))
        for name, value in pairs(flat):
            total[name.decode()] = total.get(name.decode(), 0) + int(value)
    return total


class Sample(msgspec.Struct, frozen=True):
    """The deployment at ``ms`` since 1970: envelopes in the queues of each role, including those being handled; busy
    instances and all of them; turns in flight; turns and errors of the day (UTC) so far."""

    ms: int
    queues: dict[str, int]
    busy: int
    instances: int
    in_flight: int
    turns: int
    errors: int
    durations: list[int] = []
    """In the samples of each minute: how many turns so far took up to each of BUCKETS, and how many longer."""


async def minute_samples(bus: Bus) -> list[Sample]:
    """The stored samples of the last 24 hours, oldest first: one every MINUTE_MS."""
    entries = await bus.server.fetch("XRANGE", keys.SERIES_DAY, "-", "+")
    return [msgspec.json.decode(flat[1], type=Sample) for _, flat in entries]


async def samples(bus: Bus) -> list[Sample]:
    """The stored samples, oldest first: one every SAMPLE_MS of the last minutes."""
    entries = await bus.server.fetch("XRANGE", keys.SERIES, "-", "+")
    return [msgspec.json.decode(flat[1], type=Sample) for _, flat in entries]


async def newest_sample(bus: Bus) -> Sample | None:
    """The last stored sample."""
    for _, flat in await bus.server.fetch("XREVRANGE", keys.SERIES, "+", "-", "COUNT", 1):
        return msgspec.json.decode(flat[1], type=Sample)
    return None


async def take_sample(bus: Bus, roles: Sequence[str]) -> int:
    """Store the sample that is due, unless another process has done so; returns the ms until the next is due."""
    now, last = await asyncio.gather(server_ms(bus.server), newest_sample(bus))
    due = int(now) - int(now) % SAMPLE_MS
    if last is None or last.ms < due:
        sample = msgspec.json.encode(await _measure(bus, roles, due))
        with suppress(ServerRefused):  # another process stored it at the same moment
            await bus.server.call("XADD", keys.SERIES, "MAXLEN", MAX_SAMPLES, f"{due}-1", "s", sample)
            if last is None or last.ms // MINUTE_MS < due // MINUTE_MS:
                await _store_minute(bus, msgspec.json.decode(sample, type=Sample))
    return due + SAMPLE_MS - int(now)


async def _store_minute(bus: Bus, sample: Sample) -> None:
    found = (await metric_totals(bus.server)).times.get("turn", {})
    durations = [sum(counts) for counts in zip(*(histogram.buckets for histogram in found.values()), strict=True)]
    content = msgspec.json.encode(msgspec.structs.replace(sample, durations=durations))
    await bus.server.call("XADD", keys.SERIES_DAY, "MAXLEN", "~", MAX_MINUTES, f"{sample.ms}-1", "s", content)


async def _measure(bus: Bus, roles: Sequence[str], due: int) -> Sample:
    day, fetch = keys.today(due / 1000), bus.server.fetch
    alive, counts, in_flight = await asyncio.gather(
        live_processes(bus),
        asyncio.gather(*(fetch("HMGET", shard.statistics(day), "turns", "error") for shard in bus.shards)),
        _in_flight(bus),
    )
    instances = [instance for state in alive for instance in state.instances]
    turns, errors = (sum(int(count[n] or 0) for count in counts) for n in (0, 1))
    return Sample(
        ms=due,
        # Without turns in flight the queues are empty.
        queues=await queue_depths(bus, roles) if in_flight else dict.fromkeys(roles, 0),
        busy=sum(instance.busy for instance in instances),
        instances=len(instances),
        in_flight=in_flight,
        turns=turns,
        errors=errors,
    )


async def tokens_of(bus: Bus, users: Sequence[str]) -> list[int]:
    """The tokens that each of ``users`` spent on models today (UTC)."""
    if not users:
        return []
    found = await bus.server.fetch("HMGET", keys.spent(keys.today()), *(f"u:{user}:tokens" for user in users))
    return [int(tokens or 0) for tokens in found]


async def usage_by_day(bus: Bus, days: int) -> list[dict[str, Any]]:
    """The last ``days`` UTC days, oldest first: ``day`` (YYYYMMDD), ``tokens``, ``cost``, ``models`` and ``users``: by
    name their tokens and cost, of models also the calls."""
    now = await server_ms(bus.server) / 1000
    names = [keys.today(now - DAY_SECONDS * ago) for ago in reversed(range(days))]
    found = await asyncio.gather(*(bus.server.fetch("HGETALL", keys.spent(name)) for name in names))
    return [_day(name, _integers(flat)) for name, flat in zip(names, found, strict=True)]


def _day(name: str, spent: dict[str, int]) -> dict[str, Any]:
    models = {field[2:].rpartition(":")[0] for field in spent if field.startswith("m:")}
    used = {model: _used(spent, model) for model in sorted(models)}
    return {
        "day": name,
        "tokens": spent.get("tokens", 0),
        "cost": spent.get("cost", 0) / MICRO,
        "models": {
            model: {"tokens": row["in"] + row["out"], "cost": row["cost"], "calls": row["calls"]}
            for model, row in used.items()
        },
        "users": _spenders(spent),
    }


async def model_servers(bus: Bus) -> list[ModelServer]:
    """The live model servers, by model."""
    return sorted(await Directory(bus.server).servers(), key=lambda server: (server.model, server.id))


class Metrics:
    """Counters and durations of this process since the last ``flush``. Labels contain no white space."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._times: dict[tuple[str, ...], list[float]] = {}

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add ``by`` to a counter."""
        self._counts[name, "n", *labels] += by

    def time(self, name: str, seconds: float, *labels: str) -> None:
        """Add one duration to a histogram."""
        row = self._times.get((name, *labels))
        if row is None:
            row = self._times[name, *labels] = [0.0] * (len(BUCKETS) + 2)
        row[bisect_left(BUCKETS, seconds)] += 1
        row[-1] += seconds

    async def flush(self, server: Server) -> None:
        """Add the metrics of this process to those on the server. Raises ServerError; what could not be added is kept
        for the next flush."""
        flushed, self._counts = self._with_histograms(), Counter()
        try:
            await add_counts(server, {" ".join(name): by for name, by in flushed.items()})
        except ServerError:
            self._counts.update(flushed)
            raise

    def _with_histograms(self) -> Counter[tuple[str, ...]]:
        times, self._times = self._times, {}
        for (name, *labels), (*buckets, seconds) in times.items():
            for number, count in enumerate(buckets):
                if count:
                    self._counts[name, str(number), *labels] += int(count)
            self._counts[name, "us", *labels] += round(seconds * 1_000_000)
        return self._counts


@dataclass
class Histogram:
    """Durations under one name and the same labels: how many fell into each bucket, and their sum in ``seconds``."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.buckets)


@dataclass
class MetricTotals:
    """The metrics of all processes since the server was first used, by name and labels."""

    counts: dict[str, dict[tuple[str, ...], int]] = field(default_factory=dict)
    times: dict[str, dict[tuple[str, ...], Histogram]] = field(default_factory=dict)


async def metric_totals(server: Server) -> MetricTotals:
    """The metrics on the server. Raises ServerError."""
    found, flat = MetricTotals(), await server.fetch("HGETALL", keys.METRICS)
    for raw, value in pairs(flat):
        name, part, *labels = raw.decode().split(" ")
        if part == "n":
            found.counts.setdefault(name, {})[tuple(labels)] = int(value)
            continue
        times = found.times.setdefault(name, {}).setdefault(tuple(labels), Histogram())
        if part == "us":
            times.seconds = int(value) / 1_000_000
        elif int(part) < len(times.buckets):
            times.buckets[int(part)] = int(value)
    return found


async def model_usage(server: Server, names: Iterable[str]) -> dict[str, Any]:
    """Usage of today (UTC). ``models``: by name the calls, failures, tokens, cost, average ms, calls in flight, waiting
    turns, ``state`` (``ready``, or why the model is not called), what recorded answers have saved, and ``counted``:
    False for test models, of which all this is unknown. ``tokens`` and ``cost``: of all models.
    ``saved``: tokens and cost that were not paid again. ``spenders``: tokens and cost by user."""
    names = list(names)
    spent = _integers(await server.fetch("HGETALL", keys.spent(keys.today())))
    now = await server_ms(server)
    states = await asyncio.gather(*(_state(server, name, now) for name in names))
    return {
        "models": {name: {**_used(spent, name), **state} for name, state in zip(names, states, strict=True)},
        "tokens": {way: _of_all_models(spent, way) for way in ("in", "out")},
        "cost": spent.get("cost", 0) / MICRO,
        "saved": {"tokens": spent.get("saved_tokens", 0), "cost": spent.get("saved_cost", 0) / MICRO},
        "spenders": _spenders(spent),
    }


async def _state(server: Server, name: str, now: float) -> dict[str, Any]:
    flat, busy, waiting = await asyncio.gather(
        server.fetch("HGETALL", keys.model(name, "state")),
        server.fetch("ZCOUNT", keys.model(name, "busy"), now, "+inf"),
        server.fetch("ZCARD", keys.model(name, "waiting")),
    )
    state = text_map(flat)
    return {"in_flight": busy, "waiting": waiting, "state": _word(state, now)}


def _word(state: dict[str, str], now: float) -> str:
    if state.get("open") == "1":
        return f"away: {state.get('why', '')}"
    left = (float(state.get("until", 0)) - now) / 1000
    return f"asks to wait {left:.0f} s: {state.get('why', '')}" if left > 0 else "ready"


def _used(spent: dict[str, int], name: str) -> dict[str, Any]:
    parts = ("calls", "failed", "in", "out", "cost", "ms", "saved_tokens", "saved_cost")
    usage = {part: spent.get(f"m:{name}:{part}", 0) for part in parts}
    average = round(usage.pop("ms") / usage["calls"]) if usage["calls"] else 0
    costs = {name: usage[name] / MICRO for name in ("cost", "saved_cost")}
    counted = usage["calls"] > 0 or not name.endswith(UNGUARDED)
    return {**usage, **costs, "average_ms": average, "counted": counted}


def _of_all_models(spent: dict[str, int], part: str) -> int:
    return sum(value for name, value in spent.items() if name.startswith("m:") and name.endswith(f":{part}"))


def _spenders(spent: dict[str, int]) -> dict[str, dict[str, float]]:
    return {
        user: {what: value / MICRO if what == "cost" else value for what, value in own.items()}
        for user, own in _by_user(spent).items()
    }


def _integers(flat: list[bytes]) -> dict[str, int]:
    return {field.decode(): int(value) for field, value in pairs(flat)}
