"""Processes of this machine, identified by pid and start time: a pid by itself may have been reused."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.serving.directory import Directory
from rolecall.serving.spec import ModelServer

if TYPE_CHECKING:
    import psutil

YOUNG_SECONDS = 15.0
"""A younger process may be an expected server that has not registered yet."""
STOP_SECONDS = 5.0


@cache
def machine() -> str:
    """An id of this boot and these namespaces: within it, pids and loopback addresses mean the same."""
    parts, node = [socket.gethostname()], uuid.getnode()
    if not node >> 40 & 1:  # set where there is no network card: a random number, another one in each process
        parts.append(str(node))
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid", "/proc/self/ns/net"):
        with suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def birth_of(pid: int) -> str:
    """The exact start time of the process as an opaque string; empty if it does not run or is a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _birth_by_psutil(pid)


def lives(pid: int, birth: str) -> bool:
    """True if the process ``pid`` that started at ``birth`` still runs."""
    return bool(pid and birth) and birth_of(pid) == birth


def send(pid: int, birth: str, number: signal.Signals) -> bool:
    """Signal exactly this process. False if it is gone, even when its pid was reused."""
    with suppress(ProcessLookupError, PermissionError):
        if not (pid and birth):
            return False
        if not hasattr(os, "pidfd_open"):
            if lives(pid, birth):
                os.kill(pid, number)
                return True
            return False
        # Open before comparing: the handle keeps referring to the same process.
        handle = os.pidfd_open(pid)
        try:
            if lives(pid, birth):
                signal.pidfd_send_signal(handle, number)
                return True
        finally:
            os.close(handle)
    return False


def memory_of(pid: int) -> int:
    """Resident MB of the process and its children; 0 if it is gone. Needs psutil."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total // 1_000_000


def ports_of(pid: int) -> list[int]:
    """The TCP ports the process and its children listen on, lowest first. Needs psutil."""
    import psutil

    found: set[int] = set()
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                connections = process.net_connections(kind="tcp")
                found |= {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN and one.laddr}
    return sorted(found)


def _birth_by_psutil(pid: int) -> str:
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return repr(process.create_time())
    return ""


@dataclass(frozen=True)
class Stray:
    """A process of an engine or its host that no server owns; ``ram`` in MB, ``age`` in seconds."""

    pid: int
    birth: str
    command: str
    ram: int
    age: float


async def find_strays(directory: Directory, logs: Path) -> list[Stray]:
    """The processes that write to engine logs in ``logs`` but belong to no known server. Needs psutil."""
    found = await asyncio.to_thread(_found, logs)
    # Read last: a process that registered in the meantime is not a stray.
    servers = await directory.servers(machine=machine())
    expected = any(one.owned and not one.host_pid for one in servers)
    unknown = await asyncio.to_thread(_unknown, found, _kept(servers))
    return [one for one in unknown if not (expected and one.age < YOUNG_SECONDS)]


async def end_stray(stray: Stray) -> bool:
    """Terminate exactly that process, with SIGKILL if SIGTERM fails. True once it is gone."""
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
    """Forget the servers of this machine whose two processes are both gone, and return them."""
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
                age = _age_of(birth) or time.time() - process.create_time()
                found.append(Stray(process.pid, birth, " ".join(process.cmdline()), memory_of(process.pid), age))
    return found


def _age_of(birth: str) -> float:
    """Seconds since ``birth``, whatever the clock was set to meanwhile; 0 where it is not counted from the boot."""
    if not (birth.isdigit() and hasattr(time, "CLOCK_BOOTTIME")):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(birth) / os.sysconf("SC_CLK_TCK")


def _writes_to(process: psutil.Process, logs: Path) -> bool:
    """True if the process has a log in ``logs`` open. Works only for processes of this user."""
    return any(Path(file.path).parent == logs for file in process.open_files())


def _unknown(found: list[Stray], known: dict[int, str]) -> list[Stray]:
    """The processes that neither are known nor descend from a known one."""
    import psutil

    unknown = []
    for stray in found:
        with suppress(psutil.Error):
            family = [stray.pid, *(parent.pid for parent in psutil.Process(stray.pid).parents())]
            if not any(pid in known and birth_of(pid) == known[pid] for pid in family):
                unknown.append(stray)
    return unknown
