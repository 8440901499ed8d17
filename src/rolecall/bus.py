"""The only speaker of the scripts and the work streams."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from rolecall import keys
from rolecall.admission import Mode as Mode
from rolecall.admission import Offer, Running, from_user, look_at_running
from rolecall.blocks import (
    final_event,
    finish_block,
    guard_block,
    milliseconds,
    pairs,
    whole,
)
from rolecall.delivery import Delivery, Records, next_band, read_entry
from rolecall.envelope import Envelope, check_conversation, encode
from rolecall.errors import ConfigError, RolecallError
from rolecall.keys import ShardKeys
from rolecall.notice import notice_block
from rolecall.outcomes import Admission as Admission
from rolecall.outcomes import Demand as Demand
from rolecall.outcomes import Snapshot as Snapshot
from rolecall.outcomes import Verdict as Verdict
from rolecall.redis_client import Arg, Server
from rolecall.scripts import script
from rolecall.settings import Settings

SCHEMA = 1

MOVED_TRIES = 50
"""How often a turn that moves on (a hop, a deferral, a release) is looked for again."""


class Bus:
    """The verbs of the message bus, over all shards. ``process`` names this process as a consumer; it must be
    unique per start, for it is what fences a predecessor of the same host and pid."""

    def __init__(self, server: Server, settings: Settings, process: str) -> None:
        self.server = server
        self.settings = settings
        self.process = process
        self.shards = tuple(ShardKeys(number) for number in range(settings.shards))

    def shard(self, conversation: str) -> ShardKeys:
        """The keys of the shard that ``conversation`` lives in."""
        return self.shards[keys.shard_of(conversation, len(self.shards))]

    async def prepare(self) -> None:
        """Note shard count and key schema at the first use; afterwards refuse (ConfigError) another one."""
        born = hashlib.sha256(f"{self.process}{time.time_ns()}".encode()).hexdigest()[:12]
        for name, value in (("shards", len(self.shards)), ("schema", SCHEMA), ("born", born)):
            await self.server.call("HSETNX", keys.META, name, value)
        shards, schema = await self.server.call("HMGET", keys.META, "shards", "schema")
        if int(shards) != len(self.shards):
            raise ConfigError(
                f"SHARDS={len(self.shards)}: this bus was made with {int(shards)} shards; set SHARDS={int(shards)}, "
                "or empty the server to change it"
            )
        if int(schema) != SCHEMA:
            raise ConfigError(f"this bus has key schema {int(schema)}, this version of rolecall speaks {SCHEMA}")


async def admit(
    bus: Bus,
    envelope: Envelope,
    *,
    idempotency: str | None = None,
    principal: str = "",
    instance: str = "front",
    title: str = "",
    outbox: bool = False,
    control: bool = False,
    mode: Mode = "queue",
    hold: float = 0.0,
    group: str = "",
) -> Admission:
    """Accept ``envelope`` as the next turn of its conversation, atomically, or refuse it and write nothing.

    ``idempotency`` (default: the envelope's id) makes a repeat DUP for ``idempotency_seconds``; ``principal``
    is whom the per-user limits count; ``outbox`` asks that the answer be put in the outbox of ``reply_to``;
    ``control`` runs beside the conversation's order, at most 4 at once. Raises EnvelopeTooLarge.

    ``mode`` says what becomes of it when the conversation is busy. ``hold`` seconds is how long a turn sleeps
    before it runs, for more messages of the same ``group`` to join it: each of them renews the time, up to five
    times as long in all. Whatever joins a turn that has not begun is MERGED: it has no answer of its own.
    """
    offer = Offer(
        from_user(envelope, principal), idempotency or envelope.id, principal, instance, title,
        envelope.reply_to if outbox else "", control, mode, hold, group,
    )  # fmt: skip
    for tries in range(MOVED_TRIES):
        if tries:  # else those of a storm would look, and fail, in step
            await asyncio.sleep(random.uniform(0, tries / 1000))
        try:
            outcome, turn, place, at, event = await _offer(bus, offer)
        except OutOfMemoryError:  # refused at its first write
            return Admission("BUSY", "", 0)
        if outcome != b"MOVED":
            return Admission(outcome.decode(), turn.decode(), place, at, event.decode())
    raise RolecallError(f"{envelope.conversation} moved on {MOVED_TRIES} times while it was to be interrupted")


async def _offer(bus: Bus, offer: Offer) -> Sequence[Any]:
    conversation = check_conversation(offer.envelope.conversation)
    shard, running = bus.shard(conversation), Running()
    if offer.interrupts:
        running = await look_at_running(bus.server, shard, conversation)
    names, arguments = offer.blocks(shard, bus.settings, bus.process, running)
    reply: Sequence[Any] = await bus.server.run("interrupt" if offer.interrupts else "admit", names, arguments)
    if running.turn and reply[0] in (b"RUN", b"WAIT"):
        await tell_ended(bus, conversation)
    return reply


async def tell_ended(bus: Bus, conversation: str) -> None:
    """Let whoever holds what was ended from outside know now; without this it would at its next heartbeat."""
    await bus.server.call("PUBLISH", keys.CONTROL, msgspec.json.encode({"ended": conversation}))


async def take(
    bus: Bus, shard: ShardKeys, demands: Sequence[Demand], start: int = 0, claim: bool = False
) -> list[Delivery]:
    """Lease entries for ``demands``, never more than their free slots, without blocking.

    Bands are served from number ``start`` on (0 high, 1 normal, 2 low). With ``claim``, entries whose holder
    let its lease run out come first; one delivered once too often comes only if ``last_ok``.
    """
    streams: list[tuple[str, str]] = []
    arguments: list[Arg] = [
        bus.process,
        milliseconds(bus.settings.lease_seconds) if claim else 0,
        bus.settings.retries,
    ]
    arguments.append(len(demands))
    for demand in demands:
        own = streams_of(bus, shard, demand.role, start)
        streams += ((demand.role, stream) for stream in own)
        arguments += (demand.free, int(demand.last_ok), len(own))
    taken = await bus.server.run("take", [stream for _, stream in streams], arguments)
    return [
        read_entry(shard.number, streams[k - 1][1], streams[k - 1][0], (entry_id, fields), count, previous)
        for k, entry_id, count, previous, fields in taken
    ]


def streams_of(bus: Bus, shard: ShardKeys, role: str, start: int = 0) -> list[str]:
    """The streams of ``role`` in ``shard`` that this process reads, in the order to serve them."""
    bands = (*keys.BANDS[start:], *keys.BANDS[:start])
    return [*(shard.stream(role, band) for band in bands), shard.direct(role, bus.process)]


async def ensure_groups(bus: Bus, shard: ShardKeys, roles: Iterable[str]) -> None:
    """Create the consumer groups that blocking reads of ``roles`` need, from the streams' beginning."""
    for role in roles:
        for stream in streams_of(bus, shard, role):
            await create_group(bus.server, stream)


async def turns_in_flight(bus: Bus, shard: ShardKeys) -> int:
    """Turns in flight in ``shard``, whatever holds them."""
    return int(await bus.server.call("ZCARD", shard.active))


async def start(bus: Bus, delivery: Delivery, instance: str) -> tuple[Verdict, float]:
    """Tell that ``instance`` begins; returns the verdict and the seconds since the turn was received."""
    verdict, age, _ = await bus.server.run("start", *_start(bus, delivery, instance))
    return verdict.decode(), age / 1000


def start_soon(bus: Bus, delivery: Delivery, instance: str, *, quiet: bool = False) -> asyncio.Future[Any]:
    """``start`` sent now, in order before whatever is sent later; the future holds its raw reply. ``quiet`` asks
    for the verdict alone: neither event nor record."""
    names, arguments = _start(bus, delivery, instance)
    if quiet:
        arguments.append("quiet")
    chosen, rest = script("start"), (len(names), *names, *arguments)

    def unknown(future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and isinstance(future.exception(), NoScriptError):
            bus.server.send("EVAL", chosen.body, *rest).add_done_callback(_heard)

    sent = bus.server.send("EVALSHA", chosen.sha, *rest)
    sent.add_done_callback(unknown)
    return sent


async def emit(bus: Bus, delivery: Delivery, position: int, text: str) -> Verdict:
    """Publish a piece of the answer in the making; ``position`` is its offset in characters."""
    reply = await bus.server.run("emit", *guarded(bus, delivery, position, text))
    return verdict_of(reply)


async def renew(bus: Bus, shard: ShardKeys, held: Sequence[Delivery]) -> list[Delivery]:
    """Keep the leases of ``held`` and this process's sign of life; returns those that are lost."""
    names = [shard.alive(bus.process), *(delivery.stream for delivery in held)]
    arguments: list[Arg] = [
        bus.process,
        milliseconds(bus.settings.lease_seconds),
        *(delivery.id for delivery in held),
    ]
    return [held[index - 1] for index in await bus.server.run("renew", names, arguments)]


async def hand_back(bus: Bus, delivery: Delivery) -> Verdict:
    """Return an entry without counting its delivery; any process may take it at once."""
    conversation = bus.shards[delivery.shard].conversation(delivery.conversation)
    arguments: list[Arg] = [
        delivery.id,
        bus.process,
        milliseconds(bus.settings.lease_seconds),
        delivery.turn,
    ]
    return verdict_of(await bus.server.run("handback", [delivery.stream, conversation], arguments))


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


async def owns_turn(bus: Bus, delivery: Delivery) -> bool:
    """Whether a turn is held by just this entry: the conversation's running one, or an open control turn."""
    shard = bus.shards[delivery.shard]
    if delivery.control:
        journal = shard.journal(delivery.conversation)
        return bool(await bus.server.fetch("HEXISTS", journal, f"{delivery.turn}:e"))
    current, at = await bus.server.fetch("HMGET", shard.conversation(delivery.conversation), "cur", "at")
    return bool(current == delivery.turn.encode() and at == f"{delivery.stream}|{delivery.id}".encode())


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
    except OutOfMemoryError:  # refused at its first write
        return "BUSY"
    return verdict.decode()  # type: ignore[return-value]  # the script answers just these words


async def note(bus: Bus, shard: ShardKeys, conversation: str, turn: str, records: Records, begun: int = 0) -> None:
    """Write log records of a turn outside its settling, say from a front end that delivered it; ``begun`` is
    the server's ms at which the turn was received, where known."""
    names, arguments = guard_block(shard, bus.process, shard.deferred, "", conversation, turn)
    await bus.server.run("note", names, [*arguments, begun, *records.arguments()])


async def snapshot(bus: Bus, conversation: str, turn: str) -> Snapshot:
    """Where ``turn`` stands now."""
    shard = bus.shard(conversation)
    names = (
        shard.conversation(conversation), shard.mailbox(conversation), shard.events(conversation),
        shard.result(conversation, turn), shard.journal(conversation),
    )  # fmt: skip
    state, place, final, last, final_id = await bus.server.run("snapshot", names, (turn,))
    ended = msgspec.json.decode(final) if final else None
    return Snapshot(state.decode(), place, ended, last.decode(), final_id.decode())


async def places(bus: Bus, conversation: str) -> dict[str, int]:
    """The turns that wait in ``conversation`` with their places, counted from 1: one command for all of them."""
    waiting = await bus.server.fetch("LRANGE", bus.shard(conversation).mailbox(conversation), 0, -1)
    return {turn.decode(): place for place, turn in enumerate(waiting, 1)}


def guarded(bus: Bus, delivery: Delivery, *arguments: Arg) -> tuple[list[Arg], list[Arg]]:
    shard = bus.shards[delivery.shard]
    names, own = guard_block(shard, bus.process, delivery.stream, delivery.id, delivery.conversation, delivery.turn)
    return names, [*own, *arguments]


def _start(bus: Bus, delivery: Delivery, instance: str) -> tuple[list[Arg], list[Arg]]:
    return guarded(bus, delivery, instance, delivery.count, delivery.hop, delivery.previous, delivery.role)


def _finishing(bus: Bus, delivery: Delivery, outbox: str, final: bytes) -> tuple[list[Arg], list[Arg]]:
    shard = bus.shards[delivery.shard]
    names, arguments = guarded(bus, delivery)
    more = finish_block(shard, bus.settings, delivery.conversation, delivery.turn, outbox)
    return names + more[0], [*arguments, *more[1], final]


async def outbox_of(bus: Bus, shard: ShardKeys, conversation: str, *turns: str) -> str:
    """The one front end whose outbox the answers to ``turns`` go to, empty for none."""
    fields = [f"{turn}:o" for turn in turns]
    fronts = await bus.server.fetch("HMGET", shard.journal(conversation), *fields)
    return next((front.decode() for front in fronts if front), "")


async def create_group(server: Server, stream: str) -> None:
    """Create the consumer group of ``stream`` from its beginning, unless it is there."""
    try:
        await server.call("XGROUP", "CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def _heard(future: asyncio.Future[Any]) -> None:
    """Nobody waits for this one; its failure was heard of."""
    if not future.cancelled():
        future.exception()


def verdict_of(reply: bytes) -> Verdict:
    return reply.decode()  # type: ignore[return-value]  # the scripts answer just these words
