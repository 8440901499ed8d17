"""docket. 50 tasks at a time (with 100, some never finish), checked every 5 ms instead of every 250, because a worker
whose slots are all taken sleeps for one interval. Nothing is kept of a finished task (``execution_ttl=0``); sends
with ``add_many``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from docket import Docket, Worker
from links import ANSWERS, Body, Connection, Follow, main

CHECK = timedelta(milliseconds=5)


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    logging.disable(logging.CRITICAL)
    async with AsyncExitStack() as stack:
        work = await stack.enter_async_context(Docket("work", url, execution_ttl=timedelta(0)))
        answers = await stack.enter_async_context(Docket(ANSWERS, url, execution_ttl=timedelta(0)))

        async def a(body: Body) -> None:
            await forward("a", body)

        async def b(body: Body) -> None:
            await forward("b", body)

        async def answer(body: Body) -> None:
            await forward(ANSWERS, body)

        tasks = {"a": (work, a), "b": (work, b), ANSWERS: (answers, answer)}
        for docket, task in tasks.values():
            docket.register(task)

        async def forward(link: str, body: Body) -> None:
            if following := follow(link, body):
                docket, task = tasks[following[0]]
                await docket.add(task)(following[1])

        worker = await stack.enter_async_context(
            Worker(tasks[links[0]][0], concurrency=50, minimum_check_interval=CHECK, scheduling_resolution=CHECK)
        )
        running = asyncio.create_task(worker.run_forever(), name="worker")
        yield Connection(lambda bodies: work.add_many([work.call(a)(body) for body in bodies]))
        running.cancel()


main(connect)
