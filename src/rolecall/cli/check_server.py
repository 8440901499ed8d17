"""Whether the server answers, has this application's bus, and how fast its disk is."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from redis.exceptions import RedisError, ResponseError

from rolecall import keys, registry
from rolecall.bus import Bus
from rolecall.cli.finding import Finding, judged
from rolecall.config import Application, runtime_directory
from rolecall.embedded import EmbeddedServer
from rolecall.errors import RolecallError, ServerUnavailable
from rolecall.redis_client import RedisServer
from rolecall.runtime import live_counts, process_name
from rolecall.session import configured_url

PINGS = 20
SYNCS = 20
SYNC_BYTES = 4096
SLOW_SYNC_MS = 20.0
FSYNC_ADVICE = (
    "every turn waits for a few of these; APPENDFSYNC=everysec is faster and may lose the last second in a power cut"
)


@dataclass
class ServerLook:
    """What was seen of the server. ``live`` are counts set by ``rolecall scale``; ``info`` is the server's own INFO,
    empty when it did not answer."""

    findings: list[Finding] = field(default_factory=list)
    live: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, str] = field(default_factory=dict)
    appendfsync: str = ""


async def look_at_server(application: Application) -> ServerLook:
    """Ask the application's server; the bundled one, if it does not run, is started for as long as that takes.
    Nothing is written to it."""
    look = ServerLook()
    try:
        async with reached(application) as (server, was_up):
            found = await server.check()
            look.findings.append(Finding("passed", "server", await _described(server, found, application, was_up)))
            look.info = _parsed(await server.call("INFO"))
            look.appendfsync = await _appendfsync(server)
            await _look_at_bus(look, Bus(server, application.settings, process_name()), application)
    except RolecallError as error:
        remedy = "see that it runs and that REDIS_URL or REDIS_HOST name it; unset both for the bundled one"
        look.findings.append(Finding("failed", "server", str(error), remedy))
    except (RedisError, OSError) as error:
        remedy = "see that the user may run INFO, EVAL and the stream commands (deploy/ has an ACL)"
        look.findings.append(Finding("failed", "server", f"it refused: {error}", remedy))
    if configured_url(application.settings) is None and look.info:
        look.findings.append(await _disk(application.state_dir))
    return look


@asynccontextmanager
async def reached(application: Application) -> AsyncIterator[tuple[RedisServer, bool]]:
    """A connection to the server, and whether it was up before. The bundled one is started if need be, and ended."""
    settings, embedded, was_up = application.settings, None, True
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
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        await server.call("PING")
        times.append((time.perf_counter() - began) * 1000)
    bundled = configured_url(application.settings) is None
    where = "bundled" if bundled else server.address
    state = "" if was_up else ", started for this check alone"
    return f"{found}, {where}, answers in {median(times):.2f} ms{state}"


async def _look_at_bus(look: ServerLook, bus: Bus, application: Application) -> None:
    look.live = await live_counts(bus, application.roles, application.count)
    made, wanted = await bus.server.call("HGET", keys.META, "shards"), application.settings.shards
    if made is None:
        look.findings.append(Finding("passed", "bus", f"none there yet; the first start makes {wanted} shards"))
    else:
        good, remedy = int(made) == wanted, f"set SHARDS={int(made)}, or empty the server to change it"
        text = f"SHARDS={wanted}, it was made with {int(made)}"
        look.findings.append(judged("bus", good, text, remedy))
    alive = [state.process for state in await registry.processes(bus)]
    text = f"{len(alive)} running: {', '.join(alive)}" if alive else "none is running"
    remedy = "`rolecall up` or `make run` starts it all"
    look.findings.append(judged("processes", bool(alive), text, remedy, otherwise="not set up"))


async def _appendfsync(server: RedisServer) -> str:
    """Empty when the server has no append-only file, "unknown" when this user may not ask."""
    try:
        flat = await server.call("CONFIG", "GET", "append*")
    except ResponseError:
        return "unknown"
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    return str(found[b"appendfsync"].decode()) if found.get(b"appendonly") == b"yes" else ""


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


def _parsed(raw: bytes) -> dict[str, str]:
    lines = raw.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
