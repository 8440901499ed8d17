"""A conversation's memory: its history and its preferences."""

from __future__ import annotations

from dataclasses import dataclass, field

from rolecall.agent.client_extras import ClientExtras
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import HistoryEntry, history, preferences_of, read_history, without
from rolecall.bus.leases import Along
from rolecall.errors import expect
from rolecall.models.model import Message
from rolecall.redis.server import text_map


@dataclass
class Memory:
    """One conversation's memory as a handler sees it. Changes are applied when the handler settles, so a repeated
    handling applies them once."""

    bus: Bus
    conversation: str
    limit: int = 20
    without: str = ""
    """A turn to leave out, because its question is asked again; ``12+`` also leaves out what came after turn 12."""
    extras: ClientExtras | None = None
    """What came with the envelope."""
    changes: dict[str, str] = field(default_factory=dict)
    forgotten: bool = False
    along: Along = field(default_factory=Along)
    """What came along with the envelope."""

    async def entries(self) -> list[HistoryEntry]:
        """The remembered messages, oldest first, at most ``limit``, with their marks. The first look may show them as
        they were when the handling began, see Along."""
        raw = self.along.take_history()
        entries = await history(self.bus, self.conversation, self.limit) if raw is None else read_history(raw)
        return without(entries, self.without.removesuffix("+"), self.without.endswith("+")) if self.without else entries

    async def history(self) -> list[Message]:
        """The messages so far, for a model: failed turns are left out."""
        brought = await self.extras.history() if self.extras is not None else ()
        if any(message.role != "system" for message in brought):
            return list(brought)
        kept = [Message(entry.role, entry.text) for entry in await self.entries() if entry.mark != "error"]
        return [*brought, *kept]

    async def preferences(self) -> dict[str, str]:
        """The conversation's preferences, including those set in this handling. The first look may show the others as
        they were when the handling began, see Along."""
        raw = self.along.take_preferences()
        stored = await preferences_of(self.bus, self.conversation) if raw is None else text_map(raw)
        return {name: value for name, value in {**stored, **self.changes}.items() if value}

    def prefer(self, **changes: str | float) -> None:
        """Set preferences when this handling settles; an empty value removes one. A number becomes a text."""
        for name, value in changes.items():
            expect(isinstance(value, str | int | float) and not isinstance(value, bool), f"preference {name}", value)
        self.changes.update({name: str(value) for name, value in changes.items()})

    def forget(self) -> None:
        """Clear the history when this handling completes its turn."""
        self.forgotten = True
