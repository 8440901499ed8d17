"""The only speaker of the scripts and the work streams."""

from __future__ import annotations

from collections.abc import Sequence

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, encode
from rolecall.bus.leases import Delivery, guarded
from rolecall.bus.turn import Records, Verdict, final_event, finish_block, outbox_of, pairs, verdict_of, whole
from rolecall.redis import keys
from rolecall.redis.pipeline import Arg
from rolecall.redis.scripts import milliseconds


async def hop(
    bus: Bus,
    delivery: Delivery,
    envelope: Envelope,
    records: Records,
    preferences: dict[str, str] | None = None,
) -> Verdict:
    """Send the turn on to ``envelope.role``; ``role@process`` falls to the role when that process is gone."""
    shard = bus.shards[delivery.shard]
    role, _, process = envelope.role.partition("@")
    fallback = shard.stream(role, next_band(delivery, envelope))
    stream = shard.direct(role, process) if process else fallback
    names, arguments = guarded(bus, delivery, encode(envelope), envelope.hops, role)
    names += [stream, shard.alive(process) if process else stream, fallback]
    arguments += [*pairs(preferences), *records.arguments()]
    return verdict_of(await bus.server.run("hop", names, arguments))


async def complete(
    bus: Bus,
    delivery: Delivery,
    envelope: Envelope,
    records: Records,
    *,
    history: Sequence[bytes] = (),
    preferences: dict[str, str] | None = None,
    forget: bool = False,
) -> Verdict:
    """End the turn with the answer in ``envelope``: result, history, log, outbox, and the next turn released."""
    payload = envelope.payload
    names, arguments = _finishing(bus, delivery, envelope.reply_to, final_event("final", payload))
    arguments += [whole(payload.get("tokens_in")), whole(payload.get("tokens_out")), int(forget)]
    arguments += [len(history), *history, *pairs(preferences), *records.arguments()]
    return verdict_of(await bus.server.run("complete", names, arguments))


async def bury(
    bus: Bus, delivery: Delivery, reason: str, apology: str, records: Records, history: Sequence[bytes] = ()
) -> Verdict:
    """Give the turn up: a dead letter with ``reason``, one ``apology`` to the user, the next turn released."""
    shard = bus.shards[delivery.shard]
    outbox = await outbox_of(bus, shard, delivery.conversation, delivery.turn)
    names, arguments = _finishing(bus, delivery, outbox, final_event("error", {"text": apology, "reason": reason}))
    names.append(shard.dead)
    arguments += [reason, delivery.count, delivery.raw, delivery.hop]
    arguments += [len(history), *history, *records.arguments()]
    return verdict_of(await bus.server.run("bury", names, arguments))


async def quarantine(bus: Bus, delivery: Delivery) -> Verdict:
    """Put an entry that belongs to no turn aside, as a dead letter that touches no conversation."""
    names = [delivery.stream, bus.shards[delivery.shard].dead]
    arguments: list[Arg] = [delivery.id, bus.process, delivery.problem, delivery.count, delivery.raw]
    return verdict_of(await bus.server.run("quarantine", names, arguments))


async def defer(
    bus: Bus, delivery: Delivery, seconds: float, envelope: Envelope | None, reason: str, records: Records
) -> Verdict:
    """Put the turn to sleep; no slot and no lease is held. ``reason`` is shown to who follows, unless it is empty.
    Without ``envelope`` what was delivered comes back as it is. CONTROL for a control turn: nothing is written."""
    shard = bus.shards[delivery.shard]
    raw = delivery.raw if envelope is None else encode(envelope)
    band = "n" if envelope is None else next_band(delivery, envelope)
    names, arguments = guarded(bus, delivery, milliseconds(seconds), raw, delivery.hop, reason)
    names += [shard.deferred, shard.stream(delivery.role, band)]
    arguments += records.arguments()
    return verdict_of(await bus.server.run("defer", names, arguments))


def _finishing(bus: Bus, delivery: Delivery, outbox: str, final: bytes) -> tuple[list[Arg], list[Arg]]:
    shard = bus.shards[delivery.shard]
    names, arguments = guarded(bus, delivery)
    more = finish_block(shard, bus.settings, delivery.conversation, delivery.turn, outbox)
    return names + more[0], [*arguments, *more[1], final]


def next_band(delivery: Delivery, envelope: Envelope) -> str:
    """The band of ``envelope``'s priority, as far down as the soft limit of its user had put the turn."""
    bands, came = keys.BANDS, delivery.stream.rpartition(":")[2]
    wanted = bands.index(keys.band(envelope.priority))
    if delivery.envelope is None or came not in bands:
        return bands[wanted]
    down = bands.index(came) - bands.index(keys.band(delivery.envelope.priority))
    return bands[min(len(bands) - 1, wanted + max(0, down))]
