"""Settling: the one atomic step that ends a hop. The turn moves on, is completed, deferred or given up.

Every script first checks that the caller still owns the entry (``guard`` in scripts/lib/turn.lua), so a late result of
a process that lost its lease is fenced, and a repeat after a lost reply does nothing. In the same step, the process
takes what it has room for: the next entry for the instance that becomes free, and the entry just written for a free
instance of the next role.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, encode
from rolecall.bus.leases import NOTHING, Delivery, Order, TakeBlock, lease_block, take_block
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
)
from rolecall.errors import ServerRefused, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import Block, Script, milliseconds, script

PACKAGE = "rolecall.bus"
MAX_QUARANTINED = 4096
HOP = script(
    PACKAGE, "scripts/turn/hop", TurnBlock, TakeBlock,
    names="destination alive fallback envelope hop received changes records streams demands",
)  # fmt: skip
COMPLETE = script(
    PACKAGE, "scripts/turn/complete", TurnBlock, FinishBlock, TakeBlock,
    names="final received forget remembered changes records streams demands",
)  # fmt: skip
BURY = script(
    PACKAGE, "scripts/turn/bury", TurnBlock, FinishBlock, TakeBlock,
    names="dead final reason deliveries envelope hop received remembered records streams demands",
)  # fmt: skip
DEFER = script(
    PACKAGE, "scripts/turn/defer", TurnBlock, TakeBlock,
    names="active deferred wake_stream delay envelope hop reason quiet received records streams demands",
)  # fmt: skip
SUSPEND = script(
    PACKAGE, "scripts/turn/suspend", TurnBlock, TakeBlock,
    names="active deferred wake_stream steps envelope hop due still waits received groups records streams demands",
)  # fmt: skip
QUARANTINE = script(PACKAGE, "scripts/turn/quarantine", names="stream dead entry process reason deliveries fields")


@dataclass(frozen=True, slots=True)
class Refill:
    """What a process takes along with a settling step: ``order``, and ``deliver`` to hand over what came. It is called
    exactly once, even if the caller of the step is cancelled meanwhile; with nothing if the step failed."""

    order: Order
    deliver: Callable[[list[Delivery]], None]


Supply: TypeAlias = Callable[[], Refill | None]
"""Called right before a step is sent."""


async def hop(
    bus: Bus,
    delivery: Delivery,
    envelope: Envelope,
    records: Records,
    preferences: dict[str, str] | None = None,
    supply: Supply | None = None,
) -> Verdict:
    """Send the turn on to ``envelope.role``. For ``role@process``, the entry goes to that process's own stream, or to
    the role's if the process is gone. ``preferences`` change those of the conversation; an empty value removes one."""
    shard = bus.shards[delivery.shard]
    role, _, process = envelope.role.partition("@")
    fallback = shard.stream(role, next_band(delivery, envelope))
    destination = shard.direct(role, process) if process else fallback
    return verdict_of(await _settle(
        bus, delivery, supply, HOP, destination=destination, fallback=fallback,
        alive=shard.alive(process) if process else destination, envelope=encode(envelope), hop=envelope.hops,
        changes=flat_pairs(preferences), records=records.flat(),
    ))  # fmt: skip


async def complete(
    bus: Bus,
    delivery: Delivery,
    envelope: Envelope,
    records: Records,
    *,
    history: Sequence[bytes] = (),
    preferences: dict[str, str] | None = None,
    forget: bool = False,
    supply: Supply | None = None,
) -> Verdict:
    """End the turn with the answer in ``envelope``: reply event, result, history, log, outbox, and the release of the
    next turn. ``history`` holds the messages to remember as JSON; ``forget`` clears the history instead."""
    return verdict_of(await _settle(
        bus, delivery, supply, COMPLETE, _ended(bus, delivery, envelope.reply_to),
        final=final_event("final", envelope.payload), forget=int(forget), remembered=history,
        changes=flat_pairs(preferences), records=records.flat(),
    ))  # fmt: skip


async def bury(
    bus: Bus,
    delivery: Delivery,
    reason: str,
    apology: str,
    records: Records,
    history: Sequence[bytes] = (),
    failure: dict[str, Any] | None = None,
    supply: Supply | None = None,
) -> Verdict:
    """Give the turn up: a dead letter with ``reason``, one ``apology`` to the user, the next turn released. With
    ``failure``, see Event, followers get it instead of the reason."""
    shard = bus.shards[delivery.shard]
    outbox = await outbox_of(bus, shard, delivery.conversation, delivery.turn)
    why = {"reason": failure["kind"], "failure": failure} if failure else {"reason": reason}
    if delivery.call:  # the handler that made it is told as much as operators are
        why["why"] = reason
    return verdict_of(await _settle(
        bus, delivery, supply, BURY, _ended(bus, delivery, outbox), dead=shard.dead,
        final=final_event("error", {"text": apology, **why}), reason=reason, deliveries=delivery.count,
        envelope=delivery.raw, hop=delivery.hop, remembered=history, records=records.flat(),
    ))  # fmt: skip


async def defer(
    bus: Bus, delivery: Delivery, seconds: float, envelope: Envelope | None, reason: str, records: Records,
    *, quiet: bool = False, supply: Supply | None = None,
) -> Verdict:  # fmt: skip
    """Put the turn to sleep for ``seconds``, without a slot or a lease. Followers are told ``reason`` unless it is
    empty; with ``quiet``, nobody is told that the turn starts again. Without ``envelope``, the delivered one comes back
    unchanged. CONTROL for a control turn, which cannot sleep."""
    shard = bus.shards[delivery.shard]
    band = "n" if envelope is None else next_band(delivery, envelope)
    return verdict_of(await _settle(
        bus, delivery, supply, DEFER, active=shard.active, deferred=shard.deferred,
        wake_stream=shard.stream(delivery.role, band),
        delay=milliseconds(seconds), envelope=delivery.raw if envelope is None else encode(envelope), hop=delivery.hop,
        reason=reason, quiet=int(quiet), records=records.flat(),
    ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a suspended turn waits for: until all steps of one of ``groups``, by their keys, are finished, or until
    ``due`` in ms of the server's clock, 0 for ever. With ``still``, its time stands still until then. ``text`` says it
    for people."""

    groups: Sequence[Sequence[str]]
    due: int
    still: bool
    text: str


async def suspend(
    bus: Bus, delivery: Delivery, awaited: Awaited, records: Records, supply: Supply | None = None
) -> tuple[Verdict, int]:
    """Put the turn to sleep until what it waits for is there, without a slot, a lease or a connection; it comes back
    with the envelope as it was delivered. READY, with nothing written and the server's clock in ms, if there is nothing
    to wait for any more. CONTROL for a control turn, which cannot sleep."""
    shard, envelope = bus.shards[delivery.shard], delivery.envelope
    assert envelope is not None
    answer = await _settle(
        bus, delivery, supply, SUSPEND, active=shard.active, deferred=shard.deferred,
        wake_stream=shard.stream(delivery.role, next_band(delivery, envelope)),
        steps=shard.steps(delivery.conversation, delivery.turn), envelope=encode(envelope), hop=delivery.hop,
        due=awaited.due or "", still=int(awaited.still), waits=awaited.text,
        groups=[" ".join(group) for group in awaited.groups], records=records.flat(),
    )  # fmt: skip
    word, _, now = answer.partition(b" ")
    return verdict_of(word), int(now or 0)


async def quarantine(bus: Bus, delivery: Delivery) -> Verdict:
    """Set an entry of no turn aside, cut to MAX_QUARANTINED: a dead letter that affects no conversation."""
    reply = await bus.server.run(
        QUARANTINE, stream=delivery.stream, dead=bus.shards[delivery.shard].aside("envelope"), entry=delivery.id,
        process=bus.process, reason=bus.settings.redacted(delivery.problem), deliveries=delivery.count,
        fields=delivery.raw[:MAX_QUARANTINED],
    )  # fmt: skip
    return verdict_of(reply)


async def discard(bus: Bus, delivery: Delivery) -> None:
    """Remove an entry of no running turn. Such an entry stays one, so that it does not matter who holds it."""
    await bus.server.call("XACK", delivery.stream, keys.GROUP, delivery.id)
    await bus.server.call("XDEL", delivery.stream, delivery.id)


async def _settle(
    bus: Bus, delivery: Delivery, supply: Supply | None, script: Script, /, *blocks: Block, **values: Any
) -> bytes:
    """What ``script`` answers, and hand over what was taken along. Sent again without that if the reply is lost."""
    values["received"] = delivery.received
    blocks = (lease_block(bus, delivery), *blocks)
    if supply is not None and (refill := supply()) is not None:
        try:
            return await _settle_and_take(bus, bus.shards[delivery.shard], refill, script, blocks, values)
        except ServerUnavailable:
            pass
        except ServerRefused as error:
            if error.code != "NOSCRIPT":
                raise
    values |= {"streams": [], "demands": []}
    block = take_block(bus, bus.shards[delivery.shard], NOTHING)
    answer: bytes = (await bus.server.run(script, *blocks, block, **values))[0]
    return answer


async def _settle_and_take(
    bus: Bus, shard: ShardKeys, refill: Refill, script: Script, blocks: Sequence[Block], values: dict[str, Any]
) -> bytes:
    """What ``script`` answers. Sent once, and its reply is heard even if this task is cancelled: it may hold
    entries."""
    order, answered = refill.order, asyncio.get_running_loop().create_future()
    streams = order.streams(bus, shard)

    def replied(sent: asyncio.Future[Any]) -> None:
        error = sent.exception()
        refill.deliver([] if error else order.read(shard, streams, sent.result()[1]))
        if not answered.done():
            answered.set_exception(error) if error else answered.set_result(sent.result()[0])

    try:
        block, demands = take_block(bus, shard, order), order.flat()
        sent = bus.server.start(script, *blocks, block, **values, streams=streams, demands=demands)
        sent.add_done_callback(replied)
    except BaseException:
        refill.deliver([])
        raise
    verdict: bytes = await answered
    return verdict


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
