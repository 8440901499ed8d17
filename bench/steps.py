"""``python -m bench.steps``: what durable steps cost: server CPU of a recorded step, the wall time of a fan-out, memory
of suspended turns and how long they take to end; with ``--before``, also what a turn without steps costs now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.bus import LONGEST_SECONDS, running
from bench.loop import on_fastest_loop
from bench.raw import worker_process
from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.admission import admit
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery
from rolecall.bus.steps.answers import QuestionPlace, answer
from rolecall.bus.steps.journal import Step, record
from rolecall.bus.turn import Records
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.bus.steps import ask, take_one
from tests.valkey import ValkeyProcess

ROOT = Path(__file__).parents[1]
BATCH = 200
IDLE_SECONDS = 16.0
TURNS = 2000
FULL_TURNS = """
import sys
from bench.bus import full_turns
from bench.loop import on_fastest_loop
print(on_fastest_loop(full_turns(sys.argv[1], int(sys.argv[2]))))
"""


class Suspended(NamedTuple):
    """Of turns that wait: bytes of server memory each, commands per second of an idle worker without and with them, and
    the seconds from the first answer to the end of the last turn."""

    memory: float
    empty: float
    idle: float
    seconds: float


class ManagerAgent(Agent):
    """Calls twenty others, or waits for an answer."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "wait":
            return envelope.reply(str(await ctx.confirm("Go on?")))
        await ctx.gather(*(ctx.call("second", str(n)) for n in range(20)))
        return envelope.reply("all")


class SecondAgent(Agent):
    """Takes a second."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await asyncio.sleep(1)
        return envelope.reply("done")


CALLS = (Role(ManagerAgent, 1), Role(SecondAgent, 10))


async def server_cpu(server: RedisServer) -> float:
    """The seconds of CPU that the server has used."""
    found = await server.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


async def recorded_step(server: RedisServer, count: int, handlers: int) -> float:
    """Server CPU in µs of one recorded step with its log record: so many ``handlers`` at a time record 50 steps of 200
    bytes each, one after another."""
    await server.call("FLUSHALL")
    bus, used, rounds = Bus(server, Settings(), "bench:1~a"), 0.0, count // 50 // handlers
    for turn in range(rounds):
        deliveries = []
        for handler in range(handlers):
            await ask(bus, f"c{turn}:{handler}")
            deliveries.append(await take_one(bus))
        before = await server_cpu(server)
        await asyncio.gather(*(fifty_steps(bus, delivery) for delivery in deliveries))
        used += await server_cpu(server) - before
    return used / (rounds * handlers * 50) * 1_000_000


async def fifty_steps(bus: Bus, delivery: Delivery) -> None:
    """Record them as a handler does."""
    value = msgspec.Raw(msgspec.json.encode("x" * 200))
    for number in range(50):
        records = Records("manager:bench:1:0")
        records.add("STEP", f"{number} once charge")
        await record(bus, delivery, [(str(number), Step("once", "charge", value))], records)


async def bare_command(server: RedisServer, count: int) -> float:
    """Server CPU in µs of a PING, one at a time: what reading and answering any command costs."""
    before = await server_cpu(server)
    for _ in range(count):
        await server.call("PING")
    return (await server_cpu(server) - before) / count * 1_000_000


async def suspended(url: str, count: int) -> Suspended:
    """What ``count`` turns cost that all wait for an answer, on a worker that runs them, and how long it takes until
    all have ended once they are answered. The log records that a scribe takes away do not count as memory."""
    async with running(url, (Role(ManagerAgent, 50),)) as runtime:
        bus, shard, server = runtime.bus, runtime.bus.shards[0], runtime.bus.server
        assert isinstance(server, RedisServer)
        empty = await commands_per_second(server)
        before = int((await server.info("memory"))["used_memory"])
        for first in range(0, count, BATCH):
            names = [f"s{number}" for number in range(first, min(count, first + BATCH))]
            await asyncio.gather(*(admit(bus, waiting(name)) for name in names))
        await until(server, shard.suspended, count)
        await server.call("XTRIM", shard.log, "MAXLEN", 0)
        memory = (int((await server.info("memory"))["used_memory"]) - before) / count
        idle, began = await commands_per_second(server), time.monotonic()
        for first in range(0, count, BATCH):
            names = [f"s{number}" for number in range(first, min(count, first + BATCH))]
            await asyncio.gather(*(answer(bus, name, str(QuestionPlace("1", 0, "1")), 0) for name in names))
        await until(server, shard.active, 0)
        return Suspended(memory, empty, idle, time.monotonic() - began)


def waiting(conversation: str) -> Envelope:
    """A message whose handler asks the user."""
    return Envelope(conversation=conversation, payload={"text": "wait"}, meta={"asks": True})


async def commands_per_second(server: RedisServer) -> float:
    """What the clients of the server send while nothing happens."""
    await asyncio.sleep(IDLE_SECONDS / 4)
    before = int((await server.info("stats"))["total_commands_processed"])
    await asyncio.sleep(IDLE_SECONDS)
    return (int((await server.info("stats"))["total_commands_processed"]) - before - 1) / IDLE_SECONDS


async def until(server: RedisServer, members: str, count: int) -> None:
    """Wait until the sorted set has ``count`` members."""
    async with asyncio.timeout(LONGEST_SECONDS):
        while await server.call("ZCARD", members) != count:
            await asyncio.sleep(0.01)


async def fan_out(server: RedisServer) -> float:
    """The least of five times, in seconds from a message to its answer, where 20 calls of a second run on 20 instances
    in two processes."""
    await server.call("FLUSHALL")
    bus, seconds = Bus(server, Settings(), "bench:1~a"), []
    async with worker_process("calls", server.url), worker_process("calls", server.url):
        for number in range(5):
            began = time.monotonic()
            await admit(bus, Envelope(conversation=f"bench:{number}", payload={"text": "go"}))
            await until(server, bus.shards[0].active, 0)
            seconds.append(time.monotonic() - began)
    return min(seconds)


async def without_steps(server: RedisServer, revision: str, rounds: int) -> None:
    """Print what a turn of two roles without steps costs, here and at ``revision``, in ``rounds`` that take turns: the
    best of each, because noise only adds."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        await asyncio.to_thread(check_out, revision, directory)
        best = {ROOT: (0.0, math.inf), Path(directory): (0.0, math.inf)}
        for _ in range(rounds):
            for root, (rate, least) in best.items():
                before = await server_cpu(server)
                found = await asyncio.to_thread(turns_per_second, root, server.url)
                cpu = (await server_cpu(server) - before) / TURNS * 1_000_000
                best[root] = max(rate, found), min(least, cpu)
    for name, (rate, cpu) in zip(("now", revision), best.values(), strict=True):
        print(f"a turn of two roles without steps, {name}: {rate:,.0f} turns/s, {cpu:.0f} µs of server CPU each")


def check_out(revision: str, directory: str) -> None:
    """Write what ``revision`` had of the package and of this benchmark into ``directory``."""
    command = ["git", "archive", revision, "src", "bench"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as opened:
        opened.extractall(directory, filter="data")


def turns_per_second(root: Path, url: str) -> float:
    """The rate that ``bench.bus`` of ``root`` finds, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-c", FULL_TURNS, url, str(TURNS)], cwd=root, env=environment,
                          capture_output=True, check=True, text=True)  # fmt: skip
    return float(done.stdout)


async def measure(options: argparse.Namespace) -> None:
    """Print every figure."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        process = ValkeyProcess(Path(directory))
        process.start()
        server = RedisServer(process.url)
        try:
            for handlers in (1, 16):
                costs = [await recorded_step(server, options.steps, handlers) for _ in range(3)]
                print(f"a recorded step, {handlers} at a time: {min(costs):.1f} µs of server CPU")
            costs = [await bare_command(server, options.steps) for _ in range(3)]
            print(f"a PING, 1 at a time: {min(costs):.1f} µs of server CPU")
            print(f"20 calls of 1 s over 20 instances in two processes: {await fan_out(server):.3f} s")
            found = await suspended(process.url, options.turns)
            print(f"{options.turns:,} suspended turns: {found.memory:,.0f} bytes each; idle, the worker sends ", end="")
            print(f"{found.idle:.1f} commands/s, and {found.empty:.1f} without them; ", end="")
            print(f"answered, all have ended after {found.seconds:.1f} s")
            if options.before:
                await without_steps(server, options.before, options.rounds)
        finally:
            await server.aclose()
            process.kill()


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000, help="suspended turns")
    parser.add_argument("--steps", type=int, default=5_000, help="recorded steps")
    parser.add_argument("--before", metavar="REVISION", help="also measure turns without steps, here and there in git")
    parser.add_argument("--rounds", type=int, default=5, help="of turns without steps")
    on_fastest_loop(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
