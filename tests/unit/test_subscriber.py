"""The publish/subscribe connection over a server that goes and comes back."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from rolecall.bus.wakeups import Wakeups
from rolecall.redis.server import RedisServer
from tests.valkey import ValkeyProcess


async def test_who_begins_to_listen_while_the_server_comes_back_is_heard_at_once() -> None:
    with tempfile.TemporaryDirectory(prefix="sub") as directory:
        process = ValkeyProcess(Path(directory))
        process.start()
        server = RedisServer(process.url)
        wakeups = Wakeups(server.pubsub())
        running = asyncio.create_task(wakeups.run(), name="wake-ups")
        await wakeups.listening.wait()
        process.kill()
        listeners = [asyncio.create_task(listen(wakeups, f"c{number}", number / 50)) for number in range(50)]
        await asyncio.to_thread(process.start)
        async with asyncio.timeout(4):  # less than what a follower waits who is not woken
            await asyncio.gather(*listeners)
        assert server.connections == 1
        running.cancel()
        await asyncio.wait([running])
        await server.aclose()
        assert server.connections == 0
        process.kill()


async def listen(wakeups: Wakeups, channel: str, after: float) -> None:
    """Begin to listen after so many seconds, and wait until that is confirmed."""
    await asyncio.sleep(after)
    async with wakeups.listen(channel):
        pass
