"""Feedback: what users think of an answer."""

from __future__ import annotations

from typing import Literal

from rolecall.blocks import guard_block, milliseconds, today
from rolecall.bus import Bus

Vote = Literal["up", "down", ""]


async def give_feedback(
    bus: Bus, conversation: str, turn: str, user: str, vote: Vote, *, instance: str = "front", days: float = 7
) -> bool:
    """Note ``user``'s ``vote`` on the answer to ``turn``; an empty one takes it back. A note in the transcript and the
    counters ``up`` and ``down`` of the day. One vote per user; False when it was theirs already.

    Votes are known for ``days``; a change of mind moves the count on the day the vote was given.
    """
    shard, day = bus.shard(conversation), today()
    names, arguments = guard_block(shard, bus.process, shard.deferred, "z", conversation, turn)
    names += [shard.votes(conversation, turn), shard.statistics(day)]
    arguments += [user, vote, day, milliseconds(days * 86_400), instance]
    return bool(await bus.server.run("feedback", names, arguments))
