"""Entities: their nesting, their UTF-16 offsets, and texts cut into messages."""

from __future__ import annotations

import heapq
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import NamedTuple

TEXT_LIMIT = 4096
"""UTF-16 units in one message."""
ENTITY_LIMIT = 100
"""Telegram drops further entities without a word."""
ENTITY_BYTES = 9000
"""What the entities of one message may weigh together; Telegram refuses somewhat more."""
LEAST = 4
"""A part that is cut at a nice place holds at least one LEASTth of what it could."""
BLOCKS = ("pre", "blockquote", "expandable_blockquote")
INVISIBLE = re.compile(
    "[\\s\u00a0\u1680\u180e\u2000-\u200f\u202e\u202f\u205f\u2800\u3000\ufeff\ufffc\U000e0000-\U000e007f]*"
)
QUOTES = ("blockquote",)
CODE = ("code", "pre")
SOLID = (*CODE, "text_link")
"""Kinds that hold none of their like; all others but quotes may be cut in two wherever it is needed."""


@dataclass(frozen=True)
class Entity:
    """A marked piece of a part; ``offset`` and ``length`` are UTF-16 units, ``kind`` is Telegram's word."""

    kind: str
    offset: int
    length: int
    url: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class TextPart:
    """One message: its text as Telegram will keep it, and its entities, sorted and well nested."""

    text: str
    entities: tuple[Entity, ...] = ()


class Mark(NamedTuple):
    """A marked piece of a text, from character ``start`` to before ``end``."""

    kind: str
    start: int
    end: int
    url: str | None = None
    language: str | None = None

    @property
    def weight(self) -> int:
        """About the bytes that it takes on the wire."""
        return 16 + len((self.url or "").encode()) + len((self.language or "").encode())


def utf16_len(text: str) -> int:
    """The length that Telegram counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def parts_of(text: str, marks: Sequence[Mark], limit: int = TEXT_LIMIT) -> Iterator[TextPart]:
    """Cut at paragraphs, else lines, else (in code too) further down to single characters; never within one, nor
    within a mark that is no block if it can be helped. Marks that are cut go on in the next part. ``marks`` must nest
    well. White space around the cuts is left out, and parts in which nothing can be seen."""
    cuts = Cuts(text, sorted(marks, key=lambda mark: (mark.start, -mark.end)), limit)
    parts = (cuts.part(start, end) for start, end in cuts.spans())
    return (part for part in parts if not INVISIBLE.fullmatch(part.text))


class Cuts:
    """Where to cut one text."""

    def __init__(self, text: str, marks: list[Mark], limit: int) -> None:
        self.text, self.marks, self.limit = text, marks, limit
        self._units = [0, *accumulate(2 if char > "\uffff" else 1 for char in text)]
        self._blocks = self._within(mark for mark in marks if mark.kind == "pre")
        self._tight = self._within(mark for mark in marks if mark.kind not in BLOCKS)

    def spans(self) -> Iterator[tuple[int, int]]:
        """The ranges of the parts."""
        start, first = 0, 0
        while start < len(self.text):
            while first < len(self.marks) and self.marks[first].end <= start:
                first += 1
            end = self._end(start, first)
            yield start, end
            start = end

    def part(self, start: int, end: int) -> TextPart:
        """What stands there, without the white space around it."""
        start += len(self.text[start:end]) - len(self.text[start:end].lstrip("\n "))
        end -= len(self.text[start:end]) - len(self.text[start:end].rstrip("\n "))
        inside = (mark for mark in self.marks[: self._after(end)] if mark.end > start)
        clipped = [self._clipped(mark, start, end) for mark in inside]
        return TextPart(self.text[start:end], tuple(one for one in clipped if one))

    def _clipped(self, mark: Mark, start: int, end: int) -> Entity | None:
        first, last = max(mark.start, start), min(mark.end, end)
        marked = self.text[first:last]
        first += len(marked) - len(marked.lstrip("\n "))
        last -= len(marked) - len(marked.rstrip("\n "))
        if first >= last:
            return None
        at = self._units[first]
        return Entity(mark.kind, at - self._units[start], self._units[last] - at, mark.url, mark.language)

    def _end(self, start: int, first: int) -> int:
        furthest = self._furthest(start, first)
        if furthest >= len(self.text):
            return len(self.text)
        least = start + max(1, (furthest - start) // LEAST)
        found = next((cut for cut in self._places(least, furthest) if cut), 0)
        return found or self._whole(start + 1, furthest)

    def _furthest(self, start: int, first: int) -> int:
        """The end of what fits: by units, by number and by weight of the marks."""
        text = bisect_left(self._units, self._units[start] + self.limit + 1) - 1
        number = weight = 0
        for mark in self.marks[first:]:
            if mark.start >= text:
                break
            if mark.end <= start:
                continue
            number, weight = number + 1, weight + mark.weight
            if number > ENTITY_LIMIT or weight > ENTITY_BYTES:
                return max(min(text, mark.start), start + 1)
        return text

    def _places(self, least: int, furthest: int) -> Iterator[int]:
        """The last place of each kind, best kind first; 0 where there is none."""
        prose, code = bytes(len(self.text) + 1), self._blocks
        for pattern, forbidden in (
            (r"\n\s*\n", code),
            (r"\n", code),
            (r"\n(?=\S)", prose),
            (r"\n", prose),
            (r"[.!?…][\"')\]»”’]*\s+|[。！？]", self._tight),
            (r"\s+", self._tight),
            (r"\s+", prose),
        ):
            ends = (match.end() for match in re.finditer(pattern, self.text[least:furthest]))
            fit = [least + end for end in ends if not forbidden[least + end]]
            yield next((end for end in reversed(fit) if not self._joined(end)), 0)

    def _whole(self, least: int, furthest: int) -> int:
        """The last place between two characters as people see them, or the furthest if there is none."""
        found = (at for at in range(furthest, least - 1, -1) if not self._joined(at))
        return next((at for at in found if not self._tight[at] or at < furthest - 64), furthest)

    def _joined(self, at: int) -> bool:
        return joined(self.text, at)

    def _after(self, end: int) -> int:
        return bisect_left(self.marks, end, key=lambda mark: mark.start)

    def _within(self, marks: Iterator[Mark]) -> bytearray:
        """For each place, whether it lies inside one of these marks, not at its edge."""
        inside = bytearray(len(self.text) + 1)
        for mark in marks:
            length = mark.end - mark.start - 1
            if length > 0:
                inside[mark.start + 1 : mark.end] = b"\1" * length
        return inside


def joined(text: str, at: int) -> bool:
    """Whether a cut there would take one character as people see it apart: an accent from its letter, an emoji."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if unicodedata.category(after)[0] == "M" or after in "\u200d\u200c" or before == "\u200d":
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return True
    if unicodedata.combining(before) == 9:  # a virama ties two letters
        return True
    if "\u1160" <= after <= "\u11ff" and before >= "\u1100":
        return True
    return _is_flag(after) and sum(1 for _ in takewhile(_is_flag, reversed(text[:at]))) % 2 == 1


def _is_flag(char: str) -> bool:
    """Whether it is half of a flag."""
    return "\U0001f1e6" <= char <= "\U0001f1ff"


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
