"""``rolecall logs``: what conversations there are, one of them, one turn of it, live, or as bars."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import msgspec
from rich.console import Console

from rolecall.cli.output import counted, print_lines
from rolecall.cli.runner import reader_watched, stop_requested, until_stopped
from rolecall.config import load
from rolecall.errors import ConfigError
from rolecall.transcripts.reading import Filters, conversations, since, tail
from rolecall.transcripts.record import (
    EPOCH,
    Record,
    escape,
    find,
    format_line,
    read_records,
    visible,
)
from rolecall.transcripts.timeline import LEGEND, TurnTimeline, tree_bars, trees
from rolecall.transcripts.words import tone_of

TURNS = 5
"""Turns of a conversation that ``--timeline`` shows."""
STYLES = {"begins": "bold", "good": "green", "warn": "yellow", "bad": "red"}


def make_filters(user: str, since_text: str, errors: bool, grep: str, tz: tzinfo | None = None) -> Filters:
    """The filters of a command line. Raises ConfigError that names the option at fault."""
    moment = _since(since_text, tz) if since_text else None
    try:
        return Filters(user, moment, errors, grep)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None


def _since(text: str, tz: tzinfo | None) -> int:
    try:
        return since(text, datetime.now(UTC), tz)
    except ConfigError as error:
        raise ConfigError(f"--since {error}") from None


def print_conversations(
    log_dir: Path, filters: Filters, console: Console, *, as_json: bool = False, tz: tzinfo | None = None
) -> None:
    """One row per conversation, or one JSON object a line."""
    found = conversations(log_dir, filters, tz)
    if not (found or as_json):
        what = "there are no conversations yet" if filters == Filters() else "no conversation matches"
        print_lines(console, [f"{what}, in {log_dir / 'conversations'}"])
    for summary in found:
        if as_json:
            print_lines(console, [_json(summary)])
            continue
        last = (EPOCH + timedelta(milliseconds=summary.last)).astimezone(tz)
        title = f" ({escape(summary.title)})" if summary.title else ""
        errors = f", {counted(summary.errors, 'error')}" if summary.errors else ""
        turns = counted(summary.turns, "turn")
        head = f"{last:%Y-%m-%d %H:%M}  {escape(summary.conversation)}{title}  {turns}{errors}"
        print_lines(console, [head])
        print_lines(console, [f"    {summary.line}"], style="dim")


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
    found = (record for record in read_records(directory, tz) if record.is_of(turn) and filters.match(record))
    _print_records(found, console, as_json=as_json, tz=tz)


def print_timeline(
    log_dir: Path,
    which: str,
    console: Console,
    *,
    as_json: bool = False,
    tz: tzinfo | None = None,
) -> None:
    """One turn by its short id, or the last TURNS of a conversation, as bars, with their calls beneath."""
    directory, turn = find(log_dir, which)
    for tree in trees((record for record in read_records(directory, tz) if record.is_of(turn)), TURNS):
        if as_json:
            print_lines(console, map(_json, tree))
        else:
            _print_bars(tree, console)
    if not as_json:
        print_lines(console, [LEGEND], style="dim")


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
        if record.is_of(turn) and filters.match(record):
            _print_records([record], console, as_json=as_json, tz=tz)


def _print_records(records: Iterable[Record], console: Console, *, as_json: bool, tz: tzinfo | None) -> None:
    if as_json:
        print_lines(console, map(_json, records))
    elif console.is_terminal:
        for record in records:
            print_lines(console, [_line(record, tz)], STYLES.get(tone_of(record.word), ""))
    else:
        print_lines(console, (_line(record, tz) for record in records))


def _line(record: Record, tz: tzinfo | None) -> str:
    return visible(format_line(record, tz))


def _print_bars(tree: Sequence[TurnTimeline], console: Console) -> None:
    width = max(10, min(60, console.width - 90))
    head, *rest = tree_bars(tree, width)
    print_lines(console, [visible(head)], style="bold")
    print_lines(console, map(visible, rest))


def _json(value: object) -> str:
    # ASCII only: control characters, and what is no UTF-8, are escaped.
    return json.dumps(msgspec.to_builtins(value))


@dataclass(frozen=True)
class LogQuery:
    """What was asked for: ``which`` conversation or turn, empty for the list of all; which records; how."""

    which: str
    user: str
    since: str
    errors: bool
    grep: str
    follow: bool
    timeline: bool
    as_json: bool


async def show(app_dir: Path | None, asked: LogQuery, console: Console) -> int:
    """Print it. Raises ConfigError for a call that makes no sense, RolecallError for what is not there."""
    application = load(app_dir)
    tz, log_dir = application.tz, application.log_dir
    filters = make_filters(asked.user, asked.since, asked.errors, asked.grep, tz)
    if not asked.which:
        _check_listing(asked)
        print_conversations(log_dir, filters, console, as_json=asked.as_json, tz=tz)
    elif asked.timeline:
        print_timeline(log_dir, asked.which, console, as_json=asked.as_json, tz=tz)
    elif asked.follow:
        following = follow(log_dir, asked.which, filters, console, as_json=asked.as_json, tz=tz)
        async with stop_requested() as wanted:
            with reader_watched(wanted):
                await until_stopped(asyncio.create_task(following, name="rolecall logs"), wanted)
    else:
        print_records(log_dir, asked.which, filters, console, as_json=asked.as_json, tz=tz)
    return 0


def _check_listing(asked: LogQuery) -> None:
    for option, given in (("--follow", asked.follow), ("--timeline", asked.timeline)):
        if given:
            raise ConfigError(f"{option} needs a conversation or a turn, as `rolecall logs` lists them")
