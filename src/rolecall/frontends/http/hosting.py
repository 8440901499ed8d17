"""uvicorn in this process, on a socket of ours."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import cast

from fastapi import FastAPI
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from rolecall.errors import RolecallError
from rolecall.frontends.http.guard import HEADER_BYTES

DRAIN_SECONDS = 5
STALLED_SECONDS = 30.0
"""A client that takes nothing of what waits for it for so long is hung up on."""
logger = logging.getLogger(__name__)
STEADY_SECONDS = 5.0
"""A process that ends sooner than this could not start."""
TRIES = 3
AGAIN_SECONDS = 0.5


class HttpServer:
    """``app`` on ``listener`` until ``stop``; open streams are ended then, and requests have a few seconds."""

    def __init__(self, app: FastAPI, listener: socket.socket, *, head_seconds: float = 10) -> None:
        self._app = app
        self._listener = listener
        self._ready = asyncio.Event()
        self._server = _Uvicorn(
            _Config(
                app,
                http=_Connection,
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
        self._server.config.head_seconds = head_seconds

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


class _Config(Config):
    """uvicorn's, with the seconds a client has for the head of a request."""

    head_seconds: float


class _Uvicorn(Server):
    """uvicorn's, telling when it is ready. ``_serve`` leaves the signals to us."""

    config: _Config

    def __init__(self, config: _Config, ready: asyncio.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


class _Connection(H11Protocol):
    """uvicorn's, closed when the head of a request does not come whole in time, or an answer is not taken."""

    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._in_time()
        self._taken()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._in_time()
        elif self._late is None:
            seconds = cast(_Config, self.config).head_seconds
            self._late = self.loop.call_later(seconds, self.transport.close)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class Workers:
    """``count`` processes that run ``command`` and ``--fd N``, the number of ``listener`` in them. Each has a pipe for
    its stdin that ends when this process does, however that is: it ends itself then."""

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket) -> None:
        self._command = (*command, "--fd", str(listener.fileno()))
        self._count = count
        self._listener = listener
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Keep them at work until ``stop``. Raises RolecallError, the others ended, when one cannot start."""
        logger.info("http: parent pid %d, %d processes", os.getpid(), self._count)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._count):
                    group.create_task(self._keep(number), name=f"rolecall http process {number}")
        finally:
            for process in self._running.values():
                _kill(process)

    def stop(self) -> None:
        """Let all of them end: requests have a few seconds."""
        self._stopped.set()
        for process in self._running.values():
            if process.returncode is None:
                process.terminate()

    async def _keep(self, number: int) -> None:
        failures = 0
        while not self._stopped.is_set():
            began = time.monotonic()
            status = await self._run_one(number)
            if self._stopped.is_set():
                return
            failures = failures + 1 if time.monotonic() - began < STEADY_SECONDS else 0
            if failures >= TRIES:
                raise RolecallError("a process of the HTTP server cannot start; its log says why")
            logger.warning("http: process %d ended with status %s and is started again", number, status)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _run_one(self, number: int) -> int:
        # A session of its own: Ctrl-C reaches the parent alone, which then ends them in order.
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=subprocess.PIPE, pass_fds=[self._listener.fileno()], start_new_session=True
        )
        self._running[number] = process
        logger.info("http: process %d has pid %d", number, process.pid)
        if self._stopped.is_set():
            process.terminate()
        waiting = asyncio.create_task(process.wait(), name=f"rolecall http wait {number}")
        stopping = asyncio.create_task(self._stopped.wait(), name=f"rolecall http stop {number}")
        try:
            await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(None if waiting.done() else 2 * DRAIN_SECONDS):
                return await waiting
        except TimeoutError:
            _kill(process)
            return await process.wait()
        finally:
            waiting.cancel()
            stopping.cancel()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
