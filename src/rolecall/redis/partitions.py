"""Partitions: the parts of a work, each held by one process at a time, in equal shares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from zlib import crc32

from rolecall.errors import ServerError
from rolecall.redis import clock, keys
from rolecall.redis.file_lock import FileLock, make_private
from rolecall.redis.leader import RENEWALS, name_of
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import Server

SHARE = script("rolecall.redis", "share", names="members owners member lasts count give dead")
logger = logging.getLogger(__name__)
PARTS = 32
LOOK_SECONDS = 1.0
"""How often a process looks whether one of its directory has died, and for parts that it lacks."""


class Partitions:
    """This process's share of the PARTS parts of the work ``name``.

    As with Leader, a part is held for ``seconds`` after each renewal, and this process judges its time by its own
    clock. When a process joins, the others hand parts over: they stop to use one at once, and give it up a third of
    ``seconds`` later, when whatever they had begun has ended. With ``directory``, a process that died is noticed by the
    others of that directory at once, because its file lock is free; otherwise its share expires.
    """

    def __init__(
        self, server: Server, name: str, process: str, *, seconds: float = 15, directory: Path | None = None
    ) -> None:
        self.name, self.parts = name, PARTS
        self.members = 1
        """How many processes share the work, this one included."""
        self._server, self._process, self._seconds = server, process, seconds
        self._directory = directory
        self._lock: FileLock | None = None
        self._member = ""
        self._tenures: dict[int, int] = {}
        self._numbers = count(1)
        self._leaving: dict[int, float] = {}
        self._most = PARTS
        self._renewed = float("-inf")

    def part(self, name: str) -> int:
        """The part that whatever has this ``name`` belongs to."""
        return crc32(name.encode()) % PARTS

    def tenure(self, part: int) -> int:
        """A number as long as this process holds ``part``, another one each time it gets it; 0 while it does not.
        Begin what two processes must not do at once only while it holds it, and finish it within a third of the
        lease."""
        if part in self._leaving or clock.seconds() - self._renewed >= self._seconds * 2 / 3:
            return 0
        return self._tenures.get(part, 0)

    @property
    def held(self) -> int:
        """How many parts this process holds."""
        return sum(self.tenure(part) > 0 for part in range(PARTS))

    async def run(self) -> None:
        """Take part until cancelled, then leave. While the server is unavailable, nobody holds anything for long."""
        try:
            while True:
                with suppress(ServerError, OSError):
                    await self.renew()
                await asyncio.sleep(min(LOOK_SECONDS, self._seconds / RENEWALS))
        finally:
            await self.leave()

    async def renew(self) -> None:
        """Renew the share if that is due, if a process died, or to take or give up parts. Raises ServerError, and
        OSError for a lock file."""
        asked = clock.seconds()
        if asked - self._renewed > self._seconds and self._tenures:  # others may have held them in between
            logger.warning("%s: this process could not renew its parts in time", self.name)
            self._tenures, self._leaving = {}, {}
            return
        given = [part for part, since in self._leaving.items() if asked - since >= self._seconds / 3]
        with self._dead() as dead:
            due = asked - self._renewed >= self._seconds / RENEWALS * 0.9
            if due or dead or given or len(self._tenures) < self._most:
                await self._share(asked, given, dead)

    async def leave(self) -> None:
        """Give up everything. Waits at most a second for the server."""
        member, self._member, self._tenures, self._leaving = self._member, "", {}, {}
        if member:
            with suppress(ServerError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._run(member, 0, [], [])
        if self._lock is not None:
            self._lock.drop()

    async def _share(self, asked: float, given: list[int], dead: list[str]) -> None:
        if not self._member:
            self._member = self._candidate()
        members, most, mine = await self._run(self._member, milliseconds(self._seconds), given, dead)
        self._renewed, self._most, self.members = asked, most, len(members)
        for part in given:
            del self._leaving[part]
        held = set(mine)
        self._tenures = {part: self._tenures.get(part) or next(self._numbers) for part in held}
        self._leaving = {part: since for part, since in self._leaving.items() if part in held}
        staying = [part for part in sorted(held) if part not in self._leaving]
        for part in staying[self._most :]:
            self._leaving[part] = asked

    async def _run(
        self, member: str, lasts: int, given: list[int], dead: list[str]
    ) -> tuple[list[bytes], int, list[int]]:
        members, most, mine = await self._server.run(
            SHARE, members=keys.partitions(self.name, "processes"), owners=keys.partitions(self.name, "owners"),
            member=member, lasts=lasts, count=PARTS, give=given, dead=dead,
        )  # fmt: skip
        return members, most, mine

    def _candidate(self) -> str:
        """The name by which this process shares: that of the first lock of its directory that is free, so that it
        succeeds a process that died at once."""
        if self._directory is None:
            return self._process
        make_private(self._directory)
        self._lock = next(
            lock for n in count(1) if (lock := FileLock(self._directory / f"{self.name}.{n}.lock")).take()
        )
        return name_of(self._lock)

    @contextmanager
    def _dead(self) -> Iterator[list[str]]:
        """The members of this directory that have died. Their locks are held meanwhile, so that no process can succeed
        them before they are removed."""
        locks: list[FileLock] = []
        paths = self._directory.glob(f"{self.name}.*.lock") if self._directory and self._most < PARTS else ()
        try:
            for path in paths:
                lock = FileLock(path)
                if (self._lock is None or path != self._lock.path) and lock.take():
                    locks.append(lock)
            yield [name_of(lock) for lock in locks]
        finally:
            for lock in locks:
                lock.path.unlink(missing_ok=True)
                lock.drop()
