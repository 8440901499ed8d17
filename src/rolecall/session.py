"""An application's connection to its server: the configured one, or the bundled Valkey."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rolecall.background import cancel_and_wait
from rolecall.bus.admission import CONTROL_ROLE
from rolecall.bus.bus import Bus, short_process
from rolecall.bus.process.process_log import publishing
from rolecall.bus.process.processes import deployment
from rolecall.bus.wakeups import Wakeups
from rolecall.config import Application
from rolecall.environment import runtime_directory
from rolecall.errors import ConfigError, NothingRunning, ServerError, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.address import ServerAddress, check_tls_files, checked_host, checked_url
from rolecall.redis.embedded import LEFT_BEHIND, EmbeddedServer, has_data
from rolecall.redis.leader import Leader as Leader  # front ends name the type of Session.leader
from rolecall.redis.partitions import Partitions as Partitions
from rolecall.redis.rights import check_rights
from rolecall.redis.server import PATIENCE_SECONDS, RedisServer
from rolecall.settings import Settings

logger = logging.getLogger(__name__)
WATCH_SECONDS = 1.0
RESTART_SECONDS = 30.0
"""How long, at most, a bundled server that dies again and again is left alone between two starts."""
NODES = 3
"""The usual number of nodes of a cluster."""


@dataclass(frozen=True)
class Session:
    """One process's use of an application's server. ``found`` is the server's name and version; ``embedded`` is None
    unless it is the bundled server."""

    application: Application
    server: RedisServer
    bus: Bus
    found: str
    embedded: EmbeddedServer | None

    def leader(self, name: str) -> Leader:
        """A candidate in the election ``name``; the processes of this application directory replace each other at
        once, those of others after the lease."""
        lock = self.application.state_dir / f"{name}.lock"
        return Leader(self.server, name, self.bus.process, seconds=self.bus.settings.lease_seconds, lock=lock)

    def bot_leader(self, number: int, front: str) -> Leader:
        """A candidate for serving the Telegram bot with that id, against all other applications and front ends on the
        server. The processes of one ``front`` serve it together."""
        settings = self.bus.settings
        return Leader(
            self.server, f"telegram-bot-{number}", self.bus.process, seconds=settings.lease_seconds,
            key=keys.bot_lease(number), together=f"{settings.key_prefix}/{front}",
        )  # fmt: skip

    def partitions(self, name: str) -> Partitions:
        """This process's share of the work ``name``."""
        directory, seconds = self.application.state_dir, self.bus.settings.lease_seconds
        return Partitions(self.server, name, self.bus.process, seconds=seconds, directory=directory / "shares")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Wakeups]:
        """The wake-ups of this process, heard until the block is left."""
        wakeups = Wakeups(self.server.pubsub())
        task = asyncio.create_task(wakeups.run(), name="rolecall wake-ups")
        try:
            yield wakeups
        finally:
            await cancel_and_wait(task)
            await wakeups.aclose()


@asynccontextmanager
async def open_session(
    application: Application, process: str, *, start: bool, patience: float = PATIENCE_SECONDS
) -> AsyncIterator[Session]:
    """Connect to the application's server; with ``start`` start the bundled one if it is not running, and publish what
    this process logs. ``patience`` is how many seconds to wait for a server that refuses or does not answer.

    Raises NothingRunning when the bundled server is not running and ``start`` is False, ServerUnavailable when a server
    cannot be reached or is too old, ServerRefused when its user lacks rights, ConfigError when the bus there was
    created with other settings.
    """
    settings = application.settings
    keys.use(settings.key_prefix, spread=settings.shards if settings.clustered else 0)
    _check_connections(settings, len(application.frontends))
    async with _address(application, start) as (url, embedded):
        server = RedisServer(
            url, name=short_process(process), socket_timeout=settings.redis_socket_timeout,
            patience=patience, wait_replicas=settings.wait_replicas, wait_seconds=settings.wait_seconds,
        )  # fmt: skip
        try:
            found = await server.check()
            bus = Bus(server, settings, process)
            if await bus.prepare() and embedded is None and has_data(application.state_dir):
                logger.warning("the server at %s is new; %s", server.address, LEFT_BEHIND)
            if start and embedded is None:
                await check_rights(server, bus.shards, clustered=settings.clustered)
            roles = application.role_names or (await deployment(bus)).roles
            bus.answers_commands = CONTROL_ROLE in roles
            if application.roles and embedded is None:  # a program without roles only visits
                await bus.claim(application.name)
            async with _kept_alive(server, embedded), publishing(bus) if start else nullcontext():
                for warning in (await server.condition()).warnings:
                    logger.warning("the server at %s: %s", server.address, warning)
                yield Session(application, server, bus, found, embedded)
        finally:
            await server.aclose()


def configured_url(settings: Settings) -> str | None:
    """The URL from REDIS_URL or REDIS_HOST; None means the bundled server. Raises ConfigError."""
    if settings.redis_url is not None:
        url = checked_url(settings.redis_url.get_secret_value())
        check_tls_files(url)
        return url
    if settings.redis_host is None:
        return None
    user = quote(settings.redis_username or "", safe="")
    password = quote(settings.redis_password.get_secret_value(), safe="") if settings.redis_password else ""
    login = f"{user}:{password}@" if user or password else ""
    return f"redis://{login}{checked_host(settings.redis_host)}:{settings.redis_port}/{settings.redis_db}"


def connections_needed(settings: Settings, front_ends: int = 0) -> int:
    """The most connections that one process opens: for commands, pub/sub and the scribe, a blocking one per shard, one
    for the outbox of each front end, and one to follow turns if there is any. ``front_ends`` counts those that the
    application adds to Telegram."""
    front_ends += settings.telegram_bot_token is not None
    if (url := configured_url(settings)) and ServerAddress.of(url).kind == "cluster":
        # Two per node, and each blocking read takes one per shard.
        return 2 * min(NODES, settings.shards) + settings.shards * (2 + front_ends) + (front_ends > 0)
    return 3 + settings.shards + front_ends + (front_ends > 0)


def _check_connections(settings: Settings, front_ends: int) -> None:
    if (need := connections_needed(settings, front_ends)) > settings.redis_max_connections:
        raise ConfigError(
            f"REDIS_MAX_CONNECTIONS={settings.redis_max_connections} is too low: a process opens up to {need} "
            f"connections when SHARDS={settings.shards}"
        )


@asynccontextmanager
async def _address(application: Application, start: bool) -> AsyncIterator[tuple[str, EmbeddedServer | None]]:
    url = configured_url(application.settings)
    if url is not None:
        yield url, None
        return
    embedded = await _embedded(application, start, runtime_directory())
    try:
        yield embedded.url, embedded
    finally:
        with suppress(ServerUnavailable):
            await embedded.leave()


async def _embedded(application: Application, start: bool, runtime_dir: Path | None) -> EmbeddedServer:
    if start:
        fsync = application.settings.appendfsync
        return await EmbeddedServer.join(application.state_dir, appendfsync=fsync, runtime_dir=runtime_dir)
    found = await EmbeddedServer.find(application.state_dir, runtime_dir=runtime_dir)
    if found is None:
        raise NothingRunning(
            f"nothing is running in {application.directory}: start it with `rolecall up`, or `make run` in a checkout"
        )
    return found


@asynccontextmanager
async def _kept_alive(server: RedisServer, embedded: EmbeddedServer | None) -> AsyncIterator[None]:
    """Restart the bundled server when it dies while in use."""
    task = asyncio.create_task(_watch(server, embedded), name="rolecall server watch") if embedded else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


async def _watch(server: RedisServer, embedded: EmbeddedServer) -> None:
    told, pause, started = "", 0.0, float("-inf")
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        if server.connected or time.monotonic() < started + pause:
            continue
        try:
            why = embedded.death()
            if await embedded.revive():
                logger.warning("the bundled server died and was restarted%s", f": {why}" if why else "")
                again = time.monotonic() - started < 2 * RESTART_SECONDS
                pause = min(2 * pause + WATCH_SECONDS, RESTART_SECONDS) if again else 0.0
                started = time.monotonic()
            told = ""
            with suppress(ServerUnavailable):  # told by the connection
                await server.ping()
        except (ServerError, ConfigError, OSError) as error:
            if str(error) != told:
                logger.warning("the bundled server: %s", error)
            told = str(error)
