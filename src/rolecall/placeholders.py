"""Placeholders: which message outside shows which turn, so that an answer takes its place and never comes twice."""

from __future__ import annotations

from dataclasses import dataclass

from rolecall.blocks import milliseconds
from rolecall.bus import Bus

WHOLE = "0"
"""The first part of an answer, and most often the only one."""


@dataclass(frozen=True)
class Placeholders:
    """What a front end remembers of the messages it sent, for ``days`` after the last of a turn. An answer of several
    messages has several parts; each is named as the front end likes."""

    bus: Bus
    days: float = 7

    async def record(self, conversation: str, turn: str, message: str, part: str = WHOLE) -> str:
        """Remember that the outside ``message`` shows ``part`` of ``turn``, unless one does already; returns the one
        that stands. When that is another, the caller's is one too many."""
        shard = self.bus.shard(conversation)
        names = (shard.shown(conversation, turn), shard.shows(conversation, message))
        arguments = (part, message, turn, milliseconds(self.days * 86_400))
        stands: bytes = await self.bus.server.run("show", names, arguments)
        return stands.decode()

    async def forget(self, conversation: str, turn: str, message: str, part: str = WHOLE) -> bool:
        """Forget the outside ``message``, say because it is gone there, if it is still the one that shows ``part``."""
        shard = self.bus.shard(conversation)
        names = (shard.shown(conversation, turn), shard.shows(conversation, message))
        return bool(await self.bus.server.run("unshow", names, (part, message)))

    async def of(self, conversation: str, turn: str) -> dict[str, str]:
        """The outside messages that show ``turn``, by part."""
        flat = await self.bus.server.fetch("HGETALL", self.bus.shard(conversation).shown(conversation, turn))
        return {part.decode(): message.decode() for part, message in zip(flat[::2], flat[1::2], strict=True)}

    async def turn_of(self, conversation: str, message: str) -> str:
        """The turn that the outside ``message`` shows, empty when it is none of ours or long ago."""
        key = self.bus.shard(conversation).shows(conversation, message)
        turn: bytes | None = await self.bus.server.fetch("GET", key)
        return (turn or b"").decode()
