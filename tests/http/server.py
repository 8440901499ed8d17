"""The HTTP front end inside a test: a real uvicorn on a free port of the loopback, in this process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from rolecall.bus.access_keys import revoke_all_keys
from rolecall.bus.bus import Bus
from rolecall.config import Application
from rolecall.frontends.front import registered
from rolecall.frontends.http.app import build
from rolecall.frontends.http.hosting import HttpFrontEnd
from rolecall.frontends.http.services import Services, services_for
from rolecall.frontends.sockets import listen
from rolecall.session import open_session
from tests.waiting import wait_until


async def closed(url: str) -> None:
    """Wait until the server at ``url`` has heard that there are keys, and lets nobody in without one."""
    async with httpx2.AsyncClient() as client:

        async def refuses() -> bool:
            return (await client.get(f"{url}/info")).status_code == 401

        await wait_until(refuses)


async def open_again(bus: Bus, *urls: str) -> None:
    """Revoke all keys, and wait until the servers at ``urls`` let this machine in without one."""
    await revoke_all_keys(bus)
    async with httpx2.AsyncClient() as client:
        for url in urls:

            async def is_open(url: str = url) -> bool:
                return (await client.get(f"{url}/info")).status_code == 200

            await wait_until(is_open)


@asynccontextmanager
async def open_services(application: Application, process: str, host: str) -> AsyncIterator[Services]:
    """Services with connections of their own, as a process of the HTTP server has them."""
    async with (
        open_session(application, process, start=True) as session,
        session.listening() as wakeups,
        registered(session, "http"),
    ):
        yield services_for(session, wakeups, host)


@asynccontextmanager
async def serving(application: Application, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """A replica of ``application``'s HTTP server with connections of its own; yields ``http://127.0.0.1:<port>``.
    ``host`` is what it believes it listens on."""
    process = f"host:9~{secrets.token_hex(3)}"
    app = build(lambda: open_services(application, process, host), application.settings, host=host)
    listener = listen("127.0.0.1", 0)
    front = HttpFrontEnd(app, listener, head_seconds=application.settings.http_read_seconds)
    running = asyncio.create_task(front.run(), name="http server")
    try:
        await front.ready()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await front.drain()
        await running
