"""A deployment at work in this process: instances as counted, scaled, reloaded, drained; upkeep and registry beside."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rolecall import stats
from rolecall.agent.mcp import Place, ToolServers
from rolecall.background import BackgroundTasks
from rolecall.bus import maintenance
from rolecall.bus.bus import Bus
from rolecall.bus.events import Wakeups
from rolecall.bus.leases import ensure_groups
from rolecall.config import Application, Role
from rolecall.errors import ConfigError, ServerError
from rolecall.models.fallback import Fallback
from rolecall.models.gate import Gate, Guarded, Wake
from rolecall.models.model import Model
from rolecall.models.providers.local import commanded
from rolecall.models.providers.remote import ServedModel
from rolecall.models.registry import open_model
from rolecall.redis import keys
from rolecall.redis.server import RedisServer, Server, server_ms, text_map
from rolecall.serving.balance import Balance, Watch
from rolecall.serving.capacity import Follower, auto_counts
from rolecall.serving.directory import Directory
from rolecall.serving.launcher import Serving
from rolecall.settings import Terms
from rolecall.stats import TELL_SECONDS, InstanceState, Measures, ProcessState
from rolecall.version import __version__
from rolecall.worker.instance import Instance
from rolecall.worker.roster import Roster
from rolecall.worker.worker import Worker

logger = logging.getLogger(__name__)
PROMOTE_SECONDS = 1.0
UNGUARDED = "@test"
"""Models that cannot be away; with terms they are guarded like any."""
SWEEP_SECONDS = 60.0
FOLLOW_SECONDS = 1.0


def process_name() -> str:
    """``<host>:<pid>~<six hex digits>``: unique per start, so that a predecessor with the same pid is fenced."""
    return f"{socket.gethostname()}:{os.getpid()}~{secrets.token_hex(3)}"


class Models:
    """The models of a deployment, each opened once, behind its gate; ``problems`` says why some could not be opened."""

    def __init__(self, application: Application, server: RedisServer, process: str, wake: Wake) -> None:
        logs, limit = application.state_dir / "models", application.settings.local_ram
        self.serving = Serving(server, process, logs, limit=limit)
        self.by_name: dict[str, Model] = {}
        self.problems: dict[str, str] = {}
        self.balances: dict[str, Balance] = {}
        self._gates: dict[str, Gate] = {}
        self.hearing = self._gate(application.settings.voice_model or "", application, server, wake)
        for name in dict.fromkeys(name for role in application.roles for name in role.models):
            try:
                self.by_name[name] = self._opened(name, application, server, wake)
            except ConfigError as error:
                self.problems[name] = str(error)

    def of(self, role: Role) -> Model | None:
        """The model of ``role``: what could be opened of its models, in fallback order. Raises ConfigError when it
        names some and none could be."""
        usable = [self.by_name[name] for name in role.models if name in self.by_name]
        if role.models and not usable:
            raise ConfigError(f"role {role.name} has no usable model: {self.problems[role.models[0]]}")
        if not usable:
            return None
        return usable[0] if len(usable) == 1 else Fallback(usable)

    async def waits(self, model: str, conversation: str) -> None:
        """A turn of ``conversation`` sleeps now until ``model`` is back."""
        if model in self._gates:
            await self._gates[model].waits(conversation)

    async def aclose(self) -> None:
        """Close them all, and need no model server any more."""
        for model in self.by_name.values():
            await model.aclose()
        if self.hearing is not None:
            await self.hearing.aclose()
        await self.serving.aclose()

    def _opened(self, name: str, application: Application, server: Server, wake: Wake) -> Model:
        model: Model
        if places := application.servers.get(name):
            model = ServedModel(name, places, application.settings, server)
            self.balances[name] = model.balance
        elif command := application.commands.get(name):
            model = commanded(name, command, application.settings, self.serving)
        else:
            model = open_model(name, application.settings, application.state_dir, self.serving)
        gate = self._gate(name, application, server, wake)
        return model if gate is None else Guarded(model, gate)

    def _gate(self, name: str, application: Application, server: Server, wake: Wake) -> Gate | None:
        """The gate of a model, None for one that needs none."""
        terms = application.terms.get(name)
        if not name or (terms is None and name.endswith(UNGUARDED)):
            return None
        self._gates[name] = Gate(server, name, terms or Terms(), application.settings, wake)
        return self._gates[name]


class Runtime:
    """Runs ``roles`` (all of the application's by default) on ``server`` until ``stop``."""

    def __init__(
        self, application: Application, server: RedisServer, process: str, *, roles: Iterable[str] | None = None
    ) -> None:
        self.application = application
        self.bus = Bus(server, application.settings, process)
        self.models = Models(application, server, process, self._wake)
        self.measures = Measures()
        self.roster = Roster(self.bus, self.models.of, self.models.by_name, self._statistics, self.models.waits)
        place = Place(application.directory, application.state_dir, application.settings.proxy)
        self.tool_servers = ToolServers(application.tool_servers, place)
        self.roster.tool_source = self.tool_servers.tools
        self.roster.measures = self.measures
        self.roster.hearing = self.models.hearing
        self.worker = Worker(self.bus, self.roster, server.reader)
        self.wakeups = Wakeups(server.pubsub(), self._on_control)
        self.scribe = False
        self.http = ""
        self._server = server
        self._only = frozenset(roles) if roles is not None else None
        self._started = time.monotonic()
        self._ready = asyncio.Event()
        self._followed: dict[str, int] = {}
        self._background = BackgroundTasks()

    async def run(self) -> None:
        """Work until ``stop`` is called. Raises ConfigError before anything starts when the deployment is wrong."""
        await self._prepare()
        async with asyncio.TaskGroup() as group:
            around = [
                group.create_task(self.wakeups.run(), name="rolecall wake-ups"),
                group.create_task(self._register(), name="rolecall registry"),
                group.create_task(self._promote(), name="rolecall promote"),
                group.create_task(self._sweep(), name="rolecall sweep"),
                group.create_task(self._follow(), name="rolecall follow model servers"),
                group.create_task(self._watch().run(), name="rolecall watch model servers"),
                group.create_task(self._measure(), name="rolecall measures"),
            ]
            await self.wakeups.listening.wait()
            self._ready.set()
            await self.worker.run()
            for task in around:
                task.cancel()
        await self._background.drain(0)
        await self.wakeups.aclose()
        await self.models.aclose()
        await self.tool_servers.aclose()

    async def ready(self) -> None:
        """Wait until it works."""
        await self._ready.wait()

    async def stop(self) -> None:
        """Drain: finish what runs, hand the rest over, leave the stats."""
        await self.worker.drain()
        try:
            await stats.unregister(self.bus)
            await maintenance.depart(self.bus, list(self.roster.roles))
            await self.measures.tell(self._server)
        except ServerError as error:
            logger.info("the registry could not be told: %s", error)

    def deploy(self, application: Application) -> None:
        """Run ``application``'s agents from the next envelope on (its settings stay those of the start).
        Raises ConfigError, and changes nothing, when a prompt of it is wrong."""
        self.roster.prompts = application.prompts  # first: it raises for a prompt that is wrong
        self.application = application
        roles = [role for role in application.roles if self._only is None or role.name in self._only]
        self.roster.deploy(roles, application.roles)
        for role in roles:
            self.roster.set_count(role.name, self._own_count(role))

    async def redeploy(self, application: Application) -> None:
        """``deploy`` while running: new roles get their consumer groups first, live counts stay in force."""
        new = {role.name for role in application.roles} - set(self.roster.instances)
        for shard in self.bus.shards:
            await ensure_groups(self.bus, shard, new)
        self.deploy(application)
        await self._apply_scale()
        self.worker.freed_up()

    def configured(self, role: Role) -> int:
        """The count config and environment give ``role``."""
        return self.application.count(role)

    async def _prepare(self) -> None:
        unknown = (self._only or frozenset()) - {role.name for role in self.application.roles}
        if unknown:
            known = ", ".join(role.name for role in self.application.roles)
            raise ConfigError(f"role {sorted(unknown)[0]!r} is not in config.py; there are {known}")
        await self.bus.prepare()
        self.deploy(self.application)
        for shard in self.bus.shards:
            await ensure_groups(self.bus, shard, self.roster.instances)
        await self._apply_scale()
        for name, group in self.roster.instances.items():
            logger.info("role %s: %d instances", name, len(group))
            for instance in group:
                logger.info("instance %s waits", instance.id)

    async def _wake(self, conversation: str) -> None:
        await maintenance.promote(self.bus, self.bus.shard(conversation), conversation, early=True)

    async def _statistics(self) -> Mapping[str, Any]:
        roles = [role.name for role in self.application.roles]
        return await stats.statistics(self.bus, roles, self.application.model_names)

    # ── orders from outside ─────────────────────────────────────────────────────────────────────

    def _on_control(self, order: dict[str, Any]) -> None:
        if "scale" in order or "report" in order:
            self._background.start(self._report(), "rolecall order")
        if isinstance(order.get("ended"), str):
            self._background.start(self.worker.check_leases(order["ended"]), "rolecall order")

    async def _report(self) -> None:
        await self._apply_scale()
        await stats.register(self.bus, self._state())

    async def _apply_scale(self) -> None:
        counts = await live_counts(self.bus, self.application.roles, self.configured)
        for name, group in self.roster.instances.items():
            wanted = counts.get(name, self._own_count(self.roster.roles[name]))
            if wanted != sum(not instance.retiring for instance in group):
                logger.info("role %s: %d instances from now on", name, wanted)
                self.roster.set_count(name, wanted)
                self.worker.freed_up()

    # ── beside the work ─────────────────────────────────────────────────────────────────────────

    async def _register(self) -> None:
        while True:
            await self._background.attempt(stats.register(self.bus, self._state()), "rolecall registry")
            await asyncio.sleep(self.application.settings.heartbeat_seconds)
            await self._background.attempt(self._apply_scale(), "rolecall registry")

    async def _follow(self) -> None:
        """Have as many instances of the roles with instances="auto" as their model servers answer at once."""
        while True:
            await self._background.attempt(self._count_slots(), "rolecall model servers")
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _count_slots(self) -> None:
        roles = [role for role in self.roster.roles.values() if role.instances == "auto"]
        if not roles:
            return
        alive = await stats.processes(self.bus)
        followers = {role.name: self._follower(role, alive) for role in roles}
        each = self.application.settings.auto_instance_mb
        self._followed = await auto_counts(Directory(self._server), followers, each=each)
        await self._apply_scale()

    def _watch(self) -> Watch:
        return Watch(self._server, self.bus.process, self.application.servers, self.models.balances)

    def _follower(self, role: Role, alive: Iterable[ProcessState]) -> Follower:
        having = {state.process for state in alive if any(one.role == role.name for one in state.instances)}
        names = sorted(having | {self.bus.process})
        place, running = names.index(self.bus.process), len(self.roster.instances[role.name])
        return Follower(role.models, len(names), place, running)

    def _own_count(self, role: Role) -> int:
        """The instances of ``role`` here, where nobody has scaled it."""
        return self._followed.get(role.name, 1) if role.instances == "auto" else self.configured(role)

    async def _promote(self) -> None:
        while True:
            await self._background.attempt(self._promote_for(SWEEP_SECONDS), "rolecall promote")
            await asyncio.sleep(PROMOTE_SECONDS)

    async def _promote_for(self, seconds: float) -> None:
        """Wake what is due, with one reading of the server's clock for as long."""
        began, clock = time.monotonic(), await server_ms(self._server)
        while (passed := time.monotonic() - began) < seconds:
            for shard in self.bus.shards:
                await maintenance.promote_due(self.bus, shard, clock + passed * 1000)
            await asyncio.sleep(PROMOTE_SECONDS)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._background.attempt(self._sweep_once(), "rolecall sweep")

    async def _sweep_once(self) -> None:
        now = await server_ms(self._server)
        for shard in self.bus.shards:
            await maintenance.audit(self.bus, shard, now)
        await maintenance.sweep(self.bus, [role.name for role in self.application.roles])

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            await self._background.attempt(self.measures.tell(self._server), "rolecall metrics")

    def _state(self) -> ProcessState:
        return ProcessState(
            process=self.bus.process,
            uptime=round(time.monotonic() - self._started, 1),
            instances=tuple(_instance_state(instance) for instance in self.roster.everyone()),
            connections=self._server.connections,
            max_connections=self.application.settings.redis_max_connections,
            scribe=self.scribe,
            version=__version__,
            http=self.http,
        )


async def live_counts(bus: Bus, roles: Iterable[Role], configured: Any) -> dict[str, int]:
    """Counts set by ``rolecall scale``, by role; one set against another configured count is ignored."""
    flat = await bus.server.call("HGETALL", keys.SCALE)
    stored = text_map(flat)
    counts = {}
    for role in roles:
        wanted, _, replaced = stored.get(role.name, "").partition("|")
        if wanted and replaced == str(configured(role)):
            counts[role.name] = int(wanted)
    return counts


async def scale(bus: Bus, role: Role, configured: int, count: int) -> None:
    """Set ``role`` to ``count`` instances in every process, now and after a restart, until config changes."""
    await bus.server.call("HSET", keys.SCALE, role.name, f"{count}|{configured}")
    await bus.server.call("PUBLISH", keys.CONTROL, b'{"scale":true}')


def _instance_state(instance: Instance) -> InstanceState:
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
