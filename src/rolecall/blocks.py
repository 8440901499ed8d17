"""The KEYS and ARGV that the turn scripts share; scripts/lib/guard.lua and lib/finish.lua say which is which."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import msgspec

from rolecall import keys
from rolecall.keys import ShardKeys
from rolecall.redis_client import Arg
from rolecall.settings import Settings

FIRST_ROLE = "manager"


def guard_block(
    shard: ShardKeys, process: str, stream: str, entry_id: str, conversation: str, turn: str
) -> tuple[list[Arg], list[Arg]]:
    """KEYS and ARGV of lib/guard.lua."""
    names: list[Arg] = [
        stream, shard.conversation(conversation), shard.journal(conversation), shard.events(conversation),
        shard.log, shard.preferences(conversation),
    ]  # fmt: skip
    return names, [entry_id, process, conversation, turn, shard.channel(conversation)]


def finish_block(
    shard: ShardKeys, settings: Settings, conversation: str, turn: str, outbox: str, role: str = FIRST_ROLE
) -> tuple[list[Arg], list[Arg]]:
    """KEYS and ARGV that lib/finish.lua adds; ``outbox`` names a front end, empty for none. What is released goes to
    ``role``."""
    names: list[Arg] = [
        shard.mailbox(conversation), shard.active, shard.deferred, shard.principals, shard.history(conversation),
        shard.statistics(today()), shard.outbox(outbox or "-"),
        *(shard.stream(role, band) for band in keys.BANDS), shard.result(conversation, turn),
    ]  # fmt: skip
    keep = milliseconds(settings.conversation_days * 86_400)
    return names, [keep, milliseconds(settings.result_seconds), max(settings.assistant_history_limit, 1)]


def final_event(kind: str, payload: dict[str, Any]) -> bytes:
    """The JSON of a turn's final event."""
    return msgspec.json.encode({**payload, "kind": kind})


def pairs(changes: dict[str, str] | None) -> list[Arg]:
    """A count, then names and values."""
    flat = [item for pair in (changes or {}).items() for item in pair]
    return [len(flat) // 2, *flat]


def whole(value: object) -> int:
    """``value`` if the counters of a script can take it, else 0: an agent may have put anything there."""
    return int(value) if isinstance(value, int) and 0 < value < 2**40 else 0


def milliseconds(seconds: float) -> int:
    """``seconds`` as whole milliseconds."""
    return round(seconds * 1000)


def today() -> str:
    """The day in UTC, as the statistics name it."""
    return time.strftime("%Y%m%d", time.gmtime())


def utc_offset_ms() -> int:
    """How far this machine's time zone is east of UTC now."""
    offset = datetime.now().astimezone().utcoffset()
    return round(offset.total_seconds() * 1000) if offset else 0
