"""What a conversation's history is made of."""

from __future__ import annotations

from typing import Literal

import msgspec

Mark = Literal["", "error", "stopped"]


class Remembered(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a history as stored; ``mark`` tells that its turn failed or was stopped."""

    role: Literal["user", "assistant"]
    text: str
    turn: str = ""
    mark: Mark = ""


def remembered(text: str, answer: str, turn: str, mark: Mark = "") -> list[bytes]:
    """A turn as its history entries: the user's words, then the answer unless it is empty."""
    entries = [Remembered("user", text, turn, mark)]
    if answer:
        entries.append(Remembered("assistant", answer, turn, mark))
    return [msgspec.json.encode(entry) for entry in entries]
