"""Whether the server answers, has this application's bus, and how fast its disk is."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rolecall.bus.bus import Bus, short_process
from rolecall.bus.process.processes import ProcessState, live_counts, live_processes, process_name
from rolecall.cli.checks.finding import Finding, judged
from rolecall.config import Application
from rolecall.environment import runtime_directory
from rolecall.errors import (
    RolecallError,
    ServerRefused,
    ServerUnavailable,
)
from rolecall.redis import keys
from rolecall.redis.embedded import LEFT_BEHIND, EmbeddedServer, has_data
from rolecall.redis.outage import ServerCondition, rights
from rolecall.redis.rights import in_short, missing_rights
from rolecall.redis.server import RedisServer
from rolecall.session import configured_url
from rolecall.settings import Settings
from rolecall.stats import problems

PINGS = 20
SYNCS = 20
SYNC_BYTES = 4096
SLOW_SYNC_MS = 20.0
REFUSES = "name the primary, or mend that; processes wait until it takes messages"
FSYNC_ADVICE = (
    "every turn waits for a few of these; APPENDFSYNC=everysec is faster and may lose the last second in a power cut"
)


@dataclass
class ServerLook:
    """What was seen of the server. ``live`` are counts set by ``rolecall scale``; ``nodes`` is the INFO of each
    node by its address, ``info`` that of the first one; empty when it did not answer or may not be asked."""

    findings: list[Finding] = field(default_factory=list)
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    live: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, str] = field(default_factory=dict)
    appendfsync: str = ""


async def look_at_server(application: Application, look: ServerLook) -> list[Finding]:
    """Ask the application's server and fill ``look``; returns what else is found. The bundled server, if it does not
    run, is started for as long as that takes. Nothing is written to it."""
    try:
        async with reached(application) as (server, was_up):
            found = await server.check()
            look.findings.append(Finding("passed", "server", await _described(server, found, application, was_up)))
            look.nodes = await server.info_of_all()
            look.info = next(iter(look.nodes.values()), {})
            look.findings += await _replication(server, application.settings, look.nodes)
            look.findings += await _reloading(server, look.nodes)
            condition = ServerCondition.of_all(look.nodes)
            if condition.refuses:
                text = f"no message is accepted: {condition.refuses}"
                look.findings.append(Finding("failed", "server", text, REFUSES))
            for warning in condition.warnings:
                if "deletes keys" not in warning:  # the deployment checklist tells what to do
                    look.findings.append(Finding("failed", "server", warning, "see its memory, its disk and its log"))
            look.appendfsync = await _appendfsync(server)
            await _look_at_bus(look, Bus(server, application.settings, process_name()), application)
    except ServerRefused as error:
        remedy = "see that the user may do this, then run `rolecall check` again"
        look.findings.append(Finding("failed", "server", f"it refused: {error}", remedy))
    except RolecallError as error:
        remedy = "see that it runs and that REDIS_URL or REDIS_HOST name it; unset both for the bundled one"
        look.findings.append(Finding("failed", "server", str(error), remedy))
    if look.info and configured_url(application.settings) is None:
        return [await _disk(application.state_dir)]
    return []


@asynccontextmanager
async def reached(application: Application) -> AsyncIterator[tuple[RedisServer, bool]]:
    """A connection to the server, and whether it was up before. The bundled one is started if need be, and ended."""
    settings, embedded, was_up = application.settings, None, True
    keys.use(settings.key_prefix, spread=settings.shards if settings.clustered else 0)
    url = configured_url(settings)
    if url is None:
        where = {"runtime_dir": runtime_directory()}
        embedded = await EmbeddedServer.find(application.state_dir, **where)
        was_up = embedded is not None
        embedded = embedded or await EmbeddedServer.join(
            application.state_dir, appendfsync=settings.appendfsync, **where
        )
        url = embedded.url
    server = RedisServer(url, socket_timeout=settings.redis_socket_timeout)
    try:
        yield server, was_up
    finally:
        await server.aclose()
        if embedded is not None:
            with suppress(ServerUnavailable):
                await embedded.leave()


async def _described(server: RedisServer, found: str, application: Application, was_up: bool) -> str:
    times = [await server.ping() * 1000 for _ in range(PINGS)]
    bundled = configured_url(application.settings) is None
    where = "bundled" if bundled else server.address
    state = "" if was_up else ", started for this check alone"
    return f"{found}, {where}, answers in {median(times):.2f} ms{state}"


async def _replication(
    server: RedisServer, settings: Settings, nodes: Mapping[str, Mapping[str, str]]
) -> list[Finding]:
    """What would happen if a node died: whether the others would elect a successor, and whether there is one."""
    found = list[Finding]()
    good, text = await server.topology.judged()
    if text:
        found.append(judged("failover", good, text, "start what does not answer; three Sentinels on three machines"))
    replicas = {name: int(info["connected_slaves"]) for name, info in nodes.items() if "connected_slaves" in info}
    if not replicas:
        return found
    fewest, wanted = min(replicas.values()), settings.wait_replicas
    counts = ", ".join(f"{name or 'the server'} has {count}" for name, count in replicas.items())
    if fewest < wanted:
        remedy = "no message is accepted until there are enough: start replicas, or lower WAIT_REPLICAS"
        found.append(Finding("failed", "replication", f"WAIT_REPLICAS={wanted}; replicas: {counts}", remedy))
    elif text:
        remedy = "a node without a replica takes its shards with it when it dies"
        found.append(judged("replication", fewest > 0, f"WAIT_REPLICAS={wanted}; replicas: {counts}", remedy))
    return found


async def _reloading(server: RedisServer, nodes: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Whether Redis 7.0 would have all of its append-only file after a restart: it reads that as the user default."""
    if not any(map(_reloads_as_default, nodes.values())):
        return []
    write = ("ACL", "DRYRUN", "default", "XADD", keys.META, "*", "field", "value")
    text = "Redis 7.0 reads its append-only file as the user default"
    remedy = "before the next restart: ACL SETUSER default off resetpass ~* &* +@all, and the same in the ACL file"
    try:
        found = [await server.wire(place).send(write) for place in server.topology.places()]
    except ServerRefused:
        return [Finding("not set up", "restart", f"{text}; this user may not ask for its rights (+acl|dryrun)", remedy)]
    if all(answer == b"OK" for answer in found):
        return [Finding("passed", "restart", f"{text}, which has its rights")]
    lost = "a restart would forget what scripts wrote: conversations, waiting turns"
    return [Finding("failed", "restart", f"{text}, which may not write: {lost}", remedy)]


def _reloads_as_default(info: Mapping[str, str]) -> bool:
    redis = "valkey_version" not in info and info.get("redis_version", "").startswith("7.0.")
    return redis and info.get("aof_enabled") == "1"


async def _look_at_bus(look: ServerLook, bus: Bus, application: Application) -> None:
    if configured_url(application.settings) is not None:
        look.findings.append(await _rights(bus, application.settings))
    with suppress(ServerRefused):  # the user of the Telegram front end may not see them
        look.live = await live_counts(bus, application.counts)
    await bus.check_channels()
    made, wanted = await bus.stored_shards(), application.settings.shards
    if made is None:
        left = configured_url(application.settings) is not None and has_data(application.state_dir)
        text = f"none there yet; the first start makes {wanted} shards"
        look.findings.append(Finding("passed", "bus", text, LEFT_BEHIND if left else ""))
    elif reason := await bus.moved_from_elsewhere():
        look.findings.append(Finding("failed", "bus", reason, "see docs/scale-out.md, *Move to another server*"))
    else:
        good, remedy = made == wanted, f"set SHARDS={made}, or empty the server to change it"
        text = f"SHARDS={wanted}, it was made with {made}"
        look.findings.append(judged("bus", good, text, remedy))
    if configured_url(application.settings) is not None and (owner := await bus.owner()):
        text = f"the server serves {owner!r}, this application is {application.name!r}"
        remedy = f"set KEY_PREFIX here to keep them apart, or APP_NAME={owner} if they are one"
        look.findings.append(judged("application", owner == application.name, text, remedy))
    states = await live_processes(bus)
    for problem in await problems(bus, states):
        remedy = "free space, or let this user write there; `rolecall up` or a worker with the role scribe, writes them"
        look.findings.append(Finding("failed", "transcripts", problem, remedy))
    alive = [state.process for state in states]
    text = f"{len(alive)} running: {', '.join(alive)}" if alive else "none is running"
    if not alive:
        remedy = "`rolecall up` starts it all, as does `make run` in a checkout"
    elif older := _older_than(application.directory / ".env", states):
        remedy = f".env was changed after {', '.join(older)} started: restart what the change is for"
    else:
        remedy = ""
    look.findings.append(Finding("passed" if alive else "not set up", "processes", text, remedy))


def _older_than(file: Path, states: Sequence[ProcessState]) -> list[str]:
    """The processes of this host that started before ``file`` was changed."""
    if not file.exists():
        return []
    age, here = time.time() - file.stat().st_mtime, f"{process_name().partition(':')[0]}:"
    return [short_process(one.process) for one in states if one.process.startswith(here) and one.uptime > age]


async def _rights(bus: Bus, settings: Settings) -> Finding:
    """Whether the server's user may do what a process does, of which there is one at least."""
    missing = await missing_rights(bus.server, bus.shards, clustered=settings.clustered)
    lacking = missing.pop("")
    able = [f"`rolecall {verb}`" for verb, rules in missing.items() if not rules]
    others = "; ".join(f"`rolecall {verb}` lacks {in_short(rules)}" for verb, rules in missing.items() if rules)
    if lacking or not able:
        text = f"the server's user lacks {in_short(lacking)}" if lacking else f"the server's user: {others}"
        return Finding("failed", "rights", text, f"its ACL must allow {rights()}")
    text = f"the server's user is allowed {', '.join(able)}; {others}" if others else "the server's user has all"
    return Finding("passed", "rights", text)


async def _appendfsync(server: RedisServer) -> str:
    """Empty when the server has no append-only file, "unknown" when this user may not ask."""
    try:
        return await server.append_only()
    except ServerRefused:
        return "unknown"


async def _disk(state_dir: Path) -> Finding:
    """How long the disk under the bundled server takes to have 4 kB for good."""
    try:
        times = await asyncio.to_thread(_sync_times, state_dir)
    except OSError as error:
        return Finding("failed", "disk", f"{state_dir}: {error.strerror}", "free space there, or see who may write")
    text = f"{state_dir}: fsync takes {median(times):.2f} ms, at most {max(times):.2f} ms of {SYNCS}"
    return Finding("passed", "disk", text, FSYNC_ADVICE if median(times) > SLOW_SYNC_MS else "")


def _sync_times(state_dir: Path) -> list[float]:
    times = []
    with tempfile.TemporaryFile(dir=state_dir) as file:
        for _ in range(SYNCS):
            file.write(b"\0" * SYNC_BYTES)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return times
