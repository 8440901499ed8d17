"""The server of one local model: one engine per model and application directory, shared by all who ask."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rolecall.errors import ModelUnavailable
from rolecall.serving.locks import POLL_SECONDS, FileLock, make_private
from rolecall.serving.server import WAYS_OUT

START_SECONDS = 300
"""How long a model may take to load before its users are told that it does not."""


@dataclass(frozen=True)
class Engine:
    """A running engine: where it listens, the key it asks for, its process."""

    url: str
    api_key: str = field(repr=False)
    pid: int


@dataclass(frozen=True)
class Shape:
    """How an engine is started; all its users share the shape that the first of them gave it."""

    weights: Path
    slots: int
    context: int
    threads: int | None = None


class ModelServer:
    """One process's stake in the server of one model, whose locks and record lie in ``directory``.

    As long as this stake is held (from ``join`` to ``leave``, or to the end of the process) the engine stays.
    """

    def __init__(self, name: str, directory: Path, shape: Shape) -> None:
        self.name = name
        self.directory = directory.resolve()
        self.shape = shape
        self._start = FileLock(self.directory / "start.lock")
        self._users = FileLock(self.directory / "users.lock")
        self._record = self.directory / "server.json"
        self._log = self.directory / "engine.log"

    async def join(self) -> Engine:
        """The running engine; starts it when there is none. Not for two tasks at once.

        Raises ModelUnavailable with the reason in one line. Cancelled while the model loads, the engine goes
        on loading and ends by itself if nobody wants it.
        """
        try:
            make_private(self.directory)
            await self._start.wait()
            await self._users.wait(shared=True)
            return await self._ready()
        except OSError as error:
            raise ModelUnavailable(f"{self.name}: {self.directory} cannot be used: {error}") from None
        finally:
            self._start.drop()

    def leave(self) -> None:
        """Give up this stake. Idempotent. After the last one the engine ends within about a second."""
        self._users.drop()

    async def _ready(self) -> Engine:
        deadline = time.monotonic() + START_SECONDS
        child: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            alive = FileLock(self.directory / "alive.lock")
            if alive.take():
                if child:
                    alive.drop()
                    raise ModelUnavailable(await self._why(child))
                child = self._spawn(alive)
            elif engine := self._read_record():
                return engine
            await asyncio.sleep(POLL_SECONDS)
        raise ModelUnavailable(f"{self.name} was not loaded within {START_SECONDS} s: see {self._log}")

    def _spawn(self, alive: FileLock) -> subprocess.Popen[bytes]:
        """Start the engine and hand it the ``alive`` lock, which is thus held as long as it lives."""
        self._record.unlink(missing_ok=True)
        try:
            with self._log.open("wb") as log:
                child = subprocess.Popen(
                    # -P: nothing in the current directory may pass for a module of the standard library.
                    [sys.executable, "-P", str(Path(__file__).with_name("engine.py"))],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(alive.file,),
                    # A terminal's Ctrl-C is meant for the process in front, not for what others share.
                    start_new_session=True,
                )
        finally:
            alive.drop()
        # The thread keeps no process from ending and leaves no zombie, whenever the engine ends.
        threading.Thread(target=child.wait, name=f"reap {self.name}", daemon=True).start()
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin:
            child.stdin.write(self._orders())
        return child

    def _orders(self) -> bytes:
        orders = {
            "weights": str(self.shape.weights),
            "slots": self.shape.slots,
            "context": self.shape.context,
            "threads": self.shape.threads,
            "api_key": secrets.token_urlsafe(32),
            "record": str(self._record),
            "users_lock": str(self._users.path),
        }
        return json.dumps(orders).encode()

    def _read_record(self) -> Engine | None:
        """The live engine's record; whoever starts an engine has removed the one before it."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            record = json.loads(self._record.read_bytes())
            return Engine(record["url"], record["api_key"], record["pid"])
        return None

    async def _why(self, child: subprocess.Popen[bytes]) -> str:
        while (code := child.poll()) is None:
            await asyncio.sleep(POLL_SECONDS)
        if code == -signal.SIGILL:
            return f"{self.name}: this processor lacks what the model engine needs (AVX2 on x86-64); {WAYS_OUT}"
        if code < 0:
            return f"{self.name}: the model engine was killed while loading ({signal.Signals(-code).name})"
        reason = _reason(self._log.read_text(errors="replace").splitlines())
        ways_out = f"; {WAYS_OUT}" if reason.startswith("xllamacpp") else ""
        return f"{self.name} cannot be loaded: {reason} (all of it in {self._log}){ways_out}"


def _reason(lines: list[str]) -> str:
    """The first line llama.cpp marks as an error, else the last words."""
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    said = errors or [line for line in reversed(lines) if line.strip()] or ["it ended without a word"]
    return said[0].strip()[:300]
