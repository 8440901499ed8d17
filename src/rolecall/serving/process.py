"""Processes of this machine by who they are: a pid and a birth, for a pid alone may be another's by now."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """Where pids and loopback addresses mean the same as here: this boot, these namespaces."""
    parts = [socket.gethostname(), str(uuid.getnode())]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid", "/proc/self/ns/net"):
        with suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def birth_of(pid: int) -> str:
    """When the process began, in a form that says so exactly and for good; empty where none runs. A zombie does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _birth_by_psutil(pid)


def lives(pid: int, birth: str) -> bool:
    """Whether this very process runs."""
    return bool(pid and birth) and birth_of(pid) == birth


def send(pid: int, birth: str, number: signal.Signals) -> bool:
    """Send this very process a signal; False when it is gone, whoever has its pid now."""
    with suppress(ProcessLookupError, PermissionError):
        if not (pid and birth):
            return False
        if not hasattr(os, "pidfd_open"):
            if lives(pid, birth):
                os.kill(pid, number)
                return True
            return False
        # Opened first and compared then: from here on it cannot become another.
        handle = os.pidfd_open(pid)
        try:
            if lives(pid, birth):
                signal.pidfd_send_signal(handle, number)
                return True
        finally:
            os.close(handle)
    return False


def memory_of(pid: int) -> int:
    """MB resident of the process and its children; 0 where it is gone. Needs psutil."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total // 1_000_000


def ports_of(pid: int) -> list[int]:
    """The TCP ports the process and its children listen at, lowest first. Needs psutil."""
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
