"""The words of the log: what can happen to a turn, with its meaning and its tone for people.

A new one is added here; timelines, terminal and web page take everything from this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Tone = Literal["", "begins", "good", "runs", "warn", "bad"]


class Word(NamedTuple):
    """What a word of the log means: its ``tone`` for people, whether it begins or ends a hop, and the state of the turn
    after it ("" leaves the state as it is)."""

    tone: Tone = ""
    hop: Literal["", "begins", "ends"] = ""
    state: str = ""


WORDS: Mapping[str, Word] = {
    "RECEIVED": Word("begins"),
    "STARTED": Word(hop="begins"),
    "TAKEN_OVER": Word("warn", hop="begins"),
    "RESUMED": Word(hop="begins"),
    "SENT": Word(hop="ends"),
    "PROCESSING_COMPLETE": Word("good", hop="ends", state="answered"),
    "RETRY": Word("warn", hop="ends"),
    "DEFERRED": Word("warn", hop="ends"),
    "SUSPENDED": Word("runs", hop="ends"),
    "FENCED": Word("warn", hop="ends"),
    "CANCELLED": Word("warn", hop="ends", state="cancelled"),
    "ERROR": Word("bad", hop="ends"),
    "DEAD_LETTER": Word("bad", hop="ends", state="given up"),
    "STEP": Word(),
    "ASKED": Word("runs"),
    "ANSWERED": Word("begins"),
    "DELIVERED": Word(state="delivered"),
    "NOTE": Word(),
}
"""A closed list: the scribe writes any other word as a NOTE."""
STATES: Mapping[str, Tone] = {
    "running": "runs", "answered": "good", "delivered": "good", "cancelled": "warn", "given up": "bad",
}  # fmt: skip
"""The states of a turn in a timeline, with their tones."""
FAILURES = frozenset(name for name, word in WORDS.items() if word.tone == "bad")


def tone_of(word: str) -> Tone:
    """The tone of a word of the log; none for a word that is not in the list."""
    return WORDS.get(word, Word()).tone
