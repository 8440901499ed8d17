"""Servers of the tests' own: a unix socket in a directory of its own, ended by its process id."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from rolecall.redis.embedded import ALLOCATOR, find_binary


def server_binary(kind: str) -> Path:
    """The server of that kind, ``valkey`` (the bundled one) or ``redis`` (of this machine). Skips the test where this
    machine has no Redis 7."""
    if kind == "valkey":
        return find_binary()
    found = shutil.which("redis-server")
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    version = re.search(r"Redis server v=(\d+)", said)
    if found is None or version is None or int(version[1]) < 7:
        pytest.skip("no Redis 7 on this machine: apt install redis-server")
    return Path(found)


class ValkeyProcess:
    """A server, by default the bundled one; with ``durable`` it keeps its data over ``kill`` and ``start``. The
    directory's path must be short, for it holds the socket. ROLECALL_SERVER names another server than the
    bundled one. With ``port`` it also listens there on 127.0.0.1.
    ``environment`` is added to this process's environment and to ALLOCATOR."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        durable: bool = False,
        binary: Path | None = None,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port
        self._binary = binary or Path(os.environ.get("ROLECALL_SERVER") or find_binary())
        self.socket = directory / "s"
        self.url = f"unix://{self.socket}"
        self._environment = environment or {}
        self._options = ("--appendonly", "yes" if durable else "no", *options)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready: bool = True) -> None:
        """Start it and wait until it takes commands; without ``ready`` until it answers, be it that it does not."""
        self._process = subprocess.Popen(
            [
                str(self._binary), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
                "--save", "", "--dir", str(self.directory), *self._options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ALLOCATOR, **self._environment},
        )  # fmt: skip
        give_up = time.monotonic() + 20
        while not self._answers(b"+PONG" if ready else b""):
            assert self._process.poll() is None, "the server ended at its start"
            assert time.monotonic() < give_up, "the server did not start"
            time.sleep(0.005)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop it where it stands; ``kill`` still works."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self, wanted: bytes) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(wanted)
            except OSError:
                return False
