"""Looking at the processes behind model servers, and a process that uses one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from rolecall.errors import ModelUnavailable
from rolecall.serving.spec import Spec
from rolecall.serving.weights import default_cache, ensure_weights
from tests.command_line import open_module

LONG = bool(os.environ.get("ROLECALL_SERVING_PROOF"))
"""Whether the long forms run, and say what they measured."""
PROCESSES = 4 if LONG else 2
STUB = str(Path(__file__).with_name("stub_engine.py"))


def measured(what: str, seconds: float) -> None:
    """Said where it is asked for."""
    if LONG:
        print(f"{what}: {seconds:.3f} s")


def stub(name: str, *, delay: float = 0.0, port: str = "0", ram: int = 100, slots: int = 2, idle: float = 0) -> Spec:
    """A model ``name@local`` whose engine is a command, ready after ``delay`` seconds, that cannot speak."""
    return Spec(f"{name}@local", command=(sys.executable, STUB, str(delay), port), ram=ram, slots=slots, idle=idle)


def weights() -> Path:
    """The small model's file; a test that needs it is skipped where it cannot be had."""
    try:
        return asyncio.run(ensure_weights("smollm2", default_cache()))
    except ModelUnavailable as error:
        pytest.skip(str(error))


def tiny(path: Path, name: str = "tiny", *, slots: int = 2, **more: object) -> Spec:
    """The small model as ``name@local``."""
    return Spec(f"{name}@local", str(path), slots=slots, context=512, threads=1, **more)  # type: ignore[arg-type]


def running(directory: Path, program: str = "engine.py") -> set[int]:
    """The pids of ``program`` (engine.py or host.py) that write to a log in ``directory``; zombies are none."""
    found = set()
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if any(part.endswith(f"serving/{program}") for part in command) and str(directory) in os.readlink(
                f"/proc/{process.pid}/fd/2"
            ):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def zombies() -> list[int]:
    """Dead children of this process that nobody has waited for."""
    return [one.pid for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE]


class User:
    """A process of its own that ensures models as it is told on stdin."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = open_module("tests.serving.serving_user", *arguments)

    async def ensure(self, name: str = "tiny", times: int = 1) -> None:
        """Have it ask for ``name`` so many times at once."""
        self.process.stdin.write(f"{name} {times}\n")
        self.process.stdin.flush()

    async def said(self) -> list[str]:
        """What it says next: ``ready <pids and urls, each once>``, or ``failed <errors>``."""
        return (await asyncio.to_thread(self.process.stdout.readline)).split()

    async def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        await asyncio.to_thread(self.process.communicate)


@asynccontextmanager
async def users(count: int, url: str, logs: Path, file: Path, prefix: str = "") -> AsyncIterator[list[User]]:
    """So many of them, with ``prefix`` before all keys, killed at the end if they still live."""
    made = [User(url, logs, file, prefix) for _ in range(count)]
    try:
        for user in made:
            assert await user.said() == ["here"]
        yield made
    finally:
        for user in made:
            await user.kill()
