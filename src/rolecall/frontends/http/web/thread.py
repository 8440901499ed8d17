"""A conversation as its user sees it: what was said and answered, from the history and the transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import tzinfo
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from rolecall.bus.admission import places
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import REPLACES, HistoryEntry, envelopes_of, history, running_turn
from rolecall.bus.envelope import SCHEDULED
from rolecall.bus.schedule.schedules import SCHEDULE
from rolecall.bus.turn import CLEARED, number_of
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.task import TaskRef
from rolecall.transcripts.record import (
    Record,
    conversation_dir,
    parse_line,
    read_lines,
    read_records,
    session_files,
    unquoted,
    words_of,
)
from rolecall.transcripts.timeline import timelines

MOST_TURNS = 200
MOST_ENTRIES = 1000
WORDS_CHARS = 100
STATES = {"cancelled": "cancelled", "given up": "failed", "running": "running"}
"""How a turn ended, by its state in the timeline; otherwise it is done."""
MARKS = {"error": "failed", "stopped": "cancelled"}


class Exchange(msgspec.Struct, omit_defaults=True):
    """One turn of a thread: what was said at ``at`` (ms since 1970) and what was answered. ``state`` is ``done``,
    ``failed``, ``cancelled`` or ``running``; ``roles`` worked on it, for ``ms`` together. A ``plain`` answer is no
    Markdown. A notice has no turn, and where a schedule began a turn nothing was said."""

    turn: str = ""
    said: str = ""
    answer: str = ""
    state: str = "done"
    at: int = 0
    ms: int = 0
    roles: list[str] = []
    model: str = ""
    tokens: int = 0
    plain: bool = False
    images: tuple[str, ...] = ()
    files: tuple[dict[str, str], ...] = ()


async def thread_of(services: Services, conversation: str, most: int = MOST_TURNS) -> dict[str, Any]:
    """The last exchanges of ``conversation``, oldest first, at most so many unless that is 0, and whether they are
    ``cut``; and its ``tasks`` that have not ended."""
    tasks = await _unfinished(services.bus, conversation)  # first: what ends meanwhile is in the history by then
    entries, records = await asyncio.gather(
        history(services.bus, conversation, MOST_ENTRIES), asyncio.to_thread(_records, services, conversation)
    )
    open_turns = {task["turn"] for task in tasks}
    found = [one for one in exchanges(records, entries) if one.state != "running" and one.turn not in open_turns]
    shown = [msgspec.to_builtins(one) for one in found[-most:]]
    return {"exchanges": shown, "cut": len(shown) < len(found), "tasks": tasks}


def exchanges(records: Iterable[Record], entries: Sequence[HistoryEntry]) -> list[Exchange]:
    """The turns among ``records`` and ``entries`` but for those that were replaced or cleared. The history says more
    precisely what was said; the transcript goes back further."""
    found: dict[str, Exchange] = {one.turn: one for one in _transcribed(records)}
    notices = 0
    before = ""
    for entry in entries:
        key = entry.turn
        if not key:
            notices += 1
            found = _inserted(found, before, f"notice {notices}", Exchange(answer=entry.text))
            continue
        before = key
        _remember(found.setdefault(key, Exchange(key)), entry)
    return list(found.values())


def first_words(services: Services, name: str) -> str:
    """The first message of the conversation in the directory ``name``, cut; empty while there is none."""
    for path in session_files(services.log_dir / "conversations" / name)[:1]:
        with suppress(LookupError, FileNotFoundError):
            return _first_words(path, services.tz)
    return ""


def last_words(services: Services, name: str) -> str:
    """The last message or answer of the conversation in the directory ``name``, cut; empty if there is none."""
    for path in session_files(services.log_dir / "conversations" / name)[-1:]:
        with suppress(LookupError, FileNotFoundError):
            return _last_words(path, path.stat().st_size, services.tz)
    return ""


@lru_cache(4096)
def _first_words(path: Path, tz: tzinfo | None) -> str:
    return next(_words(read_lines(path), tz))[:WORDS_CHARS]


@lru_cache(512)
def _last_words(path: Path, size: int, tz: tzinfo | None) -> str:
    return next(_words(reversed(list(read_lines(path))), tz))[:WORDS_CHARS]


def _words(lines: Iterable[str], tz: tzinfo | None) -> Iterator[str]:
    """What was said and answered in these lines of a transcript. Raises LookupError at the end."""
    for line in lines:
        if (record := parse_line(line, tz)) is not None and (words := words_of(record)):
            yield words
    raise LookupError("no words")


def _transcribed(records: Iterable[Record]) -> list[Exchange]:
    kept: list[Record] = []
    replaced: dict[str, int] = {}
    for record in records:
        if record.word == "NOTE" and record.text == CLEARED:
            kept.clear()
        elif record.word == "NOTE" and record.text.startswith(REPLACES):
            replaced[record.turn] = number_of(record.text.removeprefix(REPLACES))
        kept.append(record)
    answers = {
        one.turn: (words_of(one), one.text.startswith("plain ")) for one in kept if one.word == "PROCESSING_COMPLETE"
    }
    scheduled = {one.turn for one in kept if one.begins_turn and one.instance.startswith(f"{SCHEDULE}:")}
    gone = {n for turn, first in replaced.items() for n in range(first, number_of(turn))}
    turns = timelines(kept)
    newest = {turn.turn: turn for turn in turns}
    return [
        Exchange(
            turn.turn, "" if turn.turn in scheduled else unquoted(turn.said), answer,
            STATES.get(turn.state, "done"), turn.ms, turn.total,
            _visited(hop.role for hop in turn.hops), plain=plain,
        )
        for turn in turns
        if turn.turn.isdigit() and number_of(turn.turn) not in gone and turn.said and newest[turn.turn] is turn
        for answer, plain in [answers.get(turn.turn, ("", False))]
    ]  # fmt: skip


def _remember(one: Exchange, entry: HistoryEntry) -> None:
    one.state = MARKS.get(entry.mark, "done")
    if entry.role == "assistant":
        one.answer, one.model, one.tokens, one.plain = entry.text, entry.model, entry.tokens, entry.plain
    else:
        said = "" if entry.scheduled else entry.said or entry.text
        one.said, one.images, one.files = said, entry.images, entry.files


def _inserted(found: dict[str, Exchange], before: str, key: str, one: Exchange) -> dict[str, Exchange]:
    """``found`` with ``one`` behind the key ``before``."""
    if before not in found:
        return {**found, key: one}
    items = list(found.items())
    place = list(found).index(before) + 1
    return dict([*items[:place], (key, one), *items[place:]])


def _visited(roles: Iterable[str]) -> list[str]:
    found: list[str] = []
    for role in roles:
        if not found or found[-1] != role:
            found.append(role)
    return found


async def _unfinished(bus: Bus, conversation: str) -> list[dict[str, Any]]:
    running, waiting = await asyncio.gather(running_turn(bus, conversation), places(bus, conversation))
    envelopes = await envelopes_of(bus, conversation, [*filter(None, [running]), *waiting])
    return [
        {"id": TaskRef(conversation, turn).id, "turn": turn, "at": envelope.created,
         "said": "" if SCHEDULED in envelope.payload else envelope.said,
         "place": waiting.get(turn, 0),
         "images": [one for one in envelope.payload.get("images") or () if isinstance(one, str)],
         "files": [one for one in envelope.payload.get("files") or () if isinstance(one, dict)]}
        for turn, envelope in envelopes.items()
    ]  # fmt: skip


def _records(services: Services, conversation: str) -> list[Record]:
    directory = services.log_dir / "conversations" / conversation_dir(conversation)
    with suppress(FileNotFoundError):  # there is none yet, or it was just erased
        return list(read_records(directory, services.tz))
    return []
