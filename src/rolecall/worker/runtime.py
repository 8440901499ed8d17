"""A deployment at work in this process: its instances counted, scaled, reloaded and drained, and its duties."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rolecall import stats
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.mcp import ToolServerHost, ToolServers
from rolecall.agent.role import Role, role_infos
from rolecall.background import BackgroundTasks, cancel_and_wait
from rolecall.bus import maintenance
from rolecall.bus.bus import Bus
from rolecall.bus.leases import ensure_groups
from rolecall.bus.process.processes import live_counts, unregister
from rolecall.bus.turn import parted
from rolecall.bus.wakeups import Wakeups
from rolecall.config import Application
from rolecall.errors import ConfigError, ServerError
from rolecall.models.fallback import Fallback
from rolecall.models.gate import UNGUARDED, Gate, GatedModel, Wake
from rolecall.models.model import Caller, Model
from rolecall.models.providers.remote import ServedModel
from rolecall.models.vectors import EXAMPLE, Vectors, embed, embedding_model
from rolecall.redis.server import RedisServer
from rolecall.serving.balance import Balance
from rolecall.serving.launcher import Launcher
from rolecall.settings import Terms
from rolecall.stats import Metrics
from rolecall.tracing.otlp import open_tracing
from rolecall.worker.duties import Duties
from rolecall.worker.neighbours import Neighbours
from rolecall.worker.roster import Roster
from rolecall.worker.watchdog import Watchdog
from rolecall.worker.worker import END_SECONDS, Worker

logger = logging.getLogger(__name__)
GC_THRESHOLD = (50_000, 20, 100)
"""Handling an envelope makes no cycles; with Python's own threshold, a fifth of a worker's CPU goes into looking for
some."""


def tune_garbage_collector() -> None:
    """Make the cyclic garbage collector skip the objects that exist now, and run less often unless the program has set
    a threshold above Python's own. Applies to the whole process."""
    gc.freeze()
    if gc.get_threshold()[0] < GC_THRESHOLD[0]:
        gc.set_threshold(*GC_THRESHOLD)


class Models:
    """The models of a deployment, each opened once and behind its gate."""

    def __init__(self, application: Application, server: RedisServer, process: str, wake: Wake) -> None:
        settings = application.settings
        self.serving = Launcher(server, process, application.state_dir / "models", limit=settings.local_ram)
        self.by_name: dict[str, Model] = {}
        self.problems: dict[str, str] = {}
        """Why a model could not be opened, by its name."""
        self.balances: dict[str, Balance] = {}
        self._gates: dict[str, Gate] = {}
        self._application, self._settings, self._server, self._wake = application, settings, server, wake
        self.embedder, self.embedder_gate = self._open_embedder()
        self.voice = self._open_gate(settings.voice_model) if settings.voice_model else None
        for name in application.model_names:
            try:
                self.by_name[name] = self._guarded(name)
            except ConfigError as error:
                self.problems[name] = str(error)

    def of(self, role: Role) -> Model | None:
        """The model of ``role``: those of its models that could be opened, in fallback order. Raises ConfigError when
        it names some and none could be opened."""
        usable = [self.by_name[name] for name in role.models if name in self.by_name]
        if role.models and not usable:
            unknown = f"{role.models[0]} was not configured when this process started; restart it"
            raise ConfigError(f"role {role.name} has no usable model: {self.problems.get(role.models[0], unknown)}")
        if not usable:
            return None
        return usable[0] if len(usable) == 1 else Fallback(usable)

    async def embed(self, texts: Sequence[str], dimensions: int | None, caller: Caller) -> Vectors:
        """The vectors of ``texts`` by EMBEDDING_MODEL. Raises what models/vectors.py raises."""
        if self.embedder is None:
            name = embedding_model(self._settings)
            if not name:
                raise ConfigError(f"EMBEDDING_MODEL is not set: expected a model such as {EXAMPLE}")
            raise ConfigError(f"EMBEDDING_MODEL={name} cannot be used: {self.problems[name]}")
        return await embed(self.embedder, texts, dimensions, self.embedder_gate, caller)

    async def waits(self, model: str, conversation: str) -> None:
        """Wake the turn of ``conversation`` as soon as ``model`` is back."""
        if model in self._gates:
            await self._gates[model].waits(conversation)

    async def aclose(self) -> None:
        """Close all models and release the model servers."""
        for model in self.by_name.values():
            await model.aclose()
        if self.embedder is not None:
            await self.embedder.aclose()
        for gate in (self.voice, self.embedder_gate):
            if gate is not None:
                await gate.aclose()
        await self.serving.aclose()

    def _open_embedder(self) -> tuple[Model | None, Gate | None]:
        """The model of vectors, and its gate; None where it cannot be opened."""
        if not (name := embedding_model(self._settings)):
            return None, None
        try:
            return self._open(name), self._open_gate(name)
        except ConfigError as error:
            self.problems[name] = str(error)
            return None, None

    def _guarded(self, name: str) -> Model:
        model, gate = self._open(name), self._open_gate(name)
        return model if gate is None else GatedModel(model, gate)

    def _open(self, name: str) -> Model:
        application = self._application
        if places := application.servers.get(name):
            served = ServedModel(name, places, self._settings, self._server)
            self.balances[name] = served.balance
            return served
        return application.open_model(name, self.serving)

    def _open_gate(self, name: str) -> Gate | None:
        """The gate of the model ``name``; None for a test model without limits of its own."""
        terms = self._application.terms.get(name)
        if terms is None and name.endswith(UNGUARDED):
            return None
        self._gates[name] = Gate(self._server, name, terms or Terms(), self._settings, self._wake)
        return self._gates[name]


class Runtime:
    """Runs ``roles`` (by default all of the application's) on ``server`` until ``stop``."""

    def __init__(
        self, application: Application, server: RedisServer, process: str, *, roles: Iterable[str] | None = None
    ) -> None:
        self.application = application
        self.server = server
        self.bus = Bus(server, application.settings, process)
        self.models = Models(application, server, process, self._wake)
        self.metrics = Metrics()
        host = ToolServerHost(application.directory, application.state_dir, application.settings.proxy)
        self.tool_servers = ToolServers(application.tool_servers, host)
        services = AgentServices(
            self.bus,
            policies=application.policies,
            models=self.models.by_name,
            tools=self.tool_servers.tools,
            voice=self.models.voice,
            embed=self.models.embed,
            stats=self._stats,
            waits=self.models.waits,
            meter=self.metrics,
            tracing=open_tracing(application.settings, process),
        )
        self.roster = Roster(services)
        self.worker = Worker(self.bus, self.roster, server.reader)
        self.watchdog = Watchdog(self.worker, lambda: server.another(patience=1))
        place = application.state_dir / "processes"
        self.neighbours = Neighbours(place, self.bus, server.address, lambda: self.roster.roles, self.worker.take_over)
        self.wakeups = Wakeups(server.pubsub(), self._on_control)
        self.scribe = False
        """Whether this process is also a scribe, for the registry."""
        self.problems: list[Callable[[], str]] = []
        """Each says what keeps the scribe or a front end of this process from its work, for the registry; empty if
        nothing does."""
        self.http = ""
        """The address this process serves HTTP at, for the registry."""
        self.started = time.monotonic()
        self.slot_counts: dict[str, int] = {}
        """Instances of the roles with ``instances="auto"``, as their model servers have slots."""
        self._only = frozenset(roles) if roles is not None else None
        self._duties = Duties(self)
        self._ready = asyncio.Event()
        self._background = BackgroundTasks()

    async def run(self) -> None:
        """Work until ``stop`` is called. Raises ConfigError before anything starts when the deployment is wrong."""
        await self._prepare()
        tune_garbage_collector()
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self.wakeups.run(), name="rolecall wake-ups"),
                group.create_task(self._duties.run(), name="rolecall duties"),
                group.create_task(self.watchdog.run(), name="rolecall watchdog"),
                group.create_task(self.neighbours.run(), name="rolecall neighbours"),
            ]
            await self.wakeups.listening.wait()
            self._ready.set()
            await self.worker.run()
            await cancel_and_wait(*beside)
        await self._background.drain(0)
        await self.wakeups.aclose()
        await self.models.aclose()
        await self.tool_servers.aclose()
        await self.roster.services.tracing.aclose()

    async def ready(self) -> None:
        """Wait until envelopes are taken."""
        await self._ready.wait()

    async def stop(self) -> None:
        """Drain: finish what runs, hand the rest to other processes, leave the registry. Ends within a few seconds of
        DRAIN_SECONDS, also while the server is away."""
        await self.worker.drain()
        try:
            async with asyncio.timeout(END_SECONDS):
                await unregister(self.bus)
                await maintenance.depart(self.bus, list(self.roster.roles))
                await self.metrics.flush(self.server)
        except (ServerError, TimeoutError) as error:
            logger.info("could not leave the registry: %s", error or "the server is away")

    def deploy(self, application: Application) -> None:
        """Run the agents of ``application`` from the next envelope on; its settings remain those of the start. Raises
        ConfigError, and changes nothing, when a prompt is wrong or a role has no usable model."""
        roles = [role for role in application.roles if self._only is None or role.name in self._only]
        services = replace(
            self.roster.services,
            prompts=application.prompts,
            roles=role_infos(application.roles),
            role_models={role.name: model for role in roles if (model := self.models.of(role)) is not None},
        )
        self.application = application
        self.roster.deploy(roles, services)
        for role in roles:
            self.roster.set_count(role.name, self._own_count(role))

    async def redeploy(self, application: Application) -> None:
        """``deploy`` while running: new roles get their consumer groups first; live counts stay in force."""
        new = {role.name for role in application.roles} - set(self.roster.instances)
        for shard in self.bus.shards:
            await ensure_groups(self.bus, shard, new)
        self.deploy(application)
        await self.apply_scale()
        self.worker.freed_up()

    async def apply_scale(self) -> None:
        """Have as many instances as ``rolecall scale`` says, else as many as this process itself would have."""
        counts = await live_counts(self.bus, self.application.counts)
        for name, group in self.roster.instances.items():
            wanted = counts.get(name, self._own_count(self.roster.roles[name]))
            if wanted != sum(not instance.retiring for instance in group):
                logger.info("role %s: %d instances from now on", name, wanted)
                self.roster.set_count(name, wanted)
                self.worker.freed_up()

    async def _prepare(self) -> None:
        unknown = (self._only or frozenset()) - {role.name for role in self.application.roles}
        if unknown:
            known = ", ".join(role.name for role in self.application.roles)
            raise ConfigError(f"role {sorted(unknown)[0]!r} is not in config.py; there are {known}")
        await self.bus.prepare()
        self.deploy(self.application)
        for shard in self.bus.shards:
            await ensure_groups(self.bus, shard, self.roster.instances)
            await maintenance.load_steps(self.bus, shard)
        await self.apply_scale()
        for name, group in self.roster.instances.items():
            logger.info("role %s: %d instances", name, len(group))
            for instance in group:
                logger.info("instance %s waits", instance.id)

    def _own_count(self, role: Role) -> int:
        return self.slot_counts.get(role.name, 1) if role.instances == "auto" else self.application.count(role)

    def _on_control(self, order: dict[str, Any]) -> None:
        if "scale" in order or "report" in order:
            self._background.start(self._report(), "rolecall order")
        if isinstance(order.get("ended"), str):
            self._background.start(self.worker.leases.check(order["ended"]), "rolecall order")

    async def _report(self) -> None:
        await self.apply_scale()
        await self._duties.register()

    async def _wake(self, member: str) -> bool:
        conversation, call = parted(member)
        verdict = await maintenance.promote(self.bus, self.bus.shard(conversation), conversation, call, early=True)
        return verdict != "GONE"

    async def _stats(self) -> Mapping[str, Any]:
        return await stats.summary(self.bus, self.application.role_names, self.application.model_names)
