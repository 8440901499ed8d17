"""What was asked in a turn, kept for a day so that it can be asked once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rolecall.blocks import milliseconds
from rolecall.bus import Bus
from rolecall.history import Remembered


@dataclass(frozen=True)
class Questions:
    """The payloads of turns. To be kept right after a message was admitted (MERGED and DUP too) or its edit was seen,
    whether that came in time or not."""

    bus: Bus
    hours: float = 24

    async def keep(self, conversation: str, turn: str, message: str, payload: Mapping[str, Any]) -> None:
        """Remember that ``message`` (its idempotency key) brought ``payload`` to ``turn``; the latest stands."""
        key = self.bus.shard(conversation).question(conversation, turn)
        told = self.bus.server.send("HSET", key, message, msgspec.json.encode(payload))
        await self.bus.server.call("PEXPIRE", key, milliseconds(self.hours * 3_600))
        await told

    async def of(self, conversation: str, turn: str) -> dict[str, Any] | None:
        """The payload of the whole turn: texts joined, lists one after the other; None if it was too long ago."""
        flat = await self.bus.server.fetch("HGETALL", self.bus.shard(conversation).question(conversation, turn))
        whole: dict[str, Any] = {}
        for _, raw in sorted(zip(flat[::2], flat[1::2], strict=True), key=_in_order):
            for name, value in msgspec.json.decode(raw, type=dict[str, Any]).items():
                whole[name] = _joined(whole[name], value) if name in whole else value
        return whole or None

    async def forget(self, conversation: str, turn: str) -> None:
        """Let ``turn`` and its answer be no part of the history any more, say because it is asked once more."""
        history = self.bus.shard(conversation).history(conversation)
        for entry in await self.bus.server.fetch("LRANGE", history, 0, -1):
            if msgspec.json.decode(entry, type=Remembered).turn == turn:
                await self.bus.server.call("LREM", history, 0, entry)


def _in_order(message: tuple[bytes, bytes]) -> tuple[int, bytes]:
    """Messages of a chat count up, and their keys end in their numbers."""
    number = message[0].rpartition(b":")[2]
    return int(number) if number.isdigit() else 0, message[0]


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return "\n".join(filter(None, (first, second)))
    return [*first, *second] if isinstance(first, list) and isinstance(second, list) else first
