"""A conversation's memory: its history and its preferences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.conversation import Remembered, history, preferences_of
from rolecall.models.model import Message


@dataclass
class Memory:
    """One conversation's memory as a handler sees it. Changes are applied when the handler settles, so a repeated
    handling applies them once."""

    bus: Bus
    conversation: str
    limit: int = 20
    without: str = ""
    """A turn to leave out, because its question is asked again."""
    brought: tuple[Message, ...] = ()
    """Messages that came with the envelope: they replace the remembered ones, or precede them if all are system
    messages."""
    changes: dict[str, str] = field(default_factory=dict)
    forgotten: bool = False

    async def entries(self) -> list[Remembered]:
        """The remembered messages, oldest first, at most ``limit``, with their marks."""
        entries = await history(self.bus, self.conversation, self.limit)
        return [entry for entry in entries if not self.without or entry.turn != self.without]

    async def history(self) -> list[Message]:
        """The messages so far, for a model: failed turns are left out."""
        if any(message.role != "system" for message in self.brought):
            return list(self.brought)
        kept = [Message(entry.role, entry.text) for entry in await self.entries() if entry.mark != "error"]
        return [*self.brought, *kept]

    async def preferences(self) -> dict[str, str]:
        """The conversation's preferences, including those set in this handling."""
        stored = await preferences_of(self.bus, self.conversation)
        return {name: value for name, value in {**stored, **self.changes}.items() if value}

    def prefer(self, **changes: str) -> None:
        """Set preferences when this handling settles; an empty value removes one."""
        self.changes.update(changes)

    def forget(self) -> None:
        """Clear the history when this handling completes its turn."""
        self.forgotten = True


def brought(payload: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages in a payload's ``history``, each {role, text}; none when it has another shape."""
    history = payload.get("history")
    if not history:
        return ()
    try:
        return msgspec.convert(history, tuple[Message, ...])
    except msgspec.ValidationError:
        return ()
