"""What a worker process does besides handling envelopes: it registers itself, wakes deferred turns, cleans up after
dead processes, follows its model servers and reports metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rolecall.agent.role import Role
from rolecall.background import BackgroundTasks
from rolecall.bus import maintenance
from rolecall.bus.bus import Bus
from rolecall.bus.process.processes import InstanceState, ProcessState, live_processes, register
from rolecall.config import Application
from rolecall.errors import ConfigError
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import server_ms
from rolecall.serving.capacity import Follower, auto_counts
from rolecall.serving.directory import Directory
from rolecall.serving.external import Watch
from rolecall.stats import FLUSH_SECONDS
from rolecall.version import __version__
from rolecall.worker.instance import Instance

if TYPE_CHECKING:
    from rolecall.worker.runtime import Runtime

PROMOTE_SECONDS = 1.0
SHORTEST_PAUSE = 0.02
SWEEP_SECONDS = 60.0
FOLLOW_SECONDS = 1.0
WATCH_SECONDS = 30.0
logger = logging.getLogger(__name__)


class Duties:
    """The duties of one runtime. A failing duty is logged and tried again at its next turn."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._server = runtime.server
        self._background = BackgroundTasks()
        self._warned: frozenset[str] | None = None
        self._pause = PROMOTE_SECONDS
        self._sleeping: set[int] = set()

    async def run(self) -> None:
        """Do all duties until cancelled."""
        runtime, repeat = self._runtime, self._background.repeat
        heartbeat = runtime.application.settings.heartbeat_seconds
        async with asyncio.TaskGroup() as group:
            for duty in (
                repeat(self.register, heartbeat, "registry"),
                repeat(runtime.apply_scale, heartbeat, "scale", delay=heartbeat),
                self.keep_waking(),
                repeat(self.sweep, SWEEP_SECONDS, "sweep", delay=SWEEP_SECONDS),
                repeat(self.follow_model_servers, FOLLOW_SECONDS, "model servers"),
                repeat(self.watch_server, WATCH_SECONDS, "server watch"),
                repeat(self.flush_metrics, FLUSH_SECONDS, "metrics", delay=FLUSH_SECONDS),
                Watch(self._server, runtime.bus.process, runtime.application.servers, runtime.models.balances).run(),
            ):
                group.create_task(duty)

    async def register(self) -> None:
        """Tell the registry how this process and its instances are doing."""
        runtime = self._runtime
        state = ProcessState(
            process=runtime.bus.process,
            uptime=round(time.monotonic() - runtime.started, 1),
            instances=tuple(instance_state(instance) for instance in runtime.roster.everyone()),
            connections=self._server.connections,
            max_connections=runtime.application.settings.redis_max_connections,
            scribe=runtime.scribe,
            version=__version__,
            http=runtime.http,
            problem="; ".join(filter(None, (said() for said in runtime.problems))),
            roles=tuple(role.name for role in runtime.application.roles),
            fronts=_fronts(runtime.application),
        )
        await register(runtime.bus, state)

    async def keep_waking(self) -> None:
        """Call ``promote`` every second, and when something is due in between, until cancelled."""
        while True:
            self._pause = PROMOTE_SECONDS
            await self._background.attempt(self.promote(), "promote")
            await asyncio.sleep(self._pause)

    async def promote(self) -> None:
        """Wake the deferred turns and begin those of schedules that are due by the server's clock, which the worker
        reads with every heartbeat."""
        bus = self._runtime.bus
        sleeping = await maintenance.with_sleepers(bus, self._sleeping)
        self._sleeping = {shard.number for shard in sleeping}
        await self._in_each_shard(lambda shard: self._wake(bus, shard), sleeping)

    async def _wake(self, bus: Bus, shard: ShardKeys) -> None:
        now = bus.clocks[shard.number].now()
        woken = await maintenance.wake_due(bus, shard, now, soon=PROMOTE_SECONDS)
        if woken.next is not None:
            self._pause = max(SHORTEST_PAUSE, min(self._pause, (woken.next - now) / 1000))

    async def sweep(self) -> None:
        """Audit the running turns, and rescue what was addressed to processes that are gone."""
        self._sleeping.clear()  # those whose last deferred turn was woken are forgotten
        bus, now = self._runtime.bus, await server_ms(self._server)
        await self._in_each_shard(lambda shard: maintenance.audit(bus, shard, now))
        await maintenance.sweep(bus, self._runtime.application.role_names)

    async def follow_model_servers(self) -> None:
        """Have as many instances of the roles with ``instances="auto"`` as their model servers have slots."""
        runtime = self._runtime
        roles = [role for role in runtime.roster.roles.values() if role.instances == "auto"]
        if not roles:
            return
        alive = await live_processes(runtime.bus)
        followers = {role.name: self._follower(role, alive) for role in roles}
        each = runtime.application.settings.auto_instance_mb
        runtime.slot_counts = await auto_counts(Directory(self._server), followers, each=each)
        await runtime.apply_scale()

    async def watch_server(self) -> None:
        """Log what to look after before the server refuses or loses something: once when it begins, once when it ends.
        The log of the start has told what was there then."""
        warnings = frozenset((await self._server.condition()).warnings)
        before = warnings if self._warned is None else self._warned
        for warning in warnings - before:
            logger.warning("the server at %s: %s", self._server.address, warning)
        for warning in before - warnings:
            logger.info("the server at %s: no longer: %s", self._server.address, warning)
        self._warned = warnings

    async def flush_metrics(self) -> None:
        """Add what this process counted to the server's metrics."""
        await self._runtime.metrics.flush(self._server)

    async def _in_each_shard(
        self, work: Callable[[ShardKeys], Awaitable[object]], shards: Sequence[ShardKeys] | None = None
    ) -> None:
        """Do ``work`` in all shards, or in ``shards``, at once: one whose node is away holds up no other. Raises the
        first error."""
        found = await asyncio.gather(
            *map(work, self._runtime.bus.shards if shards is None else shards), return_exceptions=True
        )
        for error in found:
            if isinstance(error, BaseException):
                raise error

    def _follower(self, role: Role, alive: Iterable[ProcessState]) -> Follower:
        process = self._runtime.bus.process
        running = {state.process for state in alive if any(one.role == role.name for one in state.instances)}
        names = sorted(running | {process})
        return Follower(role.models, len(names), names.index(process), len(self._runtime.roster.instances[role.name]))


def _fronts(application: Application) -> tuple[str, ...]:
    """The names of its front ends; none if one of them cannot be loaded, which `rolecall up` says when it runs them."""
    try:
        return tuple(sorted(application.front_names))
    except ConfigError:
        return ()


def instance_state(instance: Instance) -> InstanceState:
    """The instance as the registry shows it."""
    delivery = instance.delivery
    running = time.monotonic() - instance.since if delivery else 0.0
    return InstanceState(
        id=instance.id,
        role=instance.role,
        busy=delivery is not None,
        conversation=delivery.conversation if delivery else "",
        turn=delivery.turn if delivery else "",
        seconds=round(running, 1),
        handled=instance.handled,
        errors=instance.errors,
        busy_seconds=round(instance.busy_seconds + running, 1),
    )
