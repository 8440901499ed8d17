"""Counts and times of the work: added up over processes, however many turns there were."""

from __future__ import annotations

import pytest

from rolecall.errors import ServerRefused
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.stats import BUCKETS, Metrics, metric_totals


async def test_metrics_of_two_processes_are_added_up(server: RedisServer) -> None:
    for _ in range(2):
        metrics = Metrics()
        metrics.count("errors", "manager", by=3)
        metrics.time("model", 0.02, "samplellm", "qwen3@ollama")
        metrics.time("model", 1000, "samplellm", "qwen3@ollama")
        await metrics.flush(server)
        await metrics.flush(server)
    found = await metric_totals(server)
    assert found.counts == {"errors": {("manager",): 6}}
    times = found.times["model"]["samplellm", "qwen3@ollama"]
    assert (times.count, times.buckets[BUCKETS.index(0.025)], times.buckets[-1]) == (4, 2, 2)
    assert times.seconds == pytest.approx(2000.04)


async def test_a_bucket_holds_its_upper_bound(server: RedisServer) -> None:
    metrics = Metrics()
    metrics.time("wait", BUCKETS[3], "lang")
    await metrics.flush(server)
    assert (await metric_totals(server)).times["wait"]["lang",].buckets[3] == 1


async def test_what_could_not_be_flushed_is_flushed_the_next_time(server: RedisServer) -> None:
    metrics = Metrics()
    metrics.count("errors", "lang")
    await server.call("SET", keys.METRICS, "in the way")
    with pytest.raises(ServerRefused):
        await metrics.flush(server)
    await server.call("DEL", keys.METRICS)
    await metrics.flush(server)
    assert (await metric_totals(server)).counts["errors"]["lang",] == 1


async def test_the_number_of_fields_does_not_grow_with_turns(server: RedisServer) -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.time("wait", number / 3, "lang")
    await metrics.flush(server)
    assert await server.call("HLEN", keys.METRICS) <= len(BUCKETS) + 2
