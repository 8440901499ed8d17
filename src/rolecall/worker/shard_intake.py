"""The intake of a worker in one shard: how envelopes get to its instances."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rolecall.background import Boundary, log_level
from rolecall.bus.bus import count_soon
from rolecall.bus.leases import Delivery, Demand, Order, ensure_groups, read_entry, streams_of, take_and_begin
from rolecall.bus.settle import Refill
from rolecall.errors import ServerError, ServerRefused
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import milliseconds
from rolecall.redis.server import BLOCK_MS, Reader
from rolecall.worker.instance import Instance

if TYPE_CHECKING:
    from rolecall.worker.worker import Worker

logger = logging.getLogger(__name__)
OTHER_SHARDS = 4
"""With several shards, an instance that settles takes its next envelope from the same shard, except for one time in so
many: then the other shards are looked at as well."""


class Intake:
    """The intake of one shard: polls while TAKE finds work, otherwise blocks in XREADGROUP, and says what an instance
    takes along when it settles."""

    def __init__(self, worker: Worker, shard: ShardKeys, reader: Reader) -> None:
        self.worker = worker
        self.shard = shard
        self.reader = reader
        self._bus = worker.bus
        self._boundary = Boundary("intake", count=partial(count_soon, self._bus.server, "failures"))
        self._room = asyncio.Event()
        self._listening: frozenset[str] = frozenset()
        self._waking: asyncio.Task[None] | None = None
        self._takes: Counter[str] = Counter()
        self._next_claim = 0.0
        # Roles for which TAKE may find work: after one that did, after XREADGROUP returned, and when an instance became
        # free without having looked here.
        self._poll = set(worker.roster.instances)
        # Roles for which the last look found as much as there was room for.
        self._backlog: set[str] = set()
        # Roles whose expired leases are still to be claimed, as soon as an instance is free.
        self._unclaimed: set[str] = set()

    async def run(self) -> None:
        """Take and dispatch until the worker drains; survives an unavailable server."""
        pause = 0.05
        while not self.worker.draining:
            try:
                await self._round()
                pause = 0.05
                continue
            except ServerError as error:
                if isinstance(error, ServerRefused) and error.code == "NOGROUP" and await self._recreated():
                    continue
                logger.log(log_level(error), "shard %d: %s", self.shard.number, error)
            except Exception as error:  # the boundary: one entry must not end the intake of all
                self._boundary.failed(f"shard {self.shard.number}", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 1.0)

    async def stop(self) -> None:
        """Wake ``run``, wherever it waits, so that it sees that the worker drains."""
        self._room.set()
        await self.reader.wake()

    def nudge(self, roles: Collection[str], *, poll: bool) -> None:
        """Serve ``roles``, of which instances became free: interrupt a read that does not listen for them. With
        ``poll``, look for work first."""
        unheard = [role for role in roles if role not in self._listening]
        if not unheard:
            return
        if poll:
            self._poll.update(unheard)
        self._interrupt()

    def take_over(self) -> None:
        """Claim for all roles, as soon as an instance is free."""
        self._unclaimed = set(self.worker.roster.instances)
        self._poll |= self._unclaimed - self._listening
        self._interrupt()

    def _interrupt(self) -> None:
        """Have ``run`` look again, wherever it waits."""
        self._room.set()
        if self._listening:
            self._listening = frozenset()
            self._waking = asyncio.create_task(self.reader.wake(), name="rolecall wake")

    def refill(self, instance: Instance, onward: str) -> Refill | None:
        """What ``instance`` takes along when it settles: an entry of the role ``onward``, to which its turn may go, for
        an idle instance of that role, and the next one for itself while there is a backlog."""
        roster, role, slots = self.worker.roster, instance.role, list[Instance]()
        if onward and (idle := roster.pick(onward)) is not None:
            slots.append(idle)
        start = self._first_band(role)
        elsewhere = len(self._bus.shards) > 1 and self._takes[role] % OTHER_SHARDS == 1
        if self._scan_due():
            self._unclaimed = set(roster.instances)
        again = not instance.retiring and not elsewhere and not roster.isolated()
        if again and (role in self._backlog or role in self._unclaimed):
            slots.append(instance)
        if not slots:
            return None
        demands = [roster.demand(slot.role, [slot]) for slot in slots]
        order = self._ordered(demands, slots, start)
        telling = {role} if instance in slots else set[str]()
        return Refill(order, lambda deliveries: self._delivered(order, slots, deliveries, telling))

    async def _round(self) -> None:
        demands = self.worker.roster.demands()
        if not demands:
            self._room.clear()
            await self._room.wait()
        elif await self._claim_due(demands) or any(demand.role in self._poll for demand in demands):
            async with self.worker.taking:
                # Handlers that were just started run first: what they send at once is taken in the same round trip.
                await asyncio.sleep(0)
                await self._take(self._poll | self._unclaimed)
        else:
            await self._listen(demands)

    async def _take(self, roles: Collection[str], begun: Sequence[tuple[Delivery, Instance]] = ()) -> None:
        """Take for the idle instances of ``roles``, and record that ``begun`` begin."""
        roster, demands, slots = self.worker.roster, list[Demand](), list[Instance]()
        for role in roster.instances:
            if role in roles and (idle := roster.idle(role)):
                demands.append(roster.demand(role, idle))
                slots += idle
        self._poll.difference_update(roles)
        if not slots and not begun:
            return
        order, deliveries = self._ordered(demands, slots, self._first_band("")), list[Delivery]()
        try:
            ids = [(delivery, instance.id) for delivery, instance in begun]
            deliveries, verdicts = await take_and_begin(self._bus, self.shard, order, ids)
        except ServerError:
            self._poll.update(roles)
            raise
        finally:
            self._delivered(order, slots, deliveries, {demand.role for demand in demands})
        self._poll.update(delivery.role for delivery in deliveries)
        for (delivery, instance), (verdict, beginning) in zip(begun, verdicts, strict=True):
            instance.begun(delivery, verdict, beginning)

    def _ordered(self, demands: Sequence[Demand], slots: Iterable[Instance], start: int) -> Order:
        """An order for ``demands``; ``slots`` are set aside until it is delivered."""
        roles = {demand.role for demand in demands}
        claim = not roles.isdisjoint(self._unclaimed) and roles.isdisjoint(self.worker.claiming)
        if claim:
            self.worker.claiming |= roles
        for instance in slots:
            instance.reserved = True
        too_early = time.monotonic() < self.worker.leases.claims_from(self.shard)
        return Order(demands, start, claim, released=too_early)

    def _delivered(
        self, order: Order, slots: Sequence[Instance], deliveries: Iterable[Delivery], telling: Collection[str]
    ) -> None:
        """Give ``deliveries`` to the instances they were taken for, and free the others. What came for the roles
        ``telling`` says whether they have a backlog."""
        found, claimed = Counter[str](), set[str]()
        for instance in slots:
            instance.reserved = False
        for delivery in deliveries:
            found[delivery.role] += 1
            if delivery.previous:
                claimed.add(delivery.role)
            self.worker.assign(delivery, slots[delivery.slot])
        for demand in order.demands:
            if found[demand.role] < demand.free:
                self._backlog.discard(demand.role)
            elif demand.role in telling:
                self._backlog.add(demand.role)
        if order.claim:  # a role of which something was claimed may have more than there were free instances
            roles = {demand.role for demand in order.demands}
            self.worker.claiming -= roles
            self._unclaimed -= roles - claimed
        self.worker.released.set()
        if idle := {instance.role for instance in slots if instance.free}:
            self.worker.freed_up(idle, poll=False)

    async def _listen(self, demands: list[Demand]) -> None:
        roles = [demand.role for demand in demands]
        streams = [(role, stream) for role in roles for stream in streams_of(self._bus, self.shard, role)]
        due = max(self._next_claim, self.worker.leases.claims_from(self.shard)) - time.monotonic()
        wait = self._bus.settings.scan_seconds if due == math.inf else due
        self._listening = frozenset(roles)
        try:
            reply = await self.reader.read(
                "XREADGROUP", "GROUP", keys.GROUP, self._bus.process, "COUNT", 1, "BLOCK",
                max(10, min(BLOCK_MS, milliseconds(wait))),
                "STREAMS", *(stream for _, stream in streams), *([">"] * len(streams)),
            )  # fmt: skip
        finally:
            self._listening = frozenset()
        if reply:
            role_of = {stream.encode(): role for role, stream in streams}
            await self._begin([
                read_entry(self.shard.number, stream.decode(), role_of[stream], entry)
                for stream, entries in reply
                for entry in entries
            ])  # fmt: skip

    async def _begin(self, deliveries: Sequence[Delivery]) -> None:
        """Give what a blocking read brought to idle instances, which begin at once, and look for more."""
        for delivery in deliveries:
            instance = await self._idle(delivery.role)
            assigned = self.worker.assign(delivery, instance) and delivery.usable
            # Sent before the handler runs: a turn begins before it is settled.
            await self._take({delivery.role}, [(delivery, instance)] if assigned and instance is not None else [])

    async def _idle(self, role: str) -> Instance | None:
        """An idle instance of ``role``, if there is one once the steps on their way have taken what they can."""
        roster = self.worker.roster
        while (instance := roster.pick(role)) is None and any(i.reserved for i in roster.instances.get(role, ())):
            self.worker.released.clear()
            await self.worker.released.wait()
        return instance

    async def _claim_due(self, demands: list[Demand]) -> bool:
        """Whether to claim expired leases now; never while no turn of the shard has an entry."""
        if self._scan_due():
            busy = await self.worker.awake.any(self.shard)
            self._unclaimed = set(self.worker.roster.instances) if busy else set()
            self._next_claim = max(self._next_claim, self.worker.awake.none_until(self.shard))
        return any(demand.role in self._unclaimed for demand in demands)

    def _scan_due(self) -> bool:
        """Whether it is time to look for expired leases; at most once in the scan interval."""
        now = time.monotonic()
        if now < max(self._next_claim, self.worker.leases.claims_from(self.shard)):
            return False
        self._next_claim = now + self._bus.settings.scan_seconds * random.uniform(0.7, 0.95)
        return True

    def _first_band(self, role: str) -> int:
        """High first; one TAKE in four starts with normal, one in eight with low, so that no band starves."""
        self._takes[role] += 1
        return 2 if self._takes[role] % 8 == 0 else 1 if self._takes[role] % 4 == 0 else 0

    async def _recreated(self) -> bool:
        logger.warning("shard %d: the consumer groups are missing; creating them again", self.shard.number)
        try:
            await ensure_groups(self._bus, self.shard, self.worker.roster.instances)
        except ServerError:
            return False
        return True
