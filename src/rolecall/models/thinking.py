"""Keeps what a model thinks, between tags in its text, out of its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[think]", "[/think]"),
    ("<|start_thinking|>", "<|end_thinking|>"),
)
CLOSING = dict(PAIRS)
TAG = re.compile("|".join(re.escape(tag) for pair in PAIRS for tag in pair), re.IGNORECASE)
LONGEST = max(len(tag) for pair in PAIRS for tag in pair)
PREFIXES = frozenset(tag[:end] for pair in PAIRS for tag in pair for end in range(1, len(tag)))
BEGINS_THINKING = re.compile(r"(?<![a-z0-9])(r1|qwq|thinking|reasoner)(?![a-z0-9])", re.IGNORECASE)
"""Names of models whose servers often put the opening tag into the prompt, so that only the closing one comes."""


@dataclass
class Habit:
    """How a model was seen to answer. ``begins_thinking``: with thoughts that no tag opens; None if not known yet."""

    begins_thinking: bool | None = None

    @classmethod
    def of(cls, name: str) -> Habit:
        """What the name of a model tells."""
        return cls(True if BEGINS_THINKING.search(name) else None)


@dataclass
class ThoughtFilter:
    """The text of one answer as it comes, without the thoughts in it.

    Its beginning is held until it is known to be no thought: of a model that begins thinking until the closing tag, of
    an unknown one until ``release`` is called. ``retracted`` is set when text that was let through turns out to have
    been thought.
    """

    habit: Habit
    retracted: bool = False
    shown: str = ""
    _tail: str = ""
    _held: list[str] | None = field(default_factory=list)
    _opened: str = ""
    """The tag of the thought that is open; empty outside."""
    _thought: str = ""
    """The open thought, if it began within a line: without a closing tag it was none."""
    _strip: bool = False
    _tagged: bool = False
    """Whether a tag came that opens thoughts, or the first one that closes what none opened."""
    _unopened: bool = False

    def __post_init__(self) -> None:
        if self.habit.begins_thinking is False:
            self._held = None

    @property
    def holds(self) -> bool:
        """Whether text waits for ``release``."""
        return bool(self._held) and self.habit.begins_thinking is None

    def feed(self, text: str) -> list[str]:
        """The pieces to show now that ``text`` has come."""
        rest, visible = self._tail + text, ""
        self._tail = ""
        while rest:
            if self._opened:
                rest = self._skip(rest)
                continue
            tag = TAG.search(rest)
            if tag is None:
                keep = _partial(rest)
                visible += rest[: len(rest) - keep]
                self._tail = rest[len(rest) - keep :]
                break
            before, rest = rest[: tag.start()], rest[tag.end() :]
            so_far = self._so_far() + visible + before
            if _in_code(so_far):
                visible += before + tag[0]
            elif tag[0].lower() in CLOSING:
                visible += before
                self._opened, self._tagged = tag[0], True
                self._thought = tag[0] if so_far.rpartition("\n")[2].strip() else ""
            elif self._tagged:
                visible += before
            else:
                self._close_unopened()
                visible = ""
        return self._show(visible)

    def release(self) -> list[str]:
        """Show what was held: no closing tag came in time."""
        held, self._held = self._held or [], None
        return [self._note(piece) for piece in held]

    def finish(self, *, whole: bool) -> list[str]:
        """What is left to show at the end; ``whole`` if the model ended by itself."""
        rest = self._tail
        if self._opened:
            rest = self._thought + rest if self._thought and whole else ""
        self._thought = self._opened = self._tail = ""
        pieces = self._show(rest)
        if self._held is not None and self.habit.begins_thinking and not whole:
            self._held = None  # cut off while it was thinking
            return []
        if whole and (self.shown or self._held):
            self.habit.begins_thinking = self._unopened
        return [*pieces, *self.release()]

    def _so_far(self) -> str:
        return self.shown + "".join(self._held or ())

    def _skip(self, rest: str) -> str:
        """Drop what belongs to the open thought; returns what follows it."""
        closing = CLOSING[self._opened.lower()]
        end = rest.lower().find(closing)
        if end < 0:
            keep = min(len(rest), len(closing) - 1)
            self._tail = rest[len(rest) - keep :]
            if self._thought:
                self._thought += rest[: len(rest) - keep]
            return ""
        self._opened = self._thought = ""
        if not self._so_far().strip():
            self._strip = True
        if self._held is not None:  # it opens its thoughts with a tag
            self.habit.begins_thinking = False
        return rest[end + len(closing) :]

    def _close_unopened(self) -> None:
        """All that came before the closing tag was thought."""
        self.retracted = self.retracted or bool(self.shown)
        self.shown, self._held, self._strip, self._tagged, self._unopened = "", None, True, True, True
        self.habit.begins_thinking = True

    def _show(self, text: str) -> list[str]:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        if not text:
            return []
        if self._held is not None and self.habit.begins_thinking is not False:
            self._held.append(text)
            return []
        return [*self.release(), self._note(text)]

    def _note(self, piece: str) -> str:
        self.shown += piece
        return piece


def _partial(text: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of a tag."""
    end = text[-LONGEST:].lower()
    return next((length for length in range(len(end), 0, -1) if end[-length:] in PREFIXES), 0)


def _in_code(text: str) -> bool:
    """Whether what follows ``text`` is in a code block or span."""
    return text.count("```") % 2 == 1 or text.rpartition("\n")[2].count("`") % 2 == 1
