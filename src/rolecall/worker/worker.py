"""Takes envelopes for the instances of a process: one reader per shard, one heartbeat for all leases."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rolecall.background import Boundary, cancel_and_wait, log_level
from rolecall.bus import maintenance
from rolecall.bus.bus import Bus, count_soon
from rolecall.bus.leases import (
    Delivery,
    Demand,
    Order,
    ensure_groups,
    hand_back,
    read_entry,
    renew,
    renew_idle,
    streams_of,
    take_and_begin,
)
from rolecall.bus.settle import Refill
from rolecall.bus.turn import AwakeTurns
from rolecall.errors import ServerError, ServerRefused
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import BLOCK_MS, Reader
from rolecall.worker.instance import Instance
from rolecall.worker.roster import Roster

logger = logging.getLogger(__name__)
END_SECONDS = 1.0
"""How long each step of stopping may take that is not a handler's work."""
OTHER_SHARDS = 4
"""With several shards, an instance that settles takes its next envelope from the same shard, except for one time in so
many: then the other shards are looked at as well."""


class Worker:
    """Takes envelopes for the free instances of ``roster`` and runs their handlers; ``reader`` opens a blocking
    connection, one per shard.

    While there is a backlog, an instance gets its next envelope with the reply to its settling step; the intakes serve
    the instances that are idle.
    """

    def __init__(self, bus: Bus, roster: Roster, reader: Callable[[], Reader]) -> None:
        self.bus = bus
        self.roster = roster
        self._intake_of = [Intake(self, shard, reader()) for shard in bus.shards]
        self._intakes = list(self._intake_of)
        self._handling: set[asyncio.Task[None]] = set()
        self._late = 2 * bus.settings.heartbeat_seconds
        self._renewed = [time.monotonic() for _ in bus.shards]
        self._claims_from = [renewed + self._late for renewed in self._renewed]
        self.draining = False
        self.taking = asyncio.Lock()
        self.awake = AwakeTurns(bus)
        self._boundary = Boundary("heartbeat", count=partial(count_soon, bus.server, "failures"))
        self.claiming: set[str] = set()
        """The roles for which a step is on its way that takes expired leases over: one at a time, so that no role gets
        two entries on their last delivery."""
        self.released = asyncio.Event()
        """Set whenever a step has taken what it can for the instances that were set aside for it."""
        self._drained = asyncio.Event()
        self._isolated = False
        self._deaf = set[asyncio.Task[None]]()
        roster.supplied_by(self._supply)

    async def run(self) -> None:
        """Take and handle envelopes until ``drain``."""
        async with asyncio.TaskGroup() as group:
            reading = [
                group.create_task(intake.run(), name=f"rolecall intake {intake.shard.number}")
                for intake in self._intakes
            ]
            # On a cluster each shard has its own: a node that is away must not cost those of the others their leases.
            hearts = [
                group.create_task(self._beat(shards), name=f"rolecall heartbeat {shards[0].number}")
                for shards in self.bus.servers
            ]
            await self._drained.wait()  # until then running handlers keep their leases
            # An intake that waits for a server that is away would wait for its whole patience.
            await asyncio.wait(reading, timeout=END_SECONDS)
            await cancel_and_wait(*hearts, *reading)

    async def drain(self) -> None:
        """Take nothing new, give running handlers ``drain_seconds`` to finish, then hand the rest back. Ends at most
        3 × END_SECONDS later than that, also while the server is away."""
        self.draining = True
        for instance in self.roster.everyone():
            instance.draining = True
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

    def claims_from(self, shard: ShardKeys) -> float:
        """When expired leases of ``shard`` may be taken over, by the monotonic clock. That is a while after the start
        and after the server or this process was unavailable: a lease that looks expired then may only not have been
        renewed yet."""
        overdue = time.monotonic() - self._renewed[shard.number] > self._late
        return math.inf if overdue else self._claims_from[shard.number]

    def take_over(self) -> None:
        """Look for what dead processes held, at once."""
        for intake in self._intakes:
            intake.take_over()

    def assign(self, delivery: Delivery, instance: Instance | None) -> bool:
        """Have ``instance`` handle ``delivery``, now or as soon as it is done with its current one; without one, hand
        it back. Returns whether the instance got it."""
        if delivery.previous == self.bus.process and self._holds(delivery):
            return False  # this process stalled past its lease and just took its own entry, which renewed it
        if instance is None or instance.retiring or self.draining:
            self._run(self._hand_back(delivery), "rolecall hand back").add_done_callback(self._handling.discard)
            return False
        if instance.delivery is not None:
            instance.following = delivery
        else:
            instance.occupy(delivery)
            self._isolated = self._isolated or self.roster.isolated()
            task = self._run(instance.handle(), instance.id)
            task.add_done_callback(lambda done: self._freed(done, instance))
        return True

    def freed_up(self, roles: Collection[str] | None = None, *, poll: bool = True) -> None:
        """Tell the intakes that instances of ``roles``, by default of any, became free. With ``poll``, they look for
        work at once."""
        for intake in self._intakes:
            intake.nudge(self.roster.instances if roles is None else roles, poll=poll)
        self._intakes.append(self._intakes.pop(0))  # another one is first next time

    async def check_leases(self, conversation: str | None = None) -> None:
        """Renew the held leases, of one conversation or of all, and cancel handlers that lost theirs."""
        shards = self.bus.shards if conversation is None else [self.bus.shard(conversation)]
        for shard in shards:
            held = [(i, delivery) for i, delivery in self._held() if delivery.shard == shard.number]
            if conversation is not None:
                held = [(i, delivery) for i, delivery in held if delivery.conversation == conversation]
                if not held:
                    continue
            await self._renew(shard, held)

    def _held(self) -> list[tuple[Instance, Delivery]]:
        """The entries that this process holds and may still hold, with the instances they are for."""
        limit, held = time.monotonic() - self.bus.settings.handling_seconds, []
        for instance in self.roster.everyone():
            if instance.delivery is not None and instance.since > limit:
                held.append((instance, instance.delivery))
            if instance.following is not None:
                held.append((instance, instance.following))
        return held

    async def _renew(self, shard: ShardKeys, held: Sequence[tuple[Instance, Delivery]]) -> None:
        holders = {id(delivery): instance for instance, delivery in held}
        for lost in await renew(self.bus, shard, [delivery for _, delivery in held]):
            instance = holders[id(lost)]
            if instance.delivery is lost:
                instance.cancel("FENCED")
        await maintenance.mend_step(self.bus, shard, self.roster.instances)

    async def _beat(self, shards: Sequence[ShardKeys]) -> None:
        first = shards[0]
        while True:
            try:
                await self._boundary.attempt("leases", self._renew_all(shards))
                if first is self.bus.shards[0]:
                    await self._boundary.attempt("deaf handlers", self._replace_deaf())
            except ServerError as error:
                logger.log(log_level(error), "shard %d: leases could not be renewed: %s", first.number, error)
            self._end_isolation()
            await asyncio.sleep(self.bus.settings.heartbeat_seconds)

    async def _renew_all(self, shards: Sequence[ShardKeys]) -> None:
        held = self._held()
        for shard in shards:
            if of_shard := [(i, delivery) for i, delivery in held if delivery.shard == shard.number]:
                await self._renew(shard, of_shard)
                self._note_renewal(shard)
        busy = {delivery.shard for _, delivery in held}
        if idle := [shard for shard in shards if shard.number not in busy]:
            await renew_idle(self.bus, idle)
        for shard in idle:
            await maintenance.mend_step(self.bus, shard, self.roster.instances)
            self._note_renewal(shard)

    def _note_renewal(self, shard: ShardKeys) -> None:
        now, before = time.monotonic(), self._renewed[shard.number]
        self._renewed[shard.number] = now
        if now - before > self._late:
            away = now - before
            logger.warning("shard %d: no heartbeat for %.1f s; taking nothing over for a while", shard.number, away)
            self._claims_from[shard.number] = now + self._late

    def _holds(self, delivery: Delivery) -> bool:
        return any((held.stream, held.id) == (delivery.stream, delivery.id) for _, held in self._held())

    def _supply(self, instance: Instance, onward: str) -> Refill | None:
        """What ``instance`` takes along when it settles; see Instance.supplier."""
        if self.draining or instance.delivery is None:
            return None
        shard = instance.delivery.shard
        return self._intake_of[shard].refill(instance, onward)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._handling.add(task)
        return task

    async def _hand_back(self, delivery: Delivery) -> None:
        try:
            await hand_back(self.bus, delivery)
        except ServerError as error:
            logger.warning("an entry of %s waits until its lease expires: %s", delivery.conversation, error)

    def _freed(self, task: asyncio.Task[None], instance: Instance) -> None:
        self._handling.discard(task)
        self._deaf.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an instance failed", exc_info=task.exception())
        following, instance.following = instance.following, None
        if (following is None or not self.assign(following, instance)) and instance.free:
            self.freed_up((instance.role,))
        self._end_isolation()

    def _end_isolation(self) -> None:
        if self._isolated and not self.roster.isolated():
            self._isolated = False
            self.freed_up()

    async def _replace_deaf(self) -> None:
        """Give each handler that ignores its cancellation up: another instance takes its slot, and its turn ends."""
        for instance in self.roster.everyone():
            if self.draining or not instance.deaf():
                continue
            new, following = self.roster.replace(instance), instance.following
            instance.following = None
            tasks = {task for task in self._handling if task.get_name() == instance.id}
            self._handling -= tasks  # nothing waits for it
            self._deaf |= tasks
            logger.error("%s does not end after its cancellation; %s takes its slot", instance.id, new.id)
            count_soon(self.bus.server, "failures", "deaf handler")
            if following is None or not self.assign(following, new):
                self.freed_up((new.role,))
            await instance.abandon()


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
        self._room.set()
        if self._listening:
            self._listening = frozenset()
            self._waking = asyncio.create_task(self.reader.wake(), name="rolecall wake")

    def take_over(self) -> None:
        """Claim for all roles, as soon as an instance is free."""
        self._unclaimed = set(self.worker.roster.instances)
        self.nudge(self._unclaimed, poll=True)
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
        too_early = time.monotonic() < self.worker.claims_from(self.shard)
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
        due = max(self._next_claim, self.worker.claims_from(self.shard)) - time.monotonic()
        wait = self._bus.settings.scan_seconds if due == math.inf else due
        self._listening = frozenset(roles)
        try:
            reply = await self.reader.read(
                "XREADGROUP", "GROUP", keys.GROUP, self._bus.process, "COUNT", 1, "BLOCK",
                max(10, min(BLOCK_MS, round(wait * 1000))),
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
        if now < max(self._next_claim, self.worker.claims_from(self.shard)):
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
