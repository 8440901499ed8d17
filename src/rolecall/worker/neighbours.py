"""The worker processes of one host watch each other: each holds a file lock that dies with it, so that the turns of one
that was killed are taken over at once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rolecall.bus.bus import Bus
from rolecall.bus.maintenance import abandon
from rolecall.errors import ConfigError, ServerError
from rolecall.redis import keys
from rolecall.redis.file_lock import FileLock, make_private

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5


class Neighbours:
    """Holds this process's lock in ``directory``, and looks for those whose holders are gone. What such a process held
    is released, and ``released`` is called: this process may take it over.

    Only processes with the host name of this one are judged, as file locks may not reach other hosts. Without a usable
    directory, leases run out instead.
    """

    def __init__(
        self, directory: Path, bus: Bus, address: str, roles: Callable[[], Iterable[str]], released: Callable[[], None]
    ) -> None:
        self._directory = directory
        self._bus = bus
        self._roles = roles
        self._released = released
        self._deployment = hashlib.sha256(f"{address} {keys.META}".encode()).hexdigest()[:8]
        self._host = bus.process.partition(":")[0]
        self._lock = FileLock(self._path(bus.process))

    def hold(self) -> bool:
        """Take this process's lock; False where there can be none."""
        with suppress(OSError, ConfigError):
            make_private(self._directory)
            if self._lock.take():
                return True
        logger.info("%s: no file locks; the turns of a process that dies wait for its leases", self._directory)
        return False

    async def run(self) -> None:
        """Look for dead neighbours until cancelled, then leave."""
        if not self.hold():
            return
        try:
            while True:
                for process in list(self._others()):
                    await self._look(process)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._leave(self._lock)

    async def _look(self, process: str) -> None:
        lock = FileLock(self._path(process))
        try:
            if not lock.take():
                return
            found = [await abandon(self._bus, shard, list(self._roles()), process) for shard in self._bus.shards]
        except (ServerError, OSError, ConfigError) as error:  # the next look tries again
            logger.debug("%s: %s", process, error)
            return lock.drop()
        if total := sum(found):
            logger.warning("%s died; the %d turns it worked on are taken over", process, total)
            self._released()
        self._leave(lock)

    def _leave(self, lock: FileLock) -> None:
        with suppress(OSError):
            lock.path.unlink(missing_ok=True)
        lock.drop()

    def _others(self) -> Iterator[str]:
        """The other processes of this host and deployment that have a lock file."""
        with suppress(OSError):
            for path in self._directory.glob(f"{self._deployment}.*.lock"):
                process = path.name.removeprefix(f"{self._deployment}.").removesuffix(".lock")
                if process.partition(":")[0] == self._host and process != self._bus.process:
                    yield process

    def _path(self, process: str) -> Path:
        return self._directory / f"{self._deployment}.{process}.lock"
