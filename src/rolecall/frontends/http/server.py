"""uvicorn in this process, on a socket of ours."""

from __future__ import annotations

import asyncio
import socket

from fastapi import FastAPI
from uvicorn import Config, Server

from rolecall.errors import ConfigError, RolecallError

PORTS_TRIED = 100
HEADER_BYTES = 16 * 1024
DRAIN_SECONDS = 5
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at ``host``, on ``port`` or the next free one, any if it is 0. Raises ConfigError."""
    candidates = range(port, min(port + PORTS_TRIED, 65_536)) if port else (0,)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"HTTP_HOST={host}: an address of this machine is allowed: {error.strerror}") from None
    for candidate in candidates:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address[0], candidate))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            problem = error
        else:
            listener.setblocking(False)
            return listener
    raise ConfigError(f"HTTP_PORT={port}: no free port from there on at {host}: {problem.strerror}")


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


class HttpServer:
    """``app`` on ``listener`` until ``stop``; open streams are ended then, and requests have a few seconds."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        self._app = app
        self._listener = listener
        self._ready = asyncio.Event()
        self._server = _Uvicorn(
            Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=HEADER_BYTES,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            ),
            self._ready,
        )

    async def run(self) -> None:
        """Serve. Raises RolecallError when it cannot start; the cause is in the log."""
        try:
            await self._server._serve([self._listener])
        except SystemExit:
            raise RolecallError("the HTTP server could not start; its log says why") from None
        finally:
            self._ready.set()

    async def ready(self) -> None:
        """Wait until it answers."""
        await self._ready.wait()

    def stop(self) -> None:
        """Take no more requests, end the streams, and end."""
        found = getattr(self._app.state, "services", None)
        if found is not None:
            found.stopping.set()
        self._server.should_exit = True


class _Uvicorn(Server):
    """uvicorn's, telling when it is ready. ``_serve`` leaves the signals to us."""

    def __init__(self, config: Config, ready: asyncio.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()
