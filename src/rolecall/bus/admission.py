"""The KEYS and ARGV that the turn scripts share; scripts/lib/guard.lua and lib/finish.lua say which is which."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.conversation import remembered
from rolecall.bus.envelope import MAX_TEXT_BYTES, Envelope, check_conversation, decode, encode, encode_part
from rolecall.bus.turn import (
    FIRST_ROLE,
    MOVED_TRIES,
    Records,
    final_event,
    finish_block,
    guard_block,
    quoted,
    tell_ended,
)
from rolecall.errors import RolecallError, ServerFull
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.pipeline import Arg
from rolecall.redis.scripts import milliseconds
from rolecall.redis.server import Server
from rolecall.settings import Settings

Outcome = Literal["RUN", "WAIT", "MERGED", "DUP", "CONFLICT", "FULL", "BUSY"]
CONTROL_ROLE = "command"
STOPPED = "Stopped: a newer message took its place."
LOGGED_CHARS = 8000
Mode = Literal["queue", "collect", "interrupt"]
"""What becomes of a message whose conversation is busy: it waits; it joins what waits already of the same user; or it
takes the place of what runs for the same user."""
EditOutcome = Literal["EDITED", "RUNNING", "DONE", "UNKNOWN", "FULL"]


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
    names, arguments = offer.blocks(shard, bus.settings, bus.process, running)
    reply: Sequence[Any] = await bus.server.run("interrupt" if offer.interrupts else "admit", names, arguments)
    if running.turn and reply[0] in (b"RUN", b"WAIT"):
        await tell_ended(bus, conversation)
    return reply


async def places(bus: Bus, conversation: str) -> dict[str, int]:
    """The turns that wait in ``conversation`` with their places, counted from 1: one command for all of them."""
    waiting = await bus.server.fetch("LRANGE", bus.shard(conversation).mailbox(conversation), 0, -1)
    return {turn.decode(): place for place, turn in enumerate(waiting, 1)}


@dataclass(frozen=True, slots=True)
class Running:
    """The running turn of a conversation and where its one entry is, as seen a moment ago. Empty when none runs."""

    turn: str = ""
    at: str = ""
    outbox: str = ""
    history: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A message that asks to be taken in; see Bus.admit for what the fields mean. ``outbox`` names a front end."""

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

    def blocks(
        self, shard: ShardKeys, settings: Settings, process: str, running: Running
    ) -> tuple[list[Arg], list[Arg]]:
        """KEYS and ARGV of lib/guard.lua, lib/finish.lua and lib/admit.lua, and for INTERRUPT what ends ``running``."""
        conversation = check_conversation(self.envelope.conversation)
        stream, _, entry_id = running.at.rpartition("|")
        names, arguments = guard_block(
            shard, process, stream or shard.deferred, entry_id or "z", conversation, running.turn
        )
        role = CONTROL_ROLE if self.control else FIRST_ROLE
        more = finish_block(shard, settings, conversation, running.turn, running.outbox, role)
        names += [*more[0], shard.idempotency(conversation, self.idempotency)]
        arguments += [*more[1], *self._arguments(settings)]
        if self.interrupts:
            arguments += [final_event("cancelled", {"text": STOPPED, "reason": "interrupted"})]
            arguments += [len(running.history), *running.history, *self._records().arguments()]
        return names, arguments

    def _arguments(self, s: Settings) -> list[Arg]:
        raw, joins = encode(self.envelope), self.mode == "collect" or self.group
        part = encode_part(self.envelope) if joins else ""
        return [
            digest(self.envelope), raw, part, keys.band(self.envelope.priority), self.principal, self.outbox,
            s.mailbox_limit, s.in_flight_limit, s.user_limit, s.user_soft_limit,
            "control" if self.control else "ordered", milliseconds(s.idempotency_seconds),
            milliseconds(s.session_idle_hours * 3600), utc_offset_ms(), self.instance, self.title,
            said(self.envelope), int(self.mode == "collect"), self.group, milliseconds(self.hold), MAX_TEXT_BYTES,
        ]  # fmt: skip

    def _records(self) -> Records:
        records = Records(self.instance)
        records.add("CANCELLED", "by a newer message")
        return records


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
    return Running(turn, (at or b"").decode(), (outbox or b"").decode(), tuple(history))


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
    names, arguments = guard_block(shard, bus.process, shard.deferred, "z", conversation, "")
    names += [shard.mailbox(conversation), shard.idempotency(conversation, idempotency)]
    arguments += [version, encode(envelope), encode_part(envelope), instance, said(envelope), MAX_TEXT_BYTES]
    outcome, turn = await bus.server.run("edit", names, arguments)
    return Edited(outcome.decode(), turn.decode())
