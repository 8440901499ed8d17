"""What the books of a chaos run with steps say about effects: how often each happened, and whether it should have."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from rolecall.transcripts.record import Record
from tests.chaos.application import ANSWERING, question
from tests.chaos.checker import Books, Findings, transcript_records

STEP_FACTS = ("effects", "again", "unaware", "suspended", "replays")
BEGINS = ("STARTED", "TAKEN_OVER", "RESUMED")
STEPS = {"plan": "1 model ask", "charge": "2 once charge"}
"""How the transcript names the steps whose effects the application writes down, before the first wait."""


def check_steps(books: Books, findings: Findings) -> None:
    """No effect begins after its step was recorded, and what happens again does so under the same key.

    An effect of a process that held the turn before, and that another process has replaced, is counted as ``unaware``:
    it was frozen between its last look at the lease and the effect, which no bus can prevent."""
    effects: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for effect in books.read("effects.jsonl"):
        effects[effect["question"], effect["what"]].append(effect)
    words: Counter[str] = Counter()
    findings.facts["unaware"] = 0
    for conversation in range(books.conversations):
        by_turn: dict[str, list[Record]] = defaultdict(list)
        for record in transcript_records(books, conversation, Findings()):
            by_turn[record.turn].append(record)
            words[record.word] += 1
        for number in range(1, books.turns + 1):
            asked = question(conversation, number)
            for what in ("plan", "charge", "join"):
                _check_effect(asked, what, effects[asked, what], by_turn[str(number)], findings)
    findings.facts |= {
        "effects": sum(map(len, effects.values())),
        "again": sum(len(found) - 1 for found in effects.values()),
        "suspended": words["SUSPENDED"],
        "replays": words["RESUMED"] + words["TAKEN_OVER"],
    }


def _check_effect(
    asked: str, what: str, found: list[dict[str, Any]], records: list[Record], findings: Findings
) -> None:  # fmt: skip
    if not found:
        findings.add("lost", f"{asked}: {what} never happened")
        return
    if what == "charge" and len({effect["key"] for effect in found}) > 1:
        findings.add("repeated", f"{asked}: charged under different keys")
    until = _recorded_at(what, records)
    for effect in found[1:]:
        if effect["at"] * 1000 <= until:
            continue
        if _replaced(effect, records):
            findings.facts["unaware"] += 1
        else:
            findings.add("repeated", f"{asked}: {what} at {effect['at']:.3f}, after it was recorded")


def _replaced(effect: dict[str, Any], records: list[Record]) -> bool:
    """Whether the process of ``effect`` had held the turn and another process held it when the effect began."""
    before = [record for record in records if record.word in BEGINS and record.ms <= effect["at"] * 1000]
    holders = [record.instance.rsplit(":", 2)[-2] for record in before if record.instance.startswith(f"{ANSWERING}:")]
    return str(effect["process"]) in holders[:-1] and holders[-1] != str(effect["process"])


def _recorded_at(what: str, records: list[Record]) -> float:
    """When the step was on record for certain, in ms: its own record, or the first suspension after it."""
    step = STEPS.get(what, "8 model ask")
    own = [record.ms for record in records if record.word == "STEP" and record.text == step]
    asleep = [record.ms for record in records if record.word == "SUSPENDED" and what in STEPS]
    return min([*own, *asleep], default=float("inf"))
