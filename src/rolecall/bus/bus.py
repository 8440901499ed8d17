"""The bus: its server, its settings and its shards. Every verb is a function that takes a Bus first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

from rolecall.background import heeded
from rolecall.errors import ConfigError
from rolecall.redis import keys
from rolecall.redis.clock import ServerClock
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import script
from rolecall.redis.server import Server
from rolecall.settings import Settings

SCHEMA = 1
COUNT = script("rolecall.bus", "scripts/process/count", names="counters names amounts")
CONFIRM = script("rolecall.bus", "scripts/process/confirm", names="log")


class Bus:
    """What every verb of the bus needs. ``process`` names this process as a consumer. It must be unique per start: it
    fences a predecessor with the same host and pid."""

    def __init__(self, server: Server, settings: Settings, process: str) -> None:
        self.server = server
        self.settings = settings
        self.process = process
        self.answers_commands = True
        """Whether the application has a role for control turns; without one, commands are messages like any other."""
        self.shards = keys.all_shards(settings.shards, clustered=settings.clustered)
        self.clocks = tuple(ServerClock() for _ in self.shards)

    def shard(self, conversation: str) -> ShardKeys:
        """The keys of the shard that ``conversation`` lives in."""
        return self.shards[keys.shard_of(conversation, len(self.shards))]

    def instance(self, name: str) -> str:
        """How transcripts name what this process does as ``name``, such as a front end: ``<name>:<host>:<pid>:0``."""
        return f"{name}:{short_process(self.process)}:0"

    @property
    def servers(self) -> tuple[tuple[ShardKeys, ...], ...]:
        """The shards by what may be done in one step: all of a single server, each of a cluster, where the keys of a
        step are in one slot."""
        return tuple((shard,) for shard in self.shards) if self.settings.clustered else (self.shards,)

    async def prepare(self) -> bool:
        """Store shard count and key schema on first use; whether this was the first use. Raises ConfigError if the
        server has other ones, or the data of another kind of server, ServerRefused if its user may not use our keys and
        channels."""
        if reason := await self.moved_from_elsewhere():
            raise ConfigError(reason)
        born = hashlib.sha256(f"{self.process}{time.time_ns()}".encode()).hexdigest()[:12]
        for name, value in (("shards", len(self.shards)), ("schema", SCHEMA), ("born", born)):
            first = await self.server.fetch("HSETNX", keys.META, name, value)
        shards, schema = await self.server.fetch("HMGET", keys.META, "shards", "schema")
        if int(shards) != len(self.shards):
            raise ConfigError(
                f"SHARDS={len(self.shards)} is invalid: this server was set up with {int(shards)} shards; set "
                f"SHARDS={int(shards)}, or empty the server to change it"
            )
        if int(schema) != SCHEMA:
            raise ConfigError(f"this server has key schema {int(schema)}, but this version of rolecall needs {SCHEMA}")
        await self.check_channels()
        return bool(first)

    async def moved_from_elsewhere(self) -> str:
        """Why the data here cannot be used: its keys have the names of a single server, and this is a cluster, or the
        other way round. Empty if it can be."""
        clustered = self.settings.clustered
        made = await self.stored_shards()
        if made is None:
            return ""
        ours, theirs = (keys.all_shards(made, clustered=kind)[0].log for kind in (clustered, not clustered))
        if await self.server.fetch("EXISTS", ours) or not await self.server.fetch("EXISTS", theirs):
            return ""
        here, there = ("a cluster", "a single server") if clustered else ("a single server", "a cluster")
        return (
            f"this is {here}, but its data comes from {there}, where keys have other names: use {there} with it, or "
            "empty this one to start without conversations"
        )

    async def check_channels(self) -> None:
        """Raises ServerRefused if the server's user may not use our channels: since Redis 7, a new user may use none.
        Nobody hears what is published."""
        await self.server.fetch("PUBLISH", self.shards[0].channel(""), b"")

    async def claim(self, application: str) -> None:
        """Serve ``application`` on this server, under this prefix, from its first claim on. Raises ConfigError when
        another one does."""
        await self.server.fetch("HSETNX", keys.META, "application", application)
        owner = await self.owner()
        if owner != application:
            raise ConfigError(
                f"this server already serves the application {owner!r}, and this one is {application!r}: set "
                f"KEY_PREFIX here to keep them apart, or APP_NAME={owner} if they are one"
            )

    async def owner(self) -> str:
        """The application that this server serves under this prefix; empty before the first claim."""
        return (await self.server.fetch("HGET", keys.META, "application") or b"").decode()

    async def stored_shards(self) -> int | None:
        """The number of shards that the server was set up with; None before its first use."""
        made = await self.server.fetch("HGET", keys.META, "shards")
        return None if made is None else int(made)


def short_process(process: str) -> str:
    """The name of ``process`` for people, ``<host>:<pid>``: without what tells its starts apart."""
    return process.partition("~")[0]


async def confirmed(bus: Bus, shard: ShardKeys) -> None:
    """With WAIT_REPLICAS, return once replicas have what was written to ``shard`` so far. Raises ServerError."""
    if bus.settings.wait_replicas:
        await bus.server.run(CONFIRM, log=shard.log)


async def add_counts(server: Server, counts: Mapping[str, int]) -> None:
    """Add to the counters of the metrics, all at once. Raises ServerError; they may have been added all the same."""
    if counts:
        await server.run(COUNT, counters=keys.METRICS, names=list(counts), amounts=list(counts.values()))


def count_soon(server: Server, name: str, *labels: str) -> None:
    """Add one to a counter of the metrics without waiting for it. It is lost while the server is unavailable."""
    words = (name, "n", *(label.replace(" ", "_") for label in labels))
    server.send("HINCRBY", keys.METRICS, " ".join(words), 1).add_done_callback(heeded)
