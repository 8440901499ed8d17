"""arq. 100 jobs at a time; polls every 5 ms instead of every 500, because only a poll starts a job; no results
are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker
from links import ANSWERS, Body, Connection, Follow, main

QUEUES = {"a": "work", "b": "work", ANSWERS: ANSWERS}


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    logging.disable(logging.CRITICAL)
    settings = RedisSettings.from_dsn(url)
    pool = await create_pool(settings)

    def serve(link: str) -> Any:
        async def handle(ctx: dict[Any, Any], body: Body) -> None:
            if following := follow(link, body):
                await enqueue(*following)

        return func(handle, name=link)

    async def enqueue(link: str, body: Body) -> None:
        await pool.enqueue_job(link, body, _queue_name=QUEUES[link])

    async def send(bodies: list[Body]) -> None:
        await asyncio.gather(*(enqueue("a", body) for body in bodies))

    worker = Worker(
        [serve(link) for link in links], redis_settings=settings, queue_name=QUEUES[links[0]], max_jobs=100,
        poll_delay=0.005, keep_result=0, handle_signals=False, log_results=False,
    )  # fmt: skip
    running = asyncio.create_task(worker.async_run(), name="worker")
    yield Connection(send)
    running.cancel()


main(connect)
