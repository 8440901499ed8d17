"""A message on its way in: what the scripts of admission need to know of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import msgspec

from rolecall import keys
from rolecall.blocks import FIRST_ROLE, final_event, finish_block, guard_block, milliseconds, utc_offset_ms
from rolecall.delivery import Records, quoted
from rolecall.envelope import MAX_TEXT_BYTES, Envelope, check_conversation, decode, encode, encode_part
from rolecall.errors import RolecallError
from rolecall.history import remembered
from rolecall.keys import ShardKeys
from rolecall.redis_client import Arg, Server
from rolecall.settings import Settings

CONTROL_ROLE = "command"
STOPPED = "Stopped: a newer message took its place."
LOGGED_CHARS = 8000

Mode = Literal["queue", "collect", "interrupt"]
"""What becomes of a message whose conversation is busy: it waits; it joins what waits already of the same user; or it
takes the place of what runs for the same user."""


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
