"""Leases: an instance's hold on an entry. The pending entry is the lock; a heartbeat keeps it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, decode
from rolecall.bus.turn import EntryPlace, TurnBlock, Verdict, is_control, turn_block, verdict_of
from rolecall.errors import DecodeError, NewerVersion, ServerRefused
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import Arg, milliseconds, script
from rolecall.redis.server import Server, field_map

PACKAGE = "rolecall.bus"
TAKE = script(PACKAGE, "scripts/turn/take", names="streams process lease max_deliveries demands")
START = script(PACKAGE, "scripts/turn/start", TurnBlock, names="instance deliveries hop previous role quiet")
EMIT = script(PACKAGE, "scripts/turn/emit", TurnBlock, names="offset piece")
RENEW = script(PACKAGE, "scripts/turn/renew", names="alive streams process lease entries")
HAND_BACK = script(PACKAGE, "scripts/turn/handback", names="stream conversation entry process lease turn")
WHO = ContextVar("rolecall instance", default="")
"""The instance that the current task works for, for the process log; empty outside the work of an instance."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a process can take for one role: its free slots, and whether one entry may be on its last delivery."""

    role: str
    free: int
    last_ok: bool = True


async def take(
    bus: Bus, shard: ShardKeys, demands: Sequence[Demand], start: int = 0, claim: bool = False
) -> list[Delivery]:
    """Lease entries for ``demands``, never more than their free slots, without blocking.

    Bands are served starting with number ``start`` (0 high, 1 normal, 2 low). With ``claim``, entries whose lease has
    expired come first; one on its last delivery only comes if ``last_ok``.
    """
    streams: list[tuple[str, str]] = []
    wanted: list[Arg] = []
    for demand in demands:
        own = streams_of(bus, shard, demand.role, start)
        streams += ((demand.role, stream) for stream in own)
        wanted += (demand.free, int(demand.last_ok), len(own))
    taken = await bus.server.run(
        TAKE, streams=[stream for _, stream in streams], process=bus.process, demands=wanted,
        lease=milliseconds(bus.settings.lease_seconds) if claim else 0, max_deliveries=bus.settings.max_deliveries,
    )  # fmt: skip
    return [
        read_entry(shard.number, streams[k - 1][1], streams[k - 1][0], (entry_id, fields), count, previous)
        for k, entry_id, count, previous, fields in taken
    ]


def streams_of(bus: Bus, shard: ShardKeys, role: str, start: int = 0) -> list[str]:
    """The streams of ``role`` in ``shard`` that this process reads, in serving order."""
    bands = (*keys.BANDS[start:], *keys.BANDS[:start])
    return [*(shard.stream(role, band) for band in bands), shard.direct(role, bus.process)]


async def ensure_groups(bus: Bus, shard: ShardKeys, roles: Iterable[str]) -> None:
    """Create the consumer groups that blocking reads of ``roles`` need, from the beginning of the streams."""
    for role in roles:
        for stream in streams_of(bus, shard, role):
            await create_group(bus.server, stream)


async def start(bus: Bus, delivery: Delivery, instance: str) -> tuple[Verdict, float]:
    """Record that ``instance`` begins; returns the verdict and the seconds since the turn was received."""
    verdict, age, _ = await bus.server.run(START, lease_block(bus, delivery), **_beginning(delivery, instance))
    return verdict.decode(), age / 1000


def start_soon(bus: Bus, delivery: Delivery, instance: str, *, quiet: bool = False) -> asyncio.Future[Any]:
    """Send ``start`` now, in order before anything sent later; the future holds its raw reply. ``quiet`` asks for the
    verdict only: no event and no record."""
    rest = START.arguments([lease_block(bus, delivery)], _beginning(delivery, instance, quiet))

    def unknown(future: asyncio.Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, ServerRefused) and error.code == "NOSCRIPT":
            bus.server.send("EVAL", START.body, *rest).add_done_callback(_retrieve)

    sent = bus.server.send("EVALSHA", START.sha, *rest)
    sent.add_done_callback(unknown)
    return sent


async def emit(bus: Bus, delivery: Delivery, position: int, text: str) -> Verdict:
    """Publish a piece of the answer in the making; ``position`` is its offset in characters."""
    return verdict_of(await bus.server.run(EMIT, lease_block(bus, delivery), offset=position, piece=text))


async def renew(bus: Bus, shard: ShardKeys, held: Sequence[Delivery]) -> list[Delivery]:
    """Renew the leases of ``held`` and this process's sign of life; returns the lost ones."""
    lost = await bus.server.run(
        RENEW, alive=shard.alive(bus.process), streams=[delivery.stream for delivery in held], process=bus.process,
        lease=milliseconds(bus.settings.lease_seconds), entries=[delivery.id for delivery in held],
    )  # fmt: skip
    return [held[index - 1] for index in lost]


async def hand_back(bus: Bus, delivery: Delivery) -> Verdict:
    """Return an entry without counting its delivery; any process may take it at once."""
    reply = await bus.server.run(
        HAND_BACK, stream=delivery.stream, entry=delivery.id, process=bus.process, turn=delivery.turn,
        conversation=bus.shards[delivery.shard].conversation(delivery.conversation),
        lease=milliseconds(bus.settings.lease_seconds),
    )  # fmt: skip
    return verdict_of(reply)


async def owns_turn(bus: Bus, delivery: Delivery) -> bool:
    """Whether the entry is that of its conversation's running turn, or of an open control turn."""
    shard = bus.shards[delivery.shard]
    if delivery.control:
        journal = shard.journal(delivery.conversation)
        return bool(await bus.server.fetch("HEXISTS", journal, f"{delivery.turn}:e"))
    current, at = await bus.server.fetch("HMGET", shard.conversation(delivery.conversation), "cur", "at")
    return bool(current == delivery.turn.encode() and EntryPlace.parse(at) == (delivery.stream, delivery.id))


def lease_block(bus: Bus, delivery: Delivery) -> TurnBlock:
    """The values of TurnBlock for a leased entry."""
    place = EntryPlace(delivery.stream, delivery.id)
    return turn_block(bus, bus.shards[delivery.shard], delivery.conversation, delivery.turn, place)


def _beginning(delivery: Delivery, instance: str, quiet: bool = False) -> dict[str, Any]:
    return {
        "instance": instance, "deliveries": delivery.count, "hop": delivery.hop,
        "previous": delivery.previous, "role": delivery.role, "quiet": int(quiet),
    }  # fmt: skip


async def create_group(server: Server, stream: str) -> None:
    """Create the consumer group of ``stream`` from its beginning, unless it exists."""
    try:
        await server.call("XGROUP", "CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    except ServerRefused as error:
        if error.code != "BUSYGROUP":
            raise


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark an exception as retrieved: nothing awaits this future, and the failure was logged already."""
    if not future.cancelled():
        future.exception()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One leased entry. ``envelope`` is None if it could not be read; ``problem`` then says why.

    ``usable`` is False for an entry that names no conversation and turn, ``newer`` True for an envelope of a newer
    version. ``count`` is the number of deliveries including this one; ``previous`` is the process that held the entry
    before, or "".
    """

    shard: int
    stream: str
    id: str
    role: str
    count: int
    previous: str
    conversation: str
    turn: str
    hop: int
    raw: bytes
    envelope: Envelope | None
    problem: str = ""
    usable: bool = True
    newer: bool = False
    taken: float = field(default_factory=time.monotonic)

    @property
    def control(self) -> bool:
        """Whether this is a control turn, which runs outside the conversation's order."""
        return is_control(self.turn)


def read_entry(shard: int, stream: str, role: str, entry: Any, count: int = 1, previous: bytes = b"") -> Delivery:
    """The delivery for a raw stream entry ``[id, [field, value, …]]``, whatever it contains."""
    raw_id, flat = entry
    fields = field_map(flat)
    raw = fields.get(b"e", b"")
    common = (shard, stream, raw_id.decode(), role, count, previous.decode("utf-8", "replace"))
    try:
        conversation, turn, hop = fields[b"c"].decode(), fields[b"t"].decode(), int(fields[b"h"])
    except (KeyError, ValueError):
        shown = msgspec.json.encode({_text(k): _text(v) for k, v in fields.items()})
        return Delivery(*common, "", "", 0, shown, None, "the entry names no conversation and turn", usable=False)
    try:
        envelope = decode(raw, turn=turn, hops=hop, parts=fields.get(b"x", b""))
    except DecodeError as error:
        newer = isinstance(error, NewerVersion)
        return Delivery(*common, conversation, turn, hop, raw, None, str(error), newer=newer)
    if envelope.conversation != conversation:
        problem = "the envelope names another conversation than its entry"
        return Delivery(*common, conversation, turn, hop, raw, None, problem)
    return Delivery(*common, conversation, turn, hop, raw, envelope)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
