"""A process that uses the bundled server, for the tests. ``hold`` joins, says what it found and leaves when its
input ends; ``race`` joins, writes and leaves again and again, and says what was acknowledged."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from rolecall.redis.embedded import EmbeddedServer


async def hold(state_dir: Path, runtime_dir: Path) -> None:
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    async with Redis.from_url(server.url) as redis:
        about: dict[str, Any] = await redis.info("server")
    say({"started": server.started, "pid": about["process_id"], "run": about["run_id"], "url": server.url})
    await asyncio.to_thread(sys.stdin.read)
    await server.leave()


async def race(state_dir: Path, runtime_dir: Path, name: str, rounds: int) -> None:
    acknowledged = []
    for number in range(rounds):
        server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
        async with Redis.from_url(server.url) as redis:
            for part in range(3):
                entry = f"{name}:{number}:{part}"
                await redis.rpush("entries", entry)
                acknowledged.append(entry)
        await server.leave()
        # Absences of about a start's length, so that being the last and finding nobody are both frequent.
        await asyncio.sleep(random.uniform(0, 0.06))
    say({"acknowledged": acknowledged})


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    verb, state, runtime, *rest = sys.argv[1:]
    if verb == "hold":
        asyncio.run(hold(Path(state), Path(runtime)))
    else:
        asyncio.run(race(Path(state), Path(runtime), rest[0], int(rest[1])))
