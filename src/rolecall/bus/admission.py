"""Admission: a message becomes a turn, joins one that has not begun, takes one's place, or is refused at the door."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.conversation import remembered
from rolecall.bus.envelope import MAX_TEXT_BYTES, Envelope, check_conversation, decode, encode, encode_part
from rolecall.bus.turn import (
    FIRST_ROLE,
    MOVED_TRIES,
    NOWHERE,
    EntryPlace,
    FinishBlock,
    Records,
    TurnBlock,
    final_event,
    finish_block,
    quoted,
    tell_ended,
    turn_block,
)
from rolecall.errors import RolecallError, ServerFull
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import Server
from rolecall.settings import Settings

Outcome = Literal["RUN", "WAIT", "MERGED", "DUP", "CONFLICT", "FULL", "BUSY"]
CONTROL_ROLE = "command"
STOPPED = "Stopped: I'm answering your newer message."
LOGGED_CHARS = 8000
Mode = Literal["queue", "collect", "interrupt"]
"""What becomes of a message whose conversation is busy: it waits; it joins what waits already of the same user; or it
takes the place of what runs for the same user."""
EditOutcome = Literal["EDITED", "RUNNING", "DONE", "UNKNOWN", "FULL"]


class AdmitBlock(TypedDict):
    """What ``scripts/lib/admit.lua`` declares."""

    idempotency: str
    digest: str
    envelope: bytes
    part: bytes | str
    band: str
    principal: str
    reply_to: str
    mailbox_limit: int
    in_flight_limit: int
    user_limit: int
    user_soft_limit: int
    lane: str
    repeat_ms: int
    idle_ms: int
    utc_offset: int
    instance: str
    title: str
    said: str
    collect: int
    group: str
    hold: int
    max_bytes: int


PACKAGE = "rolecall.bus"
ADMIT = script(PACKAGE, "scripts/turn/admit", TurnBlock, FinishBlock, AdmitBlock)
INTERRUPT = script(
    PACKAGE, "scripts/turn/interrupt", TurnBlock, FinishBlock, AdmitBlock, names="final remembered records"
)
EDIT = script(
    PACKAGE, "scripts/turn/edit", TurnBlock, names="mailbox idempotency version envelope part instance said max_bytes"
)


def utc_offset_ms() -> int:
    """How far this machine's time zone is east of UTC now."""
    offset = datetime.now().astimezone().utcoffset()
    return round(offset.total_seconds() * 1000) if offset else 0


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a message: RUN and WAIT are accepted, MERGED is a part of ``turn``, which had not begun; DUP was
    accepted before as ``turn``; CONFLICT is the same idempotency key with another body; FULL and BUSY wrote nothing
    (FULL with a ``turn``: that one takes no more parts). ``place`` counts from 1 in the mailbox,
    ``at`` is the server's clock in ms, ``event`` the id of the turn's first event where this call made it."""

    outcome: Outcome
    turn: str
    place: int
    at: int = 0
    event: str = ""

    @property
    def before(self) -> str:
        """The event id to follow the turn after: nothing of it comes before."""
        if not self.event:
            return "0-0"
        ms, _, number = self.event.partition("-")
        return f"{ms}-{int(number) - 1}" if number != "0" else f"{int(ms) - 1}-{2**64 - 1}"

    @property
    def accepted(self) -> bool:
        """Whether there is a turn to wait for."""
        return self.outcome in ("RUN", "WAIT", "MERGED", "DUP")


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
        except ServerFull:  # refused at its first write
            return Admission("BUSY", "", 0)
        if outcome != b"MOVED":
            return Admission(outcome.decode(), turn.decode(), place, at, event.decode())
    raise RolecallError(f"{envelope.conversation} moved on {MOVED_TRIES} times while it was to be interrupted")


async def _offer(bus: Bus, offer: Offer) -> Sequence[Any]:
    conversation = check_conversation(offer.envelope.conversation)
    shard, running = bus.shard(conversation), Running()
    if offer.interrupts:
        running = await look_at_running(bus.server, shard, conversation)
    blocks = offer.blocks(bus, running)
    reply: Sequence[Any]
    if offer.interrupts:
        final = final_event("cancelled", {"text": STOPPED, "reason": "interrupted"})
        records = Records(offer.instance)
        records.add("CANCELLED", "by a newer message")
        reply = await bus.server.run(
            INTERRUPT, *blocks, final=final, remembered=running.history, records=records.flat()
        )
    else:
        reply = await bus.server.run(ADMIT, *blocks)
    if running.turn and reply[0] in (b"RUN", b"WAIT"):
        await tell_ended(bus, conversation)
    return reply


async def answered_without_turn(bus: Bus, conversation: str, idempotency: str) -> bool:
    """Whether a message of this key was admitted or marked by ``mark_answered``."""
    return bool(await bus.server.fetch("EXISTS", bus.shard(conversation).idempotency(conversation, idempotency)))


async def mark_answered(bus: Bus, conversation: str, idempotency: str) -> None:
    """Remember for IDEMPOTENCY_SECONDS that the front end answered this message itself, so that a repeat is not
    answered again."""
    key = bus.shard(conversation).idempotency(conversation, idempotency)
    await bus.server.call("SET", key, "|front", "EX", round(bus.settings.idempotency_seconds))


async def places(bus: Bus, conversation: str) -> dict[str, int]:
    """The turns that wait in ``conversation`` with their places, counted from 1: one command for all of them."""
    waiting = await bus.server.fetch("LRANGE", bus.shard(conversation).mailbox(conversation), 0, -1)
    return {turn.decode(): place for place, turn in enumerate(waiting, 1)}


@dataclass(frozen=True, slots=True)
class Running:
    """The running turn of a conversation and where its one entry is, as seen a moment ago. Empty when none runs."""

    turn: str = ""
    place: EntryPlace = NOWHERE
    outbox: str = ""
    history: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A message that asks for admission; ``admit`` says what the fields mean. ``outbox`` names a front end."""

    envelope: Envelope
    idempotency: str
    principal: str = ""
    instance: str = "front"
    title: str = ""
    outbox: str = ""
    control: bool = False
    mode: Mode = "queue"
    hold: float = 0.0
    group: str = ""

    @property
    def interrupts(self) -> bool:
        """Whether it may end a running turn."""
        return self.mode == "interrupt" and not self.control

    def blocks(self, bus: Bus, running: Running) -> tuple[TurnBlock, FinishBlock, AdmitBlock]:
        """The blocks of the scripts ``admit`` and ``interrupt``, the latter for ending ``running``."""
        conversation = self.envelope.conversation
        shard = bus.shard(conversation)
        role = CONTROL_ROLE if self.control else FIRST_ROLE
        return (
            turn_block(bus, shard, conversation, running.turn, running.place),
            finish_block(bus, shard, conversation, running.turn, running.outbox, role),
            self._admit_block(shard, bus.settings),
        )

    def _admit_block(self, shard: ShardKeys, settings: Settings) -> AdmitBlock:
        joins = self.mode == "collect" or self.group
        return {
            "idempotency": shard.idempotency(self.envelope.conversation, self.idempotency),
            "digest": digest(self.envelope),
            "envelope": encode(self.envelope),
            "part": encode_part(self.envelope) if joins else "",
            "band": keys.band(self.envelope.priority),
            "principal": self.principal,
            "reply_to": self.outbox,
            "mailbox_limit": settings.mailbox_limit,
            "in_flight_limit": settings.in_flight_limit,
            "user_limit": settings.user_limit,
            "user_soft_limit": settings.user_soft_limit,
            "lane": "control" if self.control else "ordered",
            "repeat_ms": milliseconds(settings.idempotency_seconds),
            "idle_ms": milliseconds(settings.session_idle_hours * 3600),
            "utc_offset": utc_offset_ms(),
            "instance": self.instance,
            "title": self.title,
            "said": said(self.envelope),
            "collect": int(self.mode == "collect"),
            "group": self.group,
            "hold": milliseconds(self.hold),
            "max_bytes": MAX_TEXT_BYTES,
        }


async def look_at_running(server: Server, shard: ShardKeys, conversation: str) -> Running:
    """What runs in ``conversation`` now; the words of its user are its history, marked as stopped."""
    current, at = await server.fetch("HMGET", shard.conversation(conversation), "cur", "at")
    if not current:
        return Running()
    turn = current.decode()
    journal = [f"{turn}:o", f"{turn}:e", f"{turn}:x"]
    outbox, raw, parts = await server.fetch("HMGET", shard.journal(conversation), *journal)
    words = _words(raw or b"", parts or b"")
    history = remembered(words, "", turn, "stopped") if words else []
    return Running(turn, EntryPlace.parse(at), (outbox or b"").decode(), tuple(history))


def from_user(envelope: Envelope, principal: str) -> Envelope:
    """``envelope`` with its user noted, if there is one."""
    if not principal:
        return envelope
    return msgspec.structs.replace(envelope, meta={**envelope.meta, "user": principal})


def digest(envelope: Envelope) -> str:
    """What tells a repeat of a message from another one under the same idempotency key."""
    return hashlib.sha256(msgspec.json.encode((envelope.payload, envelope.priority))).hexdigest()[:16]


def said(envelope: Envelope) -> str:
    """The words of ``envelope`` as a log record shows them."""
    return quoted(envelope.text[:LOGGED_CHARS])


def _words(raw: bytes, parts: bytes) -> str:
    try:
        return decode(raw, parts=parts).text
    except RolecallError:
        return ""


@dataclass(frozen=True, slots=True)
class Edited:
    """What became of an edit. EDITED: ``turn`` will be answered as the message reads now, or as a newer edit says.
    RUNNING and DONE: it is too late for ``turn``, which runs or is over. UNKNOWN: no such message was taken.
    FULL: the turn has other parts, and together they would be too long; it stays as it was."""

    outcome: EditOutcome
    turn: str = ""


async def edit_message(
    bus: Bus, envelope: Envelope, *, idempotency: str, version: int, principal: str = "", instance: str = "front"
) -> Edited:
    """Let the message that was admitted under ``idempotency`` read as ``envelope`` does, if its turn waits or is held.

    ``version`` rises with each edit of a message, as an update's number does; an edit that is not newer than the one
    that stands changes nothing. ``envelope.reply_to`` is the same as before: the answer goes there. Atomic: a turn is
    released with the old text or with the new one. Raises EnvelopeTooLarge.
    """
    conversation = check_conversation(envelope.conversation)
    shard, envelope = bus.shard(conversation), from_user(envelope, principal)
    outcome, turn = await bus.server.run(
        EDIT, turn_block(bus, shard, conversation, ""), mailbox=shard.mailbox(conversation),
        idempotency=shard.idempotency(conversation, idempotency), version=version, envelope=encode(envelope),
        part=encode_part(envelope), instance=instance, said=said(envelope), max_bytes=MAX_TEXT_BYTES,
    )  # fmt: skip
    return Edited(outcome.decode(), turn.decode())
