"""Schedules under stress: a process that is killed while it begins turns, and how late turns begin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from rolecall.bus.bus import Bus
from rolecall.bus.schedule.schedules import schedule
from rolecall.redis.server import server_ms
from tests.bus.steps import entries
from tests.deployment import deployed
from tests.fundamentals.test_13_schedules import ROLES, told

ROOT = Path(__file__).parents[2]
WORKER = """
import asyncio, sys
from pathlib import Path
from rolecall import Config, Role, run
from tests.fundamentals.test_13_schedules import ManagerAgent

async def main():
    config = Config(
        roles=(Role(ManagerAgent, instances=4),), redis_url=sys.argv[1], lease_seconds=1.5, heartbeat_seconds=0.4,
        scan_seconds=0.3,
    )
    async with run(config, app=sys.argv[2], scribe=False):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def start_worker(url: str, directory: Path) -> asyncio.subprocess.Process:
    """A worker process that is at work."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, url, str(directory), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


async def test_kill_9_of_a_process_that_begins_turns_loses_and_doubles_none(
    bus: Bus, server_url: str, tmp_path: Path
) -> None:
    workers = [await start_worker(server_url, tmp_path) for _ in range(2)]
    try:
        due = await server_ms(bus.server) + 300
        for n in range(60):
            at = datetime.fromtimestamp((due + n * 20) / 1000, UTC)
            await schedule(bus, f"http:ann:{n % 10}", f"{n}", at=at)
        await asyncio.sleep(0.9)
        workers[0].kill()
        finals = await all_finals(bus, 60)
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()
    assert sorted(finals) == sorted(f"⏰ {n}" for n in range(60))


async def all_finals(bus: Bus, count: int) -> list[str]:
    """The texts of the final events of all conversations, once there are ``count`` and nothing is left to do."""
    async with asyncio.timeout(20):
        while True:
            found = [
                json.loads(event["x"])["text"]
                for n in range(10)
                for event in await entries(bus, bus.shards[0].events(f"http:ann:{n}"))
                if event["k"] == "final"
            ]
            shard = bus.shards[0]
            left = [await bus.server.call("ZCARD", key) for key in (shard.planned, shard.active)]
            if len(found) >= count and left == [0, 0]:
                return found
            await asyncio.sleep(0.05)


async def test_turns_begin_within_a_second_of_their_time(tmp_path: Path) -> None:
    count = int(os.environ.get("ROLECALL_SCHEDULES", "20"))
    async with deployed(tmp_path, ROLES, processes=2) as app:
        bus, late = app.session.bus, list[int]()
        first = round(await server_ms(bus.server)) + 1000
        for n in range(count):
            at = datetime.fromtimestamp((first + n * 47) / 1000, UTC)
            await schedule(bus, f"http:ann:{n}", "drink", at=at)
        for n in range(count):
            await told(app, f"http:ann:{n}", 1)
            began = await bus.server.call("XRANGE", bus.shards[0].events(f"http:ann:{n}"), "-", "+", "COUNT", 1)
            late.append(int(began[0][0].partition(b"-")[0]) - first - n * 47)
    late.sort()
    print(f"{count} turns began {late[0]} to {late[-1]} ms after their time, p50 {late[count // 2]} ms")
    assert late[0] >= 0 and late[-1] <= 1000
