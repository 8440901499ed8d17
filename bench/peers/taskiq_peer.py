"""taskiq with the stream broker of taskiq-redis, the one that acknowledges. Reads 100 messages at a time and runs as
many, with no prefetch limit below that; no result backend, because nobody waits for a result; JSON by orjson."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from links import ANSWERS, Connection, Follow, main
from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    logging.disable(logging.CRITICAL)
    brokers = {name: RedisStreamBroker(url, queue_name=name, xread_count=100) for name in ("work", ANSWERS)}
    tasks: dict[str, Any] = {}

    def serve(link: str, queue: str) -> None:
        async def handle(body: dict) -> None:  # type: ignore[type-arg]
            if following := follow(link, body):
                await tasks[following[0]].kiq(following[1])

        tasks[link] = brokers[queue].register_task(handle, task_name=link)

    for link, queue in (("a", "work"), ("b", "work"), (ANSWERS, ANSWERS)):
        serve(link, queue)
    for broker in brokers.values():
        await broker.with_serializer(ORJSONSerializer()).startup()

    async def send(bodies: list[Any]) -> None:
        await asyncio.gather(*(tasks["a"].kiq(body) for body in bodies))

    served = brokers[ANSWERS if links == (ANSWERS,) else "work"]
    running = asyncio.create_task(
        run_receiver_task(served, max_async_tasks=100, max_prefetch=100, validate_params=False), name="receiver"
    )
    yield Connection(send)
    running.cancel()


main(connect)
