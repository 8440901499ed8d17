"""A process that ensures models as it is told: lines of ``<name> <times at once>`` on stdin; ends with it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from rolecall.errors import ModelUnavailable
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.serving.launcher import Launcher
from rolecall.serving.spec import ModelServer, Spec


async def main(url: str, logs: Path, file: str, prefix: str) -> None:
    keys.use(prefix)
    server = RedisServer(url)
    await server.check()
    serving = Launcher(server, f"user-{os.getpid()}", logs)
    print("here", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, times = line.split()
        spec = Spec(f"{name}@local", file, slots=2, context=512, threads=1)
        found = await asyncio.gather(*(serving.ensure(spec) for _ in range(int(times))), return_exceptions=True)
        wrong = [str(one) for one in found if isinstance(one, ModelUnavailable)]
        right = {f"{one.pid}@{one.url}" for one in found if isinstance(one, ModelServer)}
        print(*(["failed", len(wrong), wrong[0]] if wrong else ["ready", *sorted(right)]), flush=True)
    await serving.aclose()
    await server.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
