"""A turn as one bar per hop: how long it waited, was handled, and how long the model took. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rolecall.transcripts.record import Record
from rolecall.transcripts.words import WORDS, Word

WAIT, HANDLING, MODEL = "·", "─", "█"
LEGEND = f"{WAIT} waiting  {HANDLING} handled  {MODEL} model"
MODEL_TIME = re.compile(r"\bmodel (\d+(?:\.\d+)?) s\b")
HOP_NUMBER = re.compile(r"hop (\d+)")


@dataclass
class Hop:
    """One handling: waiting since ``queued``, handled from ``started`` to ``ended``, in ms since the turn began."""

    number: int
    instance: str
    queued: int
    started: int
    ended: int
    word: str = ""
    """The log word that ended the hop; "" while it runs, TAKEN_OVER when another instance took over."""
    model: int = 0
    """The part of the handling in which a model answered, in ms."""

    @property
    def role(self) -> str:
        """The role of its instance."""
        return self.instance.partition(":")[0]

    @property
    def wait(self) -> int:
        """Time in the queue in ms."""
        return self.started - self.queued

    @property
    def handling(self) -> int:
        """Time of the handling in ms."""
        return self.ended - self.started


@dataclass
class TurnTimeline:
    """A turn and its hops in order; ``total`` is ms from the first to the last record."""

    turn: str
    ms: int
    said: str = ""
    state: str = "running"
    total: int = 0
    queued: int = 0
    hops: list[Hop] = field(default_factory=list)


def timelines(records: Iterable[Record]) -> list[TurnTimeline]:
    """The turns among ``records``, oldest first; each needs only its own records, in order."""
    turns: dict[str, TurnTimeline] = {}
    for record in records:
        if not record.turn:
            continue
        turn = turns.setdefault(record.turn, TurnTimeline(record.turn, record.ms - record.since))
        _add(turn, record)
    return list(turns.values())


def bars(turn: TurnTimeline, width: int = 60) -> list[str]:
    """The turn as text: a headline, then a line per hop with its bar in ``width`` columns and its times."""
    headline = (f"turn {turn.turn}", turn.said, f"{turn.state}, {_seconds(turn.total)}")
    lines = ["  ".join(part for part in headline if part)]
    names = max((len(hop.instance) for hop in turn.hops), default=0)
    for hop in turn.hops:
        times = f"waited {_seconds(hop.wait)}, handled {_seconds(hop.handling)}"
        if hop.model:
            times += f", model {_seconds(hop.model)}"
        if hop.word not in ("SENT", "PROCESSING_COMPLETE"):
            times += f", {hop.word.lower().replace('_', ' ') or 'running'}"
        lines.append(f"  {hop.instance.ljust(names)}  {bar(hop, turn.total, width)}  {times}")
    return lines


def bar(hop: Hop, total: int, width: int) -> str:
    """The hop in ``width`` columns for ``total`` ms, blank before it was queued and after it ended."""
    ends = _columns((hop.queued, hop.started, hop.ended - hop.model, hop.ended), total, width)
    queued, started, model, ended = ends
    drawn = WAIT * (started - queued) + HANDLING * (model - started) + MODEL * (ended - model)
    # A hop too short for a column still shows where it was.
    return (" " * queued + (drawn or HANDLING))[-width:].ljust(width)


def _add(turn: TurnTimeline, record: Record) -> None:
    turn.total = max(turn.total, record.since)
    running = turn.hops[-1] if turn.hops and not turn.hops[-1].word else None
    word = WORDS.get(record.word, Word())
    if record.word == "RECEIVED":
        turn.said = record.text.partition(f"/{record.turn} ")[2] or record.text
    elif word.hop == "begins":
        _begin(turn, running, record)
    elif running is not None:
        running.ended = record.since
        running.model = min(running.model + _model(record.text), running.handling)
        if word.hop == "ends":
            running.word = record.word
            turn.queued = record.since
    turn.state = word.state or turn.state


def _begin(turn: TurnTimeline, running: Hop | None, record: Record) -> None:
    if running is not None:
        running.ended, running.word = record.since, "TAKEN_OVER"
        turn.queued = record.since
    found = HOP_NUMBER.search(record.text)
    number = int(found[1]) if found else len(turn.hops)
    turn.hops.append(Hop(number, record.instance, turn.queued, record.since, record.since))


def _model(text: str) -> int:
    return sum(round(float(seconds) * 1000) for seconds in MODEL_TIME.findall(text))


def _columns(moments: Sequence[int], total: int, width: int) -> list[int]:
    return [round(moment * width / total) if total else 0 for moment in moments]


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.3f} s"
