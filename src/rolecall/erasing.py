"""Removing a conversation for good: what runs, what is remembered, what was answered, and its transcripts."""

from __future__ import annotations

from rolecall.bus import Bus, note
from rolecall.deadletters import dead_letters, drop
from rolecall.delivery import Records
from rolecall.ending import stop_conversation
from rolecall.transcript_files import FORGET

RESULTS = 1000
"""Results of so many last turns are removed; older ones went by themselves, unless a thousand turns came since."""


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
