"""``rolecall logs``: what conversations there are, one of them, one turn of it, live, or as bars."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from rolecall.errors import ConfigError
from rolecall.timeline import LEGEND, TurnTimeline, bars, timelines
from rolecall.transcript import (
    EPOCH,
    FAILURES,
    TROUBLE,
    Record,
    directories,
    escape,
    find,
    format_line,
    identity,
    parse_line,
    read_records,
    session_files,
    visible,
)

POLL_SECONDS = 0.2
AGO = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
COLOURS = {"ERROR": "red", "DEAD_LETTER": "red", "PROCESSING_COMPLETE": "green", "RECEIVED": "bold"}


@dataclass(frozen=True)
class Filters:
    """Which conversations, or which records of one: all that are given must fit.

    ``user`` is part of an id or a title, ``since`` ms since 1970 by the server's clock, ``grep`` a regular expression.
    """

    user: str = ""
    since: int | None = None
    errors: bool = False
    grep: str = ""

    def takes(self, record: Record) -> bool:
        """Whether a record fits ``since``, ``errors`` and ``grep``."""
        return (
            (self.since is None or record.ms >= self.since)
            and (not self.errors or record.word in FAILURES)
            and (not self.grep or re.search(self.grep, f"{record.word}: {record.text}") is not None)
        )


class Summary(msgspec.Struct, frozen=True):
    """A conversation in one row; times in ms since 1970, ``name`` is its directory."""

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
    if ago:
        moment = now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(
                f"--since {escape(text)}: 90s, 30m, 2h, 7d or a day such as 2026-11-21 is allowed"
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=tz)
    return (moment.astimezone(UTC) - EPOCH) // timedelta(milliseconds=1)


def make_filters(user: str, since_text: str, errors: bool, grep: str, tz: tzinfo | None = None) -> Filters:
    """The filters of a command line. Raises ConfigError that names the option at fault."""
    try:
        re.compile(grep)
    except re.error as error:
        raise ConfigError(f"--grep {escape(grep)}: no regular expression: {error}") from None
    return Filters(user, since(since_text, datetime.now(UTC), tz) if since_text else None, errors, grep)


def conversations(log_dir: Path, filters: Filters, tz: tzinfo | None = None) -> list[Summary]:
    """The conversations that fit, the one last active last. With errors or grep, those with a record that fits."""
    found = (_summary(directory, filters, tz) for directory in directories(log_dir))
    return sorted((summary for summary in found if summary), key=lambda summary: summary.last)


def print_conversations(
    log_dir: Path, filters: Filters, console: Console, *, as_json: bool = False, tz: tzinfo | None = None
) -> None:
    """One row per conversation, or one JSON object a line."""
    for summary in conversations(log_dir, filters, tz):
        if as_json:
            _print_json(summary, console)
            continue
        last = (EPOCH + timedelta(milliseconds=summary.last)).astimezone(tz)
        title = f" ({escape(summary.title)})" if summary.title else ""
        errors = f", {summary.errors} errors" if summary.errors else ""
        head = f"{last:%Y-%m-%d %H:%M}  {escape(summary.conversation)}{title}  {summary.turns} turns{errors}"
        console.print(Text(head), soft_wrap=True)
        console.print(Text(f"    {summary.line}", style="dim"), soft_wrap=True)


def print_records(
    log_dir: Path,
    which: str,
    filters: Filters,
    console: Console,
    *,
    as_json: bool = False,
    tz: tzinfo | None = None,
) -> None:
    """The records of a conversation, or of one turn by its short id. Raises RolecallError when there is none."""
    directory, turn = find(log_dir, which)
    for record in read_records(directory, tz):
        if (not turn or record.turn == turn) and filters.takes(record):
            _print_record(record, console, as_json=as_json, tz=tz)


def print_timeline(
    log_dir: Path,
    which: str,
    console: Console,
    *,
    turns: int = 5,
    as_json: bool = False,
    tz: tzinfo | None = None,
) -> None:
    """One turn by its short id, or the last ``turns`` of a conversation, as bars."""
    directory, turn = find(log_dir, which)
    kept = [record for record in read_records(directory, tz) if not turn or record.turn == turn]
    for line in timelines(kept)[-turns:]:
        if as_json:
            _print_json(line, console)
        else:
            _print_bars(line, console)
    if not as_json:
        console.print(Text(LEGEND, style="dim"))


async def follow(
    log_dir: Path,
    which: str,
    filters: Filters,
    console: Console,
    *,
    last: int = 10,
    as_json: bool = False,
    tz: tzinfo | None = None,
) -> None:
    """Print the ``last`` records of a conversation and then each new one, until cancelled."""
    directory, turn = find(log_dir, which)
    async for record in tail(directory, last=last, tz=tz):
        if (not turn or record.turn == turn) and filters.takes(record):
            _print_record(record, console, as_json=as_json, tz=tz)


async def tail(
    directory: Path, *, last: int = 10, poll: float = POLL_SECONDS, tz: tzinfo | None = None
) -> AsyncGenerator[Record, None]:
    """The ``last`` records of a conversation, then each as it is written, once, new sessions' included."""
    read: dict[Path, int] = {}
    order = (-1, -1)
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
    """What the newest two files have beyond ``read`` bytes; an older session's last turn may end in a new one."""
    for path in session_files(directory)[-2:]:
        with suppress(FileNotFoundError), path.open("rb") as file:  # it was forgotten meanwhile
            start = read.get(path, 0)
            if start > os.fstat(file.fileno()).st_size:  # cut, or begun anew
                start = 0
            file.seek(start)
            whole, newline, _ = file.read().rpartition(b"\n")
            read[path] = start + len(whole + newline)
            lines = whole.decode("utf-8", "backslashreplace").split("\n")
            yield from (record for line in lines if (record := parse_line(line, tz)))


def _summary(directory: Path, filters: Filters, tz: tzinfo | None) -> Summary | None:
    conversation, title, turns, errors, fits = directory.name, "", 0, 0, False
    first: Record | None = None
    last: Record | None = None
    for last in read_records(directory, tz):
        first = first or last
        if conversation == directory.name or last.text.startswith("session of "):
            claimed, named = identity(directory, last)
            conversation = conversation if claimed == directory.name else claimed
            title = named or title
        turns += last.word == "RECEIVED"
        errors += last.word in FAILURES
        fits = fits or filters.takes(last)
    if first is None or last is None or not fits or not _is_user(filters.user, conversation, title):
        return None
    line = visible(format_line(last, tz))
    return Summary(conversation, title, directory.name, first.ms, last.ms, turns, errors, line)


def _is_user(user: str, conversation: str, title: str) -> bool:
    return user.casefold() in conversation.casefold() or user.casefold() in title.casefold()


def _print_record(record: Record, console: Console, *, as_json: bool, tz: tzinfo | None) -> None:
    if as_json:
        _print_json(record, console)
    else:
        style = COLOURS.get(record.word, "yellow" if record.word in TROUBLE else "")
        console.print(Text(visible(format_line(record, tz)), style=style), soft_wrap=True)


def _print_bars(turn: TurnTimeline, console: Console) -> None:
    width = max(10, min(60, console.width - 90))
    head, *rest = bars(turn, width)
    console.print(Text(visible(head), style="bold"), soft_wrap=True)
    for line in rest:
        console.print(Text(visible(line)), soft_wrap=True)


def _print_json(value: object, console: Console) -> None:
    # ASCII alone: what steers a terminal, and what is no UTF-8, goes as an escape.
    console.print(Text(json.dumps(msgspec.to_builtins(value))), soft_wrap=True)
