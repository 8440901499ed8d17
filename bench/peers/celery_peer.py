"""Celery. One worker process of 50 threads with late acknowledgement, so that a crash loses nothing, as the others; no
gossip, mingle or heartbeat, and results only of the calls: a ``chain``, its own way over two links."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery, chain
from celery.signals import worker_ready
from links import Body, Connection, Follow, Tally, main

app = Celery("links", broker=sys.argv[2], backend=sys.argv[2])
app.conf.update(
    task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=4, broker_pool_limit=50,
    broker_connection_retry_on_startup=True, worker_redirect_stdouts=False,
)  # fmt: skip
tally = Tally(int(sys.argv[3]))


@app.task(name="a")
def a(body: Body) -> None:
    forward("a", body)


@app.task(name="b")
def b(body: Body) -> None:
    forward("b", body)


@app.task(name="call", ignore_result=False)
def passed(body: Body) -> Body:
    return {**body, "left": body["left"] - 1}


def forward(link: str, body: Body) -> None:
    if following := tally.follow(link, body):
        {"a": a, "b": b}[following[0]].delay(following[1])


@asynccontextmanager
async def connect(url: str, links: tuple[str, ...], follow: Follow) -> AsyncIterator[Connection]:
    async def send(bodies: list[Body]) -> None:
        with app.producer_pool.acquire(block=True) as producer:
            for body in bodies:
                a.apply_async((body,), producer=producer)

    async def call(body: Body) -> Body:
        return chain(passed.s(body), passed.s()).apply_async().get(timeout=30)  # type: ignore[no-any-return]

    yield Connection(send, call)


def work() -> None:
    """Celery's worker wants the main thread."""

    def until_parent_goes() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=until_parent_goes, daemon=True).start()
    worker_ready.connect(lambda **_: print("ready", flush=True), weak=False)
    options = "--pool=threads --concurrency=50 --without-gossip --without-mingle --without-heartbeat -l CRITICAL"
    app.worker_main(["--quiet", "worker", *options.split()])


if sys.argv[1] == "work":
    work()
else:
    main(connect)
