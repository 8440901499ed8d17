"""Counts and times of the work: added up over processes, however many turns there were."""

from __future__ import annotations

import pytest

from rolecall.errors import ServerRefused
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.stats import BUCKETS, Measures, measured


async def test_what_two_processes_tell_is_added_up(server: RedisServer) -> None:
    for _ in range(2):
        measures = Measures()
        measures.count("errors", "manager", by=3)
        measures.time("model", 0.02, "samplellm", "qwen3@ollama")
        measures.time("model", 1000, "samplellm", "qwen3@ollama")
        await measures.tell(server)
        await measures.tell(server)
    found = await measured(server)
    assert found.counts == {"errors": {("manager",): 6}}
    times = found.times["model"]["samplellm", "qwen3@ollama"]
    assert (times.count, times.buckets[BUCKETS.index(0.025)], times.buckets[-1]) == (4, 2, 2)
    assert times.seconds == pytest.approx(2000.04)


async def test_a_bucket_holds_its_upper_bound(server: RedisServer) -> None:
    measures = Measures()
    measures.time("wait", BUCKETS[3], "lang")
    await measures.tell(server)
    assert (await measured(server)).times["wait"]["lang",].buckets[3] == 1


async def test_what_could_not_be_told_is_told_the_next_time(server: RedisServer) -> None:
    measures = Measures()
    measures.count("errors", "lang")
    await server.call("SET", keys.METRICS, "in the way")
    with pytest.raises(ServerRefused):
        await measures.tell(server)
    await server.call("DEL", keys.METRICS)
    await measures.tell(server)
    assert (await measured(server)).counts["errors"]["lang",] == 1


async def test_the_number_of_fields_does_not_grow_with_turns(server: RedisServer) -> None:
    measures = Measures()
    for number in range(1000):
        measures.time("wait", number / 3, "lang")
    await measures.tell(server)
    assert await server.call("HLEN", keys.METRICS) <= len(BUCKETS) + 2
