"""Edited messages: what has not begun is answered as it reads now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolecall.admission import from_user, said
from rolecall.blocks import guard_block
from rolecall.bus import Bus
from rolecall.envelope import MAX_TEXT_BYTES, Envelope, check_conversation, encode, encode_part

EditOutcome = Literal["EDITED", "RUNNING", "DONE", "UNKNOWN", "FULL"]


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
