"""Servers of the tests' own on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """The port at which each connection is handed to ``serve``. At the end every connection is closed, so that none is
    found open by the test that happens to run when it is collected."""
    taken: dict[asyncio.Task[object] | None, asyncio.StreamWriter] = {}

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken[asyncio.current_task()] = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in taken.values():
            writer.transport.abort()
        for task in filter(None, taken):
            task.cancel()
        await asyncio.gather(*filter(None, taken), *(w.wait_closed() for w in taken.values()), return_exceptions=True)
