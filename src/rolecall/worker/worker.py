"""Takes envelopes for the instances of a process: one reader per shard, one heartbeat for all leases."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from rolecall.background import cancel_and_wait, log_level
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, Demand, ensure_groups, hand_back, read_entry, renew, streams_of, take
from rolecall.bus.turn import turns_in_flight
from rolecall.errors import ServerError, ServerRefused
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import BLOCK_MS, Reader
from rolecall.worker.instance import Instance
from rolecall.worker.roster import Roster

logger = logging.getLogger(__name__)
END_SECONDS = 1.0
"""How long each step of stopping may take that is not a handler's work."""


class Worker:
    """Takes envelopes for the free instances of ``roster`` and runs their handlers; ``reader`` opens a blocking
    connection, one per shard."""

    def __init__(self, bus: Bus, roster: Roster, reader: Callable[[], Reader]) -> None:
        self.bus = bus
        self.roster = roster
        self._intakes = [Intake(self, shard, reader()) for shard in bus.shards]
        self._handling: set[asyncio.Task[None]] = set()
        self._late = 2 * bus.settings.heartbeat_seconds
        self._renewed = time.monotonic()
        self.claims_from = self._renewed + self._late
        self.draining = False
        self.taking = asyncio.Lock()
        self._drained = asyncio.Event()

    async def run(self) -> None:
        """Take and handle envelopes until ``drain``."""
        async with asyncio.TaskGroup() as group:
            reading = [
                group.create_task(intake.run(), name=f"rolecall intake {intake.shard.number}")
                for intake in self._intakes
            ]
            heart = group.create_task(self._beat(), name="rolecall heartbeat")
            await self._drained.wait()  # until then running handlers keep their leases
            # An intake that waits for a server that is away would wait for its whole patience.
            await asyncio.wait(reading, timeout=END_SECONDS)
            await cancel_and_wait(heart, *reading)

    async def drain(self) -> None:
        """Take nothing new, give running handlers ``drain_seconds`` to finish, then hand the rest back. Ends at most
        3 × END_SECONDS later than that, also while the server is away."""
        self.draining = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await asyncio.gather(*(intake.stop() for intake in self._intakes))
            await self._empty()
        finally:
            self._drained.set()

    async def _empty(self) -> None:
        if self._handling:
            await asyncio.wait(self._handling, timeout=self.bus.settings.drain_seconds)
        left = [(i, i.delivery) for i in self.roster.everyone() if i.delivery is not None]
        for instance, _ in left:
            instance.cancel("DRAIN")
        if self._handling:
            await asyncio.wait(self._handling, timeout=END_SECONDS)
        try:
            async with asyncio.timeout(END_SECONDS):
                await asyncio.gather(*(self._hand_back(delivery) for _, delivery in left))
        except TimeoutError:
            logger.warning("%d turns wait until their leases expire: the server is away", len(left))

    def may_claim(self) -> bool:
        """Whether expired leases may be taken over. False for a while after the start and after the server or this
        process was unavailable: a lease that looks expired then may only not have been renewed yet."""
        now = time.monotonic()
        return now >= self.claims_from and now - self._renewed <= self._late

    async def dispatch(self, deliveries: Iterable[Delivery]) -> None:
        """Start each delivery on a free instance, or hand it back."""
        for delivery in deliveries:
            if delivery.previous == self.bus.process and self._holds(delivery):
                continue  # this process stalled past its lease and just took its own entry, which renewed it
            instance = None if self.draining else self.roster.pick(delivery.role)
            if instance is None:
                await self._hand_back(delivery)
                continue
            instance.occupy(delivery)
            task = asyncio.create_task(instance.handle(), name=instance.id)
            self._handling.add(task)
            task.add_done_callback(self._freed)

    def freed_up(self) -> None:
        """Tell the readers that instances became free."""
        for intake in self._intakes:
            intake.nudge()

    async def check_leases(self, conversation: str | None = None) -> None:
        """Renew the held leases, of one conversation or of all, and cancel handlers that lost theirs."""
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
        for lost in await renew(self.bus, shard, deliveries):
            instance = holders[lost.id + lost.stream]
            if instance.delivery is lost:
                instance.cancel("FENCED")

    async def _beat(self) -> None:
        while True:
            try:
                await self.check_leases()
                self._note_renewal()
            except ServerError as error:
                logger.log(log_level(error), "leases could not be renewed: %s", error)
            await asyncio.sleep(self.bus.settings.heartbeat_seconds)

    def _note_renewal(self) -> None:
        now, before = time.monotonic(), self._renewed
        self._renewed = now
        if now - before > self._late:
            logger.warning("no heartbeat for %.1f s; taking nothing over for a while", now - before)
            self.claims_from = now + self._late

    def _holds(self, delivery: Delivery) -> bool:
        limit = time.monotonic() - self.bus.settings.handling_seconds
        held = [(i.delivery.stream, i.delivery.id) for i in self.roster.everyone() if i.delivery and i.since > limit]
        return (delivery.stream, delivery.id) in held

    async def _hand_back(self, delivery: Delivery) -> None:
        try:
            await hand_back(self.bus, delivery)
        except ServerError as error:
            logger.warning("an entry of %s waits until its lease expires: %s", delivery.conversation, error)

    def _freed(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an instance failed", exc_info=task.exception())
        self.freed_up()


class Intake:
    """The reader of one shard: polls while TAKE finds work, otherwise blocks in XREADGROUP."""

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
        # Whether TAKE may find work: after one that did, after XREADGROUP returned, and when an instance became free.
        self._poll = True
        # Roles whose expired leases are still to be claimed, as soon as an instance is free.
        self._unclaimed: set[str] = set()

    async def run(self) -> None:
        """Take and dispatch until the worker drains; survives an unavailable server."""
        pause = 0.05
        while not self.worker.draining:
            try:
                await self._round()
                pause = 0.05
            except ServerError as error:
                if isinstance(error, ServerRefused) and error.code == "NOGROUP" and await self._recreated():
                    continue
                logger.log(log_level(error), "shard %d: %s", self.shard.number, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 1.0)

    async def stop(self) -> None:
        """Wake ``run``, wherever it waits, so that it sees that the worker drains."""
        self._room.set()
        await self.reader.wake()

    def nudge(self) -> None:
        """Interrupt a read that does not listen for a role which has a free instance now."""
        if not self._room.is_set():
            self._poll = True
            self._room.set()
        if self._listening and any(d.role not in self._listening for d in self._demands()):
            self._listening, self._poll = frozenset(), True
            self._waking = asyncio.create_task(self.reader.wake(), name="rolecall wake")

    async def _round(self) -> None:
        demands = self._demands()
        if not demands:
            self._room.clear()
            await self._room.wait()
        elif await self._claim_due(demands) or self._poll:
            await self._take()
        else:
            await self._listen(demands)

    async def _take(self) -> None:
        async with self.worker.taking:
            # Handlers that were just started run first: what they send at once is then taken in the same round trip.
            await asyncio.sleep(0)
            demands = self._demands()
            claim = self._has_unclaimed(demands)
            taken = await take(self._bus, self.shard, demands, self._first_band(), claim)
            self._poll = bool(taken)
            if claim:  # a role of which something was claimed may have more than there were free instances
                found = {delivery.role for delivery in taken if delivery.previous}
                self._unclaimed -= {demand.role for demand in demands} - found
            await self.worker.dispatch(taken)

    async def _listen(self, demands: list[Demand]) -> None:
        roles = [demand.role for demand in demands]
        streams = [(role, stream) for role in roles for stream in streams_of(self._bus, self.shard, role)]
        due = max(self._next_claim, self.worker.claims_from) - time.monotonic()
        wait = max(10 if self.worker.may_claim() else 100, min(BLOCK_MS, round(due * 1000)))
        self._listening = frozenset(roles)
        try:
            reply = await self.reader.read(
                "XREADGROUP", "GROUP", keys.GROUP, self._bus.process, "COUNT", 1, "BLOCK", wait,
                "STREAMS", *(stream for _, stream in streams), *([">"] * len(streams)),
            )  # fmt: skip
        finally:
            self._listening = frozenset()
        self._poll |= bool(reply)
        role_of = {stream.encode(): role for role, stream in streams}
        for stream, entries in reply or ():
            taken = [read_entry(self.shard.number, stream.decode(), role_of[stream], entry) for entry in entries]
            await self.worker.dispatch(taken)

    async def _claim_due(self, demands: list[Demand]) -> bool:
        """Whether to claim expired leases now; never while no turn is in flight in the shard."""
        now = time.monotonic()
        if now >= self._next_claim and self.worker.may_claim():
            self._next_claim = now + self._bus.settings.scan_seconds * random.uniform(0.7, 0.95)
            busy = await turns_in_flight(self._bus, self.shard)
            self._unclaimed = set(self.worker.roster.instances) if busy else set()
        return self._has_unclaimed(demands)

    def _has_unclaimed(self, demands: list[Demand]) -> bool:
        return any(demand.role in self._unclaimed for demand in demands)

    def _first_band(self) -> int:
        """High first; one TAKE in four starts with normal, one in eight with low, so that no band starves."""
        self._takes += 1
        return 2 if self._takes % 8 == 0 else 1 if self._takes % 4 == 0 else 0

    def _demands(self) -> list[Demand]:
        return self.worker.roster.demands()

    async def _recreated(self) -> bool:
        logger.warning("shard %d: the consumer groups are missing; creating them again", self.shard.number)
        try:
            await ensure_groups(self._bus, self.shard, self.worker.roster.instances)
        except ServerError:
            return False
        return True
