"""What was asked in a turn, kept for a day so that it can be asked once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolecall.bus import Bus


@dataclass(frozen=True)
class Questions:
    """The payloads of turns. To be kept right after a message was admitted (MERGED and DUP too) or its edit was seen,
    whether that came in time or not."""

    bus: Bus
    hours: float = 24

    async def keep(self, conversation: str, turn: str, message: str, payload: Mapping[str, Any]) -> None:
        """Remember that ``message`` (its idempotency key) brought ``payload`` to ``turn``; the latest stands."""
        raise NotImplementedError

    async def of(self, conversation: str, turn: str) -> dict[str, Any] | None:
        """The payload of the whole turn: texts joined, images and files one after the other; None if too long ago."""
        raise NotImplementedError
