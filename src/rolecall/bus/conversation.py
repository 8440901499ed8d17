"""A conversation outside its turns: notices, history, preferences and feedback."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import LISTS, SCHEDULED, Envelope, check_conversation, cut, decode, listed
from rolecall.bus.turn import (
    MAX_RECORD_CHARS,
    Records,
    TurnBlock,
    final_event,
    note,
    number_of,
    parted,
    quoted,
    turn_block,
)
from rolecall.errors import DecodeError, ServerFull
from rolecall.redis.keys import today
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import text_map

Mark = Literal["", "error", "stopped"]
Vote = Literal["up", "down", ""]
REPLACES = "replaces all from turn "
"""The beginning of the log record that names the first turn of those that this one is asked in place of."""
FOLLOWED = frozenset(("http", "terminal", "program"))
"""Front ends without an outbox: their users follow notices, see follow_notices in bus/events.py."""
TELEGRAM_ID = re.compile(r"(telegram[a-z0-9_-]{0,20}):-?\d{1,19}(?::\d{1,19})?", re.ASCII)
"""The conversations of Telegram: front end, chat, and the topic if there are topics."""
PACKAGE = "rolecall.bus"
NOTIFY = script(
    PACKAGE, "scripts/conversation/notify", TurnBlock,
    names="idempotency outbox history digest repeat_ms payload remembered history_limit keep instance said text",
)  # fmt: skip
PREFER = script(PACKAGE, "scripts/conversation/prefer", TurnBlock, names="keep preference value shown instance")
FEEDBACK = script(
    PACKAGE, "scripts/conversation/feedback", TurnBlock, names="votes statistics user vote day keep instance"
)


async def notify(
    bus: Bus, conversation: str, text: str, *, idempotency: str = "", front: str = "", remember: bool = True,
    instance: str = "front",
) -> Literal["OK", "DUP", "CONFLICT", "BUSY"]:  # fmt: skip
    """Send ``conversation`` a notice without a turn. Its front end (``front``, by default the first part of the
    conversation's name) delivers it; where users follow their conversations themselves (FOLLOWED), it is an event. The
    transcript and, unless ``remember`` is False, the history have it too. Atomic.

    With an ``idempotency`` key a notice is sent once: DUP for a repeat, CONFLICT for another text with the same key.
    BUSY: the server is full. These three write nothing. Raises RolecallError for an invalid conversation name.
    """
    shard, text = bus.shard(check_conversation(conversation)), cut(text)
    settings, front = bus.settings, front or conversation.partition(":")[0]
    try:
        verdict: bytes = await bus.server.run(
            NOTIFY, turn_block(bus, shard, conversation, ""),
            idempotency=shard.idempotency(conversation, f"notice:{idempotency or secrets.token_hex(16)}"),
            outbox=shard.outbox(front), history=shard.history(conversation),
            digest=hashlib.sha256(text.encode()).hexdigest()[:16],
            repeat_ms=milliseconds(settings.idempotency_seconds), payload=final_event("notice", {"text": text}),
            remembered=msgspec.json.encode(HistoryEntry("assistant", text)) if remember else b"",
            history_limit=max(settings.assistant_history_limit, 1),
            keep=milliseconds(settings.conversation_days * 86_400), instance=instance,
            said=quoted(text[:MAX_RECORD_CHARS]), text=text if front in FOLLOWED else "",
        )  # fmt: skip
    except ServerFull:  # refused at its first write
        return "BUSY"
    if verdict == b"DUP" and not idempotency:  # the same call again, whose first reply was lost
        return "OK"
    return verdict.decode()  # type: ignore[return-value]  # the script answers only these words


class HistoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a history; ``mark`` says if its turn failed or was stopped. Of a user's message, ``said`` is what
    the user wrote where a role made another text of it, and ``images`` and ``files`` are those of its payload. Of an
    answer, ``model`` and ``tokens`` (those of the answer itself), and whether it is ``plain``: no Markdown. A message
    that is ``scheduled`` was written by no user: its schedule began the turn."""

    role: Literal["user", "assistant"]
    text: str
    turn: str = ""
    mark: Mark = ""
    said: str = ""
    images: tuple[str, ...] = ()
    files: tuple[dict[str, str], ...] = ()
    model: str = ""
    tokens: int = 0
    plain: bool = False
    scheduled: bool = False


_decoder = msgspec.json.Decoder(HistoryEntry)


def remembered(
    text: str, answer: str, turn: str, mark: Mark = "", *, asked: Envelope | None = None,
    answered: Mapping[str, Any] | None = None,
) -> list[bytes]:  # fmt: skip
    """The history entries of a turn: the user's message, then the answer unless it is empty. ``asked`` is the message
    and ``answered`` the payload of the answer, if they are known."""
    question = HistoryEntry("user", text, turn, mark, scheduled=asked is not None and SCHEDULED in asked.payload)
    if asked is not None and (asked.payload.keys() & LISTS or asked.said != text):
        images, files = (listed(asked.payload, name) for name in LISTS)
        question = msgspec.structs.replace(
            question, said=asked.said if asked.said != text else "",
            images=tuple(image for image in images if isinstance(image, str)),
            files=tuple({k: str(v) for k, v in file.items()} for file in files if isinstance(file, dict)),
        )  # fmt: skip
    entries = [question]
    if answer:
        found = answered or {}
        tokens = found.get("tokens_out")
        model, tokens = str(found.get("model") or ""), tokens if type(tokens) is int else 0
        plain = bool(found.get("plain"))
        entries.append(HistoryEntry("assistant", cut(answer), turn, mark, model=model, tokens=tokens, plain=plain))
    return [msgspec.json.encode(entry) for entry in entries]


async def history(bus: Bus, conversation: str, limit: int) -> list[HistoryEntry]:
    """The last ``limit`` messages of the history, oldest first."""
    if limit == 0:
        return []
    return read_history(await bus.server.fetch("LRANGE", bus.shard(conversation).history(conversation), -limit, -1))


def read_history(raw: Sequence[bytes]) -> list[HistoryEntry]:
    """The messages of a history as the server has them."""
    return [_decoder.decode(entry) for entry in raw]


async def has_begun(bus: Bus, conversation: str) -> bool:
    """Whether anything is known of ``conversation``."""
    return bool(await bus.server.fetch("EXISTS", bus.shard(conversation).conversation(conversation)))


async def preferences_of(bus: Bus, conversation: str) -> dict[str, str]:
    """The preferences of ``conversation``."""
    return text_map(await bus.server.fetch("HGETALL", bus.shard(conversation).preferences(conversation)))


async def running_turn(bus: Bus, conversation: str) -> str:
    """The turn of ``conversation`` that is not waiting for another one; empty when there is none."""
    current = await bus.server.fetch("HGET", bus.shard(conversation).conversation(conversation), "cur")
    return (current or b"").decode()


async def preference(bus: Bus, conversation: str, name: str) -> str:
    """One preference of ``conversation``, empty if it has none of that name."""
    value = await bus.server.fetch("HGET", bus.shard(conversation).preferences(conversation), name)
    return (value or b"").decode()


async def asker_of(bus: Bus, conversation: str, turn: str) -> str | None:
    """The user whose limits an unfinished turn counts towards, empty if there is none; None if the turn has ended."""
    user = await bus.server.fetch("HGET", bus.shard(conversation).journal(conversation), f"{turn}:u")
    return None if user is None else user.decode()


async def forget_turn(bus: Bus, conversation: str, turn: str) -> None:
    """Remove ``turn`` and its answer from the history, because it is asked again. Idempotent."""
    key = bus.shard(conversation).history(conversation)
    for entry in await bus.server.fetch("LRANGE", key, 0, -1):
        if _decoder.decode(entry).turn == turn:
            await bus.server.fetch("LREM", key, 0, entry)


async def replace_turns(bus: Bus, conversation: str, first: str, turn: str, instance: str) -> None:
    """Remove the turn ``first`` and all that came after it from the history, because ``turn`` is asked in their place.
    The transcript notes it. Idempotent."""
    shard = bus.shard(conversation)
    key = shard.history(conversation)
    raw = await bus.server.fetch("LRANGE", key, 0, -1)
    entries = [_decoder.decode(one) for one in raw]
    kept = len(without(entries, first, onward=True))
    for one, entry in zip(raw[kept:], entries[kept:], strict=True):
        if number_of(entry.turn) < number_of(turn):
            await bus.server.fetch("LREM", key, 0, one)
    records = Records(instance)
    records.add("NOTE", f"{REPLACES}{first}")
    await note(bus, shard, conversation, turn, records)


def without(entries: Sequence[HistoryEntry], turn: str, onward: bool = False) -> list[HistoryEntry]:
    """``entries`` but for those of ``turn``; with ``onward`` also without what came after it, also where ``entries`` no
    longer go back to it."""
    if not onward:
        return [entry for entry in entries if entry.turn != turn]
    after = (place for place, entry in enumerate(entries) if 0 < number_of(turn) <= number_of(entry.turn))
    return list(entries[: next(after, len(entries))])


async def active_conversations(bus: Bus) -> set[str]:
    """The conversations with an unfinished turn."""
    found = await asyncio.gather(*(bus.server.fetch("ZRANGE", shard.active, 0, -1) for shard in bus.shards))
    return {parted(name.decode("utf-8", "replace"))[0] for names in found for name in names}


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


async def prefer(
    bus: Bus, conversation: str, name: str, value: str, *, instance: str = "front", secret: bool = False
) -> bool:
    """Set the preference ``name`` of ``conversation`` from its next turn on; an empty ``value`` removes it. The
    transcript notes it, without the value if that is ``secret``. False if nothing changed."""
    shard = bus.shard(check_conversation(conversation))
    changed = await bus.server.run(
        PREFER, turn_block(bus, shard, conversation, ""), preference=name, value=value, instance=instance,
        shown="set" if value and secret else value or "auto",
        keep=milliseconds(bus.settings.conversation_days * 86_400),
    )  # fmt: skip
    return bool(changed)


async def give_feedback(
    bus: Bus, conversation: str, turn: str, user: str, vote: Vote, *, instance: str = "front", days: float = 7
) -> bool:
    """Store the vote of ``user`` on the answer to ``turn``; an empty ``vote`` withdraws it. Each user has one vote. The
    transcript notes it, and the counters ``up`` and ``down`` of the day count it. False if nothing changed.

    Votes are kept for ``days``. A vote that changes on the same day moves the count.
    """
    shard, day = bus.shard(conversation), today()
    changed = await bus.server.run(
        FEEDBACK, turn_block(bus, shard, conversation, turn), votes=shard.votes(conversation, turn),
        statistics=shard.statistics(day), user=user, vote=vote, day=day, keep=milliseconds(days * 86_400),
        instance=instance,
    )  # fmt: skip
    return bool(changed)


async def toggle_feedback(
    bus: Bus, conversation: str, turn: str, user: str, vote: Literal["up", "down"], *, instance: str = "front"
) -> bool:
    """Store the vote of ``user`` on the answer to ``turn``, or withdraw it if it is the same. Whether it counts now."""
    stored = await bus.server.fetch("HGET", bus.shard(conversation).votes(conversation, turn), user)
    again = (stored or b"").decode().partition("|")[0] == vote
    await give_feedback(bus, conversation, turn, user, "" if again else vote, instance=instance)
    return not again
