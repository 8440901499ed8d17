"""Launches model servers on demand: exactly one engine per model and machine, shared by all processes, with every call
counted in Redis."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from rolecall.background import BackgroundTasks
from rolecall.errors import ConfigError, MissingExtra, ModelUnavailable, ServerError
from rolecall.redis import keys
from rolecall.redis.file_lock import make_private
from rolecall.redis.server import RedisServer
from rolecall.serving import footprint
from rolecall.serving.directory import CALL_SECONDS, RESIDENT_SECONDS, USER_SECONDS, Claim, Directory
from rolecall.serving.process import birth_of, lives, machine, send
from rolecall.serving.spec import ModelServer, Spec

logger = logging.getLogger(__name__)
START_SECONDS = 300.0
"""How long a model may take to load before its callers get an error."""
LEAVE_SECONDS = 3.0
"""How long the last process waits for the engines to exit."""
EAGER_SECONDS = 5.0
"""After this, poll less often for the model."""
HUNGRY_SECONDS = 5.0
"""After waiting this long for memory, busy models are unloaded too, once they have answered."""


class Launcher:
    """Starts and uses the model servers registered in ``server``, for the process ``process``.

    ``logs`` is the directory of the engines' logs; ``limit`` is MB of memory for all model servers of this machine
    together, None for all it has; ``patience`` is seconds to wait for memory for a model; a loaded model stays for at
    least ``resident`` seconds. Safe for concurrent tasks of one event loop; not shared between loops or threads.
    """

    def __init__(
        self,
        server: RedisServer,
        process: str,
        logs: Path,
        *,
        limit: int | None = None,
        patience: float = 60.0,
        resident: float = RESIDENT_SECONDS,
    ) -> None:
        self.directory = Directory(server, resident=resident)
        self.machine = machine()
        self.user = f"{self.machine}/{process}~{secrets.token_hex(4)}"
        self._redis = server.url
        self._logs = logs
        self._limit = limit
        self._patience = patience
        self._ensuring: dict[str, asyncio.Task[ModelServer]] = {}
        self._needing: asyncio.Task[None] | None = None
        self._started: dict[str, tuple[int, str]] = {}
        self._tasks = BackgroundTasks()

    async def ensure(self, spec: Spec) -> ModelServer:
        """Return the ready server of ``spec``. If there is none, exactly one of all callers starts it.

        Raises ModelUnavailable with the reason in one line; a failed start is not repeated for some seconds. If the
        caller is cancelled, the engine continues to load.
        """
        task = self._ensuring.get(spec.id)
        if task is None:
            task = self._ensuring[spec.id] = asyncio.create_task(self._ensured(spec), name=f"ensure {spec.model}")
            task.add_done_callback(lambda done: self._over(spec.id, done))
        return await asyncio.shield(task)

    @asynccontextmanager
    async def calling(self, spec: Spec) -> AsyncIterator[ModelServer]:
        """Hold a call at the ready server of ``spec`` (see ``ensure``). Until it ends, the server counts as busy and
        stays, unless this process dies or the server is told to unload."""
        call = secrets.token_hex(6)
        server = await self._entered(spec, call)
        holding = asyncio.create_task(self._hold(server.id, call), name=f"hold {spec.model}")
        try:
            yield server
        finally:
            holding.cancel()
            self._later(self.directory.leave(server.id, call))

    async def suspect(self, server: ModelServer) -> bool:
        """Check a ``server`` that did not answer, and forget it if its process is gone. True if it no longer exists."""
        if server.machine == self.machine and not lives(server.pid, server.birth):
            await self.directory.end(server.id)
            return True
        return all(one.id != server.id for one in await self.directory.servers())

    async def aclose(self) -> None:
        """Stop needing models. Idempotent. The last process of a machine waits until its engines have exited."""
        for task in (*self._ensuring.values(), *([self._needing] if self._needing else [])):
            task.cancel()
            await asyncio.wait([task])
        await self._tasks.drain()
        if self._needing is not None:
            self._needing = None
            with suppress(ServerError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    if not await self.directory.needed_by(self.user, still=False):
                        await self._gone()

    # ── one server per model ────────────────────────────────────────────────────────────────────

    async def _ensured(self, spec: Spec) -> ModelServer:
        self.need()
        wanted = self._wanted(spec)
        begun = time.monotonic()
        hungry: float | None = None
        while True:
            waited = time.monotonic() - hungry if hungry else 0.0
            claim = await self.directory.claim(wanted, self.user, self._room(), hungry=waited > HUNGRY_SECONDS)
            if claim.server and await self._is_there(claim.server) and claim.word == "READY":
                return claim.server
            passed = time.monotonic() - begun
            if claim.word == "START":
                try:
                    self._start(spec, wanted)
                except OSError as error:  # a directory that cannot be written, a full disk, no more processes
                    why = f"{error.strerror}: {error.filename}" if error.filename else str(error)
                    await self.directory.end(wanted.id, f"{spec.model}: its server cannot be started: {why}")
            hungry = (hungry or time.monotonic()) if claim.word == "FULL" else None
            self._give_up(spec, wanted, claim, passed, waited)
            await asyncio.sleep(0.03 if passed < EAGER_SECONDS else 0.2)

    def _give_up(self, spec: Spec, wanted: ModelServer, claim: Claim, passed: float, waited: float) -> None:
        if claim.word == "FAILED":
            raise ModelUnavailable(claim.why)
        if claim.word == "NEVER" or (claim.word == "FULL" and waited > self._patience):
            raise ModelUnavailable(_no_room(spec, wanted, claim))
        if passed > START_SECONDS:
            raise ModelUnavailable(f"{spec.model} was not loaded within {START_SECONDS:g} s: see {self._log(spec)}")

    async def _is_there(self, server: ModelServer) -> bool:
        """True if the server's process runs; otherwise free its place."""
        if server.machine != self.machine or not server.host_pid:
            return True
        if lives(server.host_pid, server.host_birth) and lives(server.pid, server.birth):
            return True
        if not lives(server.host_pid, server.host_birth):  # else it is about to say itself what became of its engine
            await self.directory.end(server.id)
        return False

    async def _entered(self, spec: Spec, call: str) -> ModelServer:
        self.need()
        while True:
            try:
                server = await self.directory.enter(spec, self.machine, call)
            except asyncio.CancelledError:  # it may have begun at any of them
                self._later(self._left(spec, call))
                raise
            if isinstance(server, ModelServer):
                if await self._is_there(server):
                    return server
                await self.directory.leave(server.id, call)
            await self.ensure(spec)

    async def _left(self, spec: Spec, call: str) -> None:
        for server in await self.directory.servers(spec, machine=self.machine):
            await self.directory.leave(server.id, call)

    def _wanted(self, spec: Spec) -> ModelServer:
        return ModelServer(
            id=secrets.token_hex(8),
            model=spec.model,
            spec=spec.id,
            machine=self.machine,
            host=socket.gethostname(),
            key=secrets.token_urlsafe(32),
            alias=spec.alias,
            slots=spec.slots,
            ram=_estimated(spec),
            pinned=spec.pinned,
        )

    def _room(self) -> footprint.Room:
        try:
            return footprint.room(self._limit)
        except ImportError:
            raise ConfigError(str(MissingExtra("local", "a model on this machine"))) from None

    def _start(self, spec: Spec, wanted: ModelServer) -> None:
        """Start the host, which starts the engine. It outlives the process that started it."""
        log = self._log(spec)
        make_private(log.parent)
        orders = {"server": wanted, "spec": spec, "redis": self._redis, "prefix": keys.prefix(), "log": str(log)}
        with log.open("wb") as file:
            child = subprocess.Popen(
                # -P: a file in the current directory must not shadow a module of the standard library.
                [sys.executable, "-P", str(Path(__file__).with_name("host.py")), spec.model],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                # Ctrl-C in a terminal must not reach an engine that other processes share.
                start_new_session=True,
            )
        self._started = {wanted.id: (child.pid, birth_of(child.pid)), **dict([*self._started.items()][:7])}
        # A daemon thread reaps the host without keeping this process alive.
        threading.Thread(target=child.wait, name=f"reap {spec.model}", daemon=True).start()
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin:
            child.stdin.write(msgspec.json.encode(orders))
        logger.info("%s: its server is being started, host process %d", spec.model, child.pid)

    def _log(self, spec: Spec) -> Path:
        name = "".join(c if c.isalnum() or c in ".-_" else "_" for c in Path(spec.model.rpartition("@")[0]).name)
        return self._logs / f"{name[:40]}-{spec.id[:6]}.log"

    def _over(self, spec_id: str, task: asyncio.Task[ModelServer]) -> None:
        self._ensuring.pop(spec_id, None)
        if not task.cancelled():
            task.exception()  # every caller has it; if all were cancelled, nobody wants it

    # ── being there ─────────────────────────────────────────────────────────────────────────────

    def need(self) -> None:
        """Say, until ``aclose``, that this process may need models: what others load on this machine stays loaded."""
        if self._needing is None:
            self._needing = asyncio.create_task(self._go_on_needing(), name="need model servers")

    async def _go_on_needing(self) -> None:
        while True:
            with suppress(ServerError, TimeoutError):
                await self.directory.needed_by(self.user)
            await asyncio.sleep(USER_SECONDS / 4)

    async def _hold(self, server: str, call: str) -> None:
        while True:
            await asyncio.sleep(CALL_SECONDS / 3)
            with suppress(ServerError, TimeoutError):
                await self.directory.hold(server, call)

    async def _gone(self) -> None:
        """Tell the hosts of this machine to exit, and wait for them."""
        for server in await self.directory.servers(machine=self.machine):
            # A starting host has not registered its pid yet; the process that started it knows.
            who = (server.host_pid, server.host_birth) if server.host_pid else self._started.get(server.id, (0, ""))
            if server.owned and (not send(*who, signal.SIGTERM) or not server.host_pid):
                await self.directory.end(server.id)
        while any(server.owned for server in await self.directory.servers(machine=self.machine)):
            await asyncio.sleep(0.02)

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.start(work, "model call over")


def _estimated(spec: Spec) -> int:
    if found := footprint.estimate(spec):
        return found
    raise ModelUnavailable(
        f"{spec.model}: its memory needs are unknown: set ram=MB on its server, or name a .gguf file that is "
        "there in its command"
    )


def _no_room(spec: Spec, wanted: ModelServer, claim: Claim) -> str:
    return (
        f"{spec.model} needs about {wanted.ram} MB of memory; model servers here may take {claim.most} MB and those "
        f"that cannot leave take {claim.used} MB. Lower LOCAL_SLOTS or LOCAL_CONTEXT, choose a smaller model, or raise "
        "LOCAL_RAM"
    )
