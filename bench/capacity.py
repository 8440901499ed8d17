"""``python -m bench.capacity``: what one turn costs, and what 10 to 1,000,000 turns a minute need by that arithmetic.

Counts CPU seconds, bytes and commands, which depend less on what else the machine does than times do. docs/capacity.md
explains each line.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.bus import FULL, _all_answered, _writing, running
from bench.loop import on_fastest_loop
from rolecall.redis.embedded import EmbeddedServer
from rolecall.redis.server import Server

TURNS = 2000
RATES = (10, 1_000, 100_000, 1_000_000)
"""Turns a minute."""
SHARE = 0.6
"""Of a core or a disk that is planned for: the rest is for bursts and for the loss of a neighbour."""


@dataclass(frozen=True)
class Cost:
    """Of one turn of two roles. CPU in seconds; ``log`` is the append-only file, all else in bytes or counts."""

    server: float
    worker: float
    scribe: float
    memory: float
    log: float
    traffic: float
    commands: float


async def cost_of_a_turn(rounds: int) -> Cost:
    """The least of ``rounds``: noise only adds."""
    found = [await _one_round() for _ in range(rounds)]
    return Cost(*(min(getattr(one, name) for one in found) for name in Cost.__dataclass_fields__))


async def _one_round() -> Cost:
    directory = Path(tempfile.mkdtemp(prefix="rc"))
    server = await EmbeddedServer.join(directory / "state", appendfsync="everysec", runtime_dir=directory)
    try:
        async with running(server.url, FULL) as runtime:
            bus = runtime.bus.server
            before, began = await _counters(bus), time.process_time()
            await _all_answered(runtime, TURNS, "samplellm")
            worker, after = time.process_time() - began, await _counters(bus)
            began = time.process_time()
            async with _writing(server.url, directory / "log", 1):
                while await bus.call("XLEN", runtime.bus.shards[0].log):
                    await asyncio.sleep(0.05)
            scribe, last = time.process_time() - began, await _counters(bus)
    finally:
        await server.leave()
        shutil.rmtree(directory, ignore_errors=True)
    turn = {name: (after[name] - before[name]) / TURNS for name in after}
    return Cost(
        turn["cpu"] + (last["cpu"] - after["cpu"]) / TURNS, worker / TURNS, scribe / TURNS,
        (last["memory"] - before["memory"]) / TURNS, turn["log"], turn["traffic"], turn["commands"],
    )  # fmt: skip


async def _counters(server: Server) -> Mapping[str, float]:
    info = dict[str, str]()
    for section in ("cpu", "memory", "persistence", "stats"):
        text: bytes = await server.call("INFO", section)
        info |= dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return {
        "cpu": float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
        "memory": float(info["used_memory"]),
        "log": float(info["aof_current_size"]),
        "traffic": float(info["total_net_input_bytes"]) + float(info["total_net_output_bytes"]),
        "commands": float(info["total_commands_processed"]),
    }


@dataclass(frozen=True)
class Plan:
    """What is assumed: seconds of the model's answer, days that a conversation is kept, its turns, and the instances
    of the answering role in a worker process."""

    model_seconds: float = 5.0
    days: float = 30.0
    turns: float = 10.0
    instances: int = 64


def needs(cost: Cost, per_minute: int, plan: Plan) -> dict[str, str]:
    """What ``per_minute`` turns need."""
    rate = per_minute / 60
    server, worker = rate * cost.server / SHARE, rate * cost.worker / SHARE
    answering = rate * plan.model_seconds
    conversations = per_minute * 60 * 24 * plan.days / plan.turns
    return {
        "turns/s": f"{rate:,.1f}",
        "server cores": f"{server:,.2f}",
        "primaries": f"{max(1, math.ceil(server)):,}",
        "worker cores": f"{worker:,.2f}",
        "calls of the model at once": f"{max(1, math.ceil(answering)):,}",
        "worker processes": f"{max(1, math.ceil(max(answering / plan.instances / SHARE, worker))):,}",
        "scribe cores": f"{rate * cost.scribe:,.2f}",
        "memory, GB": f"{conversations * cost.memory / 1e9:,.1f}",
        "append-only file, MB/s": f"{rate * cost.log / 1e6:,.2f}",
        "network, MB/s": f"{rate * cost.traffic / 1e6:,.2f}",
    }


def main() -> None:
    """Measure, then print both tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    for name, help_text in (
        ("model_seconds", "how long the model takes to answer"), ("days", "CONVERSATION_DAYS"),
        ("turns", "turns of a conversation"), ("instances", "instances of the answering role in a worker process"),
    ):  # fmt: skip
        default = getattr(Plan, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=help_text)
    given = parser.parse_args()
    plan = Plan(given.model_seconds, given.days, given.turns, given.instances)
    found: list[Cost] = []

    async def measure() -> None:
        found.append(await cost_of_a_turn(given.rounds))

    on_fastest_loop(measure())
    (cost,) = found
    print(f"one turn of two roles, the least of {given.rounds} rounds of {TURNS:,}:")
    for name, value, unit in (
        ("server CPU", cost.server * 1e6, "µs"), ("worker CPU", cost.worker * 1e6, "µs"),
        ("scribe CPU", cost.scribe * 1e6, "µs"), ("memory that its conversation keeps", cost.memory, "bytes"),
        ("append-only file", cost.log, "bytes"), ("network", cost.traffic, "bytes"),
        ("commands, those in scripts not counted", cost.commands, ""),
    ):  # fmt: skip
        print(f"  {name:40} {value:10,.0f} {unit}")
    columns = [needs(cost, rate, plan) for rate in RATES]
    print(f"\n{'turns a minute':30}" + "".join(f"{rate:>14,}" for rate in RATES))
    for row in columns[0]:
        print(f"{row:30}" + "".join(f"{column[row]:>14}" for column in columns))


if __name__ == "__main__":
    main()
