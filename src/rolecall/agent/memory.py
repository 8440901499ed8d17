"""A conversation's memory: its history and its preferences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.client_request import ClientMessage, ClientRequest, load_request
from rolecall.bus.conversation import Remembered, history, preferences_of
from rolecall.errors import Reject
from rolecall.models.model import Message, ToolCall

EXPIRED = "the request has expired; please send it again"
NOTHING = ClientRequest()


@dataclass
class Brought:
    """What came with an envelope from a client that keeps its history itself: see bus/client_request.py. A payload may
    also list a short ``history`` of {role, text}."""

    bus: Bus
    conversation: str
    payload: Mapping[str, Any]
    _request: ClientRequest | None = None
    _history: tuple[Message, ...] | None = None

    async def request(self) -> ClientRequest:
        """The client's request; empty if none came. Raises Reject once it has expired."""
        blob = self.payload.get("request")
        if self._request is None and isinstance(blob, str) and blob:
            self._request = await load_request(self.bus, self.conversation, blob)
            if self._request is None:
                raise Reject(EXPIRED)
        return self._request or NOTHING

    async def history(self) -> tuple[Message, ...]:
        """The messages before the user's last one. They replace the remembered ones, or precede them if all are system
        messages."""
        if self._history is None:
            listed = _listed(self.payload)
            self._history = listed or await self._messages((await self.request()).before)
        return self._history

    async def after(self) -> tuple[Message, ...]:
        """The messages after the user's last one: calls of the client's tools and their results."""
        return await self._messages((await self.request()).after)

    async def _messages(self, messages: tuple[ClientMessage, ...]) -> tuple[Message, ...]:
        return tuple([
            Message(one.role, one.text, await self._images(one.images), _calls(one), one.call) for one in messages
        ])  # fmt: skip

    async def _images(self, ids: tuple[str, ...]) -> tuple[bytes, ...]:
        found = [await Blobs(self.bus).get(self.conversation, one) for one in ids]
        return tuple(blob.data for blob in found if blob)


@dataclass
class Memory:
    """One conversation's memory as a handler sees it. Changes are applied when the handler settles, so a repeated
    handling applies them once."""

    bus: Bus
    conversation: str
    limit: int = 20
    without: str = ""
    """A turn to leave out, because its question is asked again."""
    brought: Brought | None = None
    """What came with the envelope."""
    changes: dict[str, str] = field(default_factory=dict)
    forgotten: bool = False

    async def entries(self) -> list[Remembered]:
        """The remembered messages, oldest first, at most ``limit``, with their marks."""
        entries = await history(self.bus, self.conversation, self.limit)
        return [entry for entry in entries if not self.without or entry.turn != self.without]

    async def history(self) -> list[Message]:
        """The messages so far, for a model: failed turns are left out."""
        brought = await self.brought.history() if self.brought is not None else ()
        if any(message.role != "system" for message in brought):
            return list(brought)
        kept = [Message(entry.role, entry.text) for entry in await self.entries() if entry.mark != "error"]
        return [*brought, *kept]

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


def _listed(payload: Mapping[str, Any]) -> tuple[Message, ...]:
    history = payload.get("history")
    if not history:
        return ()
    try:
        return msgspec.convert(history, tuple[Message, ...])
    except msgspec.ValidationError:
        return ()


def _calls(message: ClientMessage) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call.id, call.name, call.arguments, call.signature) for call in message.calls)
