"""Notices: what a conversation is told without having asked."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from redis.exceptions import OutOfMemoryError

from rolecall.blocks import final_event, guard_block, milliseconds
from rolecall.bus import Bus
from rolecall.delivery import quoted
from rolecall.envelope import check_conversation, cut
from rolecall.history import Remembered

LOGGED_CHARS = 8000


async def notify(
    bus: Bus, conversation: str, text: str, *, idempotency: str, front: str, remember: bool = True,
    instance: str = "front",
) -> Literal["OK", "DUP", "CONFLICT", "BUSY"]:  # fmt: skip
    """Put ``text`` in the outbox of the front end ``front`` for ``conversation``, once: no turn, no mailbox, no model.

    In one step it is also remembered (unless ``remember`` is False) and in the transcript. DUP: it was told before
    under this key, CONFLICT: another text was, BUSY: the server is full; these write nothing. A text over 64 kB is
    cut.
    """
    shard, text, s = bus.shard(check_conversation(conversation)), cut(text), bus.settings
    names, arguments = guard_block(shard, bus.process, shard.deferred, "z", conversation, "")
    names += [
        shard.idempotency(conversation, f"notice:{idempotency}"), shard.outbox(front), shard.history(conversation),
    ]  # fmt: skip
    entry = msgspec.json.encode(Remembered("assistant", text)) if remember else b""
    arguments += [
        hashlib.sha256(text.encode()).hexdigest()[:16], milliseconds(s.idempotency_seconds),
        final_event("notice", {"text": text}), entry, max(s.assistant_history_limit, 1),
        milliseconds(s.conversation_days * 86_400), instance, quoted(text[:LOGGED_CHARS]),
    ]  # fmt: skip
    try:
        verdict: bytes = await bus.server.run("notify", names, arguments)
    except OutOfMemoryError:  # refused at its first write
        return "BUSY"
    return verdict.decode()  # type: ignore[return-value]  # the script answers just these words
