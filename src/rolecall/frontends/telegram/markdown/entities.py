"""Texts with marks, cut into messages with entities, as Telegram counts and wants them."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
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
"""The kinds that may hold code."""


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
    within a mark that is no block or behind a heading (a line in bold) if it can be helped. Marks that are cut go on in
    the next part. ``marks`` must nest well. White space around the cuts is left out, and parts in which nothing can be
    seen."""
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
        self._headings = {mark.end for mark in marks if mark.kind == "bold" and self._is_line(mark)}

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
            fit = [least + end for end in ends if not forbidden[least + end] and not self._behind_heading(least + end)]
            yield next((end for end in reversed(fit) if not self._joined(end)), 0)

    def _is_line(self, mark: Mark) -> bool:
        """Whether the mark is one whole line."""
        begins, ends = self.text[mark.start - 1 : mark.start] in ("", "\n"), self.text[mark.end : mark.end + 1]
        return begins and ends in ("", "\n") and "\n" not in self.text[mark.start : mark.end]

    def _behind_heading(self, at: int) -> bool:
        """Whether a heading would be the last line of a part that ends there."""
        while at and self.text[at - 1] in "\n ":
            at -= 1
        return at in self._headings

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
