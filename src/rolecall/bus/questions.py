"""Questions: the payload of each turn as its messages brought it, kept for a while so that it can be asked again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import part_text
from rolecall.bus.foreign_text import REFERENCES
from rolecall.redis.scripts import milliseconds
from rolecall.redis.server import pairs


async def keep_question(
    bus: Bus, conversation: str, turn: str, message: str, payload: Mapping[str, Any], *, hours: float = 24
) -> None:
    """Keep the ``payload`` that ``message`` brought to ``turn``; the latest payload of a message replaces the others.

    ``message`` is the idempotency key. Call this right after a message was admitted (also MERGED and DUP) or an edit of
    it was received, whether or not the edit came in time.
    """
    key = bus.shard(conversation).question(conversation, turn)
    stored = bus.server.send("HSET", key, message, msgspec.json.encode(payload))
    await bus.server.call("PEXPIRE", key, milliseconds(hours * 3_600))
    await stored


async def question_of(bus: Bus, conversation: str, turn: str) -> dict[str, Any] | None:
    """The payload of ``turn`` over all its messages: texts joined by line ends, lists concatenated. What later
    messages refer to stands before their texts. None if it has expired."""
    flat = await bus.server.fetch("HGETALL", bus.shard(conversation).question(conversation, turn))
    whole: dict[str, Any] = {}
    for _, raw in sorted(pairs(flat), key=_message_order):
        payload = msgspec.json.decode(raw, type=dict[str, Any])
        if whole:
            rest = {name: value for name, value in payload.items() if name not in REFERENCES}
            payload = {**rest, "text": part_text(payload)}
        for name, value in payload.items():
            whole[name] = _joined(whole[name], value) if name in whole else value
    return whole or None


async def only_message(bus: Bus, conversation: str, turn: str) -> str:
    """The message, by its idempotency key, that ``turn`` answers; empty if there are several, or none is known."""
    messages = await bus.server.fetch("HKEYS", bus.shard(conversation).question(conversation, turn))
    return messages[0].decode() if len(messages) == 1 else ""


async def pressed_before(bus: Bus, conversation: str, turn: str, press: str, *, ms: int) -> bool:
    """Record that the button that asks ``turn`` again was pressed. True if another press came within the last ``ms``;
    a repeat of the same ``press`` does not count."""
    key = bus.shard(conversation).pressed(conversation, turn)
    before = await bus.server.call("SET", key, press, "NX", "GET", "PX", ms)
    return before not in (None, press.encode())


async def note_fingerprint(bus: Bus, conversation: str, message: str, fingerprint: str, *, hours: float = 48) -> None:
    """Remember what ``message``, an idempotency key, says as it stands, so that an edit without a change is recognised
    for as long as a message may be edited."""
    key = bus.shard(conversation).fingerprint(conversation, message)
    await bus.server.call("SET", key, fingerprint, "PX", milliseconds(hours * 3_600))


async def has_fingerprint(bus: Bus, conversation: str, message: str, fingerprint: str) -> bool:
    """Whether ``message`` says what ``note_fingerprint`` remembered last."""
    stored = await bus.server.fetch("GET", bus.shard(conversation).fingerprint(conversation, message))
    return bool(stored == fingerprint.encode())


async def offer_once(bus: Bus, conversation: str, turn: str, edit: str, *, hours: float = 24) -> bool:
    """Record that the user is offered a new answer to ``turn`` because of ``edit``. False while another offer is open,
    which will use the newest payload; a repeat of the same ``edit`` is True."""
    key = bus.shard(conversation).offer(conversation, turn)
    before = await bus.server.call("SET", key, edit, "NX", "GET", "PX", milliseconds(hours * 3_600))
    return before in (None, edit.encode())


async def close_offer(bus: Bus, conversation: str, turn: str) -> None:
    """The offer of a new answer to ``turn`` is no longer open. Idempotent."""
    await bus.server.call("DEL", bus.shard(conversation).offer(conversation, turn))


def _message_order(message: tuple[bytes, bytes]) -> tuple[int, bytes]:
    """Messages of a chat count up, and their idempotency keys end in their numbers."""
    number = message[0].rpartition(b":")[2]
    return int(number) if number.isdigit() else 0, message[0]


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return "\n".join(filter(None, (first, second)))
    return [*first, *second] if isinstance(first, list) and isinstance(second, list) else first
