"""Notices: what a conversation is told without having asked."""

from __future__ import annotations

import hashlib

import msgspec

from rolecall.blocks import final_event, guard_block, milliseconds
from rolecall.delivery import quoted
from rolecall.envelope import check_conversation, cut
from rolecall.history import Remembered
from rolecall.keys import ShardKeys
from rolecall.redis_client import Arg
from rolecall.settings import Settings

LOGGED_CHARS = 8000


def notice_block(
    shard: ShardKeys, process: str, s: Settings, conversation: str, text: str, *, idempotency: str, front: str,
    remember: bool, instance: str,
) -> tuple[list[Arg], list[Arg]]:  # fmt: skip
    """KEYS and ARGV of the script ``notify``. A text over 64 kB is cut. Raises RolecallError for what is no name of a
    conversation."""
    text = cut(text)
    names, arguments = guard_block(shard, process, shard.deferred, "z", check_conversation(conversation), "")
    names += [
        shard.idempotency(conversation, f"notice:{idempotency}"), shard.outbox(front), shard.history(conversation),
    ]  # fmt: skip
    entry = msgspec.json.encode(Remembered("assistant", text)) if remember else b""
    arguments += [
        hashlib.sha256(text.encode()).hexdigest()[:16], milliseconds(s.idempotency_seconds),
        final_event("notice", {"text": text}), entry, max(s.assistant_history_limit, 1),
        milliseconds(s.conversation_days * 86_400), instance, quoted(text[:LOGGED_CHARS]),
    ]  # fmt: skip
    return names, arguments
