"""The files of the transcripts, for their only writer: each record once, in order, no torn line."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import tzinfo
from pathlib import Path, PurePosixPath

import msgspec

from rolecall.bus.turn import FORGET
from rolecall.transcripts.record import (
    Order,
    Record,
    conversation_dir,
    entry_order,
    format_line,
    parse_line,
    session_file,
)

OPEN_FILES = 64
SYNCS = 8
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
UNSAFE = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EMLINK, errno.ENODEV})
"""The errors of the system for a link, or anything else that is not a file, in place of a transcript."""
WINDOW = 64 * 1024


class LogEntry(msgspec.Struct, frozen=True):
    """A record and the file it belongs to: the conversation, and the start of the session in ms."""

    conversation: str
    session: int
    record: Record


class SessionLogs:
    """A target with one log for each session of a conversation: a file, or objects; see TranscriptTarget."""

    def __init__(self, tz: tzinfo | None, pause: float = 0.0) -> None:
        self.refused: list[str] = []
        """What was not written: paths that are not regular files, and records that have no line; the caller clears the
        list."""
        self.pause = pause
        self._tz = tz
        self._generation = 0
        """How many servers wrote here before: the entry ids of a new one may start over."""

    def write(self, entries: Iterable[LogEntry]) -> None:
        """Append the entries that the logs do not contain yet. Idempotent.

        ``entries`` of one conversation have rising ids. Raises OSError without leaving a torn line; call again with the
        same entries.
        """
        waiting: dict[PurePosixPath, list[Record]] = {}
        for entry in entries:
            if entry.record.word == FORGET:
                self._append_all(waiting)
                self._forget(conversation_dir(entry.conversation))
            elif (path := self._path(entry)) is not None:
                waiting.setdefault(path, []).append(entry.record)
        self._append_all(waiting)

    def _append_all(self, waiting: dict[PurePosixPath, list[Record]]) -> None:
        """Append the records to the logs of these paths, so that they are safe, and clear ``waiting``."""
        raise NotImplementedError

    def _forget(self, name: str) -> None:
        """Remove all logs of the conversation whose directory has this name."""
        raise NotImplementedError

    def _path(self, entry: LogEntry) -> PurePosixPath | None:
        """The log of an entry; None if it cannot be named."""
        try:
            return session_file(entry.conversation, entry.session, self._tz, self._generation)
        except (ValueError, OverflowError, TypeError) as error:  # the boundary: it must not stop the others
            self.refused.append(f"of record {entry.record.id}: {error}")
            return None

    def _line(self, record: Record) -> bytes:
        try:
            return f"{format_line(record, self._tz)}\n".encode()
        except (ValueError, OverflowError, TypeError) as error:
            self.refused.append(f"of record {record.id}: {error}")
            return b""


class TranscriptFiles(SessionLogs):
    """The files below ``log_dir/conversations``: directories 0700, files 0600. Links below it are never followed;
    ``log_dir`` itself may be one. Only one process may use a directory, and only one thread this object, at a time."""

    def __init__(self, log_dir: Path, tz: tzinfo | None = None) -> None:
        super().__init__(tz)
        self._log_dir = log_dir
        self._open: OrderedDict[PurePosixPath, _File] = OrderedDict()

    def begin(self, born: str) -> None:
        """Write for the server named ``born``. A new server gets new files: its entry ids may start over. Raises
        OSError."""
        self.close()
        with _root(self._log_dir) as root, closing(_File(root, ".scribe-born")) as noted:
            known = noted.text().split()
            if born not in known:
                noted.write(f"{born}\n".encode())
                noted.sync()
                known.append(born)
            self._generation = known.index(born)

    def close(self) -> None:
        """Close all files; the next write reopens them."""
        while self._open:
            self._open.popitem()[1].close()

    def _append_all(self, waiting: dict[PurePosixPath, list[Record]]) -> None:
        paths = list(waiting)
        for start in range(0, len(paths), OPEN_FILES):
            some = paths[start : start + OPEN_FILES]
            try:
                written = {path: file for path in some if (file := self._append(path, waiting[path]))}
                _sync(list(written.values()))
                self._stamp({path.parts[0] for path in written})
            except OSError:
                for path in some:
                    self._discard(path)
                raise
        waiting.clear()

    def _stamp(self, names: set[str]) -> None:
        """Set the times of the directories of these conversations, which tells readers that there is more to read."""
        if not names:
            return
        with _root(self._log_dir) as root, _below(root, "conversations") as conversations:
            for name in names:
                with suppress(FileNotFoundError):
                    os.utime(name, ns=(time.time_ns(), time.time_ns()), dir_fd=conversations, follow_symlinks=False)

    def _append(self, path: PurePosixPath, records: list[Record]) -> _File | None:
        """The file if something was appended that needs a sync."""
        try:
            file = self._file(path)
        except OSError as error:
            if error.errno not in UNSAFE:
                raise
            self.refused.append(str(path))
            return None
        fresh = [record for record in records if record.order > file.last]
        if not fresh:
            return None
        file.write(b"".join(map(self._line, fresh)))
        file.last = fresh[-1].order
        return file

    def _file(self, path: PurePosixPath) -> _File:
        """The open file of ``path``; one that was removed meanwhile is created again."""
        file = self._open.get(path)
        if file is not None and file.linked():
            self._open.move_to_end(path)
            return file
        self._discard(path)
        with _root(self._log_dir) as root, _below(root, "conversations", *path.parts[:-1]) as directory:
            file = self._open[path] = _File(directory, path.name)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def _discard(self, path: PurePosixPath) -> None:
        """Close the file and cut off what is not synced."""
        if path in self._open:
            file = self._open.pop(path)
            file.cut()
            file.close()

    def _forget(self, name: str) -> None:
        for path in [path for path in self._open if path.parts[0] == name]:
            self._discard(path)
        with _root(self._log_dir) as root, _below(root, "conversations") as conversations:
            try:
                shutil.rmtree(name, dir_fd=conversations)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno is not None and error.errno not in UNSAFE:
                    raise
                self.refused.append(name)
            os.fsync(conversations)


class _File:
    """One open file; a torn last line is cut off on opening. ``last`` is the order of its last record.

    The name of a new file needs no fsync of its directory: common file systems persist it with the file's own fsync.
    """

    def __init__(self, directory: int, name: str) -> None:
        self._fd = os.open(name, APPEND, 0o600, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.ENXIO, "not a regular file", name)
            self.last = self._repair()
            self._safe = os.fstat(self._fd).st_size
        except BaseException:
            os.close(self._fd)
            raise

    def linked(self) -> bool:
        """Whether the file still has a name."""
        return os.fstat(self._fd).st_nlink > 0

    def text(self) -> str:
        """The whole content."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0).decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """Append ``data``. Raises OSError, possibly after a part of it."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def sync(self) -> None:
        """Sync what was written to disk."""
        os.fsync(self._fd)
        self._safe = os.fstat(self._fd).st_size

    def cut(self) -> None:
        """Truncate the file to what is synced."""
        with suppress(OSError):  # the rest is repaired or recognised when the file is opened again
            os.ftruncate(self._fd, self._safe)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _repair(self) -> Order:
        size = os.fstat(self._fd).st_size
        window = WINDOW
        while True:
            start = max(0, size - window)
            tail = os.pread(self._fd, size - start, start)
            whole = tail[: tail.rfind(b"\n") + 1]
            last = _last_order(whole)
            if start == 0 or last is not None:
                if len(whole) < len(tail):
                    os.ftruncate(self._fd, start + len(whole))
                return last or (0, 0, 0)
            window *= 4


def _sync(files: list[_File]) -> None:
    """Sync all files in parallel, which the system combines into few disk writes. Raises the first OSError."""
    if len(files) == 1:
        files[0].sync()
    elif files:
        with ThreadPoolExecutor(min(len(files), SYNCS), thread_name_prefix="rolecall-sync") as pool:
            list(pool.map(_File.sync, files))


def _last_order(whole: bytes) -> Order | None:
    """The order of the last record in ``whole`` lines, the first of which may be incomplete."""
    for line in reversed(whole.split(b"\n")):
        record = parse_line(line.decode("utf-8", "replace"))
        if record is not None:
            return entry_order(record.id)
    return None


@contextmanager
def _root(log_dir: Path) -> Iterator[int]:
    log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = os.open(log_dir, DIRECTORY & ~os.O_NOFOLLOW)
    try:
        yield root
    finally:
        os.close(root)


@contextmanager
def _below(root: int, *names: str) -> Iterator[int]:
    """The directory ``names`` below ``root``, created where missing. Refuses links."""
    reached = os.dup(root)
    try:
        for name in names:
            upper, reached = reached, _step(reached, name)
            os.close(upper)
        yield reached
    finally:
        os.close(reached)


def _step(directory: int, name: str) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)
        return os.open(name, DIRECTORY, dir_fd=directory)
