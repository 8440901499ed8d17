"""Processes of model servers that nobody knows of any more, on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.serving.directory import Directory
from rolecall.serving.process import birth_of, lives, machine, memory_of, send
from rolecall.serving.server import ModelServer

if TYPE_CHECKING:
    import psutil

YOUNG_SECONDS = 15.0
"""A process that young may be one that is expected and has not said yet who it is."""
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Stray:
    """A process of an engine or its host: who it is (a pid alone may be another's later), what it runs, MB, seconds."""

    pid: int
    birth: str
    command: str
    ram: int
    age: float


async def find_strays(directory: Directory, logs: Path) -> list[Stray]:
    """The processes that write to the engines' logs in ``logs`` and belong to no known server. Needs psutil."""
    found = await asyncio.to_thread(_found, logs)
    # Read afterwards: whoever made itself known meanwhile is none.
    servers = await directory.servers(machine=machine())
    expected = any(one.owned and not one.host_pid for one in servers)
    unknown = await asyncio.to_thread(_unknown, found, _kept(servers))
    return [one for one in unknown if not (expected and one.age < YOUNG_SECONDS)]


async def end_stray(stray: Stray) -> bool:
    """End exactly that process, by force if it does not go; True once it is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        send(stray.pid, stray.birth, number)
        give_up = time.monotonic() + STOP_SECONDS
        while lives(stray.pid, stray.birth):
            if time.monotonic() > give_up:
                break
            await asyncio.sleep(0.02)
        else:
            return True
    return False


async def forget_dead(directory: Directory) -> list[ModelServer]:
    """Forget the servers of this machine whose processes are both gone; those forgotten."""
    dead = [one for one in await directory.servers(machine=machine()) if one.owned and one.host_pid and _dead(one)]
    return [one for one in dead if await directory.end(one.id)]


def _dead(server: ModelServer) -> bool:
    return not lives(server.host_pid, server.host_birth) and not lives(server.pid, server.birth)


def _kept(servers: Sequence[ModelServer]) -> dict[int, str]:
    pairs = [(one.pid, one.birth) for one in servers] + [(one.host_pid, one.host_birth) for one in servers]
    return {pid: birth for pid, birth in pairs if pid}


def _found(logs: Path) -> list[Stray]:
    import psutil

    logs, found = logs.resolve(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            birth = birth_of(process.pid)
            if birth and process.pid != os.getpid() and _writes_to(process, logs):
                command, age = " ".join(process.cmdline()), time.time() - process.create_time()
                found.append(Stray(process.pid, birth, command, memory_of(process.pid), age))
    return found


def _writes_to(process: psutil.Process, logs: Path) -> bool:
    """Whether its output is one of the logs. Only processes of this user tell."""
    return any(Path(file.path).parent == logs for file in process.open_files())


def _unknown(found: list[Stray], known: dict[int, str]) -> list[Stray]:
    """Those that are no known process and have none among their parents."""
    import psutil

    unknown = []
    for stray in found:
        with suppress(psutil.Error):
            family = [stray.pid, *(parent.pid for parent in psutil.Process(stray.pid).parents())]
            if not any(pid in known and birth_of(pid) == known[pid] for pid in family):
                unknown.append(stray)
    return unknown
