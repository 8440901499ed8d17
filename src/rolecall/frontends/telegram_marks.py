"""Marks on a text that changes, and marks that nest the way Telegram wants entities to."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from rolecall.frontends.telegram_parts import Mark

QUOTES = ("blockquote",)
CODE = ("code", "pre")
SOLID = (*CODE, "text_link")
"""Kinds that hold none of their like; all others but quotes may be cut in two wherever it is needed."""


class Edit(NamedTuple):
    """``new`` in place of the characters from ``start`` to before ``end``."""

    start: int
    end: int
    new: str


def edited(text: str, marks: Iterable[Mark], edits: Iterable[Edit]) -> tuple[str, list[Mark]]:
    """The text with the edits made, and the marks where they are then. Of two edits that overlap the one that begins
    first is made; what is put in at the end of a mark is within it."""
    made = list(_apart(sorted(edits, key=lambda edit: (edit.start, -edit.end))))
    pieces, ends, shifts, at = [], [0], [0], 0
    for edit in made:
        pieces += [text[at : edit.start], edit.new]
        ends.append(edit.end)
        shifts.append(shifts[-1] + len(edit.new) - (edit.end - edit.start))
        at = edit.end

    def moved(place: int) -> int:
        past = bisect_right(ends, place) - 1
        inside = past < len(made) and made[past].start < place
        return (made[past].start if inside else place) + shifts[past]

    there = [Mark(kind, moved(start), moved(end), url, language) for kind, start, end, url, language in marks]
    return "".join([*pieces, text[at:]]), there


def _apart(edits: Iterable[Edit]) -> Iterator[Edit]:
    done = 0
    for edit in edits:
        if edit.start >= done:
            yield edit
            done = max(done, edit.end)


def nested(text: str, marks: Iterable[Mark]) -> list[Mark]:
    """The marks without white space at their ends, so that no two cross: quotes do not hold quotes, code holds nothing
    and only quotes hold it, links do not hold links. Sorted, the outer one first."""
    tight = sorted((_tight(text, mark) for mark in marks), key=lambda mark: (mark.start, -mark.end))
    tight = [mark for mark in tight if mark.start < mark.end]
    quotes = _first([mark for mark in tight if mark.kind in QUOTES])
    solid = _first([mark for mark in tight if mark.kind in SOLID and not _crossing(mark, quotes)])
    code, links = ([mark for mark in solid if (mark.kind in CODE) is wanted] for wanted in (True, False))
    soft = _merged([mark for mark in tight if mark.kind not in (*QUOTES, *SOLID)])
    pieces = [piece for mark in soft for piece in _cut(mark, code, links, quotes)]
    shown = (_tight(text, piece) for piece in _stacked(pieces))
    return sorted([*quotes, *solid, *(one for one in shown if one.start < one.end)], key=_order)


def _order(mark: Mark) -> tuple[int, int, bool]:
    return mark.start, -mark.end, mark.kind not in QUOTES


def _tight(text: str, mark: Mark) -> Mark:
    marked = text[mark.start : mark.end]
    if marked and marked[0] not in "\n " and marked[-1] not in "\n ":
        return mark
    start = mark.start + len(marked) - len(marked.lstrip("\n "))
    return mark._replace(start=start, end=max(start, mark.start + len(marked.rstrip("\n "))))


def _first(marks: Sequence[Mark]) -> list[Mark]:
    """Those that overlap none before them."""
    kept: list[Mark] = []
    for mark in marks:
        if not kept or mark.start >= kept[-1].end:
            kept.append(mark)
    return kept


def _holding(place: int, apart: Sequence[Mark]) -> Mark | None:
    """The one that has ``place`` strictly within it."""
    at = bisect_right(apart, place, key=lambda mark: mark.start) - 1
    return apart[at] if at >= 0 and apart[at].start < place < apart[at].end else None


def _crossing(mark: Mark, apart: Sequence[Mark]) -> list[int]:
    """The edges that it crosses without holding the whole."""
    first, last = _holding(mark.start, apart), _holding(mark.end, apart)
    ends = [first.end] if first and first.end < mark.end else []
    return ends + ([last.start] if last and last.start > mark.start else [])


def _merged(marks: Sequence[Mark]) -> list[Mark]:
    latest: dict[str, Mark] = {}
    done = []
    for mark in marks:
        before = latest.get(mark.kind)
        if before and mark.start <= before.end:
            latest[mark.kind] = before._replace(end=max(before.end, mark.end))
            continue
        done += [before] if before else []
        latest[mark.kind] = mark
    return [*done, *latest.values()]


def _cut(mark: Mark, code: Sequence[Mark], links: Sequence[Mark], quotes: Sequence[Mark]) -> Iterator[Mark]:
    """What is left of it outside code, in pieces that cross no link and no quote."""
    for free in _without(mark, code):
        edges = sorted({free.start, *_crossing(free, links), *_crossing(free, quotes), free.end})
        yield from (mark._replace(start=a, end=b) for a, b in pairwise(edges))


def _without(mark: Mark, code: Sequence[Mark]) -> Iterator[Mark]:
    start = mark.start
    for hole in code[max(0, bisect_right(code, start, key=lambda one: one.start) - 1) :]:
        if hole.start >= mark.end:
            break
        if hole.end > start:
            if hole.start > start:
                yield mark._replace(start=start, end=hole.start)
            start = hole.end
    if start < mark.end:
        yield mark._replace(start=start)


def _stacked(marks: Iterable[Mark]) -> Iterator[Mark]:
    """Each cut in two where it would reach out of the one it begins in."""
    waiting = [(mark.start, -mark.end, mark.kind, number, mark) for number, mark in enumerate(marks)]
    heapq.heapify(waiting)
    open_: list[int] = []
    while waiting:
        start, end, kind, number, mark = heapq.heappop(waiting)
        while open_ and open_[-1] <= start:
            open_.pop()
        if open_ and -end > open_[-1]:
            heapq.heappush(waiting, (open_[-1], end, kind, number, mark))
            end = -open_[-1]
        yield mark._replace(start=start, end=-end)
        open_.append(-end)
