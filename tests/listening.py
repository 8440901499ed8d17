"""Servers of the tests' own on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


class Listener:
    """Hands each connection to a port of loopback to ``serve``, and closes it when that returns. ``stop`` closes them
    all, so that none is found open by the test that happens to run when it is collected."""

    def __init__(self, serve: Serve) -> None:
        self.port = 0
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._taken: dict[asyncio.Task[object] | None, asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """The address to send requests to."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listen on ``port``, by default the one it had before, or any."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", port or self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break all connections off; what serves them goes on."""
        for writer in self._taken.values():
            writer.transport.abort()

    async def stop(self) -> None:
        """Listen no more, and end everything. Idempotent."""
        if self._server is not None:
            self._server.close()
        self._server = None
        self.cut()
        taken, self._taken = self._taken, {}
        for task in filter(None, taken):
            task.cancel()
        await asyncio.gather(*filter(None, taken), *(w.wait_closed() for w in taken.values()), return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._taken[asyncio.current_task()] = writer
        # Python 3.11 reports a connection whose task ``stop`` cancelled as an error of the loop.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.close()


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """The port of a Listener."""
    listener = Listener(serve)
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.stop()
