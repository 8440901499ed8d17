"""Leader election: one process at a time writes the transcripts, delivers for a bot, watches model servers."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import re
import secrets
from contextlib import suppress
from pathlib import Path

from rolecall.errors import ServerError
from rolecall.redis import clock, keys
from rolecall.redis.file_lock import FileLock, make_private
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import Server

LEASE = script("rolecall.redis", "lease", names="lease token lasts")
EXTEND = script("rolecall.redis", "extend", names="holds member lasts")
logger = logging.getLogger(__name__)
RENEWALS = 4
"""How often a leader renews within ``seconds``."""
RETRY_SECONDS = 1.0
"""How often a standby tries to become the leader, at least."""


async def extend(server: Server, holds: str, member: str, seconds: float) -> bool:
    """Extend the hold that ``member`` has in the sorted set ``holds`` to ``seconds`` from now by the server's clock.
    False if it has none."""
    return bool(await server.run(EXTEND, holds=holds, member=member, lasts=milliseconds(seconds)))


class Leader:
    """A candidate in the election ``name``; it holds the lead for ``seconds`` after each renewal.

    The holder judges its time by this machine's clock from before each renewal, so it always stops earlier than the
    server thinks. With ``lock``, a file in some directory, the lead belongs to the directory: the process that holds
    the file lock speaks for it, so processes of one directory replace each other at once. All others wait until the
    lead has expired. With ``exclusive`` a process without the file lock is no candidate at all. ``key`` is that of the
    lease, if it is not the application's own. Candidates of the same ``together`` hold the lead together until the last
    of them has ended and it expires."""

    def __init__(
        self,
        server: Server,
        name: str,
        process: str,
        *,
        seconds: float = 15,
        lock: Path | None = None,
        exclusive: bool = False,
        key: str = "",
        together: str = "",
    ) -> None:
        self.name = name
        self._key = key or keys.lease(name)
        self._server = server
        self._process = process
        self._seconds = seconds
        self._lock = None if lock is None else FileLock(lock)
        self._exclusive = exclusive
        self._together = together
        self._token = ""
        self._renewed = 0.0
        self._changed = asyncio.Condition()

    @property
    def held(self) -> bool:
        """Whether this process holds the lead for at least another third of its time. Begin what two processes must
        not do at once only while this is true, and finish it within that third."""
        return bool(self._token) and clock.seconds() - self._renewed < self._seconds * 2 / 3

    async def run(self) -> None:
        """Take the lead whenever it is free, keep it until cancelled, then resign. While the server is unavailable
        nobody leads."""
        try:
            while True:
                with suppress(ServerError, OSError):
                    await self.renew()
                async with self._changed:
                    self._changed.notify_all()
                await asyncio.sleep(min(self._seconds / RENEWALS, self._seconds if self._token else RETRY_SECONDS))
        finally:
            await self.resign()

    async def wait(self, *, held: bool = True) -> None:
        """Return once this process leads, or with ``held`` False once it does not. Needs ``run``."""
        async with self._changed:
            while self.held is not held:
                with suppress(TimeoutError):  # the lead may expire without a notification
                    async with asyncio.timeout(self._seconds / RENEWALS):
                        await self._changed.wait()

    async def renew(self) -> bool:
        """Take the lead if it is free, or keep it; whether this process leads now. Asks the server only when a renewal
        is due. Raises ServerError, and OSError for the lock file."""
        asked = clock.seconds()
        if self._token and asked - self._renewed < self._seconds / RENEWALS * 0.9:
            return True
        if self._token and asked - self._renewed > self._seconds:  # another process may have led in between
            logger.warning("%s: this process could not renew its lead in time", self.name)
            self._token = ""
            return False
        token = self._token or self._candidate()
        lasts = milliseconds(self._seconds)
        try:
            elected = token and await self._server.run(LEASE, lease=self._key, token=token, lasts=lasts)
        except asyncio.CancelledError:  # it may have been elected: ``resign`` gives that up
            self._token = token
            raise
        led, self._token = self._token, token if elected else ""
        if elected:
            self._renewed = asked
        if led and not elected:
            logger.warning("%s: another process took the lead", self.name)
        elif elected and not led:
            logger.info("%s: this process leads", self.name)
        return bool(elected)

    async def resign(self) -> None:
        """Give up the lead and the file lock. Waits at most a second for the server."""
        token, self._token = self._token, ""
        if token and not self._together:
            with suppress(ServerError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._server.run(LEASE, lease=self._key, token=token, lasts=0)
        if self._lock is not None:
            self._lock.drop()

    def _candidate(self) -> str:
        """The name this process is elected by; empty when it is no candidate."""
        if self._together:
            return self._together
        if self._lock is not None:
            make_private(self._lock.path.parent)
            if self._lock.take():
                return name_of(self._lock)
        return "" if self._exclusive else self._process


def name_of(lock: FileLock) -> str:
    """How the holder of ``lock`` is called in an election: this host, and the random name that the file holds."""
    name = os.pread(lock.file, 64, 0).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        name = secrets.token_hex(8)
        os.ftruncate(lock.file, 0)
        os.pwrite(lock.file, name.encode(), 0)
    return f"{platform.node()}:{name}"
