"""Admission: a message becomes a turn, joins a turn that has not begun, interrupts the running one, or is refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, get_args

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.commands import parse_command
from rolecall.bus.conversation import remembered
from rolecall.bus.envelope import MAX_TEXT_BYTES, Envelope, check_conversation, decode, encode, encode_part
from rolecall.bus.turn import (
    FIRST_ROLE,
    MAX_RECORD_CHARS,
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

AdmissionOutcome = Literal["RUN", "WAIT", "MERGED", "DUP", "CONFLICT", "FULL", "BUSY"]
REFUSALS = {
    "FULL": "the conversation or its user has too many unanswered messages; wait for an answer",
    "BUSY": "the system has too many turns in flight (IN_FLIGHT_LIMIT); try again later",
    "CONFLICT": "this idempotency key was used for another message",
}
"""The outcomes that are no turn, and why, for programs and operators. What users read is in frontends/texts.toml."""
CONTROL_ROLE = "command"
REPLACED_TEXT = "Stopped: I'm answering your newer message."
"""What users read where an answer was interrupted."""
NOTE_BYTES = 512
"""What messages with a hold leave free in a turn, so that a last one without a hold can say that some did not fit."""
Mode = Literal["queue", "collect", "interrupt"]
"""What happens to a message while its conversation is busy: it waits; it joins a turn of the same user that has not
begun, unless one of them is a command such as ``/remind``; or it cancels the running turn of the same user."""
MODES: tuple[Mode, ...] = get_args(Mode)
EditOutcome = Literal["EDITED", "RUNNING", "DONE", "UNKNOWN", "FULL", "SHARED"]


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
    apart: int
    hold: int
    max_bytes: int


PACKAGE = "rolecall.bus"
ADMIT = script(PACKAGE, "scripts/turn/admit", TurnBlock, FinishBlock, AdmitBlock)
INTERRUPT = script(
    PACKAGE, "scripts/turn/interrupt", TurnBlock, FinishBlock, AdmitBlock, names="final remembered records"
)
EDIT = script(
    PACKAGE,
    "scripts/turn/edit",
    TurnBlock,
    names="mailbox idempotency version envelope part instance said max_bytes apart",
)
HOLD = script(PACKAGE, "scripts/turn/hold", TurnBlock, names="mailbox deferred hold")


def utc_offset_ms() -> int:
    """The current offset of this machine's time zone, positive east of UTC."""
    offset = datetime.now().astimezone().utcoffset()
    return milliseconds(offset.total_seconds()) if offset else 0


@dataclass(frozen=True, slots=True)
class Admission:
    """The outcome for a message. RUN, WAIT: it is a new turn. MERGED: it joined ``turn``, which had not begun. DUP: it
    was admitted before as ``turn``. CONFLICT: another body was admitted with this idempotency key. FULL, BUSY: nothing
    was written; FULL with a ``turn`` means that this turn takes no more parts.

    ``place`` counts from 1 in the mailbox, ``at`` is the server's clock in ms, and ``event`` the id of the turn's first
    event if this call made it.
    """

    outcome: AdmissionOutcome
    turn: str
    place: int
    at: int = 0
    event: str = ""

    @property
    def before(self) -> str:
        """The event id after which to follow the turn: all its events come later."""
        if not self.event:
            return "0-0"
        ms, _, number = self.event.partition("-")
        return f"{ms}-{int(number) - 1}" if number != "0" else f"{int(ms) - 1}-{2**64 - 1}"

    @property
    def accepted(self) -> bool:
        """Whether there is a turn whose answer will come."""
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
    """Admit ``envelope`` as the next turn of its conversation, or refuse it and write nothing. Atomic.

    ``idempotency`` (default: the envelope's id) makes a repeat DUP for IDEMPOTENCY_SECONDS. ``principal`` is the user
    whose limits apply. With ``outbox`` the answer is delivered through the outbox of ``reply_to``. A ``control`` turn
    runs outside the conversation's order, if there is a role for it; a conversation has at most 4 of them at once.
    ``mode`` applies while the conversation is busy.

    With ``hold`` the turn sleeps for that many seconds before it runs, so that more messages of the same ``group`` can
    join it; each of them renews the hold, up to five times as long in all. A message that joins a turn is MERGED and
    has no answer of its own.

    Raises EnvelopeTooLarge, and RolecallError for a priority that is none and if the turn to interrupt keeps moving on
    meanwhile.
    """
    if not 0 <= envelope.priority <= 100:
        raise RolecallError(f"priority={envelope.priority} is invalid: expected an integer from 0 to 100")
    offer = Offer(
        from_user(envelope, principal), idempotency or envelope.id, principal, instance, title,
        envelope.reply_to if outbox else "", control and bus.answers_commands, mode, hold, group,
    )  # fmt: skip
    for tries in range(MOVED_TRIES):
        if tries:  # spread out, or concurrent interrupts would keep failing together
            await asyncio.sleep(random.uniform(0, tries / 1000))
        try:
            outcome, turn, place, at, event = await _offer(bus, offer)
        except ServerFull:  # refused at its first write
            return Admission("BUSY", "", 0)
        if outcome != b"MOVED":
            return Admission(outcome.decode(), turn.decode(), place, at, event.decode())
    raise RolecallError(f"{envelope.conversation} moved {MOVED_TRIES} times while it was being interrupted")


async def _offer(bus: Bus, offer: Offer) -> Sequence[Any]:
    conversation = check_conversation(offer.envelope.conversation)
    shard, running = bus.shard(conversation), Running()
    if offer.interrupts:
        running = await look_at_running(bus.server, shard, conversation)
    blocks = offer.blocks(bus, running)
    reply: Sequence[Any]
    if offer.interrupts:
        final = final_event("cancelled", {"text": REPLACED_TEXT, "reason": "interrupted"})
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


async def mark_answered(bus: Bus, conversation: str, idempotency: str, text: str = "", reply: str = "") -> None:
    """Remember for IDEMPOTENCY_SECONDS that the front end answered this message itself, with ``reply`` to ``text``, so
    that a repeat is not answered again."""
    key, mark = bus.shard(conversation).idempotency(conversation, idempotency), f"{_front_mark(text)}{reply}"
    await bus.server.fetch("SET", key, mark, "EX", round(bus.settings.idempotency_seconds))


async def answer_of_front(bus: Bus, conversation: str, idempotency: str, text: str) -> tuple[bool, str]:
    """Whether a message of this key was admitted or marked by ``mark_answered``, and the reply that was given to
    ``text``; empty if the key was used for another message."""
    known = await bus.server.fetch("GET", bus.shard(conversation).idempotency(conversation, idempotency))
    mark, found = _front_mark(text), (known or b"").decode()
    return known is not None, found.removeprefix(mark) if found.startswith(mark) else ""


def _front_mark(text: str) -> str:
    return f"|front {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}|"


async def places(bus: Bus, conversation: str) -> dict[str, int]:
    """The waiting turns of ``conversation`` with their places, counted from 1."""
    waiting = await bus.server.fetch("LRANGE", bus.shard(conversation).mailbox(conversation), 0, -1)
    return {turn.decode(): place for place, turn in enumerate(waiting, 1)}


@dataclass(frozen=True, slots=True)
class Running:
    """The running turn of a conversation and the place of its entry, as read a moment ago. Empty if none runs."""

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
            "envelope": encode(self.envelope),  # first: it raises for what cannot be written
            "idempotency": shard.idempotency(self.envelope.conversation, self.idempotency),
            "digest": digest(self.envelope),
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
            "apart": _apart(self.envelope),
            "hold": milliseconds(self.hold),
            "max_bytes": MAX_TEXT_BYTES - (NOTE_BYTES if self.hold else 0),
        }


async def look_at_running(server: Server, shard: ShardKeys, conversation: str) -> Running:
    """The running turn of ``conversation``. Its history is the user's message, marked as stopped."""
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
    """``envelope`` with its user in ``meta``, if there is one."""
    if not principal:
        return envelope
    return msgspec.structs.replace(envelope, meta={**envelope.meta, "user": principal})


def digest(envelope: Envelope) -> str:
    """Tells a repeat of a message from another message with the same idempotency key. Files of a message that replaces
    a turn do not count: a repeat cannot find those that it keeps of that turn, which is gone by then."""
    kept = ("images", "files") if "again" in envelope.meta else ()
    payload = {name: value for name, value in envelope.payload.items() if name not in kept}
    return hashlib.sha256(msgspec.json.encode((payload, envelope.priority))).hexdigest()[:16]


def said(envelope: Envelope) -> str:
    """The text of ``envelope`` as a log record shows it."""
    return quoted(envelope.text[:MAX_RECORD_CHARS])


def _apart(envelope: Envelope) -> int:
    """1 for a command, which is a turn of its own."""
    return int(parse_command(envelope.text) is not None)


def _words(raw: bytes, parts: bytes) -> str:
    try:
        return decode(raw, parts=parts).text
    except RolecallError:
        return ""


@dataclass(frozen=True, slots=True)
class EditResult:
    """The outcome of an edit. EDITED: ``turn`` will answer the edited message, or a newer edit of it. RUNNING, DONE:
    too late, ``turn`` runs or has ended. UNKNOWN: no such message was admitted. FULL: nothing changed, as the turn
    would be too long with its other parts. SHARED: nothing changed, as the message became a command and others share
    its turn."""

    outcome: EditOutcome
    turn: str = ""


async def edit_message(
    bus: Bus, envelope: Envelope, *, idempotency: str, version: int, principal: str = "", instance: str = "front"
) -> EditResult:
    """Replace the message that was admitted under ``idempotency`` with ``envelope``, if its turn waits or is held.

    ``version`` rises with each edit of a message; an edit that is not newer than the current one changes nothing.
    ``envelope.reply_to`` must be the same as before. Atomic: a turn is released with the old text or with the new one.
    Raises EnvelopeTooLarge.
    """
    conversation = check_conversation(envelope.conversation)
    shard, envelope = bus.shard(conversation), from_user(envelope, principal)
    outcome, turn = await bus.server.run(
        EDIT, turn_block(bus, shard, conversation, ""), mailbox=shard.mailbox(conversation),
        idempotency=shard.idempotency(conversation, idempotency), version=version, envelope=encode(envelope),
        part=encode_part(envelope), instance=instance, said=said(envelope), max_bytes=MAX_TEXT_BYTES,
        apart=_apart(envelope),
    )  # fmt: skip
    return EditResult(outcome.decode(), turn.decode())


async def hold_longer(bus: Bus, conversation: str, turn: str, seconds: float) -> bool:
    """Hold ``turn``, which has not begun, for ``seconds`` from now, because a message that will join it is on its way.
    False if it has begun or ended."""
    shard = bus.shard(conversation)
    verdict = await bus.server.run(
        HOLD, turn_block(bus, shard, conversation, turn), mailbox=shard.mailbox(conversation), deferred=shard.deferred,
        hold=milliseconds(seconds),
    )  # fmt: skip
    return bool(verdict == b"OK")


async def move_message(bus: Bus, conversation: str, message: str, again: str, *, version: int = 0) -> None:
    """From now on, edits of ``message`` concern the turn that the same message was admitted to once more as ``again``,
    both idempotency keys; ``version`` is that of the edit it was admitted with. Idempotent."""
    shard = bus.shard(conversation)
    keys = [shard.idempotency(conversation, key) for key in (message, again)]
    known, now = [await bus.server.fetch("GET", key) for key in keys]
    if known and now:
        turn, _, part = [*now.decode().split("|"), ""][:3]
        moved = f"{turn}|{known.decode().split('|')[1]}|{part}|{version}"
        await bus.server.fetch("SET", keys[0], moved, "KEEPTTL")
