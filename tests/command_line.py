"""Processes of Python that start at once: verbs of the command line, and modules such as a worker of a chaos run.

A Python takes half a second to import the command line, and the tests start some hundred. So each test process has a
server that has imported it, and one that has imported what it stands on, and these fork: the fork gets the caller's
arguments, environment, directory and files, runs the verb or the module as Python does and ends like any Python.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from runpy import run_module
from typing import IO, ClassVar

ROLECALL = Path(sys.executable).with_name("rolecall")
VERBS, MODULES = "verbs", "modules"
IMPORTED = {
    VERBS: (
        "rolecall.cli.main",
        "rolecall.cli.talk",
        "rolecall.cli.top",
        "rolecall.agent.agent",
        "pydantic.type_adapter",
        "uvloop",
        "rich.live",
        "rich.table",
    ),
    # Nothing of Rolecall itself: a module may change it before it is imported.
    MODULES: ("redis.asyncio", "typer", "pydantic_settings", "pydantic.type_adapter", "msgspec", "uvloop", "asyncio"),
}
MODEL_SDK, HTTP = ("openai", "aiohttp"), ("rolecall.frontends.http.app", "rolecall.worker.runtime", "uvicorn")
IMPORTED_BY_VERB = {
    "setup": MODEL_SDK,
    "check": MODEL_SDK,
    "models": MODEL_SDK,
    "up": HTTP,
    "http": HTTP,
    "tools": ("mcp.server.lowlevel", "mcp.server.streamable_http_manager", "uvicorn"),
}
"""Imported before the first of these verbs is forked."""
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
    if needs_own_python(environment):
        return subprocess.run(
            command, env=environment, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=seconds
        )
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        fork = Fork(VERBS, command, environment, cwd, (given, out, err))
        try:
            status = fork.wait(seconds)
        except subprocess.TimeoutExpired:
            fork.kill()
            raise subprocess.TimeoutExpired(command, seconds) from None
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, status, out.read().decode(), err.read().decode())


def start_verb(arguments: Sequence[str | Path], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]) -> Fork:
    """``rolecall`` as ``call`` has it, for a verb that goes on."""
    with open(os.devnull, "rb") as nothing:
        return Fork(VERBS, [str(ROLECALL), *map(str, arguments)], environment, None, (nothing, out, err))


def open_verb(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> Piped:
    """``rolecall`` as ``call`` has it, for a verb that is spoken to."""
    return Piped(VERBS, [str(ROLECALL), *map(str, arguments)], environment)


def start_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, log: IO[bytes]
) -> Fork:
    """``python -m module`` with nothing but ``environment`` set; what it says goes to ``log``. Of what a Python reads
    from its environment when it starts, only PYTHONPATH counts."""
    with open(os.devnull, "rb") as nothing:
        return Fork(MODULES, [module, *arguments], environment, cwd, (nothing, log, log))


def open_module(module: str, *arguments: str | Path) -> Piped:
    """``python -m module`` in this environment, to be spoken to."""
    return Piped(MODULES, [module, *map(str, arguments)], os.environ)


class Fork:
    """A process that was forked and goes on, as subprocess.Popen would show it. ``files`` are its standard ones."""

    def __init__(
        self,
        kind: str,
        command: list[str],
        environment: Mapping[str, str],
        cwd: Path | None,
        files: Sequence[IO[bytes]],
    ) -> None:
        self._server = _Server.of_this_process(kind)
        self.pid = self._server.start(command, dict(environment), str(cwd or Path.cwd()), files)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status once it has ended, negative for a signal."""
        if self.returncode is None:
            self.returncode = self._server.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """The exit status. Raises TimeoutExpired."""
        give_up = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Piped(Fork):
    """A fork whose standard input and output are pipes of text. ``communicate`` closes them."""

    def __init__(self, kind: str, command: list[str], environment: Mapping[str, str]) -> None:
        given, stdin = os.pipe()
        stdout, said = os.pipe()
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # communicate closes it
        with open(given, "rb") as from_here, open(said, "wb") as to_here:
            super().__init__(kind, command, environment, None, (from_here, to_here, self._stderr))

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """End its input and wait for its end: what it said since, and all that it complained about. Idempotent."""
        self.stdin.close()
        said = complaint = ""
        if not self.stdout.closed:
            said = self.stdout.read()
            self.wait(timeout)
            self._stderr.seek(0)
            complaint = self._stderr.read().decode()
        self.stdout.close()
        self._stderr.close()
        return said, complaint


def needs_own_python(environment: Mapping[str, str]) -> bool:
    """Whether ``environment`` has what a Python reads once, when it starts."""
    return any(
        not value.upper().endswith("UTF-8")
        if name.startswith(("LANG", "LC_"))
        else name.startswith(("PYTHON", "LD_", "COLUMNS", "LINES"))
        for name, value in environment.items()
    )


class _Server:
    """The process that forks, as the tests see it. It ends with the test process, whose socket then closes."""

    _known: ClassVar[dict[str, _Server]] = {}

    def __init__(self, kind: str) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), kind],
                env={name: os.environ[name] for name in KEPT if name in os.environ},
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self._end)

    @classmethod
    def of_this_process(cls, kind: str) -> _Server:
        if kind not in cls._known:
            cls._known[kind] = cls(kind)
        return cls._known[kind]

    def start(self, command: list[str], environment: dict[str, str], cwd: str, files: Sequence[IO[bytes]]) -> int:
        """Fork; returns the process id."""
        request = json.dumps([command, environment, cwd]).encode()
        return int(self._asked(request, [file.fileno() for file in files]))

    def poll(self, pid: int) -> int | None:
        """The exit status of a fork that has ended."""
        answer = self._asked(b"%d" % pid)
        return int(answer) if answer else None

    def _asked(self, request: bytes, files: Sequence[int] = ()) -> bytes:
        with self._lock:  # threads of a test share it
            socket.send_fds(self._socket, [request], files)
            return self._socket.recv(64).strip()

    def _end(self) -> None:
        self._socket.close()
        self._process.wait(10)


def serve(requests: socket.socket) -> list[str] | None:
    """Fork, or say what became of a fork, for each request until their sender is gone. Returns twice: None here, the
    command to run in a fork. A fork whose standard input is a terminal belongs to that terminal."""
    while True:
        request, files, _flags, _address = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            return None
        if not files:
            ended, status = os.waitpid(int(request), os.WNOHANG)
            requests.send(str(os.waitstatus_to_exitcode(status)).encode() if ended else b" ")
            continue
        command, environment, cwd = json.loads(request)
        for verb in command[1:2] if command[0] == str(ROLECALL) else ():
            _import(IMPORTED_BY_VERB.get(verb, ()))
        pid = os.fork()
        if not pid:
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            requests.close()
            if os.isatty(0):
                os.login_tty(0)
            _open_standard_files()
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            time.tzset()
            return list(command)
        for file in files:
            os.close(file)
        requests.send(str(pid).encode())


def _open_standard_files() -> None:
    """As Python does when it starts: whether a file is a terminal, or can be sought, is asked once."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before, buffering = getattr(sys, name), 1 if name == "stderr" else -1
        made = open(number, before.mode, buffering, before.encoding, before.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, made)


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)
    gc.freeze()  # else each fork visits all of these objects when it ends, and copies their pages


def main(descriptor: str, kind: str) -> None:
    """Serve as one of the two servers; in a fork, run what was asked for. A fork may start itself again."""
    sys.path[0] = str(ROLECALL.parent)  # as for the console script
    run = import_module("rolecall.cli").main if kind == VERBS else None
    if run is not None:
        import_module("rolecall.settings").Settings.model_rebuild()
    _import(IMPORTED[kind])
    command = serve(socket.socket(fileno=int(descriptor)))
    if command and run is not None:
        sys.argv, sys.orig_argv = command, [sys.executable, *command]
        run()
    elif command:
        sys.path[:1] = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        sys.argv[1:], sys.orig_argv = command[1:], [sys.executable, "-m", *command]
        run_module(command[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
