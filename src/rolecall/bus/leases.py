"""Leases: an instance's hold on an entry. The pending entry is the lock; a heartbeat keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypedDict

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, decode
from rolecall.bus.turn import EntryPlace, TurnBlock, Verdict, is_call, is_control, turn_block, verdict_of
from rolecall.errors import DecodeError, NewerVersion, ServerRefused
from rolecall.redis import clock, keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import Arg, milliseconds, script
from rolecall.redis.server import Server, field_map


class TakeBlock(TypedDict):
    """What ``scripts/lib/take.lua`` declares, besides its lists."""

    conversation_stem: str
    journal_stem: str
    events_stem: str
    channel_stem: str
    history_stem: str
    preferences_stem: str
    lease: int
    expected: int
    max_deliveries: int


PACKAGE = "rolecall.bus"
PENDING = 1000
STREAMS_PER_ROLE = len(keys.BANDS) + 1
"""A stream for each band, and one for what is addressed to this process."""
TAKE = script(PACKAGE, "scripts/turn/take", TakeBlock, names="log streams process demands begun")
EMIT = script(PACKAGE, "scripts/turn/emit", TurnBlock, names="offset piece")
RENEW = script(PACKAGE, "scripts/turn/renew", names="alive streams process lease entries")
ALIVE = script(PACKAGE, "scripts/process/alive", names="alive lease")
HAND_BACK = script(PACKAGE, "scripts/turn/handback", names="stream conversation journal entry process lease turn")
SUSPECT = script(PACKAGE, "scripts/turn/suspect", names="stream entry process lease max_deliveries")
UNCOUNT = script(PACKAGE, "scripts/turn/uncount", names="stream entry")
RELEASED_MS = 30 * 86_400_000
"""The idle time of entries whose holder is known to be dead: longer than any lease."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a process can take for one role: its free slots, and whether one entry may be on its last delivery.
    ``instances`` are the ids of the instances in these slots, where they are known. With each entry come so many
    messages of its conversation's ``history``, and its ``preferences``."""

    role: str
    free: int
    last_ok: bool = True
    instances: tuple[str, ...] = ()
    history: int = 0
    preferences: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What a process takes in one step: never more than the free slots of ``demands``, and without blocking.

    Bands are served starting with number ``start`` (0 high, 1 normal, 2 low). With ``claim``, entries whose lease has
    expired come first, or with ``released`` only those that a dead process held; one on its last delivery only comes if
    ``last_ok``.
    """

    demands: Sequence[Demand] = ()
    start: int = 0
    claim: bool = False
    released: bool = False

    def streams(self, bus: Bus, shard: ShardKeys) -> list[str]:
        """The streams to read, demand by demand."""
        return [stream for demand in self.demands for stream in streams_of(bus, shard, demand.role, self.start)]

    def flat(self) -> list[Arg]:
        """The demands as scripts take them."""
        result: list[Arg] = []
        for demand in self.demands:
            result += (demand.role, int(demand.last_ok), STREAMS_PER_ROLE, demand.history, int(demand.preferences))
            result += (demand.free, *demand.instances)
            result += [""] * (demand.free - len(demand.instances))
        return result

    def read(self, shard: ShardKeys, streams: Sequence[str], rows: Iterable[Any]) -> list[Delivery]:
        """The deliveries in the reply of a script that took for this order from ``streams``."""
        return [
            read_entry(
                shard.number, streams[k - 1], self.demands[(k - 1) // STREAMS_PER_ROLE].role, (entry_id, fields),
                count, previous, beginning=Beginning(received, age / 1000, waited / 1000), slot=slot - 1,
                along=Along(remembered, preferred),
            )
            for k, entry_id, count, previous, fields, slot, received, age, waited, remembered, preferred in rows
        ]  # fmt: skip


NOTHING = Order()


async def take(
    bus: Bus, shard: ShardKeys, demands: Sequence[Demand], start: int = 0, claim: bool = False
) -> list[Delivery]:
    """Lease entries for ``demands``, as ``Order`` says, and record that they begin."""
    taken, _ = await take_and_begin(bus, shard, Order(demands, start, claim))
    return taken


async def take_and_begin(
    bus: Bus, shard: ShardKeys, order: Order, begun: Sequence[Begun] = ()
) -> tuple[list[Delivery], list[tuple[Verdict, Beginning]]]:
    """Take ``order``, and record that the entries of ``begun`` begin; the second list says whether this process still
    held each of these."""
    streams = order.streams(bus, shard)
    flat: list[Arg] = []
    for number, (delivery, instance) in enumerate(begun, len(streams) + 1):
        flat += (
            number, delivery.id, delivery.conversation, delivery.turn, delivery.hop, delivery.received or "",
            ("2" if delivery.resumed else "1") if delivery.quiet else "", delivery.paused, delivery.role, instance,
        )  # fmt: skip
    rows, verdicts = await bus.server.run(
        TAKE, take_block(bus, shard, order), log=shard.log, process=bus.process, demands=order.flat(), begun=flat,
        streams=[*streams, *(delivery.stream for delivery, _ in begun)],
    )  # fmt: skip
    return order.read(shard, streams, rows), [
        (verdict.decode(), Beginning(received, age / 1000, waited / 1000))
        for verdict, received, age, waited in verdicts
    ]


def take_block(bus: Bus, shard: ShardKeys, order: Order) -> TakeBlock:
    """The values of TakeBlock for ``order``."""
    return {
        "conversation_stem": shard.conversation(""),
        "journal_stem": shard.journal(""),
        "events_stem": shard.events(""),
        "channel_stem": shard.channel(""),
        "history_stem": shard.history(""),
        "preferences_stem": shard.preferences(""),
        "lease": (RELEASED_MS if order.released else milliseconds(bus.settings.lease_seconds)) if order.claim else 0,
        "expected": round(bus.clocks[shard.number].now()) if order.claim else 0,
        "max_deliveries": bus.settings.max_deliveries,
    }


def streams_of(bus: Bus, shard: ShardKeys, role: str, start: int = 0) -> tuple[str, ...]:
    """The streams of ``role`` in ``shard`` that this process reads, in serving order."""
    return _streams_of(shard, role, bus.process, start)


@lru_cache(4096)
def _streams_of(shard: ShardKeys, role: str, process: str, start: int) -> tuple[str, ...]:
    bands = (*keys.BANDS[start:], *keys.BANDS[:start])
    return (*(shard.stream(role, band) for band in bands), shard.direct(role, process))


async def ensure_groups(bus: Bus, shard: ShardKeys, roles: Iterable[str]) -> None:
    """Create the consumer groups that blocking reads of ``roles`` need, from the beginning of the streams."""
    for role in roles:
        for stream in streams_of(bus, shard, role):
            await create_group(bus.server, stream)


async def emit(bus: Bus, delivery: Delivery, position: int, text: str) -> Verdict:
    """Publish a piece of the answer in the making; ``position`` is its offset in characters."""
    return verdict_of(await bus.server.run(EMIT, lease_block(bus, delivery), offset=position, piece=text))


async def renew(bus: Bus, shard: ShardKeys, held: Sequence[Delivery]) -> list[Delivery]:
    """Renew the leases of ``held`` and this process's sign of life, and read the server's clock; returns the lost
    ones."""
    asked = clock.seconds()
    shown, *lost = await bus.server.run(
        RENEW, alive=shard.alive(bus.process), streams=[delivery.stream for delivery in held], process=bus.process,
        lease=milliseconds(bus.settings.lease_seconds), entries=[delivery.id for delivery in held],
    )  # fmt: skip
    bus.clocks[shard.number].note(asked, shown)
    return [held[index - 1] for index in lost]


async def renew_idle(bus: Bus, shards: Sequence[ShardKeys]) -> None:
    """As ``renew`` where nothing is held, for ``shards`` of one server in one step."""
    asked = clock.seconds()
    shown = await bus.server.run(
        ALIVE, alive=[shard.alive(bus.process) for shard in shards], lease=milliseconds(bus.settings.lease_seconds)
    )
    for shard in shards:
        bus.clocks[shard.number].note(asked, shown)


async def hand_back(bus: Bus, delivery: Delivery) -> Verdict:
    """Return an entry without counting its delivery; any process may take it at once."""
    shard = bus.shards[delivery.shard]
    reply = await bus.server.run(
        HAND_BACK, stream=delivery.stream, entry=delivery.id, process=bus.process, turn=delivery.turn,
        conversation=shard.conversation(delivery.conversation), journal=shard.journal(delivery.conversation),
        lease=milliseconds(bus.settings.lease_seconds),
    )  # fmt: skip
    return verdict_of(reply)


async def give_up_suspect(bus: Bus, delivery: Delivery) -> Verdict:
    """Give up an entry whose handler this process does not survive. Its next delivery, by any process, is its last."""
    reply = await bus.server.run(
        SUSPECT, stream=delivery.stream, entry=delivery.id, process=bus.process,
        lease=milliseconds(bus.settings.lease_seconds), max_deliveries=bus.settings.max_deliveries,
    )  # fmt: skip
    return verdict_of(reply)


async def uncount(bus: Bus, delivery: Delivery) -> None:
    """Say that this process lost the lease of ``delivery`` but is alive, so that only deliveries whose process died
    count. Call it once."""
    await bus.server.run(UNCOUNT, stream=delivery.stream, entry=delivery.id)


async def pending_of(bus: Bus, shard: ShardKeys, roles: Iterable[str]) -> list[Delivery]:
    """What this process holds of the streams that it shares with others, at most PENDING of each, whether or not it has
    read the reply that brought it. ``count`` is not known."""
    found = list[Delivery]()
    for role in roles:
        for stream in (shard.stream(role, band) for band in keys.BANDS):
            with suppress(ServerRefused):  # no group yet
                rows = await bus.server.call("XPENDING", stream, keys.GROUP, "-", "+", PENDING, bus.process)
                for entry_id, *_ in rows:
                    for entry in await bus.server.call("XRANGE", stream, entry_id, entry_id):
                        found.append(read_entry(shard.number, stream, role, entry))
    return found


async def owns_turn(bus: Bus, delivery: Delivery) -> bool:
    """Whether the entry is that of its conversation's running turn, of a call, or of an open control turn."""
    shard = bus.shards[delivery.shard]
    if delivery.call:
        at = await bus.server.fetch("HGET", shard.journal(delivery.conversation), f"{delivery.turn}:a")
        return EntryPlace.parse(at) == (delivery.stream, delivery.id)
    if delivery.control:
        journal = shard.journal(delivery.conversation)
        return bool(await bus.server.fetch("HEXISTS", journal, f"{delivery.turn}:e"))
    current, at = await bus.server.fetch("HMGET", shard.conversation(delivery.conversation), "cur", "at")
    return bool(current == delivery.turn.encode() and EntryPlace.parse(at) == (delivery.stream, delivery.id))


def lease_block(bus: Bus, delivery: Delivery) -> TurnBlock:
    """The values of TurnBlock for a leased entry."""
    place = EntryPlace(delivery.stream, delivery.id)
    return turn_block(bus, bus.shards[delivery.shard], delivery.conversation, delivery.turn, place)


async def create_group(server: Server, stream: str) -> None:
    """Create the consumer group of ``stream`` from its beginning, unless it exists."""
    try:
        await server.call("XGROUP", "CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    except ServerRefused as error:
        if error.code != "BUSYGROUP":
            raise


class Beginning(NamedTuple):
    """When the turn of an entry was received in ms of the server's clock, the seconds since then, and how many of these
    the entry waited for a slot. ``received`` is 0 for the entry of no running turn."""

    received: int = 0
    age: float = 0.0
    waited: float = 0.0


@dataclass(slots=True)
class Reads:
    """What a handler reads of its conversation's memory. The next entries of its role bring that along."""

    history: bool = False
    preferences: bool = False


@dataclass(slots=True)
class Along:
    """What came along with an entry because the last handler of its role read it: the raw messages of the
    conversation's history, and its preferences as HGETALL has them, both as of the taking; None for what did not come.
    It counts for the handler's first look; later ones ask the server. ``reads`` is what this handler has read so
    far."""

    history: list[bytes] | None = None
    preferences: list[bytes] | None = None
    reads: Reads = field(default_factory=Reads)

    def take_history(self) -> list[bytes] | None:
        """The history, once."""
        raw, self.history, self.reads.history = self.history, None, True
        return raw

    def take_preferences(self) -> list[bytes] | None:
        """The preferences, once."""
        raw, self.preferences, self.reads.preferences = self.preferences, None, True
        return raw


@dataclass(slots=True)
class Delivery:
    """One leased entry. ``envelope`` is None if it could not be read; ``problem`` then says why.

    ``usable`` is False for an entry that names no conversation and turn, ``newer`` True for an envelope of a newer
    version. ``count`` is the number of deliveries including this one; ``previous`` is the process that held the entry
    before, or "". ``quiet`` is True for a turn that comes back from a deferral of which nobody is told again, and
    ``stepped`` for one whose handler may have recorded steps. Of a turn that was suspended, ``resumed`` is the time as
    of which its timers count, in ms of the server's clock, and ``paused`` how many ms its time stood still.
    ``beginning`` is None until the entry has begun; ``slot`` is the number of its instance in the order it was taken
    for, and ``along`` what came with it then.
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
    quiet: bool = False
    beginning: Beginning | None = None
    slot: int = 0
    stepped: bool = False
    resumed: int = 0
    paused: int = 0
    along: Along = field(default_factory=Along)

    @property
    def received(self) -> int:
        """When the turn was received in ms of the server's clock; 0 if that is not known."""
        return self.beginning.received if self.beginning else 0

    @property
    def stale(self) -> bool:
        """Whether the entry is not that of a running turn."""
        return self.beginning is not None and not self.beginning.received

    @property
    def call(self) -> bool:
        """Whether another handler waits for this turn."""
        return is_call(self.turn)

    @property
    def control(self) -> bool:
        """Whether this is a control turn, which runs outside the conversation's order."""
        return is_control(self.turn)


Begun: TypeAlias = tuple[Delivery, str]
"""An entry that a blocking read brought, and the instance that handles it."""


def read_entry(
    shard: int, stream: str, role: str, entry: Any, count: int = 1, previous: bytes = b"", *,
    beginning: Beginning | None = None, slot: int = 0, along: Along | None = None,
) -> Delivery:  # fmt: skip
    """The delivery for a raw stream entry ``[id, [field, value, …]]``, whatever it contains."""
    raw_id, flat = entry
    fields = field_map(flat)
    raw = fields.get(b"e", b"")
    quiet = b"q" in fields and count == 1
    found = Delivery(
        shard, stream, raw_id.decode(), role, count, previous.decode("utf-8", "replace"), "", "", 0, raw, None,
        quiet=quiet, beginning=beginning, slot=slot, stepped=count > 1 or bool(previous) or b"s" in fields,
        along=along or Along(),
    )  # fmt: skip
    try:
        found.resumed, found.paused = int(fields.get(b"w", 0)), int(fields.get(b"p", 0))
        found.conversation, found.turn, found.hop = fields[b"c"].decode(), fields[b"t"].decode(), int(fields[b"h"])
    except (KeyError, ValueError):
        found.raw = msgspec.json.encode({_text(k): _text(v) for k, v in fields.items()})
        found.conversation = found.turn = ""
        found.usable, found.problem = False, "the entry names no conversation and turn"
        return found
    try:
        envelope = decode(raw, turn=found.turn, hops=found.hop, parts=fields.get(b"x", b""))
    except DecodeError as error:
        found.newer, found.problem = isinstance(error, NewerVersion), str(error)
        return found
    if envelope.conversation == found.conversation:
        found.envelope = envelope
    else:
        found.problem = "the envelope names another conversation than its entry"
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
