"""Settling: the one atomic step that ends a hop. The turn moves on, is completed, deferred or given up.

Every script first checks that the caller still owns the entry (``guard`` in scripts/lib/turn.lua), so a late result of
a process that lost its lease is fenced, and a repeat after a lost reply does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, encode
from rolecall.bus.leases import Delivery, lease_block
from rolecall.bus.turn import (
    FinishBlock,
    Records,
    TurnBlock,
    Verdict,
    final_event,
    finish_block,
    flat_pairs,
    outbox_of,
    verdict_of,
    whole,
)
from rolecall.redis import keys
from rolecall.redis.scripts import milliseconds, script

PACKAGE = "rolecall.bus"
MAX_QUARANTINED = 4096
HOP = script(PACKAGE, "scripts/turn/hop", TurnBlock, names="destination alive fallback envelope hop changes records")
COMPLETE = script(
    PACKAGE, "scripts/turn/complete", TurnBlock, FinishBlock,
    names="final tokens_in tokens_out forget remembered changes records",
)  # fmt: skip
BURY = script(
    PACKAGE, "scripts/turn/bury", TurnBlock, FinishBlock,
    names="dead final reason deliveries envelope hop remembered records",
)  # fmt: skip
DEFER = script(PACKAGE, "scripts/turn/defer", TurnBlock, names="deferred wake_stream delay envelope hop reason records")
QUARANTINE = script(PACKAGE, "scripts/turn/quarantine", names="stream dead entry process reason deliveries fields")


async def hop(
    bus: Bus, delivery: Delivery, envelope: Envelope, records: Records, preferences: dict[str, str] | None = None
) -> Verdict:
    """Send the turn on to ``envelope.role``. For ``role@process``, the entry goes to that process's own stream, or to
    the role's if the process is gone. ``preferences`` change those of the conversation; an empty value removes one."""
    shard = bus.shards[delivery.shard]
    role, _, process = envelope.role.partition("@")
    fallback = shard.stream(role, next_band(delivery, envelope))
    destination = shard.direct(role, process) if process else fallback
    reply = await bus.server.run(
        HOP, lease_block(bus, delivery), destination=destination, fallback=fallback,
        alive=shard.alive(process) if process else destination, envelope=encode(envelope), hop=envelope.hops,
        changes=flat_pairs(preferences), records=records.flat(),
    )  # fmt: skip
    return verdict_of(reply)


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
    """End the turn with the answer in ``envelope``: reply event, result, history, log, outbox, and the release of the
    next turn. ``history`` holds the messages to remember as JSON; ``forget`` clears the history instead."""
    payload = envelope.payload
    reply = await bus.server.run(
        COMPLETE, lease_block(bus, delivery), _ended(bus, delivery, envelope.reply_to),
        final=final_event("final", payload), tokens_in=whole(payload.get("tokens_in")),
        tokens_out=whole(payload.get("tokens_out")), forget=int(forget), remembered=history,
        changes=flat_pairs(preferences), records=records.flat(),
    )  # fmt: skip
    return verdict_of(reply)


async def bury(
    bus: Bus,
    delivery: Delivery,
    reason: str,
    apology: str,
    records: Records,
    history: Sequence[bytes] = (),
    failure: dict[str, Any] | None = None,
) -> Verdict:
    """Give the turn up: a dead letter with ``reason``, one ``apology`` to the user, the next turn released. With
    ``failure``, see Event, followers get it instead of the reason."""
    shard = bus.shards[delivery.shard]
    outbox = await outbox_of(bus, shard, delivery.conversation, delivery.turn)
    why = {"reason": failure["kind"], "failure": failure} if failure else {"reason": reason}
    reply = await bus.server.run(
        BURY, lease_block(bus, delivery), _ended(bus, delivery, outbox), dead=shard.dead,
        final=final_event("error", {"text": apology, **why}), reason=reason, deliveries=delivery.count,
        envelope=delivery.raw, hop=delivery.hop, remembered=history, records=records.flat(),
    )  # fmt: skip
    return verdict_of(reply)


async def defer(
    bus: Bus, delivery: Delivery, seconds: float, envelope: Envelope | None, reason: str, records: Records
) -> Verdict:
    """Put the turn to sleep for ``seconds``, without a slot or a lease. Followers are told ``reason`` unless it is
    empty. Without ``envelope``, the delivered one comes back unchanged. CONTROL for a control turn, which cannot
    sleep."""
    shard = bus.shards[delivery.shard]
    band = "n" if envelope is None else next_band(delivery, envelope)
    reply = await bus.server.run(
        DEFER, lease_block(bus, delivery), deferred=shard.deferred, wake_stream=shard.stream(delivery.role, band),
        delay=milliseconds(seconds), envelope=delivery.raw if envelope is None else encode(envelope), hop=delivery.hop,
        reason=reason, records=records.flat(),
    )  # fmt: skip
    return verdict_of(reply)


async def quarantine(bus: Bus, delivery: Delivery) -> Verdict:
    """Set an entry of no turn aside, cut to MAX_QUARANTINED: a dead letter that affects no conversation."""
    reply = await bus.server.run(
        QUARANTINE, stream=delivery.stream, dead=bus.shards[delivery.shard].aside("envelope"), entry=delivery.id,
        process=bus.process, reason=bus.settings.redacted(delivery.problem), deliveries=delivery.count,
        fields=delivery.raw[:MAX_QUARANTINED],
    )  # fmt: skip
    return verdict_of(reply)


def next_band(delivery: Delivery, envelope: Envelope) -> str:
    """The band for the priority of ``envelope``, lowered as far as the soft limit of its user had lowered the turn."""
    bands, came = keys.BANDS, delivery.stream.rpartition(":")[2]
    wanted = bands.index(keys.band(envelope.priority))
    if delivery.envelope is None or came not in bands:
        return bands[wanted]
    down = bands.index(came) - bands.index(keys.band(delivery.envelope.priority))
    return bands[min(len(bands) - 1, wanted + max(0, down))]


def _ended(bus: Bus, delivery: Delivery, outbox: str) -> FinishBlock:
    return finish_block(bus, bus.shards[delivery.shard], delivery.conversation, delivery.turn, outbox)
