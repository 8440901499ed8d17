"""The KEYS and ARGV that the turn scripts share; scripts/lib/guard.lua and lib/finish.lua say which is which."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from rolecall.bus.bus import Bus
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys, today
from rolecall.redis.pipeline import Arg
from rolecall.redis.scripts import milliseconds
from rolecall.settings import Settings

FIRST_ROLE = "manager"
Verdict = Literal["OK", "FENCED", "STALE", "CONTROL"]
MOVED_TRIES = 50
"""How often a turn that moves on (a hop, a deferral, a release) is looked for again."""
MAX_RECORDS = 64
MAX_RECORD_BYTES = 32 * 1024
MAX_RECORD_CHARS = 8000
FORGET = "FORGET"
"""The word of an entry that asks for the removal of its conversation's files."""


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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a turn stands; ``final`` is its final event once finished and ``final_id`` its id, ``last`` the newest
    event id of the conversation."""

    state: Literal["finished", "running", "waiting", "gone", "unknown"]
    place: int
    final: dict[str, Any] | None
    last: str
    final_id: str = ""


async def tell_ended(bus: Bus, conversation: str) -> None:
    """Let whoever holds what was ended from outside know now; without this it would at its next heartbeat."""
    await bus.server.call("PUBLISH", keys.CONTROL, msgspec.json.encode({"ended": conversation}))


async def turns_in_flight(bus: Bus, shard: ShardKeys) -> int:
    """Turns in flight in ``shard``, whatever holds them."""
    return int(await bus.server.call("ZCARD", shard.active))


async def note(bus: Bus, shard: ShardKeys, conversation: str, turn: str, records: Records, begun: int = 0) -> None:
    """Write log records of a turn outside its settling, say from a front end that delivered it; ``begun`` is
    the server's ms at which the turn was received, where known."""
    names, arguments = guard_block(shard, bus.process, shard.deferred, "", conversation, turn)
    await bus.server.run("note", names, [*arguments, begun, *records.arguments()])


async def snapshot(bus: Bus, conversation: str, turn: str) -> Snapshot:
    """Where ``turn`` stands now."""
    shard = bus.shard(conversation)
    names = (
        shard.conversation(conversation), shard.mailbox(conversation), shard.events(conversation),
        shard.result(conversation, turn), shard.journal(conversation),
    )  # fmt: skip
    state, place, final, last, final_id = await bus.server.run("snapshot", names, (turn,))
    ended = msgspec.json.decode(final) if final else None
    return Snapshot(state.decode(), place, ended, last.decode(), final_id.decode())


async def outbox_of(bus: Bus, shard: ShardKeys, conversation: str, *turns: str) -> str:
    """The one front end whose outbox the answers to ``turns`` go to, empty for none."""
    fields = [f"{turn}:o" for turn in turns]
    fronts = await bus.server.fetch("HMGET", shard.journal(conversation), *fields)
    return next((front.decode() for front in fronts if front), "")


def verdict_of(reply: bytes) -> Verdict:
    return reply.decode()  # type: ignore[return-value]  # the scripts answer just these words


@dataclass(slots=True)
class Records:
    """Log records of one handling, sent with its settling step. Bounded: what is over is cut, with a count."""

    instance: str
    entries: list[tuple[float, str, str]] = field(default_factory=list)
    size: int = 0
    left_out: int = 0

    def add(self, word: str, text: str) -> None:
        """Record ``word`` with ``text`` as of now."""
        text = text if len(text) <= MAX_RECORD_CHARS else f"{text[:MAX_RECORD_CHARS]}… [{len(text)} characters]"
        if len(self.entries) >= MAX_RECORDS or self.size + len(text) * 4 > MAX_RECORD_BYTES * 4:
            self.left_out += 1
            return
        self.size += len(text) * 4
        self.entries.append((time.monotonic(), word, text))

    def arguments(self) -> list[str | int]:
        """As the scripts take them: n, then n × (ms ago, instance, word, text). Empties this."""
        if self.left_out:
            self.entries.append((time.monotonic(), "NOTE", f"{self.left_out} records left out"))
        now, arguments = time.monotonic(), [len(self.entries)]
        result: list[str | int] = list(arguments)
        for at, word, text in self.entries:
            result += (max(0, round((now - at) * 1000)), self.instance, word, _encodable(text))
        self.entries, self.size, self.left_out = [], 0, 0
        return result


def quoted(text: str) -> str:
    """``text`` in double quotes, as log records show words of people and models."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
