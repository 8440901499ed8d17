"""The only writer of transcripts: reads the log streams, appends to the files, then deletes what it read."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import secrets
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from datetime import tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any

from rolecall.background import uninterrupted
from rolecall.bus.leases import create_group
from rolecall.bus.turn import FORGET
from rolecall.errors import ServerError, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.keys import GROUP
from rolecall.redis.leader import RENEWALS, Leader
from rolecall.redis.outage import UNREACHABLE
from rolecall.redis.server import BLOCK_MS, Reader, RedisServer, field_map, pairs
from rolecall.transcripts.files import LogEntry, TranscriptFiles
from rolecall.transcripts.object_storage import StorageUnavailable
from rolecall.transcripts.record import Record, entry_order
from rolecall.transcripts.targets import TranscriptTarget
from rolecall.transcripts.words import WORDS

CONSUMER = "scribe"
"""The same for every scribe, so that a successor finds as its own what its predecessor read but did not write."""
COUNT = 200
MAX_COUNT = 3200
"""Entries per read when idle, and at most while there is a backlog: one fsync then serves more lines."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
LONGEST_WAIT = 5.0
STEP = "rolecall scribe step"
NUMBER = re.compile(rb"\d{1,15}")
Batch = list[tuple[bytes, list[bytes], list[LogEntry]]]
"""Stream, ids of its entries, and the entries that are records."""
logger = logging.getLogger(__name__)


class Scribe:
    """Writes the transcripts to all ``targets``, by default below ``log_dir``, or stands by while another process does.

    It is the leader of the election ``scribe``. A directory among the targets makes that exclusive by the lock file
    ``log_dir/.scribe``: one process at a time uses the directory, however long it is frozen, and one directory at a
    time gets the records. Every record is in its file and in its object once, whatever is killed and when. Only a
    record caught between write and deletion while the lead passes to another directory is in both directories. A target
    that takes nothing holds the others up; the records wait on the server.
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
        targets: Sequence[TranscriptTarget] | None = None,
    ) -> None:
        self.server = server
        self.log_dir = log_dir
        self.process = process
        self.writing = False
        """Whether this process writes now, rather than standing by."""
        self._streams = [shard.log for shard in keys.all_shards(shards, clustered=server.topology.sharded)]
        self._targets: list[TranscriptTarget] = [TranscriptFiles(log_dir, tz)] if targets is None else [*targets]
        lock = log_dir / ".scribe" if any(isinstance(target, TranscriptFiles) for target in self._targets) else None
        self._leader = Leader(server, "scribe", process, seconds=lease_seconds, lock=lock, exclusive=lock is not None)
        self._lease_seconds = lease_seconds
        self.problem = ""
        """What keeps it from writing; empty if nothing does."""
        self._reader: Reader | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Write, or stand by, until cancelled or stopped. Survives an unavailable server and a full disk."""
        try:
            while not self._stopped.is_set():
                try:
                    await self._serve()
                except Exception as error:  # the boundary: no record may end the writing of all others
                    if not isinstance(error, ServerError | OSError):
                        logger.error("the scribe failed and starts again", exc_info=error)
                    self._report(_explained(error, self.log_dir))
                self.writing = False
                await self._pause(self._lease_seconds / 4 if not self.problem else 0.5)
        finally:
            await self._leave()

    async def stop(self) -> None:
        """Make ``run`` return once the records that are there are written and acknowledged."""
        self._stopped.set()
        if self._reader is not None:
            await self._reader.wake()

    async def _serve(self) -> None:
        """Write for as long as this process leads."""
        if not await self._leader.renew():
            return
        await self._prepare()
        self.writing = True
        pause = min(max(target.pause for target in self._targets), self._lease_seconds / RENEWALS)
        start, count = "0", COUNT  # first what this consumer read before, then what is new
        while await self._leader.renew():
            ending = self._stopped.is_set()
            batch = await self._read(start, count, wait=start == ">" and not ending)
            self._report_recovery()
            full = max((len(ids) for _, ids, _ in batch), default=0) >= count
            if batch and not await self._write(batch):
                return
            await self._remove(batch)
            if ending and start == ">" and not full:
                return
            if not batch:
                start, count = ">", COUNT
            else:
                count = min(count * 2, MAX_COUNT) if full or pause else COUNT
                if pause and not full:
                    await self._pause(pause)

    async def _prepare(self) -> None:
        await self.server.call("HSETNX", keys.META, "born", secrets.token_hex(6))
        born = await self.server.call("HGET", keys.META, "born")
        for target in self._targets:
            await uninterrupted(asyncio.to_thread(target.begin, born.decode()), STEP)
        for stream in self._streams:
            await create_group(self.server, stream)

    async def _leave(self) -> None:
        self.writing = False
        for target in self._targets:
            target.close()
        if self._reader is not None:
            await self._reader.aclose()
            self._reader = None
        await self._leader.resign()

    async def _read(self, start: str, count: int, *, wait: bool) -> Batch:
        if self._reader is None:
            self._reader = self.server.reader()
        block = int(min(BLOCK_MS, self._lease_seconds * 1000 / 3))
        reply = await uninterrupted(
            self._reader.read(
                "XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", count, *(("BLOCK", block) if wait else ()),
                "STREAMS", *self._streams, *[start] * len(self._streams),
            ),
            STEP, self._reader.wake,
        )  # fmt: skip
        return [(name, [entry[0] for entry in found], list(_entries(found))) for name, found in reply or () if found]

    async def _write(self, batch: Batch) -> bool:
        """Write until it succeeds; False when this process lost the lead or has to stop."""
        entries = [entry for _, _, of_stream in batch for entry in of_stream]
        wait, left = 0.1, [*self._targets]
        while await self._leader.renew():
            try:
                while left:
                    await uninterrupted(asyncio.to_thread(left[0].write, entries), STEP)
                    left.pop(0)
            except OSError as error:
                self._report(_explained(error, self.log_dir))
            else:
                self._report_recovery()
                return True
            await self._pause(wait)
            if self._stopped.is_set():
                return False
            wait = min(wait * 2, LONGEST_WAIT)
        return False

    async def _remove(self, batch: Batch) -> None:
        """Delete, then acknowledge: after a crash in between, the consumer's history only shows an entry without
        fields."""
        commands: list[Awaitable[Any]] = []
        for stream, ids, _ in batch:
            commands.append(self.server.call("XDEL", stream, *ids))
            commands.append(self.server.call("XACK", stream, GROUP, *ids))
        await asyncio.gather(*commands)

    def _report(self, problem: str) -> None:
        """Report a problem once, until it is over or another one takes its place."""
        if problem == self.problem:
            return
        self.problem = problem
        logger.warning("%s", problem)

    def _report_recovery(self) -> None:
        for target in self._targets:
            for path in target.refused:
                logger.warning("transcript %s: not written, this is no file or record of Rolecall's", path)
            target.refused.clear()
        if self.problem:
            logger.info("transcripts are written again by %s", self.process)
            self.problem = ""

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


def _explained(error: Exception, log_dir: Path) -> str:
    if isinstance(error, StorageUnavailable):
        return f"transcripts cannot be written to {error}; records wait on the server"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"no space for transcripts in {log_dir} ({error.strerror}): records wait on the server; free some"
    if isinstance(error, OSError) and error.errno is not None:
        place = "" if error.filename is None else f": {error.filename}"
        return f"transcripts cannot be written: {error.strerror}{place}; records wait on the server"
    if isinstance(error, ServerUnavailable) and not error.code:
        return f"transcripts wait for the server: {UNREACHABLE}"  # in different words at each try
    return f"transcripts wait for the server: {error}"


def _entries(found: Sequence[tuple[bytes, Sequence[bytes] | None]]) -> Iterator[LogEntry]:
    """The records among the entries of one stream. An entry without fields was written and deleted earlier."""
    for entry_id, flat in found:
        values = field_map(flat)
        if b"c" in values:
            try:
                yield from list(_records(entry_id.decode(), flat or ()))
            except Exception:  # the boundary: the others in the stream are written all the same
                logger.exception("log entry %s cannot be read and is skipped", entry_id.decode())
        elif values:
            logger.warning("log entry %s has no conversation and is skipped", entry_id.decode())


def _records(entry_id: str, flat: Sequence[bytes]) -> Iterator[LogEntry]:
    """The records of an entry: for each turn what its records have in common, then the records."""
    fields = list(pairs(flat))
    found = list(_packed(fields) if any(name == b"r" for name, _ in fields) else _spread(fields))
    for number, values in enumerate(found):
        yield _entry(f"{entry_id}.{number:02d}" if number else entry_id, values)


def _packed(fields: Sequence[tuple[bytes, bytes]]) -> Iterator[dict[bytes, bytes]]:
    common = dict[bytes, bytes]()
    for name, value in fields:
        if name == b"r":
            yield {**common, **dict(zip((b"ms", b"d", b"i", b"w", b"x"), value.split(b"\x1f", 4), strict=False))}
        else:
            common[name] = value


def _spread(fields: Sequence[tuple[bytes, bytes]]) -> Iterator[dict[bytes, bytes]]:
    """As versions up to 0.1 write them: the fields of each record of one turn in turn, from ``ms`` on."""
    starts = [at for at, (name, _) in enumerate(fields) if name == b"ms"] or [len(fields)]
    for start, end in pairwise([*starts, len(fields)]):
        yield dict([*fields[: starts[0]], *fields[start:end]])


def _entry(record_id: str, values: dict[bytes, bytes]) -> LogEntry:
    """A record with an unknown word becomes a NOTE: no record is lost because of its form."""

    def text(name: bytes) -> str:
        return values.get(name, b"").decode("utf-8", "surrogateescape")

    def number(name: bytes, missing: int) -> int:
        value = values.get(name, b"")
        return int(value) if NUMBER.fullmatch(value) else missing

    now, word, words = entry_order(record_id)[0], text(b"w"), text(b"x")
    if word not in WORDS and word != FORGET:
        word, words = "NOTE", f"{word}: {words}"
    record = Record(
        ms=number(b"ms", now),
        since=number(b"d", 0),
        turn=text(b"t"),
        instance=text(b"i"),
        word=word,
        text=words,
        id=record_id,
    )
    return LogEntry(text(b"c"), number(b"s", now), record)
