"""A lock held by an open file: whoever holds it dies with it, so it can never be stale."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
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
