"""Dead letters: envelopes that were given up on. An operator can list, replay or drop them."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime

import msgspec

from rolecall.bus.admission import Admission, admit
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import MAX_DEPTH, Envelope, decode, depth_of, short_turn_id
from rolecall.bus.turn import FIRST_ROLE, is_control
from rolecall.errors import ConfigError, DecodeError, RolecallError
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import field_map

ID = re.compile(r"(\d{1,20}-\d{1,20})(?:@(\d{1,3}))?", re.ASCII)


class DeadLetter(msgspec.Struct, frozen=True):
    """One dead letter: ``ms`` is when it was given up, since 1970, ``envelope`` the JSON. Conversation and turn are
    empty for an entry that belonged to no turn."""

    id: str
    conversation: str
    turn: str
    reason: str
    deliveries: int
    ms: int
    envelope: str

    @property
    def role(self) -> str:
        """The role that handled it; empty if the envelope cannot be read."""
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


async def dead_letters(bus: Bus) -> list[DeadLetter]:
    """All dead letters, the newest last."""
    found = []
    for shard in bus.shards:
        entries = await bus.server.call("XRANGE", shard.dead, "-", "+")
        found += [_read(shard, raw_id, flat) for raw_id, flat in entries]
    return sorted(found, key=lambda letter: (letter.ms, letter.id))


async def count_dead_letters(bus: Bus) -> int:
    """How many dead letters there are."""
    return sum(await asyncio.gather(*(bus.server.fetch("XLEN", shard.dead) for shard in bus.shards)))


async def find_dead_letter(bus: Bus, letter_id: str) -> DeadLetter:
    """The dead letter with that id. Raises ConfigError for an invalid id, RolecallError if there is none."""
    shard, entry_id = _place(bus, letter_id)
    for raw_id, flat in await bus.server.call("XRANGE", shard.dead, entry_id, entry_id):
        return _read(shard, raw_id, flat)
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
    shard, entry_id = _place(bus, letter_id)
    return bool(await bus.server.call("XDEL", shard.dead, entry_id))


def _again(letter: DeadLetter) -> Envelope:
    if not letter.conversation:
        raise RolecallError(f"dead letter {letter.id} belongs to no conversation and can only be dropped")
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
    return bool(envelope.reply_to and await bus.server.call("EXISTS", outbox))


def _place(bus: Bus, letter_id: str) -> tuple[ShardKeys, str]:
    """``<stream id>``, followed by ``@<shard>`` in all shards but the first."""
    parts = ID.fullmatch(letter_id)
    if not parts or int(parts[2] or 0) >= len(bus.shards):
        raise ConfigError(f"{letter_id!r} is not a dead letter ID: expected one that `rolecall dead list` shows")
    return bus.shards[int(parts[2] or 0)], parts[1]


def _read(shard: ShardKeys, raw_id: bytes, flat: list[bytes]) -> DeadLetter:
    found = field_map(flat)
    return DeadLetter(
        id=raw_id.decode() + (f"@{shard.number}" if shard.number else ""),
        conversation=found[b"c"].decode("utf-8", "replace"),
        turn=found[b"t"].decode("utf-8", "replace"),
        reason=found[b"why"].decode("utf-8", "replace"),
        deliveries=int(found[b"n"]),
        ms=int(found[b"ms"]),
        envelope=found[b"e"].decode("utf-8", "backslashreplace"),
    )
