"""``python -m bench.steps``: what durable steps cost: server CPU of a recorded step, memory of suspended turns and how
long they take to resume, and the wall time of a fan-out. Every figure is measured on a server of its own."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import msgspec

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Demand, take
from rolecall.bus.settle import Awaited, suspend
from rolecall.bus.steps.answers import Place, UserQuestion, answer
from rolecall.bus.steps.journal import NewStep, Step, begin, record
from rolecall.bus.turn import Records
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.bus.steps import ask, take_one
from tests.deployment import deployed
from tests.valkey import ValkeyProcess


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


async def server_cpu(server: RedisServer) -> float:
    """The seconds of CPU that the server has used."""
    found = await server.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


async def recorded_step(server: RedisServer, count: int) -> float:
    """Server CPU in µs of one recorded step with its log record, a handler with 50 steps of 200 bytes at a time."""
    bus, used = Bus(server, Settings(), "bench:1~a"), 0.0
    value = msgspec.Raw(msgspec.json.encode("x" * 200))
    for turn in range(count // 50):
        await ask(bus, f"c{turn}")
        delivery = await take_one(bus)
        before = await server_cpu(server)
        for number in range(50):
            records = Records("manager:bench:1:0")
            records.add("STEP", f"{number} once charge")
            await record(bus, delivery, [(str(number), Step("once", "charge", value))], records)
        used += await server_cpu(server) - before
    return used / count * 1_000_000


async def suspended(server: RedisServer, count: int) -> tuple[float, float, float]:
    """Memory in bytes of a suspended turn that waits for an answer, the seconds in which all are answered by one
    process, and those in which their entries are all taken again."""
    bus = Bus(server, Settings(in_flight_limit=2 * count), "bench:1~a")
    before, questions = int((await server.info("memory"))["used_memory"]), []
    for number in range(count):
        await ask(bus, f"s{number}", reply_to="")
        delivery = await take_one(bus)
        question = UserQuestion(id=str(Place(delivery.turn, 0, "1")), text="Go on?", options=("yes", "no"))
        step = Step("question", "confirm", msgspec.Raw(msgspec.json.encode(question)))
        await begin(bus, delivery, [NewStep("1", step, 86_400.0)], user="", instance="i")
        await suspend(
            bus, delivery, Awaited([["1"]], int(time.time() * 1000) + 86_400_000, True, "an answer"), Records("i")
        )
        questions.append((f"s{number}", question.id))
    memory = (int((await server.info("memory"))["used_memory"]) - before) / count
    began = time.monotonic()
    for first in range(0, count, 200):
        await asyncio.gather(*(answer(bus, name, one, 0) for name, one in questions[first : first + 200]))
    answered, taken = time.monotonic() - began, 0
    while taken < count:
        taken += len(await take(bus, bus.shards[0], [Demand("manager", 100)]))
    return memory, answered, time.monotonic() - began


async def fan_out() -> float:
    """Seconds from a message to its answer, where 20 calls of a second run on 20 instances in two runtimes."""
    roles = (Role(ManagerAgent, instances=1), Role(SecondAgent, instances=10))
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        async with deployed(Path(directory), roles, processes=2) as app:
            seconds = []
            for number in range(5):
                began = time.monotonic()
                await app.ask(f"bench:{number}", "go")
                seconds.append(time.monotonic() - began)
    return min(seconds)


async def measure(turns: int, steps: int) -> None:
    """Print every figure."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        process = ValkeyProcess(Path(directory))
        process.start()
        server = RedisServer(process.url)
        try:
            print(f"recorded step: {await recorded_step(server, steps):.1f} µs of server CPU")
            memory, answered, resumed = await suspended(server, turns)
            print(f"{turns:,} suspended turns: {memory:,.0f} bytes each, answered in {answered:.1f} s, ", end="")
            print(f"all taken again in {resumed:.1f} s")
        finally:
            await server.aclose()
            process.kill()
    print(f"20 calls of 1 s over 20 instances in two runtimes: {await fan_out():.3f} s")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000, help="suspended turns")
    parser.add_argument("--steps", type=int, default=5_000, help="recorded steps")
    options = parser.parse_args()
    asyncio.run(measure(options.turns, options.steps))


if __name__ == "__main__":
    main()
