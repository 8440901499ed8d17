"""Server-sent events: FastAPI encodes them and sends pings; this adds a limit per key and an end at shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import msgspec
from fastapi import Depends, Response
from fastapi.sse import ServerSentEvent

from rolecall.errors import ServerError
from rolecall.frontends.http.auth import FRESH_SECONDS, Principal, User
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.services import Services, ServicesDep

logger = logging.getLogger(__name__)
RETRY = ServerSentEvent(retry=1000)
"""Asks an EventSource to reconnect after a second: another replica may be there already."""
FOLLOWER: ContextVar[Principal | None] = ContextVar("FOLLOWER", default=None)
"""Whose stream a request's task sends."""
Events = AsyncGenerator[ServerSentEvent]
Route = Callable[..., Events]
T = TypeVar("T")


def event(name: str, data: Any, event_id: str = "") -> ServerSentEvent:
    """One event; ``data`` becomes JSON."""
    return ServerSentEvent(event=name, raw_data=msgspec.json.encode(data).decode(), id=event_id or None)


async def open_stream(services: ServicesDep, who: User, response: Response) -> AsyncIterator[None]:
    """Count a stream of this key while it is open. Raises Problem (429) when the key has as many as it may."""
    if services.streams[who.id] >= services.settings.http_streams:
        detail = text("too_many_streams", count=services.settings.http_streams)
        raise Problem(429, detail, "too_many_streams", headers={"Retry-After": "5"})
    response.headers["cache-control"] = "no-store"
    FOLLOWER.set(who)
    services.streams[who.id] += 1
    try:
        yield
    finally:
        services.streams[who.id] -= 1


Streaming = Depends(open_stream)
"""The dependency of every route that streams. FastAPI resolves it before the first event: it can still refuse."""


def streams(farewell: Callable[[], ServerSentEvent] | None = None) -> Callable[[Route], Route]:
    """Make an endpoint of a function that returns events or generates them, and takes ``services``: they end as
    ``until_stopped`` says."""

    def decorated(route: Route) -> Route:
        @wraps(route)
        async def endpoint(**given: Any) -> Events:
            last = farewell() if farewell else None
            async with aclosing(until_stopped(given["services"], route(**given), last)) as events:
                async for one in events:
                    yield one

        return endpoint

    return decorated


async def until_stopped(services: Services, events: AsyncGenerator[T], farewell: T | None = None) -> AsyncGenerator[T]:
    """Yield ``events`` until they end, the process stops (``farewell`` is the last event then), the bus is lost or the
    key of the stream is revoked. In all but the first case an EventSource reconnects."""
    waiting: asyncio.Timeout | None = None

    def interrupt(_: object) -> None:
        if waiting is not None:
            waiting.reschedule(0)

    stop = asyncio.create_task(services.stopping.wait(), name="http stream's end")
    out = asyncio.create_task(_revoked(services, FOLLOWER.get()), name="http stream's key")
    for task in (stop, out):
        task.add_done_callback(interrupt)
    try:
        async with aclosing(events):
            while not (stop.done() or out.done()):
                try:
                    # Not around the yield: it must not fire while the consumer's code runs.
                    async with asyncio.timeout(None) as waiting:
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    break
                finally:
                    waiting = None
                yield event
            if farewell is not None and stop.done():
                yield farewell
    except ServerError as error:
        logger.warning("a stream ended early: %s", error)
    finally:
        for task in (stop, out):
            task.remove_done_callback(interrupt)
            task.cancel()


async def _revoked(services: Services, who: Principal | None) -> None:
    """Return once ``who`` may no longer come in."""
    while True:
        await asyncio.sleep(FRESH_SECONDS)
        with suppress(ServerError):
            if who is not None and not await services.auth.admits(who):
                return
