"""streaq. As many tasks at a time as there are messages under way; no results are kept (``ttl=0``); sends with
``enqueue_many``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from links import ANSWERS, Body, Connection, Follow, main
from streaq import Worker


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    logging.disable(logging.CRITICAL)
    work = Worker(redis_url=url, queue_name="work", concurrency=100, prefetch=100, handle_signals=False)
    answers = Worker(redis_url=url, queue_name=ANSWERS, concurrency=100, prefetch=100, handle_signals=False)

    @work.task(ttl=0, name="a")
    async def a(body: Body) -> None:
        await forward("a", body)

    @work.task(ttl=0, name="b")
    async def b(body: Body) -> None:
        await forward("b", body)

    @answers.task(ttl=0, name=ANSWERS)
    async def answer(body: Body) -> None:
        await forward(ANSWERS, body)

    tasks = {"a": a, "b": b, ANSWERS: answer}

    async def forward(link: str, body: Body) -> None:
        if following := follow(link, body):
            await tasks[following[0]].enqueue(following[1])

    serving, sending = (answers, work) if links == (ANSWERS,) else (work, answers)
    running = asyncio.create_task(serving.run_async(), name="worker")
    async with sending:
        yield Connection(lambda bodies: work.enqueue_many([a.enqueue(body) for body in bodies]))
    running.cancel()


main(connect)
