"""Locks between processes of one machine, by flock: a dead process holds none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from rolecall.errors import ConfigError

POLL_SECONDS = 0.02


class FileLock:
    """One hold on the lock file at ``path``, shared or exclusive; it ends with this process at the latest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def file(self) -> int:
        """The open file, for a child process that inherits the lock. Only valid while the lock is held."""
        assert self._file is not None
        return self._file

    def take(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free, without waiting; True when it is held, also from an earlier call.

        Raises ConfigError where the system has no file locks, OSError when the file cannot be opened.
        """
        if self._file is not None:
            return True
        try:
            import fcntl  # absent on Windows, where this module must still import
        except ImportError:
            raise ConfigError("this system has no file locks: Rolecall needs Linux or macOS for this") from None
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._file = file
        return True

    async def wait(self) -> None:
        """Take the lock, waiting as long as it needs; safe to cancel."""
        # Polling: a thread blocked in flock could not be cancelled and would keep the process from ending.
        while not self.take():
            await asyncio.sleep(POLL_SECONDS)

    def drop(self) -> None:
        """Release the lock. Idempotent. A child that inherited the file keeps holding it."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def make_private(directory: Path) -> None:
    """Create ``directory`` and its parents where missing, accessible by this user only. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
