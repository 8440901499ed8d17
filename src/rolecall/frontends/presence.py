"""A front end that is a process of its own: it hears wake-ups, and the registry knows that it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.exceptions import RedisError

from rolecall import __version__, registry
from rolecall.errors import ServerUnavailable
from rolecall.follow import Wakeups
from rolecall.registry import ProcessState
from rolecall.session import Session

logger = logging.getLogger(__name__)
AWAY = (RedisError, OSError, ServerUnavailable)
LEAVING_SECONDS = 3.0
"""How long an end waits for a server that is away."""


@asynccontextmanager
async def listening(session: Session) -> AsyncIterator[Wakeups]:
    """The wake-ups of this process, heard for as long."""
    wakeups = Wakeups(session.server.pubsub())
    task = asyncio.create_task(wakeups.run(), name="rolecall wake-ups")
    try:
        yield wakeups
    finally:
        task.cancel()
        await asyncio.wait([task])
        await wakeups.aclose()


@asynccontextmanager
async def registered(session: Session, kind: str) -> AsyncIterator[None]:
    """In the registry as a process of this ``kind`` for as long."""
    task = asyncio.create_task(_register(session, kind, time.monotonic()), name="rolecall registry")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        with suppress(*AWAY, TimeoutError):
            async with asyncio.timeout(LEAVING_SECONDS):
                await registry.unregister(session.bus)


async def _register(session: Session, kind: str, began: float) -> None:
    while True:
        state = ProcessState(
            process=session.bus.process,
            kind=kind,
            uptime=round(time.monotonic() - began, 1),
            connections=session.server.connections,
            max_connections=session.application.settings.redis_max_connections,
            version=__version__,
        )
        try:
            await registry.register(session.bus, state)
        except AWAY as error:
            logger.info("the server is away: %s", error)
        await asyncio.sleep(session.application.settings.heartbeat_seconds)
