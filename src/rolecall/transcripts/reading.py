"""Finds conversations by their transcripts, summarises them, and follows them while they grow."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import msgspec

from rolecall.errors import ConfigError
from rolecall.transcripts.record import (
    EPOCH,
    Record,
    directories,
    escape,
    format_line,
    identity,
    parse_line,
    read_records,
    session_files,
    visible,
)
from rolecall.transcripts.words import FAILURES

POLL_SECONDS = 0.2
AGO = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Filters:
    """Which conversations, or which records of one; all given filters must match.

    ``user`` is part of an id or a title, ``since`` ms since 1970 by the server's clock, ``grep`` a regular expression.
    Only the index knows ``search``, part of an id, a title or a record, and ``words``, part of what is said. Raises
    ConfigError.
    """

    user: str = ""
    since: int | None = None
    errors: bool = False
    grep: str = ""
    search: str = ""
    words: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.grep)
        except re.error as error:
            raise ConfigError(f"grep {escape(self.grep)} is invalid: expected a regular expression: {error}") from None

    def match(self, record: Record) -> bool:
        """Whether a record matches ``since``, ``errors`` and ``grep``."""
        return (
            (self.since is None or record.ms >= self.since)
            and (not self.errors or record.word in FAILURES)
            and (not self.grep or re.search(self.grep, f"{record.word}: {record.text}") is not None)
        )


class Summary(msgspec.Struct, frozen=True):
    """A conversation in one row: times in ms since 1970, ``name`` is its directory, ``line`` its last record
    that has a text: DELIVERED has none."""

    conversation: str
    title: str
    name: str
    first: int
    last: int
    turns: int
    errors: int
    line: str


def since(text: str, now: datetime, tz: tzinfo | None = None) -> int:
    """``2h``, ``30m``, ``7d``, or a day or moment such as ``2026-11-21`` in ``tz``, as ms since 1970.

    Raises ConfigError for anything else.
    """
    ago = AGO.fullmatch(text)
    try:
        moment = now - timedelta(**{UNITS[ago[2]]: int(ago[1])}) if ago else datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=tz)
        return (moment.astimezone(UTC) - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise ConfigError(f"{escape(text)}: expected 90s, 30m, 2h, 7d or a day such as 2026-11-21") from None


def conversations(log_dir: Path, filters: Filters, tz: tzinfo | None = None) -> list[Summary]:
    """The conversations that match, the most recently active last. ``errors`` and ``grep`` match by a record."""
    found = (_summary(directory, filters, tz) for directory in directories(log_dir))
    return sorted((summary for summary in found if summary), key=lambda summary: summary.last)


async def tail(
    directory: Path, *, last: int = 10, poll: float = POLL_SECONDS, tz: tzinfo | None = None
) -> AsyncGenerator[Record, None]:
    """The ``last`` records of a conversation, then each new one once, including those of new sessions."""
    read: dict[Path, int] = {}
    order = (-1, -1, 0)
    first = list(_grown(directory, read, tz))
    for record in first[len(first) - min(last, len(first)) :]:
        yield record
    if first:
        order = max(record.order for record in first)
    while True:
        await asyncio.sleep(poll)
        for record in _grown(directory, read, tz):
            if record.order > order:
                order = record.order
                yield record


def _grown(directory: Path, read: dict[Path, int], tz: tzinfo | None) -> Iterator[Record]:
    """The records beyond ``read`` bytes in the two newest files; a turn may end after a new session has begun."""
    for path in session_files(directory)[-2:]:
        with suppress(FileNotFoundError), path.open("rb") as file:  # it was erased meanwhile
            start = read.get(path, 0)
            if start > os.fstat(file.fileno()).st_size:  # truncated or replaced
                start = 0
            file.seek(start)
            whole, newline, _ = file.read().rpartition(b"\n")
            read[path] = start + len(whole + newline)
            lines = whole.decode("utf-8", "backslashreplace").split("\n")
            yield from (record for line in lines if (record := parse_line(line, tz)))


def _summary(directory: Path, filters: Filters, tz: tzinfo | None) -> Summary | None:
    conversation, title, turns, errors, matches = directory.name, "", 0, 0, False
    first: Record | None = None
    last: Record | None = None
    telling: Record | None = None
    for last in read_records(directory, tz):
        first = first or last
        telling = last if last.text else telling
        if conversation == directory.name or last.text.startswith("session of "):
            claimed, named = identity(directory, last)
            conversation = conversation if claimed == directory.name else claimed
            title = named or title
        turns += last.begins_turn
        errors += last.word in FAILURES
        matches = matches or filters.match(last)
    if first is None or last is None or not matches or not _is_user(filters.user, conversation, title):
        return None
    line = visible(format_line(telling or last, tz))
    return Summary(conversation, title, directory.name, first.ms, last.ms, turns, errors, line)


def _is_user(user: str, conversation: str, title: str) -> bool:
    return user.casefold() in conversation.casefold() or user.casefold() in title.casefold()
