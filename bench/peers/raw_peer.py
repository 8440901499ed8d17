"""The yardstick: a bare redis-py loop without retries, order or records. Reads both streams, 100 messages at a time,
and sends, acknowledges and deletes in one pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from links import Body, Connection, Follow, main
from redis.asyncio import Redis


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    async with Redis.from_url(url, socket_timeout=None) as reader, Redis.from_url(url) as sender:
        for link in links:
            await reader.xgroup_create(link, "g", "0", mkstream=True)
        running = asyncio.create_task(_serve(reader, links, follow), name="reader")

        async def send(bodies: Iterable[Body]) -> None:
            pipeline = sender.pipeline(transaction=False)
            for body in bodies:
                pipeline.xadd("a", {"e": msgspec.json.encode(body)})
            await pipeline.execute()

        yield Connection(send)
        running.cancel()


async def _serve(client: Redis, links: tuple[str, ...], follow: Follow) -> None:
    while True:
        reply: Any = await client.xreadgroup("g", "c", dict.fromkeys(links, ">"), count=100, block=2000)
        pipeline = client.pipeline(transaction=False)
        for name, entries in reply.items() if isinstance(reply, dict) else reply:
            link = name.decode()
            for _, fields in entries:
                if following := follow(link, msgspec.json.decode(fields[b"e"])):
                    pipeline.xadd(following[0], {"e": msgspec.json.encode(following[1])})
            ids = [entry_id for entry_id, _ in entries]
            pipeline.xack(link, "g", *ids)
            pipeline.xdel(link, *ids)
        await pipeline.execute()


main(connect)
