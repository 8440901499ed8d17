"""A named lease: of all processes one at a time has it, such as the one that delivers for a front end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rolecall.errors import ConfigError, ServerError
from rolecall.redis import keys
from rolecall.redis.server import Server

logger = logging.getLogger(__name__)
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine sleeps: on Linux the monotonic one does not."""
RENEWALS = 4
"""How often in its time a lease is renewed."""
LOOK_SECONDS = 1.0
"""How often those who wait see whether it is free."""
POLL_SECONDS = 0.02


class Lease:
    """Takes the lease ``name`` when it is free and keeps it while ``run`` runs.

    It is judged by this machine's clock from the moment a renewal was asked for, so this side always thinks it shorter
    than the server does. With ``lock``, a file, processes of one directory take over from each other at once: whoever
    has the lock on it goes by the directory's name, and a dead process has no locks. Others wait until the lease ran
    out, ``seconds`` after its last renewal.
    """

    def __init__(
        self, server: Server, name: str, process: str, *, seconds: float = 15, lock: Path | None = None
    ) -> None:
        self.name = name
        self._server = server
        self._process = process
        self._seconds = seconds
        self._lock_file = lock
        self._lock: int | None = None
        self._directory = ""
        self._token = ""
        self._renewed = 0.0
        self._changed = asyncio.Condition()

    @property
    def held(self) -> bool:
        """Whether this process has the lease for at least a third of its time. What may not be done by two at once is
        begun only then, and does not last longer than that."""
        return bool(self._token) and _now() - self._renewed < self._seconds * 2 / 3

    async def run(self) -> None:
        """Take the lease and keep it, until cancelled; then give it up. While the server is away nobody has it."""
        try:
            while True:
                with suppress(ServerError):
                    await self._renew()
                await self._tell()
                await asyncio.sleep(min(self._seconds / RENEWALS, self._seconds if self._token else LOOK_SECONDS))
        finally:
            await self._give_up()

    async def wait(self, *, held: bool = True) -> None:
        """Return once this process has the lease, or with ``held`` False once it has not."""
        async with self._changed:
            while self.held is not held:
                with suppress(TimeoutError):  # it may run out without a word
                    async with asyncio.timeout(self._seconds / RENEWALS):
                        await self._changed.wait()

    async def _renew(self) -> None:
        asked = _now()
        if self._token and asked - self._renewed > self._seconds:  # it may have been another's in between
            logger.warning("lease %s: this process could not renew it in time", self.name)
            self._token = ""
            return
        token = self._token or self._own_name()
        if await self._server.run("lease", [keys.lease(self.name)], [token, round(self._seconds * 1000)]):
            if not self._token:
                logger.info("lease %s: this process has it", self.name)
            self._token, self._renewed = token, asked
        else:
            if self._token:
                logger.warning("lease %s: another process took it over", self.name)
            self._token = ""

    def _own_name(self) -> str:
        """The directory's name for whoever has its lock, else the process's."""
        if self._lock is None and (self._lock_file is None or not self._locked(self._lock_file)):
            return self._process
        return self._directory

    def _locked(self, path: Path) -> bool:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock, self._directory = lock, _directory_name(lock)
        return True

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _give_up(self) -> None:
        token, self._token = self._token, ""
        if token:
            with suppress(ServerError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._server.run("lease", [keys.lease(self.name)], [token, 0])
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _now() -> float:
    return time.clock_gettime(CLOCK)


def _directory_name(lock: int) -> str:
    """A random name, kept in the lock file."""
    name = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        name = secrets.token_hex(8)
        os.ftruncate(lock, 0)
        os.pwrite(lock, name.encode(), 0)
    return name


class FileLock:
    """One hold on the lock file at ``path``, shared or exclusive; it ends with this process at the latest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def file(self) -> int:
        """The open file, for a child that is to hold this lock as well. Only while held."""
        assert self._file is not None
        return self._file

    def take(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody stands in the way, without waiting; True when it is held, also from before.

        Raises ConfigError where this system has no such locks, OSError when the file cannot be opened.
        """
        if self._file is not None:
            return True
        flock, how = _flock(shared)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(file, how)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    async def wait(self, *, shared: bool = False) -> None:
        """Take the lock, waiting as long as it needs; safe to cancel."""
        # Polling: a thread blocked in flock could not be cancelled and would keep the process from ending.
        while not self.take(shared=shared):
            await asyncio.sleep(POLL_SECONDS)

    def drop(self) -> None:
        """Let go. Idempotent. A child that inherited the file goes on holding the lock."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def make_private(directory: Path) -> None:
    """Make ``directory``, for this user alone, where it is missing. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _flock(shared: bool) -> tuple[Callable[[int, int], None], int]:
    try:
        import fcntl
    except ImportError:
        raise ConfigError("models on this machine need Linux or macOS: this system has no file locks") from None
    return fcntl.flock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
