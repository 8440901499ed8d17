"""A turn: one user message and everything until its reply.

The states of a turn, what scripts need to know of it, and the log records that are written with each of its steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import cut, encodable
from rolecall.errors import ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys, today
from rolecall.redis.scripts import Arg, milliseconds, script

FIRST_ROLE = "manager"
MOVED_TRIES = 50
"""How often a turn that moves on (a hop, a deferral, a release) is read again."""
MAX_RECORDS = 64
MAX_RECORD_BYTES = 32 * 1024
MAX_RECORD_CHARS = 8000
"""Characters of a message or an error in the log; the rest is left out."""
VERBATIM = frozenset({"SENT", "PROCESSING_COMPLETE"})
"""The words of records that hold no text of an error."""
CLEARED = "the history was cleared"
"""The text of the log record that says so."""
FORGET = "FORGET"
"""The word of a log record that asks for the removal of its conversation's files."""

SEPARATOR = "\x1f"
"""In a member of a shard's sets, between a conversation and what the member is of it; no conversation contains it."""

Verdict = Literal["OK", "FENCED", "STALE", "CONTROL", "READY"]
"""What a guarded script answers. FENCED: another process owns the entry. STALE: the turn is over or elsewhere.
CONTROL: a control turn cannot do this. READY: there is nothing to wait for. Only OK wrote anything."""


class TurnState(StrEnum):
    """Where a turn stands."""

    WAITING = "waiting"
    """In the mailbox, behind the running turn of its conversation."""
    HELD = "held"
    """First in line, but held back for more messages of its group."""
    RUNNING = "running"
    """Its entry is in a role's stream or leased to an instance."""
    DEFERRED = "deferred"
    """Asleep until a time, without a slot or a lease."""
    SUSPENDED = "suspended"
    """Asleep until steps are finished that its handler waits for: calls, answers of people, timers."""
    FINISHED = "finished"
    """Answered, given up or cancelled; its result is kept for a while."""
    GONE = "gone"
    """Finished, and its result has expired."""
    UNKNOWN = "unknown"
    """There never was such a turn."""

    @property
    def unfinished(self) -> bool:
        """Whether the turn is still to be answered."""
        return self not in (TurnState.FINISHED, TurnState.GONE, TurnState.UNKNOWN)


class EntryPlace(NamedTuple):
    """Where the one entry of a turn is: in ``stream`` under ``entry``, or asleep."""

    stream: str = ""
    entry: str = "z"

    @classmethod
    def parse(cls, at: bytes | None) -> EntryPlace:
        """The field ``at`` of a conversation: ``<stream>|<entry id>``, or ``z`` while the turn sleeps."""
        stream, _, entry = (at or b"").decode().rpartition("|")
        return cls(stream, entry) if stream else cls()


NOWHERE = EntryPlace()
"""No entry: no turn is concerned, or it sleeps."""


def is_call(turn: str) -> bool:
    """Whether ``turn`` is a call, the turn that a handler has made for another role: ``<turn>.<number>``."""
    return "." in turn


def root_of(turn: str) -> str:
    """The turn of the user's message that ``turn`` is or belongs to as a call."""
    return turn.partition(".")[0]


def number_of(turn: str) -> int:
    """The place of ``turn`` in the order of its conversation; 0 for a call, a control turn, or none."""
    return int(turn) if turn.isascii() and turn.isdigit() else 0


def is_control(turn: str) -> bool:
    """Whether ``turn`` is a control turn, which runs outside its conversation's order."""
    return turn.startswith("c")


def member_of(conversation: str, turn: str) -> str:
    """What ``turn`` is called in the sets of a shard: its conversation, and for a call or a control turn also the
    turn."""
    return f"{conversation}{SEPARATOR}{turn}" if is_call(turn) or is_control(turn) else conversation


def parted(member: str) -> tuple[str, str]:
    """The conversation of a member of a shard's set, and the turn if it is a call or a control turn, or the
    schedule."""
    conversation, _, name = member.partition(SEPARATOR)
    return conversation, name


def is_schedule(member: str) -> bool:
    """Whether a member of the sleeping is a schedule, rather than a turn or a call."""
    _, name = parted(member)
    return bool(name) and not is_call(name)


class TurnBlock(TypedDict):
    """What ``scripts/lib/entry.lua``, ``trace.lua`` and ``turn.lua`` declare."""

    stream: str
    entry: str
    process: str
    conversation: str
    journal: str
    events: str
    log: str
    preferences: str
    name: str
    turn: str
    channel: str


class FinishBlock(TypedDict):
    """What ``scripts/lib/finish.lua`` declares."""

    mailbox: str
    active: str
    deferred: str
    principals: str
    history: str
    statistics: str
    outbox: str
    first_high: str
    first_normal: str
    first_low: str
    result: str
    keep: int
    keep_result: int
    history_limit: int
    steps_stem: str
    steps_limit: int


def turn_block(bus: Bus, shard: ShardKeys, conversation: str, turn: str, place: EntryPlace = NOWHERE) -> TurnBlock:
    """The values of TurnBlock for ``turn``, whose entry is at ``place``."""
    return {
        "stream": place.stream or shard.deferred,
        "entry": place.entry,
        "process": bus.process,
        "conversation": shard.conversation(conversation),
        "journal": shard.journal(conversation),
        "events": shard.events(conversation),
        "log": shard.log,
        "preferences": shard.preferences(conversation),
        "name": conversation,
        "turn": turn,
        "channel": shard.channel(conversation),
    }


def finish_block(
    bus: Bus, shard: ShardKeys, conversation: str, turn: str, outbox: str, role: str = FIRST_ROLE
) -> FinishBlock:
    """The values of FinishBlock. ``outbox`` names the front end that delivers, empty for none; the turn that is
    released goes to ``role``."""
    settings = bus.settings
    high, normal, low = [shard.stream(role, band) for band in keys.BANDS]
    return {
        "mailbox": shard.mailbox(conversation),
        "active": shard.active,
        "deferred": shard.deferred,
        "principals": shard.principals,
        "history": shard.history(conversation),
        "statistics": shard.statistics(today()),
        "outbox": shard.outbox(outbox or "-"),
        "first_high": high,
        "first_normal": normal,
        "first_low": low,
        "result": shard.result(conversation, turn),
        "keep": milliseconds(settings.conversation_days * 86_400),
        "keep_result": milliseconds(settings.result_seconds),
        "history_limit": max(settings.assistant_history_limit, 1),
        "steps_stem": shard.steps(conversation, ""),
        "steps_limit": settings.steps_kb * 1024,
    }


NOTE = script("rolecall.bus", "scripts/conversation/note", TurnBlock, names="received records")
SNAPSHOT = script("rolecall.bus", "scripts/turn/snapshot", names="conversation mailbox events result journal turn")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a turn stands. ``place`` counts from 1 while it waits, else 0; ``final`` is its final event once finished
    and ``final_id`` that event's id; ``last`` is the newest event id of the conversation."""

    state: TurnState
    place: int
    final: dict[str, Any] | None
    last: str
    final_id: str = ""


async def snapshot(bus: Bus, conversation: str, turn: str) -> Snapshot:
    """Where ``turn`` stands now."""
    shard = bus.shard(conversation)
    state, place, final, last, final_id = await bus.server.run(
        SNAPSHOT,
        conversation=shard.conversation(conversation),
        mailbox=shard.mailbox(conversation),
        events=shard.events(conversation),
        result=shard.result(conversation, turn),
        journal=shard.journal(conversation),
        turn=turn,
    )
    ended = msgspec.json.decode(final) if final else None
    return Snapshot(TurnState(state.decode()), place, ended, last.decode(), final_id.decode())


async def note(bus: Bus, shard: ShardKeys, conversation: str, turn: str, records: Records, received: int = 0) -> None:
    """Write log records of a turn outside its settling, such as that a front end delivered it. ``received`` is when
    the turn was received in ms of the server's clock, 0 if unknown."""
    block = turn_block(bus, shard, conversation, turn)
    await bus.server.run(NOTE, block, received=received, records=records.flat())


async def tell_ended(bus: Bus, conversation: str) -> None:
    """Tell the holder of a turn that was ended from outside at once, rather than at its next heartbeat, unless the
    server is unavailable now."""
    with suppress(ServerUnavailable):
        await bus.server.call("PUBLISH", keys.CONTROL, msgspec.json.encode({"ended": conversation}))


async def turns_in_flight(bus: Bus, shard: ShardKeys) -> int:
    """The number of unfinished turns in ``shard`` that are not waiting in a mailbox."""
    return int(await bus.server.call("ZCARD", shard.active))


async def turns_awake(bus: Bus, shard: ShardKeys) -> int:
    """How many of ``turns_in_flight`` have an entry, so that a process may hold it: those that are not held, deferred
    or suspended."""
    if not (in_flight := await turns_in_flight(bus, shard)):
        return 0
    sleeping, schedules = await asyncio.gather(
        bus.server.call("ZCARD", shard.deferred), bus.server.call("ZCARD", shard.planned)
    )
    return in_flight - int(sleeping) + int(schedules)


class AwakeTurns:
    """Whether turns have entries, so that a dead process may have held one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._none_until: dict[int, float] = {}
        self._asking = asyncio.Lock()

    def none_until(self, shard: ShardKeys) -> float:
        """Until when, by the monotonic clock, no turn of ``shard`` can have an entry whose lease has expired."""
        return self._none_until.get(shard.number, 0.0)

    async def any(self, shard: ShardKeys) -> bool:
        """Whether one of ``shard`` has. That none has is known for a while: the lease of an entry that comes afterwards
        has not expired before. On a single server it is known of all shards where none of them has a turn."""
        together = self._bus.servers[0]
        if len(together) == 1:  # on a cluster, a node that is away holds nobody up
            return await self._any(shard, together)
        async with self._asking:
            return await self._any(shard, together)

    async def _any(self, shard: ShardKeys, together: Sequence[ShardKeys]) -> bool:
        asked, settings = time.monotonic(), self._bus.settings
        if asked < self.none_until(shard):
            return False
        if len(together) > 1 and not await self._bus.server.call("EXISTS", *(one.active for one in together)):
            quiet = list(together)
        elif await turns_awake(self._bus, shard) == 0:
            quiet = [shard]
        else:
            return True
        until = asked + settings.lease_seconds - settings.scan_seconds
        self._none_until |= {one.number: until for one in quiet}
        return False


async def outbox_of(bus: Bus, shard: ShardKeys, conversation: str, *turns: str) -> str:
    """The front end whose outbox the answers to ``turns`` go to, empty for none."""
    fields = [f"{turn}:o" for turn in turns]
    fronts = await bus.server.fetch("HMGET", shard.journal(conversation), *fields)
    return next((front.decode() for front in fronts if front), "")


def final_event(kind: str, payload: dict[str, Any]) -> bytes:
    """The JSON of a turn's final event."""
    try:
        return msgspec.json.encode({**payload, "kind": kind})
    except UnicodeEncodeError:  # what failed may be named by half a surrogate pair
        return msgspec.json.encode({
            **{name: cut(value) if isinstance(value, str) else value for name, value in payload.items()}, "kind": kind
        })  # fmt: skip


def flat_pairs(changes: dict[str, str] | None) -> list[Arg]:
    """Names and values in turn, as scripts take a mapping."""
    return [item for pair in (changes or {}).items() for item in pair]


def verdict_of(reply: bytes) -> Verdict:
    """A guarded script's reply as text."""
    return reply.decode()  # type: ignore[return-value]  # the scripts answer only these words


@dataclass(slots=True)
class Records:
    """The log records of one handling, sent with the step that settles it. Bounded: what exceeds MAX_RECORDS or
    MAX_RECORD_BYTES is left out and counted. ``redacted`` takes secrets out of what errors and agents say."""

    instance: str
    redacted: Callable[[str], str] = str
    entries: list[tuple[float, str, str]] = field(default_factory=list)
    size: int = 0
    left_out: int = 0

    def add(self, word: str, text: str) -> None:
        """Record ``word`` with ``text`` as of now."""
        text = text if word in VERBATIM else self.redacted(text)
        text = text if len(text) <= MAX_RECORD_CHARS else f"{text[:MAX_RECORD_CHARS]}… [{len(text)} characters]"
        if len(self.entries) >= MAX_RECORDS or self.size + len(text) * 4 > MAX_RECORD_BYTES * 4:
            self.left_out += 1
            return
        self.size += len(text) * 4
        self.entries.append((time.monotonic(), word, text))

    def copy(self) -> Records:
        """The same records, to send with a step that may not be taken."""
        return replace(self, entries=list(self.entries))

    def flat(self) -> list[Arg]:
        """The records as scripts take them, n × (ms ago, instance, word, text); empties this."""
        if self.left_out:
            self.entries.append((time.monotonic(), "NOTE", f"{self.left_out} records left out"))
        now, result = time.monotonic(), list[Arg]()
        for at, word, text in self.entries:
            result += (max(0, milliseconds(now - at)), self.instance, word, encodable(text))
        self.entries, self.size, self.left_out = [], 0, 0
        return result


def quoted(text: str) -> str:
    """``text`` in double quotes, as log records show the words of people and models."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def usage_text(models: str, tokens_in: int, tokens_out: int, cost: float) -> str:
    """What models took, as log records and timelines show it: ``m@x, 31 tokens in, 48 out, cost 0.002000``; what is not
    known is left out."""
    tokens = f"{tokens_in} tokens in, {tokens_out} out" if tokens_in or tokens_out else ""
    return ", ".join(filter(None, (models, tokens, f"cost {cost:.6f}" if cost else "")))
