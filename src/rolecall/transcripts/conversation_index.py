"""An index of the conversations below a log directory, so that no list and no search has to read every transcript.

A SQLite file that any number of processes share. The scribe sets the time of a conversation's directory whenever it
writes to it, so one look at the directories tells which conversations have to be read again.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import tzinfo
from pathlib import Path

from rolecall.transcripts.reading import Filters, Summary
from rolecall.transcripts.record import Record, format_line, identity, read_records, visible, words_of
from rolecall.transcripts.words import FAILURES

logger = logging.getLogger(__name__)
VERSION = 3
"""Of the tables."""
TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, stamp INTEGER, conversation TEXT, title TEXT, named TEXT, first INTEGER,
    last INTEGER, turns INTEGER, errors INTEGER, failed INTEGER, line TEXT);
CREATE INDEX IF NOT EXISTS by_last ON conversations (last);
CREATE VIRTUAL TABLE IF NOT EXISTS said USING fts5 (text, words, tokenize = 'trigram');
"""
ROW = "conversation, title, name, first, last, turns, errors, line"
SHORTEST_WORD = 3
"""Of the text that is searched for: the index knows pieces of three characters. Shorter ones are searched by reading
the texts that it holds."""
TITLED = "title is "
"""How the record begins that tells a title which a user gave."""
MERGED_PAGES = 250
"""Of the pieces that are tidied up in one transaction: others read and write the index in between."""
AT_ONCE = 100
"""Conversations that are read in one transaction."""
BUSY_SECONDS = 10.0
Unread = tuple[str, int]
"""The name and the time of a directory."""


class Summaries:
    """The summaries of the conversations below ``log_dir``. The index is kept in ``path``, or in memory without one or
    where it cannot be written. Thread-safe."""

    def __init__(self, log_dir: Path, tz: tzinfo | None = None, path: Path | None = None) -> None:
        self._log_dir, self._tz = log_dir, tz
        self._lock = threading.Lock()
        self._database = _opened(path, f"{log_dir.resolve()} {tz}")

    def close(self) -> None:
        """Close the index."""
        with self._lock:
            self._database.close()

    def find(self, filters: Filters) -> list[Summary]:
        """The conversations that match, the most recently active first. ``grep`` is not supported."""
        with self._lock:
            self._refresh()
            clause, values = _condition(filters)
            asked = f"SELECT {ROW} FROM conversations WHERE first IS NOT NULL AND {clause} ORDER BY last DESC, name"
            return [Summary(*row) for row in self._database.execute(asked, values)]

    def of(self, directory: Path) -> Summary | None:
        """The summary of the conversation in ``directory``; None while it has no records."""
        with self._lock:
            try:
                self._read([(directory.name, directory.stat().st_mtime_ns)])
            except FileNotFoundError:  # it was erased meanwhile
                return None
            asked = f"SELECT {ROW} FROM conversations WHERE first IS NOT NULL AND name = ?"
            row = self._database.execute(asked, (directory.name,)).fetchone()
            return Summary(*row) if row else None

    def forget(self, name: str) -> None:
        """Leave no byte of what was in the directory ``name``; what is there now is read when it is next asked for."""
        with self._lock:
            self._erase([name])
        pages = -MERGED_PAGES  # negative: begin with all pieces, some of which are only marked as deleted
        while True:
            with self._lock:
                before = self._database.total_changes
                self._database.execute("INSERT INTO said (said, rank) VALUES ('merge', ?)", (pages,))
                if self._database.total_changes - before < 2:
                    break
            pages = MERGED_PAGES
        with self._lock:
            self._database.execute("PRAGMA wal_checkpoint (TRUNCATE)")

    def _refresh(self) -> None:
        """Read what has changed, and forget what was erased."""
        here = _stamps(self._log_dir)
        known = dict(self._database.execute("SELECT name, stamp FROM conversations"))
        changed = [(name, stamp) for name, stamp in here.items() if known.get(name) != stamp]
        for start in range(0, len(changed), AT_ONCE):
            self._read(changed[start : start + AT_ONCE])
        if erased := known.keys() - here.keys():
            self._erase(erased)

    def _erase(self, names: Iterable[str]) -> None:
        with self._changing() as database:
            for name in names:
                _forget(database, name)
        self._database.execute("PRAGMA wal_checkpoint (TRUNCATE)")

    def _read(self, changed: list[Unread]) -> None:
        """Read these conversations, unless the index has them as they are."""
        names = [name for name, _ in changed]
        places = ",".join("?" * len(names))
        asked = f"SELECT name, stamp FROM conversations WHERE name IN ({places})"
        known = dict(self._database.execute(asked, names))
        found = [
            (stamp, directory, list(read_records(directory, self._tz)))
            for name, stamp in changed
            if known.get(name) != stamp
            for directory in [self._log_dir / "conversations" / name]
        ]
        if found:
            with self._changing() as database:
                for stamp, directory, records in found:
                    _forget(database, directory.name)
                    _store(database, stamp, directory, records, self._tz)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def index_path(state_dir: Path) -> Path:
    """Where the index is kept: in a file for this version of its tables, because processes of a version with others may
    be at work in ``state_dir`` too. Files of other versions are removed."""
    path = state_dir / f"conversations-{VERSION}.sqlite"
    for other in state_dir.glob("conversations*.sqlite*"):
        if not other.name.startswith(path.name):
            with suppress(OSError):
                other.unlink()
    return path


def _opened(path: Path | None, made_for: str) -> sqlite3.Connection:
    """The index in ``path``, emptied unless it was ``made_for`` the same; one in memory if that cannot be used."""
    if path is not None:
        for again in (True, False):
            try:
                return _connected(str(path), made_for)
            except (sqlite3.Error, OSError) as error:
                logger.warning("the index of conversations in %s cannot be used: %s", path, error)
                with suppress(OSError):
                    if again and not isinstance(error, sqlite3.OperationalError):
                        path.unlink()
    return _connected(":memory:", made_for)


def _connected(path: str, made_for: str) -> sqlite3.Connection:
    if path != ":memory:":
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        database.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;" + TABLES
        )
        database.execute("CREATE TABLE IF NOT EXISTS made (made_for TEXT)")
        if (row := database.execute("SELECT made_for FROM made").fetchone()) != (made_for,):
            database.executescript("DELETE FROM conversations; DELETE FROM said; DELETE FROM made;" if row else "")
            database.execute("INSERT INTO made VALUES (?)", (made_for,))
    except BaseException:
        database.close()
        raise
    return database


def _stamps(log_dir: Path) -> dict[str, int]:
    """The directories of conversations and when each last changed, in ns."""
    found = {}
    with suppress(FileNotFoundError), closing(os.scandir(log_dir / "conversations")) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # it was erased meanwhile
                if "-" in entry.name and entry.is_dir(follow_symlinks=False):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
    return found


def _condition(filters: Filters) -> tuple[str, list[str | int]]:
    """What is asked of a row, and the values that are asked for."""
    parts: list[str] = ["1"]
    values: list[str | int] = []
    if filters.user:
        parts.append("instr(named, ?)")
        values.append(filters.user.casefold())
    if filters.since is not None:
        parts.append("failed >= ?" if filters.errors else "last >= ?")
        values.append(filters.since)
    elif filters.errors:
        parts.append("errors")
    if filters.search:
        among, pattern = _within("text", filters.search)
        parts.append(f"(instr(named, ?) OR {among})")
        values += [filters.search.casefold(), pattern]
    if filters.words:
        among, pattern = _within("words", filters.words)
        parts.append(among)
        values.append(pattern)
    return " AND ".join(parts), values


def _within(column: str, search: str) -> tuple[str, str]:
    """What is asked of a row whose ``column`` of the table ``said`` contains ``search``, and the value for that."""
    search = search.replace("\0", "\ufffd")  # a query ends with the first NUL
    if len(search) >= SHORTEST_WORD:
        phrase = search.replace('"', '""')
        return "id IN (SELECT rowid FROM said WHERE said MATCH ?)", f'{column} : "{phrase}"'
    escaped = "".join(f"\\{char}" if char in "%_\\" else char for char in search)
    return f"id IN (SELECT rowid FROM said WHERE {column} LIKE ? ESCAPE '\\')", f"%{escaped}%"


def _forget(database: sqlite3.Connection, name: str) -> None:
    database.execute("DELETE FROM said WHERE rowid = (SELECT id FROM conversations WHERE name = ?)", (name,))
    database.execute("DELETE FROM conversations WHERE name = ?", (name,))


def _store(database: sqlite3.Connection, stamp: int, directory: Path, records: list[Record], tz: tzinfo | None) -> None:
    conversation, title = directory.name, ""
    for record in records:
        if conversation == directory.name or record.text.startswith("session of "):
            claimed, named = identity(directory, record)
            conversation = conversation if claimed == directory.name else claimed
            title = named or title
    failed = [record.ms for record in records if record.word in FAILURES]
    first, last = (records[0].ms, records[-1].ms) if records else (None, None)
    telling = [record for record in records if record.text] or records
    line = visible(format_line(telling[-1], tz)) if records else ""
    row = (
        directory.name, stamp, conversation, title, f"{conversation}\n{title}".casefold(), first, last,
        sum(record.begins_turn for record in records), len(failed), max(failed, default=0), line,
    )  # fmt: skip
    places = ",".join("?" * len(row))
    columns = "name, stamp, conversation, title, named, first, last, turns, errors, failed, line"
    stored = database.execute(f"INSERT INTO conversations ({columns}) VALUES ({places})", row)
    text = "\n".join(f"{record.word}: {record.text}" for record in records)
    words = "\n".join(filter(None, map(_said, records)))
    database.execute("INSERT INTO said (rowid, text, words) VALUES (?, ?, ?)", (stored.lastrowid, text, words))


def _said(record: Record) -> str:
    """What ``record`` says to a user; a title that the user gave, too."""
    return record.text.removeprefix(TITLED) if record.text.startswith(TITLED) else words_of(record)
