"""A turn as one bar per hop: how long it waited, was handled, and how long the model took. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rolecall.bus.turn import usage_text
from rolecall.transcripts.record import Record
from rolecall.transcripts.words import WORDS, Word

WAIT, HANDLING, MODEL = "·", "─", "█"
LEGEND = f"{WAIT} waiting  {HANDLING} handled  {MODEL} model"
USAGE = re.compile(
    r", (?:(?P<only_out>\d+) tokens, )?(?:(?P<models>[^\s,]+(?: \+ [^\s,]+)*), )?"
    r"(?:(?P<tokens_in>\d+) tokens in, (?P<tokens_out>\d+) out, )?(?:cost (?P<cost>\d+\.\d+), )?"
    r"model (?P<seconds>\d+(?:\.\d+)?) s(?=$|: \")"
)
"""What models took, at the end of a record or before the answer that it quotes; see HopUsage in agent/completion.py.
Version 0.1 wrote the tokens of the answer first."""
INDENT = "  "
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
    models: str = ""
    """The models that it asked, joined by " + "."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    """In the currency of the models' prices."""

    @property
    def role(self) -> str:
        """The role of its instance."""
        return self.instance.partition(":")[0]

    @property
    def usage(self) -> str:
        """The models, their tokens and cost."""
        return usage_text(self.models, self.tokens_in, self.tokens_out, self.cost)

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

    @property
    def path(self) -> tuple[int, ...]:
        """The numbers that its name consists of: 3, or 3 and 1 for the first call of turn 3."""
        return tuple(int(part) for part in self.turn.lstrip("c").split(".") if part.isdigit())

    @property
    def depth(self) -> int:
        """How many calls deep it is: 0 for a turn of a user."""
        return self.turn.count(".")

    @property
    def has_begun(self) -> bool:
        """Whether it was handled or ended: until then, messages may join it."""
        return bool(self.hops) or self.state != "running"

    def since(self, root: TurnTimeline) -> TurnTimeline:
        """This timeline with its hops in ms since ``root`` began."""
        later = self.ms - root.ms
        moved = [replace(hop, queued=hop.queued + later, started=hop.started + later, ended=hop.ended + later)
                 for hop in self.hops]  # fmt: skip
        return replace(self, hops=moved)


def timelines(records: Iterable[Record]) -> list[TurnTimeline]:
    """The turns among ``records``, oldest first; each needs only its own records, in order. A number that is given once
    more, as after CONVERSATION_DAYS or when an older backup was restored, is another turn."""
    turns, found = dict[str, TurnTimeline](), list[TurnTimeline]()
    for record in records:
        if not record.turn:
            continue
        turn = turns.get(record.turn)
        if turn is None or (record.word == "RECEIVED" and turn.has_begun):
            turn = turns[record.turn] = TurnTimeline(record.turn, record.ms - record.since)
            found.append(turn)
        _add(turn, record)
    return found


def trees(records: Iterable[Record], last: int) -> list[list[TurnTimeline]]:
    """The ``last`` turns of users among ``records``, oldest first, each followed by the calls that it made, and each of
    these by its own."""
    trees, found = dict[str, list[TurnTimeline]](), list[list[TurnTimeline]]()
    for turn in timelines(records):
        name = turn.turn.partition(".")[0]
        if name not in trees or not turn.depth:
            trees[name] = []
            found.append(trees[name])
        trees[name].append(turn)
    return [sorted(turns, key=lambda turn: turn.path) for turns in found[-last:]]


def tree_bars(turns: Sequence[TurnTimeline], width: int = 60) -> list[str]:
    """One of ``trees`` as text: the turn, and its calls indented under the handler that made them, on one time
    scale."""
    root, end = turns[0], max(turn.ms + turn.total for turn in turns) - turns[0].ms
    names = max((len(INDENT * turn.depth + hop.instance) for turn in turns for hop in turn.hops), default=0)
    lines = list[str]()
    for turn in turns:
        indent = INDENT * turn.depth
        lines += [indent + line for line in bars(turn.since(root), width, end, names - len(indent))]
    return lines


def bars(turn: TurnTimeline, width: int = 60, end: int = 0, names: int = 0) -> list[str]:
    """The turn as text: a headline, then a line per hop with its instance in at least ``names`` columns, its bar in
    ``width`` columns and its times. The columns stand for ``end`` ms, by default the time of the turn."""
    headline = (f"{'call' if turn.depth else 'turn'} {turn.turn}", turn.said, f"{turn.state}, {_seconds(turn.total)}")
    lines = ["  ".join(part for part in headline if part)]
    names = max(names, *(len(hop.instance) for hop in turn.hops)) if turn.hops else names
    for hop in turn.hops:
        times = f"waited {_seconds(hop.wait)}, handled {_seconds(hop.handling)}"
        if hop.model:
            times += f", model {_seconds(hop.model)}" + (f" ({hop.usage})" if hop.usage else "")
        if hop.word not in ("SENT", "PROCESSING_COMPLETE"):
            times += f", {hop.word.lower().replace('_', ' ') or 'running'}"
        lines.append(f"  {hop.instance.ljust(names)}  {bar(hop, end or turn.total, width)}  {times}")
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
        if word.hop == "ends" and (found := USAGE.search(record.text)):
            _use(running, found)
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


def _use(hop: Hop, found: re.Match[str]) -> None:
    hop.model = min(round(float(found["seconds"]) * 1000), hop.handling)
    hop.models = found["models"] or ""
    hop.tokens_in, hop.tokens_out = int(found["tokens_in"] or 0), int(found["tokens_out"] or found["only_out"] or 0)
    hop.cost = float(found["cost"] or 0)


def _columns(moments: Sequence[int], total: int, width: int) -> list[int]:
    return [round(moment * width / total) if total else 0 for moment in moments]


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.3f} s"
