"""uvicorn in this process, or in several processes that share one socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import Sequence

from fastapi import FastAPI
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from rolecall.bus.outbox import OutboxEntry
from rolecall.errors import RolecallError
from rolecall.frontends.http.guard import HEADER_BYTES
from rolecall.frontends.uvicorn_server import UvicornServer, quiet_config

DRAIN_SECONDS = 5
STALLED_SECONDS = 30.0
"""A connection is aborted when its client has read nothing of what waits for it for this long."""
STEADY_SECONDS = 5.0
"""A process that ends sooner than this counts as one that could not start."""
TRIES = 3
RESTART_SECONDS = 0.5
logger = logging.getLogger(__name__)


class HttpFrontEnd:
    """Serves ``app`` on ``listener`` until drained. A client has ``head_seconds`` to send the head of a request."""

    name = "http"

    def __init__(self, app: FastAPI, listener: socket.socket, *, head_seconds: float = 10) -> None:
        self._app = app
        self._listener = listener
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        config = quiet_config(
            app,
            http=_connection_class(head_seconds),
            ws="none",
            lifespan="on",
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        self._server = _Server(config, self._ready)

    async def run(self) -> None:
        """Serve. Raises RolecallError when it cannot start; the cause is in the log."""
        try:
            await self._server.serve([self._listener])
        except SystemExit:
            raise RolecallError("the HTTP server could not start; see its log") from None
        finally:
            self._ready.set()
            self._ended.set()

    async def ready(self) -> None:
        """Wait until it accepts requests."""
        await self._ready.wait()

    async def deliver(self, entry: OutboxEntry) -> None:
        """Do nothing: clients fetch or follow their answers, and follow their notices."""

    async def drain(self) -> None:
        """Stop accepting requests, end open streams, and wait for requests in progress, at most DRAIN_SECONDS."""
        services = getattr(self._app.state, "services", None)
        if services is not None:
            services.stopping.set()
        self._server.should_exit = True
        await self._ended.wait()


class _Server(UvicornServer):
    """Reports when it is ready."""

    def __init__(self, config: Config, ready: asyncio.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


def _connection_class(head_seconds: float) -> type[asyncio.Protocol]:
    # uvicorn times out idle connections only after their first request, and never a client that stops reading. Both
    # need the protocol's own state, so this extends the h11 protocol; Config(http=...) takes such a class.
    class Connection(H11Protocol):
        late: asyncio.TimerHandle | None = None
        stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self.watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            _cancel(self.late)
            _cancel(self.stalled)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self.stalled)

        def watch_head(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                _cancel(self.late)
                self.late = None
            elif self.late is None:
                self.late = self.loop.call_later(head_seconds, self.transport.close)

    return Connection


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class HttpProcesses:
    """Keeps ``count`` processes of ``command --fd N`` running, N being ``listener`` as they inherit it.

    Each has a pipe as its stdin, which closes when this process ends in whatever way: then they end themselves.
    """

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket) -> None:
        self._command = (*command, "--fd", str(listener.fileno()))
        self._count = count
        self._listener = listener
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Run them until ``stop``. When one cannot start, ends the others and raises RolecallError."""
        logger.info("http: parent pid %d, %d processes", os.getpid(), self._count)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._count):
                    group.create_task(self._keep(number), name=f"rolecall http process {number}")
        finally:
            for process in self._running.values():
                _kill(process)

    def stop(self) -> None:
        """Terminate them; requests in progress get DRAIN_SECONDS to finish."""
        self._stopped.set()
        for process in self._running.values():
            if process.returncode is None:
                process.terminate()

    async def _keep(self, number: int) -> None:
        failures = 0
        while not self._stopped.is_set():
            started = time.monotonic()
            status = await self._run_one(number)
            if self._stopped.is_set():
                return
            failures = failures + 1 if time.monotonic() - started < STEADY_SECONDS else 0
            if failures >= TRIES:
                raise RolecallError("a process of the HTTP server cannot start; see its log")
            logger.warning("http: process %d ended with status %s and is restarted", number, status)
            await asyncio.sleep(RESTART_SECONDS)

    async def _run_one(self, number: int) -> int:
        # A session of its own, so that Ctrl-C reaches only the parent, which then ends them in order.
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
