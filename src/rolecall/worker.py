"""A process's instances at work: one reader per shard takes for all of them, one heartbeat keeps their leases."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable

from redis.exceptions import RedisError, ResponseError

from rolecall import keys
from rolecall.bus import Bus, Demand
from rolecall.delivery import Delivery, read_entry
from rolecall.errors import ServerUnavailable
from rolecall.instance import Instance
from rolecall.keys import ShardKeys
from rolecall.redis_client import BLOCK_MS, Reader
from rolecall.roster import Roster

logger = logging.getLogger(__name__)


class Worker:
    """Takes envelopes for the free instances of ``roster`` and lets them handle; ``reader`` makes one blocking
    connection per shard."""

    def __init__(self, bus: Bus, roster: Roster, reader: Callable[[], Reader]) -> None:
        self.bus = bus
        self.roster = roster
        self._intakes = [Intake(self, shard, reader()) for shard in bus.shards]
        self._handling: set[asyncio.Task[None]] = set()
        self.claims_from = time.monotonic() + 2 * bus.settings.heartbeat_seconds
        self.draining = False
        self.taking = asyncio.Lock()
        self.room = asyncio.Event()

    async def run(self) -> None:
        """Work until ``drain`` ends it."""
        async with asyncio.TaskGroup() as group:
            for intake in self._intakes:
                group.create_task(intake.run(), name=f"rolecall intake {intake.shard.number}")
            heart = group.create_task(self._beat(), name="rolecall heartbeat")
            await self._drained()
            heart.cancel()

    async def drain(self) -> None:
        """Take nothing new, let running handlers end within ``drain_seconds``, hand the rest back at once."""
        self.draining = True
        self.room.set()
        for intake in self._intakes:
            await intake.reader.wake()
        if self._handling:
            await asyncio.wait(self._handling, timeout=self.bus.settings.drain_seconds)
        left = [(i, i.delivery) for i in self.roster.everyone() if i.delivery is not None]
        for instance, _ in left:
            instance.let_go("DRAIN")
        if self._handling:
            await asyncio.wait(self._handling, timeout=5)
        for _, delivery in left:
            await self.bus.hand_back(delivery)

    def may_claim(self) -> bool:
        """False for a while after start and after the server or this process was away: leases that seem to have
        run out then may only not have been renewed yet."""
        return time.monotonic() >= self.claims_from

    async def dispatch(self, deliveries: Iterable[Delivery]) -> None:
        """Give each delivery to a free instance, or hand it back."""
        for delivery in deliveries:
            instance = None if self.draining else self.roster.pick(delivery.role)
            if instance is None:
                await self.bus.hand_back(delivery)
                continue
            instance.occupy(delivery)
            task = asyncio.create_task(instance.handle(), name=instance.id)
            self._handling.add(task)
            task.add_done_callback(self._freed)

    def freed_up(self) -> None:
        """Tell the readers that there is room which they may not know of."""
        self.room.set()
        for intake in self._intakes:
            intake.nudge()

    async def check_leases(self, conversation: str | None = None) -> None:
        """Renew the leases held, of one conversation or of all; handlers that lost theirs are cancelled."""
        for shard in self.bus.shards:
            held = [i for i in self.roster.everyone() if i.delivery and i.delivery.shard == shard.number]
            if conversation is not None:
                held = [i for i in held if i.delivery and i.delivery.conversation == conversation]
                if not held:
                    continue
            await self._renew(shard, held)

    async def _renew(self, shard: ShardKeys, held: list[Instance]) -> None:
        now, limit = time.monotonic(), self.bus.settings.handling_seconds
        holders = {i.delivery.id + i.delivery.stream: i for i in held if i.delivery and now - i.since < limit}
        deliveries = [i.delivery for i in holders.values() if i.delivery]
        for lost in await self.bus.renew(shard, deliveries):
            instance = holders[lost.id + lost.stream]
            if instance.delivery is lost:
                instance.let_go("FENCED")

    async def _beat(self) -> None:
        beat = self.bus.settings.heartbeat_seconds
        last = time.monotonic()
        while True:
            try:
                await self.check_leases()
            except (RedisError, OSError, ServerUnavailable) as error:
                logger.warning("leases could not be renewed: %s", error)
            now = time.monotonic()
            if now - last > 2 * beat:
                logger.warning("no heartbeat for %.1f s; nothing is taken over for a while", now - last)
                self.claims_from = now + 2 * beat
            last = now
            await asyncio.sleep(beat)

    async def _drained(self) -> None:
        while not self.draining:
            self.room.clear()
            if not self.draining:
                await self.room.wait()

    def _freed(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an instance failed", exc_info=task.exception())
        self.freed_up()


class Intake:
    """The reader of one shard: TAKE while there is something, else wait at the door."""

    def __init__(self, worker: Worker, shard: ShardKeys, reader: Reader) -> None:
        self.worker = worker
        self.shard = shard
        self.reader = reader
        self._bus = worker.bus
        self._room = asyncio.Event()
        self._listening: frozenset[str] = frozenset()
        self._waking: asyncio.Task[None] | None = None
        self._takes = 0
        self._next_claim = 0.0
        # Whether a TAKE may find something: after one that did, after the bell, and when room appeared.
        self._look = True
        self._claiming = False

    async def run(self) -> None:
        """Take and dispatch until the worker drains. A server that is away is waited for."""
        pause = 0.05
        while not self.worker.draining:
            try:
                await self._round()
                pause = 0.05
            except (RedisError, OSError, ServerUnavailable) as error:
                if isinstance(error, ResponseError) and str(error).startswith("NOGROUP"):
                    await self._recreate()
                    continue
                logger.warning("shard %d: the server is away: %s", self.shard.number, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 1.0)

    def nudge(self) -> None:
        """There may be room for a role that the read in progress does not listen for."""
        if not self._room.is_set():
            self._look = True
            self._room.set()
        if self._listening and any(d.role not in self._listening for d in self._demands()):
            self._listening, self._look = frozenset(), True
            self._waking = asyncio.create_task(self.reader.wake(), name="rolecall wake")

    async def _round(self) -> None:
        demands = self._demands()
        if not demands:
            self._room.clear()
            await self._room.wait()
        elif self._look | await self._claim_due():
            await self._take()
        else:
            await self._listen(demands)

    async def _take(self) -> None:
        async with self.worker.taking:
            claim, self._claiming = self._claiming, False
            taken = await self._bus.take(self.shard, self._demands(), self._first_band(), claim)
            self._look = bool(taken)
            await self.worker.dispatch(taken)

    async def _listen(self, demands: list[Demand]) -> None:
        roles = [demand.role for demand in demands]
        streams = [(role, stream) for role in roles for stream in self._bus.streams(self.shard, role)]
        due = max(self._next_claim, self.worker.claims_from) - time.monotonic()
        wait = max(10, min(BLOCK_MS, round(due * 1000)))
        self._listening = frozenset(roles)
        try:
            reply = await self.reader.read(
                "XREADGROUP", "GROUP", keys.GROUP, self._bus.process, "COUNT", 1, "BLOCK", wait,
                "STREAMS", *(stream for _, stream in streams), *([">"] * len(streams)),
            )  # fmt: skip
        finally:
            self._listening = frozenset()
        self._look |= bool(reply)
        role_of = {stream.encode(): role for role, stream in streams}
        for stream, entries in reply or ():
            rung = [read_entry(self.shard.number, stream.decode(), role_of[stream], entry) for entry in entries]
            await self.worker.dispatch(rung)

    async def _claim_due(self) -> bool:
        """Whether to look for expired leases now; not while nothing at all is in flight in the shard."""
        now = time.monotonic()
        if now >= self._next_claim and self.worker.may_claim():
            self._next_claim = now + self._bus.settings.scan_seconds * random.uniform(0.7, 0.95)
            self._claiming = await self._bus.busy(self.shard) > 0
        return self._claiming

    def _first_band(self) -> int:
        """High first; one take in four begins with normal, one in eight with low, so that none starves."""
        self._takes += 1
        return 2 if self._takes % 8 == 0 else 1 if self._takes % 4 == 0 else 0

    def _demands(self) -> list[Demand]:
        return self.worker.roster.demands()

    async def _recreate(self) -> None:
        logger.warning("shard %d: consumer groups were gone and are made anew", self.shard.number)
        await self._bus.ensure_groups(self.shard, self.worker.roster.instances)
