"""Outages that a real server really has, and how each is ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall.errors import ServerRefused
from rolecall.redis.server import RedisServer
from tests.proxy import Proxy
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

SNAPSHOT = "dump.rdb"
Step = Callable[[RedisServer, Path], Awaitable[Any]]


def commands(*lines: str) -> Step:
    async def run(server: RedisServer, directory: Path) -> None:
        for line in lines:
            await server.call(*line.split())

    return run


async def lose_the_disk(server: RedisServer, directory: Path) -> None:
    await server.call("CONFIG", "SET", "save", "3600 1")
    (directory / SNAPSHOT).unlink(missing_ok=True)  # a replica has one
    (directory / SNAPSHOT).mkdir()  # where the file should be
    await saved(server, "err")


async def find_the_disk(server: RedisServer, directory: Path) -> None:
    (directory / SNAPSHOT).rmdir()
    await saved(server, "ok")


async def saved(server: RedisServer, how: str) -> None:
    async def begun() -> bool:
        with suppress(ServerRefused):  # one is in progress already
            return bool(await server.call("BGSAVE", "SCHEDULE"))
        return False

    async def ended() -> bool:
        return (await server.info("persistence"))["rdb_last_bgsave_status"] == how

    await wait_until(begun)
    await wait_until(ended)


@dataclass(frozen=True)
class Case:
    """How a server is brought to answer ``code`` to writes, and how it comes back."""

    code: str
    spoil: Step
    mend: Step
    options: tuple[str, ...] = ()


CASES = (
    Case("READONLY", commands("REPLICAOF 127.0.0.1 1"), commands("REPLICAOF NO ONE")),
    Case(
        "MASTERDOWN", commands("CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"),
        commands("REPLICAOF NO ONE"),
    ),
    Case("MISCONF", lose_the_disk, find_the_disk),
    Case(
        "NOREPLICAS", commands("CONFIG SET min-replicas-to-write 1"), commands("CONFIG SET min-replicas-to-write 0")
    ),
    Case(
        "CLUSTERDOWN", commands("CLUSTER DELSLOTSRANGE 0 16383"), commands("CLUSTER ADDSLOTSRANGE 0 16383"),
        ("--cluster-enabled", "yes"),
    ),
)  # fmt: skip


async def follow(replica: RedisServer, primary: ValkeyProcess, server: RedisServer) -> None:
    """Make ``replica`` one of ``primary``, whose connection is ``server``; return once it has all data."""
    await replica.call("REPLICAOF", "127.0.0.1", primary.port)
    await wait_until(lambda: has_all(replica, server), seconds=20)


async def fail_over(
    admin: RedisServer, successor: RedisServer, proxy: Proxy, old: ValkeyProcess, new: ValkeyProcess
) -> None:
    """Make ``successor`` the primary and the old one its replica, without losing a write. Connections of the proxy stay
    where they are; only new ones go to the successor."""
    await admin.call("CLIENT", "PAUSE", 10_000, "WRITE")
    await wait_until(lambda: has_all(successor, admin), seconds=20)
    await successor.call("REPLICAOF", "NO", "ONE")
    proxy.target = new.socket
    await admin.call("REPLICAOF", "127.0.0.1", new.port)
    await admin.call("CLIENT", "UNPAUSE")


async def has_all(replica: RedisServer, primary: RedisServer) -> bool:
    """Whether the replica has everything that its primary has written."""
    behind, ahead = await replica.info("replication"), await primary.info("replication")
    offset = behind.get("slave_repl_offset")
    return behind.get("master_link_status") == "up" and offset == ahead["master_repl_offset"]
