"""The leases that a process holds: which entries they are of, and how they are renewed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from rolecall.bus import maintenance
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, renew, renew_idle
from rolecall.redis.keys import ShardKeys
from rolecall.worker.instance import Instance
from rolecall.worker.roster import Roster

logger = logging.getLogger(__name__)
TOLD_SECONDS = 60.0
"""Pauses within so long of each other are told once: an outage of the server, or the move of many slots, has one in
each shard."""


class HeldLeases:
    """The leases of the entries that the instances of ``roster`` handle or are to handle next."""

    def __init__(self, bus: Bus, roster: Roster) -> None:
        self._bus = bus
        self._roster = roster
        self._late = 2 * bus.settings.heartbeat_seconds
        self._renewed = [time.monotonic() for _ in bus.shards]
        self._told = float("-inf")
        self._claims_from = [renewed + self._late for renewed in self._renewed]

    def has(self, delivery: Delivery) -> bool:
        """Whether this process holds the entry of ``delivery``."""
        return any((held.stream, held.id) == (delivery.stream, delivery.id) for _, held in self._held())

    def claims_from(self, shard: ShardKeys) -> float:
        """When expired leases of ``shard`` may be taken over, by the monotonic clock. That is a while after the start
        and after the server or this process was unavailable: a lease that looks expired then may only not have been
        renewed yet."""
        overdue = time.monotonic() - self._renewed[shard.number] > self._late
        return math.inf if overdue else self._claims_from[shard.number]

    async def check(self, conversation: str) -> None:
        """Renew the leases of one conversation, and cancel handlers that lost theirs. Raises ServerError."""
        held = [(instance, delivery) for instance, delivery in self._held() if delivery.conversation == conversation]
        if held:
            await self._renew(self._bus.shard(conversation), held)

    async def renew(self, shards: Sequence[ShardKeys]) -> None:
        """Renew the leases in ``shards`` of one server, and this process's sign of life there; cancel handlers that
        lost theirs. Raises ServerError."""
        held = self._held()
        for shard in shards:
            if of_shard := [(i, delivery) for i, delivery in held if delivery.shard == shard.number]:
                await self._renew(shard, of_shard)
                self._note_renewal(shard)
        busy = {delivery.shard for _, delivery in held}
        if idle := [shard for shard in shards if shard.number not in busy]:
            await renew_idle(self._bus, idle)
        for shard in idle:
            await maintenance.mend_step(self._bus, shard, self._roster.instances)
            self._note_renewal(shard)

    def _held(self) -> list[tuple[Instance, Delivery]]:
        """The entries that this process holds and may still hold, with the instances they are for."""
        limit, held = time.monotonic() - self._bus.settings.handling_seconds, []
        for instance in self._roster.everyone():
            if instance.delivery is not None and instance.since > limit:
                held.append((instance, instance.delivery))
            if instance.following is not None:
                held.append((instance, instance.following))
        return held

    async def _renew(self, shard: ShardKeys, held: Sequence[tuple[Instance, Delivery]]) -> None:
        holders = {id(delivery): instance for instance, delivery in held}
        for lost in await renew(self._bus, shard, [delivery for _, delivery in held]):
            instance = holders[id(lost)]
            if instance.delivery is lost:
                instance.cancel("FENCED")
        await maintenance.mend_step(self._bus, shard, self._roster.instances)

    def _note_renewal(self, shard: ShardKeys) -> None:
        now, before = time.monotonic(), self._renewed[shard.number]
        self._renewed[shard.number] = now
        if now - before > self._late:
            if now - self._told > TOLD_SECONDS:
                text = "no heartbeat for %.1f s in shard %d; taking nothing over for a while"
                logger.warning(text, now - before, shard.number)
            self._told = now
            self._claims_from[shard.number] = now + self._late
