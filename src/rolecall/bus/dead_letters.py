"""Dead letters: what was given up on. An operator can list, replay or drop them.

Of kind ``envelope``: the envelope of a turn, or an entry of a role's stream that belongs to no turn. Loops that serve
many set other items aside here once they failed too often: ``update``, what a front end received, and ``delivery``, an
event of an outbox.
"""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from rolecall.bus.admission import Admission, admit
from rolecall.bus.bus import Bus, count_soon
from rolecall.bus.envelope import MAX_DEPTH, Envelope, decode, depth_of, encodable, short_turn_id
from rolecall.bus.turn import FIRST_ROLE, is_call, is_control
from rolecall.errors import ConfigError, DecodeError, RolecallError
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import field_map, server_ms

Kind = Literal["envelope", "update", "delivery"]
KINDS: dict[str, Kind] = {"e": "envelope", "u": "update", "d": "delivery"}
"""The kinds of what belongs to no turn, by the first letter of their ids. The id of a turn's envelope has none."""
ID = re.compile(r"([eud]?)(\d{1,15}-\d{1,10})(?:@(\d{1,3}))?", re.ASCII)
KEPT = 1000
"""How many of each kind and shard are kept, about; a flood of one kind never pushes out another."""
MAX_BYTES = 256 * 1024
MAX_REASON = 2000


class DeadLetter(msgspec.Struct, frozen=True):
    """One dead letter: ``ms`` is when it was given up, since 1970, ``envelope`` the JSON of it, ``source`` the
    stream or front end it came from. Conversation and turn are empty for what belongs to none."""

    id: str
    conversation: str
    turn: str
    reason: str
    deliveries: int
    ms: int
    envelope: str
    kind: Kind = "envelope"
    source: str = ""

    @property
    def role(self) -> str:
        """The role that handled it; empty if it is no envelope that can be read."""
        if self.kind != "envelope":
            return ""
        try:
            return decode(self.envelope.encode()).role
        except DecodeError:
            return ""


def plain(letter: DeadLetter) -> dict[str, object]:
    """The letter for JSON output, with its time, role, short turn ID, and the envelope as an object."""
    when = datetime.fromtimestamp(letter.ms / 1000, UTC).isoformat(timespec="milliseconds")
    whole: dict[str, object] = {**msgspec.to_builtins(letter), "ms": letter.ms, "time": when, "role": letter.role}
    whole["envelope"] = _unpacked(letter.envelope)
    return {**whole, "turn_id": short_turn_id(letter.conversation, letter.turn) if letter.turn else ""}


def _unpacked(text: str) -> object:
    """The JSON in ``text``; the text itself if it is none, or nested deeper than an envelope may be."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if depth_of(found) <= MAX_DEPTH else text


async def set_aside(
    bus: Bus, kind: Kind, item: object, reason: str, *, source: str, conversation: str = "", turn: str = "",
    tries: int = 1,
) -> str:  # fmt: skip
    """Keep an ``item`` that a loop gave up on as a dead letter, and count it; returns its id.

    ``item`` is JSON as bytes, or a value that becomes JSON; beyond MAX_BYTES it is cut. ``reason`` is for operators,
    ``source`` the front end, ``tries`` how often the item failed. Secrets among the settings are removed. Raises
    ServerError.
    """
    shard, settings = bus.shard(conversation) if conversation else bus.shards[0], bus.settings
    text = item if isinstance(item, bytes) else msgspec.json.encode(item, enc_hook=str)
    added: bytes = await bus.server.call(
        "XADD", shard.aside(kind), "MAXLEN", "~", KEPT, "*", "c", encodable(conversation), "t", encodable(turn), "h", 0,
        "e", settings.redacted(_text(text[:MAX_BYTES])), "why", settings.redacted(encodable(reason))[:MAX_REASON],
        "n", tries, "s", source, "ms", round(await server_ms(bus.server)),
    )  # fmt: skip
    count_soon(bus.server, "set_aside", kind)
    return _named(shard, kind, added)


async def dead_letters(bus: Bus) -> list[DeadLetter]:
    """All dead letters, the newest last."""
    places = [(shard, kind) for shard in bus.shards for kind in ("", *KINDS.values())]
    pages = await asyncio.gather(*(bus.server.fetch("XRANGE", _stream(*place), "-", "+") for place in places))
    found = [_read(*place, *entry) for place, page in zip(places, pages, strict=True) for entry in page]
    return sorted(found, key=lambda letter: (letter.ms, letter.id))


async def count_dead_letters(bus: Bus) -> int:
    """How many dead letters there are."""
    streams = [_stream(shard, kind) for shard in bus.shards for kind in ("", *KINDS.values())]
    return sum(await asyncio.gather(*(bus.server.fetch("XLEN", stream) for stream in streams)))


async def find_dead_letter(bus: Bus, letter_id: str) -> DeadLetter:
    """The dead letter with that id. Raises ConfigError for an invalid id, RolecallError if there is none."""
    shard, kind, entry_id = _place(bus, letter_id)
    for raw_id, flat in await bus.server.fetch("XRANGE", _stream(shard, kind), entry_id, entry_id):
        return _read(shard, kind, raw_id, flat)
    raise RolecallError(f"there is no dead letter {letter_id}; see `rolecall dead list`")


async def replay(bus: Bus, letter: DeadLetter, instance: str) -> Admission:
    """Admit the envelope again as the newest turn of its conversation, and remove the dead letter unless it is refused
    (FULL, BUSY). Idempotent: replaying a letter twice makes one turn.

    Raises RolecallError for a letter that cannot become a turn.
    """
    envelope = _again(letter)
    admission = await admit(
        bus,
        envelope,
        idempotency=f"replay:{letter.id}",
        instance=instance,
        outbox=await _delivered_by_outbox(bus, envelope),
        control=is_control(letter.turn),
    )
    if admission.accepted:
        await drop(bus, letter.id)
    return admission


async def drop(bus: Bus, letter_id: str) -> bool:
    """Remove a dead letter; False if there was none. Raises ConfigError for an invalid id."""
    shard, kind, entry_id = _place(bus, letter_id)
    return bool(await bus.server.fetch("XDEL", _stream(shard, kind), entry_id))


async def deliver_again(bus: Bus, letter: DeadLetter) -> bool:
    """Put a letter of kind ``delivery`` into its front end's outbox again and remove it; False if it was removed
    meanwhile. The user may get it twice if this process dies in between."""
    shard = bus.shard(letter.conversation)
    fields = ("c", letter.conversation, "t", letter.turn, "e", letter.envelope)
    await bus.server.call("XADD", shard.outbox(letter.source), "*", *fields)
    return await drop(bus, letter.id)


def _again(letter: DeadLetter) -> Envelope:
    if letter.kind == "update":
        raise RolecallError(f"dead letter {letter.id} is an update and can only be dropped")
    if not letter.conversation:
        raise RolecallError(f"dead letter {letter.id} belongs to no conversation and can only be dropped")
    if is_call(letter.turn):
        raise RolecallError(
            f"dead letter {letter.id} is a call of turn {letter.turn.partition('.')[0]} and can only be dropped: that "
            "turn has decided how to go on without it"
        )
    try:
        envelope = decode(letter.envelope.encode())
    except DecodeError as error:
        raise RolecallError(f"dead letter {letter.id} cannot be read and can only be dropped: {error}") from None
    # Every turn begins at the first role. The role it was bound for becomes the one that the user asks for.
    bound = (envelope.role, *envelope.route)[-1].partition("@")[0]
    payload = envelope.payload if bound == FIRST_ROLE else {"role": bound, **envelope.payload}
    return msgspec.structs.replace(envelope, role=FIRST_ROLE, route=(), attempt=0, payload=payload)


async def _delivered_by_outbox(bus: Bus, envelope: Envelope) -> bool:
    """Whether the front end of the envelope reads an outbox: the stream exists from its first start on."""
    outbox = bus.shard(envelope.conversation).outbox(envelope.reply_to)
    return bool(envelope.reply_to and await bus.server.fetch("EXISTS", outbox))


def _stream(shard: ShardKeys, kind: str) -> str:
    """The stream of the dead letters of ``kind``; empty for the envelopes of turns."""
    return shard.aside(kind) if kind else shard.dead


def _place(bus: Bus, letter_id: str) -> tuple[ShardKeys, str, str]:
    """Shard, kind and entry of an id that ``_named`` made."""
    parts = ID.fullmatch(letter_id)
    if not parts or int(parts[3] or 0) >= len(bus.shards):
        raise ConfigError(f"{letter_id!r} is not a dead letter ID: expected one that `rolecall dead list` shows")
    return bus.shards[int(parts[3] or 0)], KINDS[parts[1]] if parts[1] else "", parts[2]


def _named(shard: ShardKeys, kind: str, raw_id: bytes) -> str:
    """``<first letter of the kind><stream id>``, followed by ``@<shard>`` in all shards but the first."""
    return kind[:1] + raw_id.decode() + (f"@{shard.number}" if shard.number else "")


def _read(shard: ShardKeys, kind: str, raw_id: bytes, flat: list[bytes]) -> DeadLetter:
    """The letter, whatever others have written there."""
    found: dict[bytes, Any] = field_map(flat)
    return DeadLetter(
        id=_named(shard, kind, raw_id),
        conversation=_text(found.get(b"c", b"")),
        turn=_text(found.get(b"t", b"")),
        reason=_text(found.get(b"why", b"")),
        deliveries=_number(found.get(b"n", b"")),
        ms=_number(found.get(b"ms", b"")),
        envelope=found.get(b"e", b"").decode("utf-8", "backslashreplace"),
        kind=KINDS[kind[0]] if kind else "envelope",
        source=_text(found.get(b"s", b"")),
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _number(raw: bytes) -> int:
    return int(raw) if raw.isdigit() and len(raw) < 18 else 0
