"""The processes of one HTTP server: started, started again when one ends, and ended together."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import Sequence

from rolecall.errors import RolecallError
from rolecall.frontends.http.server import DRAIN_SECONDS

logger = logging.getLogger(__name__)
STEADY_SECONDS = 5.0
"""A process that ends sooner than this could not start."""
TRIES = 3
AGAIN_SECONDS = 0.5


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
