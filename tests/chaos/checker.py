"""Reads the books of a chaos run, the answers and the transcripts and nothing else, and says what is wrong in them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from itertools import pairwise
from pathlib import Path
from typing import Any

from rolecall.transcripts.record import Record, conversation_dir, parse_line, session_files
from tests.chaos.application import answer, conversation_name

FAULTS = ("lost", "stuck", "doubled", "disordered", "overlapping", "wrong", "torn", "repeated")
BEGINS = ("STARTED", "TAKEN_OVER", "RESUMED")
ENDS = ("PROCESSING_COMPLETE", "DEAD_LETTER", "CANCELLED")
SHOWN = 10


@dataclass(frozen=True)
class Books:
    """Where a run wrote down what happened, and how much should have."""

    directory: Path
    conversations: int
    turns: int
    answering: str

    def read(self, pattern: str) -> list[dict[str, Any]]:
        """The entries of the books whose names fit ``pattern``."""
        paths = sorted((self.directory / "books").glob(pattern))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def transcript(self, conversation: int) -> list[str]:
        """All lines of a conversation's files, the last one of a file whole or not."""
        directory = self.directory / "app" / "log" / "conversations" / conversation_dir(conversation_name(conversation))
        return [line for path in session_files(directory) for line in path.read_text().splitlines(keepends=True)]


@dataclass
class Findings:
    """Faults by kind, examples of them, and facts that are no faults."""

    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        """Note a fault."""
        self.faults[kind] += 1
        if self.faults[kind] <= SHOWN:
            self.examples.append(f"{kind}: {what}")

    @property
    def caught(self) -> int:
        """Faults that only a bus can make: what is merely late does not count."""
        return sum(self.faults[kind] for kind in ("doubled", "disordered", "overlapping", "repeated"))

    @property
    def total(self) -> int:
        """Faults of all kinds."""
        return self.faults.total()


def check(books: Books) -> Findings:
    """Everything wrong in ``books``."""
    findings = Findings()
    seen, outbox = books.read("producer*.jsonl"), books.read("outbox.jsonl")
    _check_answers(books, seen, outbox, findings)
    words: Counter[str] = Counter()
    for conversation in range(books.conversations):
        records = transcript_records(books, conversation, findings)
        words.update(record.word for record in records)
        _check_transcript(books, conversation, records, findings)
    late = sum(path.read_text(errors="replace").count("was late with ") for path in books.directory.glob("*.log"))
    findings.facts |= {
        "turns": books.conversations * books.turns,
        "taken over": words["TAKEN_OVER"],
        "fenced": words["FENCED"] + late,
        "apologies": sum(entry["kind"] == "error" for entry in outbox),
    }
    return findings


def _check_answers(
    books: Books, seen: Iterable[Mapping[str, Any]], outbox: Iterable[Mapping[str, Any]], findings: Findings
) -> None:
    given: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in outbox:
        given[entry["conversation"]].append(entry)
    admitted = {(e["conversation"], e["number"]) for e in seen if e["what"] == "admitted"}
    received = {(e["conversation"], e["number"]) for e in seen if e["what"] == "answered"}
    for entry in seen:
        _check_seen(entry, findings)
    for conversation in range(books.conversations):
        name = conversation_name(conversation)
        turns = [entry["turn"] for entry in given[name]]
        _check_order(f"answers of {name}", turns, findings)
        for number in range(1, books.turns + 1):
            turn = (conversation, number)
            if (turn in received and str(number) not in turns) or (turn in admitted and _passed(number, turns)):
                findings.add("lost", f"{name}/{number}")
            elif turn not in received:
                findings.add("stuck", f"{name}/{number} {'' if turn in admitted else 'was not even admitted'}")
        for entry in given[name]:
            if entry.get("text") != answer(conversation, int(entry["turn"])):
                findings.add("wrong", f"{name}/{entry['turn']}: {entry.get('text')!r}")


def _check_seen(entry: Mapping[str, Any], findings: Findings) -> None:
    """What a producer was told: its message is one turn, its follow ends with what was streamed, and rightly."""
    where = f"{conversation_name(entry['conversation'])}/{entry['number']}"
    if entry["turn"] != str(entry["number"]):
        findings.add("doubled", f"{where} was admitted as turn {entry['turn']}")
    if entry["what"] != "answered":
        return
    if entry["text"] != answer(entry["conversation"], entry["number"]):
        findings.add("wrong", f"{where} was told {entry['text']!r}")
    if not entry["text"].startswith(entry["streamed"]):
        findings.add("wrong", f"{where} streamed {entry['streamed']!r} before {entry['text']!r}")


def _passed(number: int, turns: list[str]) -> bool:
    return str(number) not in turns and any(int(turn) > number for turn in turns)


def _check_order(where: str, turns: list[str], findings: Findings) -> None:
    for turn, times in Counter(turns).items():
        for _ in range(times - 1):
            findings.add("doubled", f"{where}: turn {turn}")
    firsts = [int(turn) for turn in dict.fromkeys(turns)]
    for before, after in pairwise(firsts):
        if after < before:
            findings.add("disordered", f"{where}: {after} after {before}")


def transcript_records(books: Books, conversation: int, findings: Findings) -> list[Record]:
    """The records of a conversation's files, in order; what is torn is noted."""
    name, records = conversation_name(conversation), list[Record]()
    for line in books.transcript(conversation):
        record = parse_line(line.removesuffix("\n"), UTC)
        if record is None or not line.endswith("\n"):
            findings.add("torn", f"{name}: {line!r}")
        elif records and record.order <= records[-1].order:
            findings.add("torn", f"{name}: a line again or out of place: {line!r}")
        else:
            records.append(record)
    return records


def _check_transcript(books: Books, conversation: int, records: list[Record], findings: Findings) -> None:
    name = conversation_name(conversation)
    received = Counter(record.turn for record in records if record.word == "RECEIVED")
    ended = [record.turn for record in records if record.word in ENDS and "." not in record.turn]
    _check_order(f"transcript of {name}", ended, findings)
    for number in range(1, books.turns + 1):
        if received[str(number)] != 1 or str(number) not in ended:
            findings.add(
                "torn", f"{name}/{number}: received {received[str(number)]} times, ended {str(number) in ended}"
            )
    at_work = ""
    for record in records:
        if record.word in BEGINS and record.instance.startswith(f"{books.answering}:"):
            if at_work not in ("", record.turn):
                findings.add("overlapping", f"{name}: {record.turn} began before {at_work} had ended")
            at_work = record.turn
        elif record.word in ENDS and record.turn == at_work:
            at_work = ""
