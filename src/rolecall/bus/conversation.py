"""The only speaker of the scripts and the work streams."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, check_conversation, cut, decode
from rolecall.bus.turn import final_event, guard_block, quoted
from rolecall.errors import DecodeError, ServerFull
from rolecall.redis.keys import ShardKeys, today
from rolecall.redis.pipeline import Arg
from rolecall.redis.scripts import milliseconds
from rolecall.redis.server import text_map
from rolecall.settings import Settings

Mark = Literal["", "error", "stopped"]
Vote = Literal["up", "down", ""]
LOGGED_CHARS = 8000


async def notify(
    bus: Bus, conversation: str, text: str, *, idempotency: str = "", front: str = "", remember: bool = True,
    instance: str = "front",
) -> Literal["OK", "DUP", "CONFLICT", "BUSY"]:  # fmt: skip
    """Tell ``conversation`` something it did not ask for: no turn, no mailbox, no model; its front end (the first
    part of its name, or ``front``) shows it and lets it ring.

    In one step it is also remembered (unless ``remember`` is False) and in the transcript. With an ``idempotency``
    key it is told once: DUP then says that it was before, CONFLICT that another text was. BUSY: the server is full.
    Of these three nothing is written. Raises RolecallError for what is no name of a conversation.
    """
    names, arguments = notice_block(
        bus.shard(conversation), bus.process, bus.settings, conversation, text,
        idempotency=idempotency or secrets.token_hex(16), front=front or conversation.partition(":")[0],
        remember=remember, instance=instance,
    )  # fmt: skip
    try:
        verdict: bytes = await bus.server.run("notify", names, arguments)
    except ServerFull:  # refused at its first write
        return "BUSY"
    return verdict.decode()  # type: ignore[return-value]  # the script answers just these words


class Remembered(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a history as stored; ``mark`` tells that its turn failed or was stopped."""

    role: Literal["user", "assistant"]
    text: str
    turn: str = ""
    mark: Mark = ""


_decoder = msgspec.json.Decoder(Remembered)


def remembered(text: str, answer: str, turn: str, mark: Mark = "") -> list[bytes]:
    """A turn as its history entries: the user's words, then the answer unless it is empty."""
    entries = [Remembered("user", text, turn, mark)]
    if answer:
        entries.append(Remembered("assistant", answer, turn, mark))
    return [msgspec.json.encode(entry) for entry in entries]


async def history(bus: Bus, conversation: str, limit: int) -> list[Remembered]:
    """The last ``limit`` messages of the history, oldest first."""
    if limit == 0:
        return []
    raw = await bus.server.fetch("LRANGE", bus.shard(conversation).history(conversation), -limit, -1)
    return [_decoder.decode(entry) for entry in raw]


async def preferences_of(bus: Bus, conversation: str) -> dict[str, str]:
    """The preferences of ``conversation``."""
    return text_map(await bus.server.fetch("HGETALL", bus.shard(conversation).preferences(conversation)))


async def running_turn(bus: Bus, conversation: str) -> str:
    """The turn of ``conversation`` that is not waiting for another one; empty when there is none."""
    current = await bus.server.fetch("HGET", bus.shard(conversation).conversation(conversation), "cur")
    return (current or b"").decode()


async def active_conversations(bus: Bus) -> set[str]:
    """The conversations with an unfinished turn."""
    found = await asyncio.gather(*(bus.server.fetch("ZRANGE", shard.active, 0, -1) for shard in bus.shards))
    return {name.decode("utf-8", "replace").partition("\x1f")[0] for names in found for name in names}


async def envelopes_of(bus: Bus, conversation: str, turns: Sequence[str]) -> dict[str, Envelope]:
    """The envelopes of the unfinished turns among ``turns``, with the messages that joined them. One that cannot be
    read is left out."""
    if not turns:
        return {}
    fields = [f"{turn}:{part}" for turn in turns for part in "ex"]
    found = await bus.server.fetch("HMGET", bus.shard(conversation).journal(conversation), *fields)
    envelopes = {}
    for turn, raw, parts in zip(turns, found[::2], found[1::2], strict=True):
        if raw is not None:
            with suppress(DecodeError):
                envelopes[turn] = decode(raw, parts=parts or b"")
    return envelopes


async def prefer(bus: Bus, conversation: str, name: str, value: str, *, instance: str = "front") -> bool:
    """Let ``conversation`` prefer ``value`` from its next turn on; an empty one takes the preference back. A note in
    the transcript. False when it was so already."""
    shard = bus.shard(check_conversation(conversation))
    names, arguments = guard_block(shard, bus.process, shard.deferred, "z", conversation, "")
    arguments += [milliseconds(bus.settings.conversation_days * 86_400), name, value, instance]
    return bool(await bus.server.run("prefer", names, arguments))


async def give_feedback(
    bus: Bus, conversation: str, turn: str, user: str, vote: Vote, *, instance: str = "front", days: float = 7
) -> bool:
    """Note ``user``'s ``vote`` on the answer to ``turn``; an empty one takes it back. A note in the transcript and the
    counters ``up`` and ``down`` of the day. One vote per user; False when it was theirs already.

    Votes are known for ``days``; a change of mind moves the count on the day the vote was given.
    """
    shard, day = bus.shard(conversation), today()
    names, arguments = guard_block(shard, bus.process, shard.deferred, "z", conversation, turn)
    names += [shard.votes(conversation, turn), shard.statistics(day)]
    arguments += [user, vote, day, milliseconds(days * 86_400), instance]
    return bool(await bus.server.run("feedback", names, arguments))


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
