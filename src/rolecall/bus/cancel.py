"""Ending turns from outside: cancel one, stop a conversation, erase it. Whoever holds an ended turn is fenced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from rolecall.bus.admission import edit_message, places
from rolecall.bus.blobs import Blobs, Files, forget_files
from rolecall.bus.bus import Bus
from rolecall.bus.chat_messages import keep_question
from rolecall.bus.conversation import asker_of, envelopes_of, read_history, remembered, running_turn
from rolecall.bus.dead_letters import dead_letters, drop
from rolecall.bus.envelope import LISTS, Envelope, decode, listed
from rolecall.bus.events import so_far
from rolecall.bus.schedule.schedules import unschedule
from rolecall.bus.turn import (
    FORGET,
    MOVED_TRIES,
    EntryPlace,
    FinishBlock,
    Records,
    TurnBlock,
    final_event,
    finish_block,
    is_call,
    note,
    outbox_of,
    tell_ended,
    turn_block,
)
from rolecall.errors import DecodeError, RolecallError
from rolecall.redis.scripts import script

STOPPED_TEXT = "Stopped."
"""What users read where an answer was stopped."""
RESULTS = 1000
"""The results of this many last turns are removed; older ones have expired, unless there were over a thousand turns
within RESULT_SECONDS."""
CANCEL = script("rolecall.bus", "scripts/turn/cancel", TurnBlock, FinishBlock, names="final kind remembered records")
STOP = script(
    "rolecall.bus",
    "scripts/turn/stop",
    TurnBlock,
    FinishBlock,
    names="results final instance forget waiting",
)  # fmt: skip


async def cancel_turn(
    bus: Bus, conversation: str, turn: str, *, instance: str = "front", kind: str = "cancelled",
    text: str = STOPPED_TEXT, reason: str = "by the user", history: Sequence[bytes] = (),
    failure: Mapping[str, Any] | None = None, answer: str = "",
) -> bool:  # fmt: skip
    """End one turn or call now, with all calls it has made; False when it had ended already, and its answer stands.
    ``kind`` is cancelled or error, ``text`` is what the user reads, ``failure`` that of Event, ``answer`` as far as it
    was streamed. Atomic; raises RolecallError if the turn keeps moving on meanwhile."""
    records, more = Records(instance), {"failure": failure} if failure else {}
    records.add("CANCELLED" if kind == "cancelled" else "DEAD_LETTER", reason)
    final, flat = final_event(kind, {"text": text, "reason": reason, "answer": answer, **more}), records.flat()
    for _ in range(MOVED_TRIES):
        found = await _find(bus, conversation, turn)
        verdict = await bus.server.run(
            CANCEL, found.turn, found.finish, final=final, kind=kind, remembered=history, records=flat
        )
        if verdict != b"MOVED":
            await tell_ended(bus, conversation)
            return bool(verdict == b"OK")
    raise RolecallError(f"turn {turn} of {conversation} moved {MOVED_TRIES} times while it was being cancelled")


async def cancel_by_user(bus: Bus, conversation: str, turn: str, *, instance: str = "front") -> bool:
    """Cancel a turn for its user: the message and the answer so far stay in the history, marked as stopped. False when
    the turn had ended already."""
    envelope = (await envelopes_of(bus, conversation, [turn])).get(turn)
    if envelope is None:
        return False
    answer = await so_far(bus, conversation, turn) if envelope.text else ""
    history = remembered(envelope.text, answer, turn, "stopped", asked=envelope) if envelope.text else []
    return await cancel_turn(bus, conversation, turn, instance=instance, history=history, answer=answer)


async def stop_turns_of(bus: Bus, conversation: str, user: str, *, instance: str = "front") -> int:
    """End the running and waiting turns of ``conversation`` that ``user`` asked; returns how many. The newest goes
    first, so that none of them begins meanwhile."""
    turns = reversed(await _unfinished(bus, conversation))
    own = [turn for turn in turns if await asker_of(bus, conversation, turn) == user]
    return sum([await cancel_by_user(bus, conversation, turn, instance=instance) for turn in own])


async def withdraw_message(
    bus: Bus, conversation: str, *, idempotency: str, version: int, instance: str = "front", text: str = STOPPED_TEXT
) -> bool:  # fmt: skip
    """Take the message that was admitted under ``idempotency`` out of its turn while that waits; ``version`` is that of
    the edit that withdraws it. A turn without other messages is cancelled. False when nothing was withdrawn.
    Idempotent."""
    shard = bus.shard(conversation)
    known = await bus.server.fetch("GET", shard.idempotency(conversation, idempotency))
    turn = (known or b"").decode().partition("|")[0]
    if not turn or await bus.server.fetch("LPOS", shard.mailbox(conversation), turn) is None:
        return False
    raw, joined = await bus.server.fetch("HMGET", shard.journal(conversation), f"{turn}:e", f"{turn}:x")
    if raw is None:
        return False
    if joined is not None:
        envelope = decode(raw)
        sender = {name: value for name, value in envelope.payload.items() if name == "sender"}
        blank = msgspec.structs.replace(envelope, payload={**sender, "text": ""})
        edited = await edit_message(bus, blank, idempotency=idempotency, version=version, instance=instance)
        if edited.outcome != "EDITED":
            return False
        await keep_question(bus, conversation, turn, idempotency, {})
        left = (await envelopes_of(bus, conversation, [turn])).get(turn)
        if left is None or left.text or any(listed(left.payload, name) for name in LISTS):
            return True
    reason = "the message was changed"
    return await cancel_turn(bus, conversation, turn, instance=instance, text=text, reason=reason)


async def stop_conversation(bus: Bus, conversation: str, *, instance: str = "front", forget: bool = False) -> int:
    """End the running turn and every waiting one in one step, with one reply each. ``forget`` also clears the history
    and starts a new session with the next message; before that, it removes the schedules and documents. Returns how
    many turns were ended."""
    if forget:
        await unschedule(bus, conversation, instance=instance)
        await forget_files(bus, conversation)
    shard, final = bus.shard(conversation), final_event("cancelled", {"text": STOPPED_TEXT})
    for _ in range(MOVED_TRIES):
        waiting = [*await places(bus, conversation)]
        found = await _find(bus, conversation, "", waiting)
        ended = await bus.server.run(
            STOP, found.turn, found.finish, results=[shard.result(conversation, turn) for turn in waiting],
            final=final, instance=instance, forget=int(forget), waiting=waiting,
        )  # fmt: skip
        if ended >= 0:
            await tell_ended(bus, conversation)
            return int(ended)
    raise RolecallError(f"{conversation} moved {MOVED_TRIES} times while it was being stopped")


async def erase_conversation(bus: Bus, conversation: str, *, instance: str) -> int:
    """Stop a conversation and remove its history, schedules, preferences, title, events, results, dead letters, the
    pictures and files that any of these name and, through the scribe, its transcripts. Returns how many turns were
    ended. The turn counter stays, so that no turn number is used twice. Not atomic, but idempotent: call it again after
    a failure to remove the rest."""
    blobs = await _blobs_of(bus, conversation)
    ended = await stop_conversation(bus, conversation, instance=instance, forget=True)
    shard = bus.shard(conversation)
    last = int(await bus.server.fetch("HGET", shard.conversation(conversation), "seq") or 0)
    turns = [str(turn) for turn in range(max(1, last - RESULTS + 1), last + 1)]
    parts = (shard.result, shard.question, shard.votes, shard.response)
    results = [part(conversation, turn) for turn in turns for part in parts]
    kept = (shard.history(conversation), shard.preferences(conversation), shard.events(conversation))
    await bus.server.fetch("DEL", *kept, *results)
    await bus.server.fetch("HDEL", shard.conversation(conversation), "title")
    for letter in await dead_letters(bus):
        if letter.conversation == conversation:
            with suppress(DecodeError):
                blobs |= _named_by(decode(letter.envelope.encode()))
            await drop(bus, letter.id)
    for blob in blobs:
        if await Blobs(bus).get(conversation, blob):  # its own: that it names another one's proves nothing
            await Blobs(bus).delete(conversation, blob)
    records = Records(instance)
    records.add(FORGET, "")
    await note(bus, shard, conversation, "", records)
    return ended


async def _blobs_of(bus: Bus, conversation: str) -> set[str]:
    """The pictures and files that its history and its unfinished turns name; deletes the files that it keeps."""
    shard, files = bus.shard(conversation), Files(bus, conversation, 0)
    for file in await files.list():
        await files.delete(file.id)
    found = set[str]()
    for entry in read_history(await bus.server.fetch("LRANGE", shard.history(conversation), 0, -1)):
        found.update(entry.images, (file.get("blob", "") for file in entry.files))
    unfinished = await envelopes_of(bus, conversation, await _unfinished(bus, conversation))
    return found.union(*map(_named_by, unfinished.values()))


async def _unfinished(bus: Bus, conversation: str) -> list[str]:
    """The running turn and those that wait, which are read first: one that begins meanwhile is not missed."""
    waiting = await places(bus, conversation)
    return [turn for turn in (await running_turn(bus, conversation), *waiting) if turn]


def _named_by(envelope: Envelope) -> set[str]:
    images, files = (listed(envelope.payload, name) for name in LISTS)
    return {
        *(one for one in images if isinstance(one, str)),
        *(str(one.get("blob", "")) for one in files if isinstance(one, dict)),
    }


class _Found(NamedTuple):
    turn: TurnBlock
    finish: FinishBlock


async def _find(bus: Bus, conversation: str, turn: str, waiting: Sequence[str] = ()) -> _Found:
    """The blocks for ending ``turn`` (the running one if empty) and ``waiting``, as of now."""
    shard = bus.shard(conversation)
    if is_call(turn):
        at = await bus.server.fetch("HGET", shard.journal(conversation), f"{turn}:a")
    else:
        current, at = await bus.server.fetch("HMGET", shard.conversation(conversation), "cur", "at")
        turn = turn or (current or b"").decode()
    outbox = await outbox_of(bus, shard, conversation, turn, *waiting)
    return _Found(
        turn_block(bus, shard, conversation, turn, EntryPlace.parse(at)),
        finish_block(bus, shard, conversation, turn, outbox),
    )
