"""Takes envelopes for the instances of a process, and keeps them at work: one intake per shard, one heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rolecall.background import Boundary, cancel_and_wait, log_level
from rolecall.bus.bus import Bus, count_soon
from rolecall.bus.leases import Delivery, hand_back
from rolecall.bus.settle import Refill
from rolecall.bus.turn import AwakeTurns
from rolecall.errors import ServerError
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import Reader
from rolecall.worker.held_leases import HeldLeases
from rolecall.worker.instance import Instance
from rolecall.worker.roster import Roster
from rolecall.worker.shard_intake import Intake

logger = logging.getLogger(__name__)
END_SECONDS = 1.0
"""How long each step of stopping may take that is not a handler's work."""


class Worker:
    """Takes envelopes for the free instances of ``roster`` and runs their handlers; ``reader`` opens a blocking
    connection, one per shard.

    While there is a backlog, an instance gets its next envelope with the reply to its settling step; the intakes serve
    the instances that are idle.
    """

    def __init__(self, bus: Bus, roster: Roster, reader: Callable[[], Reader]) -> None:
        self.bus = bus
        self.roster = roster
        self.leases = HeldLeases(bus, roster)
        self._intake_of = [Intake(self, shard, reader()) for shard in bus.shards]
        self._intakes = list(self._intake_of)
        self._handling: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether nothing new is taken any more."""
        self.taking = asyncio.Lock()
        """Held while an intake takes, so that two of them do not count on the same idle instances."""
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

    def take_over(self) -> None:
        """Look for what dead processes held, at once."""
        for intake in self._intakes:
            intake.take_over()

    def assign(self, delivery: Delivery, instance: Instance | None) -> bool:
        """Have ``instance`` handle ``delivery``, now or as soon as it is done with its current one; without one, hand
        it back. Returns whether the instance got it."""
        if delivery.previous == self.bus.process and self.leases.has(delivery):
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

    async def _beat(self, shards: Sequence[ShardKeys]) -> None:
        first = shards[0]
        while True:
            try:
                await self._boundary.attempt("leases", self.leases.renew(shards))
                if first is self.bus.shards[0]:
                    await self._boundary.attempt("deaf handlers", self._replace_deaf())
            except ServerError as error:
                logger.log(log_level(error), "shard %d: leases could not be renewed: %s", first.number, error)
            self._end_isolation()
            await asyncio.sleep(self.bus.settings.heartbeat_seconds)

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
        self.roster.dismiss(instance)
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
