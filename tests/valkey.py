"""A server of the tests' own: a unix socket in a directory of its own, ended by its process id."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from rolecall.redis.embedded import find_binary


class ValkeyProcess:
    """The bundled server; with ``durable`` it keeps its data over ``kill`` and ``start``. The directory's path must be
    short, for it holds the socket."""

    def __init__(self, directory: Path, *options: str, durable: bool = False) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.url = f"unix://{self.socket}"
        self._options = ("--appendonly", "yes" if durable else "no", *options)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes commands."""
        self._process = subprocess.Popen(
            [
                str(find_binary()), "--port", "0", "--unixsocket", str(self.socket), "--save", "",
                "--dir", str(self.directory), *self._options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        give_up = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, "the server ended at its start"
            assert time.monotonic() < give_up, "the server did not start"
            time.sleep(0.005)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
            except OSError:
                return False
