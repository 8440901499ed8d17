"""The messages of a chat as a front end knows them: what each asks, kept for a while so that it can be asked again, and
what it says after its edits; and which messages show a turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import part_text
from rolecall.bus.foreign_text import REFERENCES
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import pairs, text_map

PACKAGE = "rolecall.bus"
SHOW = script(PACKAGE, "scripts/conversation/show", names="shown shows part message turn keep")
UNSHOW = script(PACKAGE, "scripts/conversation/unshow", names="shown shows part message")
WHOLE = "0"
"""The name of an answer's first part, which is usually the only one."""


async def keep_question(
    bus: Bus, conversation: str, turn: str, message: str, payload: Mapping[str, Any], *, hours: float = 24
) -> None:
    """Keep the ``payload`` that ``message`` brought to ``turn``; the latest payload of a message replaces the others.

    ``message`` is the idempotency key. Call this right after a message was admitted (also MERGED and DUP) or an edit of
    it was received, whether or not the edit came in time.
    """
    key = bus.shard(conversation).question(conversation, turn)
    await bus.server.fetch("HSET", key, message, msgspec.json.encode(payload))
    await bus.server.fetch("PEXPIRE", key, milliseconds(hours * 3_600))


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
    before = await bus.server.fetch("SET", key, press, "NX", "GET", "PX", ms)
    return before not in (None, press.encode())


async def note_fingerprint(bus: Bus, conversation: str, message: str, fingerprint: str, *, hours: float = 48) -> None:
    """Remember what ``message``, an idempotency key, says as it stands, so that an edit without a change is recognised
    for as long as a message may be edited."""
    key = bus.shard(conversation).fingerprint(conversation, message)
    await bus.server.fetch("SET", key, fingerprint, "PX", milliseconds(hours * 3_600))


async def has_fingerprint(bus: Bus, conversation: str, message: str, fingerprint: str) -> bool:
    """Whether ``message`` says what ``note_fingerprint`` remembered last."""
    stored = await bus.server.fetch("GET", bus.shard(conversation).fingerprint(conversation, message))
    return bool(stored == fingerprint.encode())


async def offer_once(bus: Bus, conversation: str, turn: str, edit: str, *, hours: float = 24) -> bool:
    """Record that the user is offered a new answer to ``turn`` because of ``edit``. False while another offer is open,
    which will use the newest payload; a repeat of the same ``edit`` is True."""
    key = bus.shard(conversation).offer(conversation, turn)
    before = await bus.server.fetch("SET", key, edit, "NX", "GET", "PX", milliseconds(hours * 3_600))
    return before in (None, edit.encode())


async def close_offer(bus: Bus, conversation: str, turn: str) -> None:
    """The offer of a new answer to ``turn`` is no longer open. Idempotent."""
    await bus.server.fetch("DEL", bus.shard(conversation).offer(conversation, turn))


@dataclass(frozen=True)
class Placeholders:
    """Which outside messages show a turn, kept for ``days`` after the last one. An answer of several messages has
    several parts, which the front end names."""

    bus: Bus
    days: float = 7

    async def record(self, conversation: str, turn: str, message: str, part: str = WHOLE) -> str:
        """Remember that the outside ``message`` shows ``part`` of ``turn``, unless another one does already. Returns
        the message that shows it; if that is not the caller's, the caller sent a duplicate."""
        shard = self.bus.shard(conversation)
        stands: bytes = await self.bus.server.run(
            SHOW, shown=shard.shown(conversation, turn), shows=shard.shows(conversation, message), part=part,
            message=message, turn=turn, keep=milliseconds(self.days * 86_400),
        )  # fmt: skip
        return stands.decode()

    async def forget(self, conversation: str, turn: str, message: str, part: str = WHOLE) -> bool:
        """Forget the outside ``message``, for example once it was deleted, if it still shows ``part``."""
        shard = self.bus.shard(conversation)
        shown, shows = shard.shown(conversation, turn), shard.shows(conversation, message)
        return bool(await self.bus.server.run(UNSHOW, shown=shown, shows=shows, part=part, message=message))

    async def of(self, conversation: str, turn: str) -> dict[str, str]:
        """The outside messages that show ``turn``, by part."""
        flat = await self.bus.server.fetch("HGETALL", self.bus.shard(conversation).shown(conversation, turn))
        return text_map(flat)

    async def turn_of(self, conversation: str, message: str) -> str:
        """The turn that the outside ``message`` shows; empty if there is none or it has expired."""
        key = self.bus.shard(conversation).shows(conversation, message)
        turn: bytes | None = await self.bus.server.fetch("GET", key)
        return (turn or b"").decode()


def _message_order(message: tuple[bytes, bytes]) -> tuple[int, bytes]:
    """Messages of a chat count up, and their idempotency keys end in their numbers."""
    number = message[0].rpartition(b":")[2]
    return int(number) if number.isdigit() else 0, message[0]


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return "\n".join(filter(None, (first, second)))
    return [*first, *second] if isinstance(first, list) and isinstance(second, list) else first
