"""The one writer of transcripts: reads the log streams, appends to the files, and only then deletes what it read."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import platform
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from datetime import tzinfo
from pathlib import Path
from typing import Any, TypeVar

from rolecall.bus.turn import FORGET
from rolecall.errors import ServerError, ServerRefused
from rolecall.redis import keys
from rolecall.redis.keys import GROUP, ShardKeys
from rolecall.redis.server import BLOCK_MS, BlockingReader, RedisServer, field_map
from rolecall.transcripts.files import Entry, TranscriptFiles
from rolecall.transcripts.record import WORDS, Record, entry_order

CONSUMER = "scribe"
"""The same for every scribe, so that a successor finds as its own what its predecessor had read and not yet written."""
COUNT = 200
MOST = 3200
"""Entries per read at rest, and at most while there is a backlog: one fsync serves more lines."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
LONGEST_WAIT = 5.0
NUMBER = re.compile(rb"\d{1,15}")
T = TypeVar("T")
Batch = list[tuple[bytes, list[bytes], list[Entry]]]
"""Stream, ids of its entries, and those of them that are records."""
log = logging.getLogger(__name__)


class Scribe:
    """Writes the transcripts below ``log_dir``, or stands by while another does.

    A flock on ``log_dir/.scribe`` lets one process at a time use the directory, however long it is frozen; a lease
    on the server lets one directory at a time have the records. The lease is in the directory's name, so a successor
    in the same directory goes on at once. Every record is in its file once, whatever is killed and when; only a
    record caught between write and deletion, as the lease goes to another directory, is in both directories.
    """

    def __init__(
        self,
        server: RedisServer,
        shards: int,
        log_dir: Path,
        *,
        process: str,
        tz: tzinfo | None = None,
        lease_seconds: float = 15,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self.server = server
        self.log_dir = log_dir
        self.process = process
        self.writing = False
        """Whether this is the one that writes."""
        self._streams = [ShardKeys(number).log for number in range(shards)]
        self._files = TranscriptFiles(log_dir, tz)
        self._lease_seconds = lease_seconds
        self._on_problem = on_problem
        self._problem = ""
        self._reader: BlockingReader | None = None
        self._lock: int | None = None
        self._token = ""
        self._renew_at = 0.0
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Write, or stand by, until cancelled or stopped. Server away, disk full: it waits and goes on."""
        try:
            while not self._stopped.is_set():
                try:
                    await self._serve()
                except (ServerError, OSError) as error:
                    self._report(_explained(error, self.log_dir))
                self.writing = False
                await self._pause(self._lease_seconds / 4 if not self._problem else 0.5)
        finally:
            await self._leave()

    async def stop(self) -> None:
        """Let ``run`` return once what is in hand is done, which takes as long as the server takes to answer."""
        self._stopped.set()
        if self._reader is not None:
            await self._reader.wake()

    # ── being the one ───────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> None:
        """Write for as long as this is the scribe; returns when it is not."""
        if not (self._locked() and await self._elected()):
            return
        await self._prepare()
        self.writing = True
        start, count = "0", COUNT  # own history first, then what is new
        while not self._stopped.is_set() and await self._elected():
            batch = await self._read(start, count)
            self._recovered()
            if not batch:
                start, count = ">", COUNT
            elif not await self._write(batch):
                return
            else:
                await self._remove(batch)
                full = max(len(ids) for _, ids, _ in batch) >= count
                count = min(count * 2, MOST) if full else COUNT

    def _locked(self) -> bool:
        """Whether this process has the directory; takes it if it is free."""
        if self._lock is None:
            self.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.log_dir / ".scribe", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._token = f"{platform.node()}:{_directory_name(lock)}"
            except OSError as error:
                os.close(lock)
                if not isinstance(error, BlockingIOError):
                    raise
                return False
            self._lock = lock
        return True

    async def _elected(self) -> bool:
        """Whether this directory has the lease, renewed if a quarter of it has passed."""
        now = time.monotonic()
        if now < self._renew_at:
            return True
        milliseconds = int(self._lease_seconds * 1000)
        held = await self.server.run("lease", [keys.lease("scribe")], [self._token, milliseconds])
        self._renew_at = now + self._lease_seconds / 4 if held else 0.0
        return bool(held)

    async def _prepare(self) -> None:
        await self.server.call("HSETNX", keys.META, "born", secrets.token_hex(6))
        born = await self.server.call("HGET", keys.META, "born")
        await _finished(asyncio.to_thread(self._files.begin, born.decode()))
        for stream in self._streams:
            with suppress(ServerRefused):  # BUSYGROUP: it is there; anything else shows at the first read
                await self.server.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")

    async def _leave(self) -> None:
        self.writing = False
        self._files.close()
        if self._renew_at:
            with suppress(ServerError):
                await asyncio.wait_for(self.server.run("lease", [keys.lease("scribe")], [self._token, 0]), 1)
        if self._reader is not None:
            await self._reader.aclose()
        if self._lock is not None:
            os.close(self._lock)
        self._lock, self._reader, self._renew_at = None, None, 0.0

    # ── the work ────────────────────────────────────────────────────────────────────────────────

    async def _read(self, start: str, count: int) -> Batch:
        # One read over all shards. On a cluster they lie on several servers, which takes a reader for each.
        if self._reader is None:
            self._reader = self.server.reader()
        block = int(min(BLOCK_MS, self._lease_seconds * 250))
        reply = await _finished(
            self._reader.read(
                "XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", count, "BLOCK", block,
                "STREAMS", *self._streams, *[start] * len(self._streams),
            ),
            self._reader.wake,
        )  # fmt: skip
        return [(name, [entry[0] for entry in found], list(_entries(found))) for name, found in reply or () if found]

    async def _write(self, batch: Batch) -> bool:
        """Write until it succeeds; False when this is the scribe no more, or is to stop."""
        entries = [entry for _, _, of_stream in batch for entry in of_stream]
        wait = 0.1
        while await self._elected():
            try:
                await _finished(asyncio.to_thread(self._files.write, entries))
            except OSError as error:
                self._report(_explained(error, self.log_dir))
            else:
                self._recovered()
                return True
            await self._pause(wait)
            if self._stopped.is_set():
                return False
            wait = min(wait * 2, LONGEST_WAIT)
        return False

    async def _remove(self, batch: Batch) -> None:
        """Delete, then acknowledge: cut off between the two, history shows an entry without fields, and no more."""
        commands: list[Awaitable[Any]] = []
        for stream, ids, _ in batch:
            commands.append(self.server.call("XDEL", stream, *ids))
            commands.append(self.server.call("XACK", stream, GROUP, *ids))
        await asyncio.gather(*commands)

    # ── telling ─────────────────────────────────────────────────────────────────────────────────

    def _report(self, problem: str) -> None:
        """Say a problem once, until it is over or another one takes its place."""
        if problem == self._problem:
            return
        self._problem = problem
        log.warning("%s", problem)
        if self._on_problem is not None:
            self._on_problem(problem)

    def _recovered(self) -> None:
        for path in self._files.refused:
            log.warning("transcript %s: not written, something else but a file of ours is there", path)
        self._files.refused.clear()
        if self._problem:
            log.info("transcripts are written again by %s", self.process)
            self._problem = ""

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


def _explained(error: Exception, log_dir: Path) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space for transcripts in {log_dir} ({error.strerror}): records wait on the server; free some"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"transcripts cannot be written: {error.strerror}: {error.filename}; records wait on the server"
    return f"transcripts wait for the server: {error}"


def _directory_name(lock: int) -> str:
    """A random name for the directory, kept in its lock file: the directory is what holds the lease."""
    name = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        name = secrets.token_hex(8)
        os.ftruncate(lock, 0)
        os.pwrite(lock, name.encode(), 0)
    return name


def _entries(found: Sequence[tuple[bytes, Sequence[bytes] | None]]) -> Iterator[Entry]:
    """The records among the entries of one stream. An entry without fields was written and deleted before."""
    for entry_id, fields in found:
        values = field_map(fields)
        if b"c" in values:
            yield _entry(entry_id.decode(), values)
        elif values:
            log.warning("log entry %s names no conversation; it is left out", entry_id.decode())


def _entry(entry_id: str, values: dict[bytes, bytes]) -> Entry:
    """Whatever is in it becomes a line, if need be as a NOTE: a record is never lost to its form."""

    def text(name: bytes) -> str:
        return values.get(name, b"").decode("utf-8", "surrogateescape")

    def number(name: bytes, missing: int) -> int:
        value = values.get(name, b"")
        return int(value) if NUMBER.fullmatch(value) else missing

    now, word, words = entry_order(entry_id)[0], text(b"w"), text(b"x")
    if word not in WORDS and word != FORGET:
        word, words = "NOTE", f"{word}: {words}"
    record = Record(
        ms=number(b"ms", now),
        since=number(b"d", 0),
        turn=text(b"t"),
        instance=text(b"i"),
        word=word,
        text=words,
        id=entry_id,
    )
    return Entry(text(b"c"), number(b"s", now), record)


async def _finished(work: Coroutine[Any, Any, T], wake: Callable[[], Awaitable[None]] | None = None) -> T:
    """The result of ``work``, which is never cut off: cancelled, this ends it by ``wake``, waits, and passes that on.

    A write must not outlive the lock on the directory, nor an answer stay unread on the reader's connection.
    """
    task = asyncio.create_task(work, name="rolecall scribe step")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if wake is not None:
            await wake()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
