"""The processes at work: each registers itself with its instances, and obeys the counts that operators set."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.turn import FIRST_ROLE
from rolecall.errors import NothingRunning
from rolecall.redis import keys
from rolecall.redis.scripts import script
from rolecall.redis.server import text_map

REGISTER = script("rolecall.bus", "scripts/process/register", names="registry state process value lasts")


def process_name() -> str:
    """``<host>:<pid>~<six hex digits>``: unique per start, so that a predecessor with the same pid is fenced."""
    return f"{socket.gethostname()}:{os.getpid()}~{secrets.token_hex(3)}"


class InstanceState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one instance is doing, and what it has done since its process started."""

    id: str
    role: str
    busy: bool = False
    conversation: str = ""
    turn: str = ""
    seconds: float = 0.0
    handled: int = 0
    errors: int = 0
    busy_seconds: float = 0.0


class Deployment(NamedTuple):
    """The names of all roles, and of the front ends that an application or a package adds."""

    roles: frozenset[str]
    fronts: frozenset[str]


class ProcessState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process as it registered itself: ``uptime`` in seconds, ``connections`` to the server, ``http`` the address
    it serves at, ``problem`` what keeps its scribe or a front end from its work. ``roles`` and ``fronts`` are those
    of its Deployment, wherever they run."""

    process: str
    kind: str = "worker"
    uptime: float = 0.0
    instances: tuple[InstanceState, ...] = ()
    connections: int = 0
    max_connections: int = 0
    scribe: bool = False
    version: str = ""
    http: str = ""
    problem: str = ""
    roles: tuple[str, ...] = ()
    fronts: tuple[str, ...] = ()


async def register(bus: Bus, state: ProcessState) -> None:
    """Register this process for three heartbeats."""
    await bus.server.run(
        REGISTER, registry=keys.WORKERS, state=keys.worker(state.process), process=state.process,
        value=msgspec.json.encode(state), lasts=_lifetime(bus),
    )  # fmt: skip


async def unregister(bus: Bus) -> None:
    """Remove this process from the registry."""
    await bus.server.run(
        REGISTER, registry=keys.WORKERS, state=keys.worker(bus.process), process=bus.process, value="",
        lasts=_lifetime(bus),
    )  # fmt: skip


async def ask_for_reports(bus: Bus) -> None:
    """Ask every process to register now instead of at its next heartbeat."""
    await bus.server.call("PUBLISH", keys.CONTROL, b'{"report":true}')


async def live_processes(bus: Bus) -> list[ProcessState]:
    """The live processes, the one that registered longest ago first."""
    names = [name.decode() for name in await bus.server.call("ZRANGE", keys.WORKERS, 0, -1)]
    found = await asyncio.gather(*(bus.server.call("GET", keys.worker(name)) for name in names))
    return [msgspec.json.decode(raw, type=ProcessState) for raw in found if raw]


async def deployment(bus: Bus) -> Deployment:
    """The deployment as the live workers know it. Those of an earlier version only know the roles that they run."""
    alive = await live_processes(bus)
    roles = {name for state in alive for name in (*state.roles, *(instance.role for instance in state.instances))}
    return Deployment(frozenset(roles), frozenset(name for state in alive for name in state.fronts))


async def instances_of(bus: Bus, role: str) -> int:
    """How many live instances ``role`` has over all processes."""
    return (await instance_counts(bus)).get(role, 0)


async def check_running(bus: Bus) -> None:
    """Raise NothingRunning unless a worker is there to answer."""
    if not await instances_of(bus, FIRST_ROLE):
        raise NothingRunning(
            "nothing is running that could answer: start it with `rolecall up`, or `make run` in a checkout"
        )


async def instance_counts(bus: Bus) -> dict[str, int]:
    """How many live instances each role has over all processes; roles without any are absent."""
    return dict(Counter(instance.role for state in await live_processes(bus) for instance in state.instances))


async def live_counts(bus: Bus, configured: Mapping[str, int]) -> dict[str, int]:
    """The counts that ``scale`` set, by role; a count that was set against another ``configured`` one is ignored."""
    counts = {}
    for role, count in text_map(await bus.server.call("HGETALL", keys.SCALE)).items():
        wanted, _, replaced = count.partition("|")
        if role in configured and replaced == str(configured[role]):
            counts[role] = int(wanted)
    return counts


async def scale(bus: Bus, role: str, configured: int, count: int) -> None:
    """Set ``role`` to ``count`` instances in every process, now and after restarts, until its configuration changes."""
    await bus.server.call("HSET", keys.SCALE, role, f"{count}|{configured}")
    await bus.server.call("PUBLISH", keys.CONTROL, b'{"scale":true}')


def _lifetime(bus: Bus) -> int:
    return round(bus.settings.heartbeat_seconds * 3000)
