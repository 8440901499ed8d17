"""FastStream. Reads 100 messages at a time, without FastDepends, as its documentation advises for throughput;
``polling_interval`` is the BLOCK of a read, so a long one costs no latency. With the argument ``batch``, a handler gets
and publishes all messages of a read at once, and they are acknowledged or fail together; without, 100 handlers run at a
time."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from faststream.redis import RedisBroker, StreamSub
from links import Body, Connection, Follow, main
from redis.asyncio import Redis

BATCH = "batch" in sys.argv


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    broker = RedisBroker(url, apply_types=False, logger=None, socket_timeout=None)
    client = Redis.from_url(url)

    async def send(messages: Iterable[tuple[str, Body]]) -> None:
        async with client.pipeline(transaction=False) as pipeline:
            for link, body in messages:
                await broker.publish(body, stream=link, pipeline=pipeline)
            await pipeline.execute()

    def serve(link: str) -> None:
        stream = StreamSub(link, group="g", consumer="c", batch=BATCH, max_records=100, polling_interval=2000)

        @broker.subscriber(stream=stream, max_workers=1 if BATCH else 100)
        async def handle(received: Any) -> None:
            bodies: list[Body] = received if BATCH else [received]
            following = [following for body in bodies if (following := follow(link, body))]
            if len(following) == 1:
                await broker.publish(following[0][1], stream=following[0][0])
            elif following:
                await send(following)

    for link in links:
        serve(link)
    await broker.start()
    yield Connection(lambda bodies: send(("a", body) for body in bodies))


main(connect)
