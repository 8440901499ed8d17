"""Ending turns from outside: at once, wherever their one entry is; whoever holds it is fenced."""

from __future__ import annotations

from collections.abc import Sequence

from rolecall.bus.bus import Bus
from rolecall.bus.conversation import envelopes_of, remembered
from rolecall.bus.dead_letters import dead_letters, drop
from rolecall.bus.events import so_far
from rolecall.bus.turn import (
    FORGET,
    MOVED_TRIES,
    Records,
    final_event,
    finish_block,
    guard_block,
    note,
    outbox_of,
    tell_ended,
)
from rolecall.errors import RolecallError
from rolecall.redis.pipeline import Arg

RESULTS = 1000
"""Results of so many last turns are removed; older ones went by themselves, unless a thousand turns came since."""


async def cancel_turn(
    bus: Bus, conversation: str, turn: str, *, instance: str = "front", kind: str = "cancelled",
    text: str = "Stopped.", reason: str = "by the user", history: Sequence[bytes] = (),
) -> bool:  # fmt: skip
    """End one turn now; False when it had ended already (its answer stands). ``kind`` is cancelled or error."""
    records = Records(instance)
    records.add("CANCELLED" if kind == "cancelled" else "ERROR", reason)
    final = final_event(kind, {"text": text, "reason": reason})
    tail = [final, kind, len(history), *history, *records.arguments()]
    for _ in range(MOVED_TRIES):
        names, arguments = await _blocks(bus, conversation, turn)
        verdict = await bus.server.run("cancel", names, [*arguments, *tail])
        if verdict != b"MOVED":
            await tell_ended(bus, conversation)
            return bool(verdict == b"OK")
    raise RolecallError(f"turn {turn} of {conversation} moved on {MOVED_TRIES} times while it was to be ended")


async def cancel_by_user(
    bus: Bus, conversation: str, turn: str, *, instance: str = "front", text: str = "Stopped."
) -> bool:  # fmt: skip
    """Cancel a turn for its user: the message and the answer so far stay in the history, marked as stopped. False when
    the turn had ended already."""
    envelope = (await envelopes_of(bus, conversation, [turn])).get(turn)
    if envelope is None:
        return False
    answer = await so_far(bus, conversation, turn) if envelope.text else ""
    history = remembered(envelope.text, answer, turn, "stopped") if envelope.text else []
    return await cancel_turn(bus, conversation, turn, instance=instance, text=text, history=history)


async def stop_conversation(
    bus: Bus, conversation: str, *, instance: str = "front", forget: bool = False, text: str = "Stopped.",
    history: Sequence[bytes] = (),
) -> int:  # fmt: skip
    """End the running turn and every waiting one in one step, one reply each; with ``forget`` also the history, and
    the next message begins a new session. Returns how many were ended."""
    shard, final = bus.shard(conversation), final_event("cancelled", {"text": text})
    for _ in range(MOVED_TRIES):
        waiting = [t.decode() for t in await bus.server.call("LRANGE", shard.mailbox(conversation), 0, -1)]
        names, arguments = await _blocks(bus, conversation, "", waiting)
        names += [shard.result(conversation, turn) for turn in waiting]
        arguments += [final, instance, int(forget), len(waiting), *waiting]
        ended = await bus.server.run("stop", names, [*arguments, len(history), *history])
        if ended >= 0:
            await tell_ended(bus, conversation)
            return int(ended)
    raise RolecallError(f"{conversation} moved on {MOVED_TRIES} times while it was to be stopped")


async def _blocks(bus: Bus, conversation: str, turn: str, waiting: Sequence[str] = ()) -> tuple[list[Arg], list[Arg]]:
    """The blocks for ending ``turn`` (the running one when empty) and ``waiting``."""
    shard = bus.shard(conversation)
    current, at = await bus.server.call("HMGET", shard.conversation(conversation), "cur", "at")
    turn = turn or (current or b"").decode()
    stream, _, entry_id = (at or b"").decode().rpartition("|")
    outbox = await outbox_of(bus, shard, conversation, turn, *waiting)
    names, arguments = guard_block(shard, bus.process, stream or shard.deferred, entry_id or "z", conversation, turn)
    more = finish_block(shard, bus.settings, conversation, turn, outbox)
    return names + more[0], arguments + more[1]


async def erase_conversation(bus: Bus, conversation: str, *, instance: str) -> int:
    """End its turns, one reply each, and remove history, preferences, title, events, results, dead letters and, by
    the scribe, its transcripts. Returns how many turns were ended. What stays is the number of its turns, so that none
    is given twice. Not atomic: called again after a failure it does what is left."""
    ended = await stop_conversation(bus, conversation, instance=instance, forget=True)
    shard = bus.shard(conversation)
    last = int(await bus.server.fetch("HGET", shard.conversation(conversation), "seq") or 0)
    turns = [str(turn) for turn in range(max(1, last - RESULTS + 1), last + 1)]
    parts = (shard.result, shard.question, shard.votes)
    results = [part(conversation, turn) for turn in turns for part in parts]
    kept = (shard.history(conversation), shard.preferences(conversation), shard.events(conversation))
    await bus.server.fetch("DEL", *kept, *results)
    await bus.server.fetch("HDEL", shard.conversation(conversation), "title")
    for letter in await dead_letters(bus):
        if letter.conversation == conversation:
            await drop(bus, letter.id)
    records = Records(instance)
    records.add(FORGET, "")
    await note(bus, shard, conversation, "", records)
    return ended
