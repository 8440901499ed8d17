"""The outbox of a front end: the events it still has to deliver, each conversation's by one process at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgspec

from rolecall.background import Attempt, BackgroundTasks, Boundary, is_cancelled, log_level, uninterrupted
from rolecall.bus.bus import Bus, confirmed, count_soon
from rolecall.bus.dead_letters import set_aside
from rolecall.bus.envelope import check_conversation
from rolecall.bus.leases import create_group
from rolecall.bus.turn import EntryPlace, Records, TurnBlock, final_event, turn_block
from rolecall.errors import ServerError, ServerUnavailable, cause_of
from rolecall.redis.keys import GROUP
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import Reader, RedisServer, field_map

logger = logging.getLogger(__name__)
PACKAGE = "rolecall.bus"
DELIVERED = script(PACKAGE, "scripts/conversation/delivered", TurnBlock, names="received records")
REPLY = script(PACKAGE, "scripts/conversation/reply", names="idempotency outbox repeat_ms name payload")
PAGE = 100
AHEAD = 1000
"""Entries in memory. Beyond that, or beyond CONVERSATION_AHEAD of one conversation, only their ids are kept."""
CONVERSATION_AHEAD = 20
KNOWN = 100_000
"""Maximum of entries read but not delivered; beyond it, reading pauses."""
BLOCK_MS = 1000
LOOK_SECONDS = 0.1
LEAVING_SECONDS = 6.0
TRIES = 5
LONGEST_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One delivery: the final event of ``turn``, or a notice, which has no turn. ``payload`` is the event with its
    ``kind`` and ``text``, or None while it is not in memory."""

    shard: int
    id: str
    conversation: str
    turn: str
    payload: Mapping[str, Any] | None = None
    schedule: str = ""
    """The schedule that began the turn."""

    @property
    def kind(self) -> str:
        """final, error, cancelled, notice, reply; asked: a question of an agent (bus/steps/answers.py); shown: a turn
        whose progress is to be shown."""
        return str((self.payload or {}).get("kind", ""))

    @property
    def at(self) -> int:
        """When the entry was written, in ms of the server's clock."""
        return int(self.id.partition("-")[0])


Deliver = Callable[[OutboxEntry], Awaitable[bool]]
"""Delivers an entry and acknowledges it with Outbox.delivered; False if this process may not deliver it any more."""


class Shares(Protocol):
    """Which parts of an outbox this process may deliver; see ``redis/partitions.py``."""

    parts: int

    def part(self, conversation: str) -> int:
        """The part, from 0, that ``conversation`` belongs to."""
        ...

    def tenure(self, part: int) -> int:
        """A number as long as this process may deliver ``part``, another one each time it may again; else 0."""
        ...


@dataclass(slots=True)
class _Queue:
    entries: deque[OutboxEntry]
    worker: asyncio.Task[None]


class Whole:
    """An outbox of one part, which this process may deliver while ``holding`` says so, such as while it leads."""

    parts = 1

    def __init__(self, holding: Callable[[], bool] = lambda: True) -> None:
        self._holding = holding

    def part(self, conversation: str) -> int:
        """See Shares."""
        return 0

    def tenure(self, part: int) -> int:
        """See Shares."""
        return int(self._holding())


class Outbox:
    """Delivers the entries of ``front``: in order within a conversation, and conversations concurrently, so that one
    that stalls delays no other. ``shares`` says which conversations this process delivers.

    An entry stays until it is acknowledged. Every process reads all entries and leaves those of others; who gets a part
    looks for its entries from the beginning.
    """

    def __init__(self, bus: Bus, server: RedisServer, front: str, *, shares: Shares | None = None) -> None:
        self.bus, self.front, self.shares = bus, front, shares or Whole()
        self._server = server
        self._streams = {shard.outbox(front): shard.number for shard in bus.shards}
        self._reader: Reader | None = None
        self._read_to: dict[str, str] = {}
        self._tenures: dict[int, int] = {}
        self._lost: dict[int, float] = {}
        self._queues: dict[str, _Queue] = {}
        self._workers = BackgroundTasks()
        self._loaded = 0
        self._known = 0
        self._caught_up = False
        self._room = asyncio.Event()
        self._boundary = Boundary(f"outbox:{front}", tries=TRIES, count=partial(count_soon, bus.server, "failures"))

    async def run(self, deliver: Deliver) -> None:
        """Pass the entries of what this process holds to ``deliver``, until cancelled. Waits while the server is
        unavailable."""
        self._deliver = deliver
        try:
            while True:
                if self._shares():
                    try:
                        await self._boundary.attempt("reading", self._serve())
                    except ServerError as error:
                        logger.log(log_level(error), "the outbox of %s: %s", self.front, error)
                    await self._workers.drain(LEAVING_SECONDS)  # what was read is read again
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self._workers.drain(0)
            await self._close()

    def holds(self, conversation: str) -> bool:
        """Whether this process may deliver to ``conversation`` now."""
        return self.shares.tenure(self.shares.part(conversation)) > 0

    async def delivered(self, entry: OutboxEntry, records: Records, received: int = 0) -> bool:
        """Acknowledge that ``entry`` was delivered or given up, and write ``records`` to the transcript; ``received``
        is when its turn was received in ms, 0 if unknown. False if it was acknowledged before."""
        shard = self.bus.shards[entry.shard]
        place = EntryPlace(shard.outbox(self.front), entry.id)
        block = turn_block(self.bus, shard, entry.conversation, entry.turn, place)
        return bool(await self.bus.server.run(DELIVERED, block, received=received, records=records.flat()))

    async def give_up(self, entry: OutboxEntry, reason: str, received: int = 0, *, tries: int = 1) -> None:
        """Make ``entry`` a dead letter of kind ``delivery``, with an ERROR in the transcript. If this process dies in
        between, there may be two letters."""
        await set_aside(
            self.bus, "delivery", dict(entry.payload or {}), reason, source=self.front, conversation=entry.conversation,
            turn=entry.turn, tries=tries,
        )  # fmt: skip
        records = Records(self.bus.instance(self.front))
        records.add("ERROR", self.bus.settings.redacted(f"not delivered: {reason}"))
        await self.delivered(entry, records, received)

    async def waiting(self) -> int:
        """How many entries are still to be delivered."""
        return sum([await self.bus.server.fetch("XLEN", stream) for stream in self._streams])

    def holds_back(self, conversation: str) -> bool:
        """Whether something of ``conversation`` may be still to be delivered: it is known, or what a predecessor left
        was not read yet."""
        active = self.shares.part(conversation) in self._tenures
        return not (self._caught_up and active) or conversation in self._queues

    # Reading

    async def _serve(self) -> None:
        """Read while this process holds anything, from the beginning."""
        await self._close()
        self._tenures, self._caught_up = {}, False
        self._read_to = dict.fromkeys(self._streams, "0-0")
        for stream in self._streams:
            await create_group(self.bus.server, stream)  # replay of dead letters checks that the stream exists
        while await self._share():
            waiting = ("BLOCK", BLOCK_MS) if self._caught_up else ()
            reply = await self._read(
                "XREAD", "COUNT", PAGE, *waiting, "STREAMS", *self._read_to, *self._read_to.values()
            )
            for name, page in reply or ():
                await self._take(name.decode(), page, self._tenures)
                self._read_to[name.decode()] = page[-1][0].decode()
            self._caught_up = self._caught_up or not reply

    def _shares(self) -> dict[int, int]:
        """The parts that this process holds now, with their tenures."""
        found = {part: self.shares.tenure(part) for part in range(self.shares.parts)}
        return {part: tenure for part, tenure in found.items() if tenure}

    async def _share(self) -> bool:
        """Leave the parts that were lost, and look for the entries of those that were gained; whether there are any. A
        part that comes back waits until what was begun before has ended."""
        held = self._shares()
        self._tenures = {part: tenure for part, tenure in self._tenures.items() if held.get(part) == tenure}
        leaving = self._end_deliveries()
        gained = {part: tenure for part, tenure in held.items() if part not in self._tenures and part not in leaving}
        self._tenures |= gained
        if gained and self._caught_up:
            self._caught_up = False
            for stream, last in self._read_to.items():
                await self._catch_up(stream, last, gained)
        return bool(held)

    def _end_deliveries(self) -> set[int]:
        """The parts that were lost and in which something is still being delivered; after LEAVING_SECONDS that is cut
        off."""
        found = {name: part for name in self._queues if (part := self.shares.part(name)) not in self._tenures}
        now = time.monotonic()
        self._lost = {part: self._lost.get(part, now) for part in found.values()}
        for conversation, part in found.items():
            if now - self._lost[part] > LEAVING_SECONDS:
                self._queues[conversation].worker.cancel()
        return set(self._lost)

    async def _catch_up(self, stream: str, last: str, gained: Mapping[int, int]) -> None:
        """Take the entries of ``gained`` parts that were read before, when others held them."""
        first = "-"
        while last != "0-0" and (page := await self.bus.server.fetch("XRANGE", stream, first, last, "COUNT", PAGE)):
            await self._take(stream, page, gained)
            first = f"({page[-1][0].decode()}"

    async def _read(self, *options: Any) -> Any:
        if self._reader is None:
            self._reader = self._server.reader()
        return await uninterrupted(self._reader.read(*options), "rolecall outbox read", self._reader.wake)

    async def _close(self) -> None:
        if self._reader is not None:
            await self._reader.aclose()
            self._reader = None

    async def _take(self, stream: str, page: Sequence[Any], tenures: Mapping[int, int]) -> None:
        """Queue what belongs to ``tenures``. What cannot be read belongs to part 0."""
        if page:
            await confirmed(self.bus, self.bus.shards[self._streams[stream]])
        for raw_id, flat in page:
            while self._known >= KNOWN:
                self._room.clear()
                await self._room.wait()
            entry = _entry(self._streams[stream], raw_id.decode(), flat)
            tenure = tenures.get(0 if entry is None else self.shares.part(entry.conversation))
            if tenure and entry is not None:
                self._queue(entry, tenure)
            elif tenure:
                await self._drop(stream, raw_id, flat)

    async def _drop(self, stream: str, entry_id: bytes, flat: Sequence[bytes] | None) -> None:
        """Remove an entry that was deleted or is unreadable, which becomes a dead letter."""
        if flat:
            fields = [part.decode("utf-8", "backslashreplace") for part in flat]
            await set_aside(self.bus, "delivery", fields, "the entry cannot be read", source=self.front)
        await self.bus.server.call("XACK", stream, GROUP, entry_id)
        await self.bus.server.call("XDEL", stream, entry_id)

    def _queue(self, entry: OutboxEntry, tenure: int) -> None:
        queue = self._queues.get(entry.conversation)
        if queue is None:
            entries: deque[OutboxEntry] = deque()
            working = self._workers.start(self._work(entry.conversation, entries, tenure), "rolecall outbox worker")
            queue = self._queues[entry.conversation] = _Queue(entries, working)
        self._known += 1
        if len(queue.entries) >= CONVERSATION_AHEAD or self._loaded >= AHEAD:
            queue.entries.append(OutboxEntry(entry.shard, entry.id, entry.conversation, entry.turn))
        else:
            self._loaded += 1
            queue.entries.append(entry)

    # Delivering

    async def _work(self, conversation: str, entries: deque[OutboxEntry], tenure: int) -> None:
        """Deliver the queue of one conversation during one ``tenure`` of its part. If the part is lost for a moment
        only, it is read again."""
        part = self.shares.part(conversation)

        def held() -> bool:
            return self._tenures.get(part) == tenure == self.shares.tenure(part)

        try:
            while entries and await self._insist(entries[0], held):
                self._forget(entries.popleft())
        finally:
            if entries and self._tenures.get(part) == tenure:
                del self._tenures[part]
            for entry in entries:
                self._forget(entry)
            del self._queues[conversation]

    def _forget(self, entry: OutboxEntry) -> None:
        self._known -= 1
        self._loaded -= entry.payload is not None
        self._room.set()

    async def _insist(self, entry: OutboxEntry, held: Callable[[], bool]) -> bool:
        """Retry until the entry is delivered; False once this process holds its part no more. An error in the front end
        is retried a few times only, so that it cannot block a conversation forever."""
        failures = 0
        while held():
            try:
                found = entry if entry.payload is not None else await self._load(entry)
                if found is None or await self._deliver(found):
                    return True
            except BaseException as raised:
                error = cause_of(raised)
                if isinstance(raised, asyncio.CancelledError) and is_cancelled():
                    raise
                if isinstance(error, ServerUnavailable | OSError):  # OSError: the front end's own network
                    level = log_level(error) if isinstance(error, ServerUnavailable) else logging.INFO
                    logger.log(level, "%s: the delivery waits: %s", entry.conversation, error)
                else:
                    failures += 1
                    item = f"turn {entry.turn} of {entry.conversation} ({entry.id})"
                    if self._boundary.failed(item, error) is Attempt.EXHAUSTED:
                        await self.give_up(entry, f"{type(error).__name__}: {error}", tries=failures)
                        return True
            await asyncio.sleep(min(0.2 * 2**failures, LONGEST_WAIT))
        return False

    async def _load(self, entry: OutboxEntry) -> OutboxEntry | None:
        stream = self.bus.shards[entry.shard].outbox(self.front)
        for raw_id, flat in await self.bus.server.fetch("XRANGE", stream, entry.id, entry.id):
            return _entry(entry.shard, raw_id.decode(), flat)
        return None


async def reply(
    bus: Bus, front: str, conversation: str, text: str, *, idempotency: str, kind: str = "reply", **details: object
) -> bool:  # fmt: skip
    """Have ``front`` deliver a ``text`` of its own, which belongs to no turn, transcript or history. False for a repeat
    of the ``idempotency`` key. ``details`` is what the front end needs besides, as JSON values. With another ``kind``
    it is something that the front end tells the process that delivers to this conversation."""
    shard = bus.shard(check_conversation(conversation))
    new = await bus.server.run(
        REPLY, idempotency=shard.idempotency(conversation, f"{kind}:{idempotency}"), outbox=shard.outbox(front),
        repeat_ms=milliseconds(bus.settings.idempotency_seconds), name=conversation,
        payload=final_event(kind, {"text": text, **details}),
    )  # fmt: skip
    return bool(new)


def _entry(shard: int, entry_id: str, flat: Sequence[bytes] | None) -> OutboxEntry | None:
    """The entry, or None if it was deleted or cannot be read."""
    fields = field_map(flat)
    try:
        payload = msgspec.json.decode(fields[b"e"], type=dict[str, Any])
        schedule = fields.get(b"s", b"").decode()
        return OutboxEntry(shard, entry_id, fields[b"c"].decode(), fields[b"t"].decode(), payload, schedule)
    except (KeyError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        if fields:
            logger.error("outbox entry %s cannot be read and is left out: %s", entry_id, error)
        return None
