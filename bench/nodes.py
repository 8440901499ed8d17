"""``python -m bench.nodes``: full turns on one server and on a cluster of three nodes, with 16 shards, in one run.

Prints turns per second, and the share of each node in the commands, those of scripts included, and in the CPU time of
all.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from redis import Redis

from bench.app import FILLER
from bench.bus import FULL, LONGEST_SECONDS
from bench.loop import on_fastest_loop
from rolecall import Envelope
from rolecall.bus.admission import admit
from rolecall.bus.process.processes import process_name
from rolecall.bus.turn import turns_in_flight
from rolecall.config import Application
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings, Terms
from rolecall.worker.runtime import Runtime
from tests.cluster import ClusterSet, Node

SHARDS = 16
TERMS = {"no gate": {}, "a gate": {"echo@test": Terms(concurrent=1000)},
         "a quota": {"echo@test": Terms(rpm=1_000_000, tpm=1_000_000_000)}}  # fmt: skip


class Load(NamedTuple):
    """What the servers of a run did: turns per second, commands per turn, and each node's commands and seconds of
    CPU."""

    rate: float
    per_turn: float
    commands: list[int]
    seconds: list[float]


def shares(values: Sequence[float]) -> str:
    """The share of each in all, in percent."""
    return " · ".join(f"{100 * value / (sum(values) or 1):.0f}" for value in values)


async def measure(url: str, nodes: Sequence[Node], turns: int, terms: dict[str, Terms]) -> Load:
    """Have ``turns`` turns answered, each of a conversation of its own."""
    settings = Settings.model_validate({"redis_url": url, "shards": SHARDS, "in_flight_limit": 1_000_000})
    keys.use("", spread=SHARDS if settings.clustered else 0)
    server = RedisServer(url)
    runtime = Runtime(Application(Path.cwd(), FULL, settings, {}, terms), server, process_name())
    working = asyncio.create_task(runtime.run(), name="bench runtime")
    await runtime.ready()
    try:
        await _answered(runtime, "warm", turns // 10)
        before, began = [_used(node) for node in nodes], time.perf_counter()
        await _answered(runtime, "bench", turns)
        took = time.perf_counter() - began
        after = [_used(node) for node in nodes]
    finally:
        await runtime.stop()
        await working
        await server.aclose()
    commands = [now[0] - then[0] for now, then in zip(after, before, strict=True)]
    seconds = [now[1] - then[1] for now, then in zip(after, before, strict=True)]
    return Load(turns / took, sum(commands) / turns, commands, seconds)


async def _answered(runtime: Runtime, name: str, turns: int) -> None:
    payload = {"text": FILLER, "to": "samplellm"}
    envelopes = [Envelope(conversation=f"{name}:{number}", payload=payload) for number in range(turns)]
    await asyncio.gather(*(admit(runtime.bus, envelope) for envelope in envelopes))
    async with asyncio.timeout(LONGEST_SECONDS):
        while sum([await turns_in_flight(runtime.bus, shard) for shard in runtime.bus.shards]):
            await asyncio.sleep(0.05)


def _used(node: Node) -> tuple[int, float]:
    client: Redis = node.client
    stats, cpu = client.info("commandstats"), client.info("cpu")
    calls = sum(one["calls"] for name, one in stats.items() if name not in ("cmdstat_info", "cmdstat_cluster|slots"))
    return calls, cpu["used_cpu_user"] + cpu["used_cpu_sys"]


async def main(turns: int) -> None:
    """Print a table."""
    print("| servers | model | turns/s | commands a turn | commands of each node, % | CPU of each node, % |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bn") as directory:
        one, cluster = Node(Path(directory) / "one"), ClusterSet(Path(directory) / "c", replicas=False)
        try:
            one.start()
            cluster.start()
            for name, terms in TERMS.items():
                for kind, url, nodes in (
                    ("one", f"redis://127.0.0.1:{one.port}", [one]), ("three", cluster.url, cluster.nodes),
                ):  # fmt: skip
                    load = await measure(url, nodes, turns, terms)
                    print(
                        f"| {kind} | {name} | {load.rate:,.0f} | {load.per_turn:.1f} | {shares(load.commands)} | "
                        f"{shares(load.seconds)} |", flush=True,
                    )  # fmt: skip
        finally:
            one.kill()
            cluster.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.nodes", description=__doc__)
    parser.add_argument("--turns", type=int, default=3000)
    on_fastest_loop(main(parser.parse_args().turns))
