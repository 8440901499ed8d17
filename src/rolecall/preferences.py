"""Preferences of a conversation, changed from outside its turns: by a button, say."""

from __future__ import annotations

from rolecall.blocks import guard_block, milliseconds
from rolecall.bus import Bus
from rolecall.envelope import check_conversation


async def prefer(bus: Bus, conversation: str, name: str, value: str, *, instance: str = "front") -> bool:
    """Let ``conversation`` prefer ``value`` from its next turn on; an empty one takes the preference back. A note in
    the transcript. False when it was so already."""
    shard = bus.shard(check_conversation(conversation))
    names, arguments = guard_block(shard, bus.process, shard.deferred, "z", conversation, "")
    arguments += [milliseconds(bus.settings.conversation_days * 86_400), name, value, instance]
    return bool(await bus.server.run("prefer", names, arguments))
