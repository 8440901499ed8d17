"""The command line in processes of its own that start at once.

A Python takes half a second to import the command line, and the tests call it some hundred times. So each test process
has one server that has imported it and forks: the fork gets the caller's arguments, environment, directory and files,
runs the verb as the console script does and ends like any Python.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO

ROLECALL = Path(sys.executable).with_name("rolecall")
IMPORTED = ("rolecall.cli.main", "rolecall.cli.talk", "rolecall.agent.agent", "pydantic.type_adapter")
KEPT = ("PATH", "HOME", "TMPDIR")


def call(
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    cwd: Path | None = None,
    *,
    stdin: str = "",
    seconds: float = 60,
) -> subprocess.CompletedProcess[str]:
    """``rolecall`` with nothing but ``environment`` set. Raises TimeoutExpired after ``seconds``."""
    command = [str(ROLECALL), *map(str, arguments)]
    if any(_read_at_start(name, value) for name, value in environment.items()):
        return subprocess.run(
            command, env=environment, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=seconds
        )
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        server, files = _Server.of_this_process(), (given, out, err)
        status = server.run(command, dict(environment), str(cwd or Path.cwd()), files, seconds)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, status, out.read().decode(), err.read().decode())


def _read_at_start(name: str, value: str) -> bool:
    """Whether a Python reads this variable once, when it starts: with it a verb gets a Python of its own."""
    if name.startswith(("LANG", "LC_")):
        return not value.upper().endswith("UTF-8")
    return name.startswith(("PYTHON", "LD_", "COLUMNS", "LINES"))


class _Server:
    """The process that forks, as the tests see it. It ends with the test process, whose socket then closes."""

    _known: _Server | None = None

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={name: os.environ[name] for name in KEPT if name in os.environ},
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self._end)

    @classmethod
    def of_this_process(cls) -> _Server:
        if cls._known is None:
            cls._known = cls()
        return cls._known

    def run(
        self, command: list[str], environment: dict[str, str], cwd: str, files: Sequence[IO[bytes]], seconds: float
    ) -> int:
        """The exit status, negative for a signal. Raises TimeoutExpired after ``seconds``, when it has killed it."""
        self._socket.settimeout(seconds)
        request = json.dumps([command, environment, cwd]).encode()
        socket.send_fds(self._socket, [request], [file.fileno() for file in files])
        pid = int(self._socket.recv(64))
        try:
            return int(self._socket.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self._socket.recv(64)
            raise subprocess.TimeoutExpired(command, seconds) from None

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(10)


def serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request until its sender is gone. Returns twice: None here, the command to run in a fork."""
    for module in IMPORTED:
        import_module(module)
    while True:
        request, files, _flags, _address = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            return None
        pid = os.fork()
        if not pid:
            command, environment, cwd = json.loads(request)
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            requests.close()
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            time.tzset()
            return list(command)
        for file in files:
            os.close(file)
        requests.send(str(pid).encode())
        requests.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


if __name__ == "__main__":
    sys.path[0] = str(ROLECALL.parent)  # as for the console script
    from rolecall.cli import main

    if command := serve(socket.socket(fileno=int(sys.argv[1]))):
        sys.argv = command
        main()
