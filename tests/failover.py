"""``python -m tests.failover``: turns at a steady rate while primaries are killed and slots move, on real processes.

Exit status 1 when an accepted turn was lost, doubled, out of order or stuck. ``--planned`` hands the primary over
instead of killing it, and only counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import RedisError

from rolecall.errors import ServerError
from rolecall.redis.keys import ShardKeys, all_shards
from rolecall.redis.leader import LEASE
from rolecall.redis.server import RedisServer
from tests.chaos.application import ANSWERING, write_application
from tests.chaos.cast import Cast, Player, environment
from tests.chaos.checker import FAULTS, Books, check
from tests.chaos.producer import FRONT
from tests.cluster import NAME, ClusterSet, Node, SentinelSet, wait_for

TURNS = 5
"""Turns in each conversation."""
BACK_SECONDS = 10.0
"""After how long a killed server is started again."""
PROBE_SECONDS = 0.02
FACTS = ("turns", "seconds", "failovers", "migrations", "gap_ms", "others_ms", "slowest_ms", "taken over", "fenced")
PLAYERS = (("manager", 1), (ANSWERING, 2), ("scribe", 1))


@dataclass(frozen=True)
class Plan:
    """What a run is made of: ``rate`` turns a second for ``seconds``, a failover ``every`` so many."""

    kind: str = "sentinel"
    seconds: float = 180.0
    rate: float = 50.0
    every: float = 30.0
    planned: bool = False
    wait_replicas: int = 0
    coordinated: bool = False
    down_after: int = 5000
    back: float = BACK_SECONDS

    @property
    def conversations(self) -> int:
        """How many there are."""
        return round(self.seconds * self.rate / TURNS)


@dataclass
class Probe:
    """Writes to every shard all the time, and notes how long each write took."""

    url: str
    shards: Sequence[ShardKeys]
    longest: dict[int, float] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="probe")
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """The longest time that a write took, and the shortest among the longest of each shard, in seconds."""
        self._stopped.set()
        self._thread.join()
        return max(self.longest.values()), min(self.longest.values())

    async def _run(self) -> None:
        server = RedisServer(self.url, name="probe")
        async with asyncio.TaskGroup() as group:
            for shard in self.shards:
                group.create_task(self._write(server, shard), name=f"probe {shard.number}")
        await server.aclose()

    async def _write(self, server: RedisServer, shard: ShardKeys) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            with suppress(ServerError):
                await server.run(LEASE, lease=f"{shard.prefix}:probe", token="probe", lasts=60_000)
            self.longest[shard.number] = max(self.longest.get(shard.number, 0.0), time.monotonic() - began)
            await asyncio.sleep(PROBE_SECONDS)


class Trouble:
    """What happens to the servers of a run."""

    def __init__(self, plan: Plan, servers: SentinelSet | ClusterSet) -> None:
        self.failovers = self.migrations = 0
        self._plan = plan
        self._servers = servers
        self._dead: list[tuple[float, Node]] = []
        self._next = time.monotonic() + plan.every / 2
        self._migrate_at = time.monotonic() + plan.every
        self._dice = random.Random(1)

    def tick(self, *, calm: bool = False) -> None:
        """Do what is due; when ``calm``, nothing but start again who has been dead for long enough."""
        now = time.monotonic()
        for due, node in list(self._dead):
            if now > due:
                node.start()
                self._dead.remove((due, node))
        if calm:
            return
        if now > self._next:
            self._next += self._plan.every
            self._fail_over()
        if isinstance(self._servers, ClusterSet) and now > self._migrate_at and self._servers.healthy():
            self._migrate_at += self._plan.every
            slot = key_slot(_shards(self._plan)[self.migrations % 16].prefix.encode())
            try:
                self._servers.migrate(slot, atomic=bool(self.migrations % 2))
                self.migrations += 1
            except RedisError as error:  # a node that has just come back
                print(f"    a slot did not move: {error}")

    def heal(self) -> None:
        """Start again who is dead."""
        for _, node in self._dead:
            node.start()
        self._dead.clear()

    def _fail_over(self) -> None:
        if self._plan.planned and isinstance(self._servers, SentinelSet):
            coordinated = ("COORDINATED",) if self._plan.coordinated else ()
            self._servers.ask("SENTINEL", "FAILOVER", NAME, *coordinated)
        elif self._plan.planned and isinstance(self._servers, ClusterSet):
            self._servers.hand_over(self._dice)
        else:
            nodes = self._servers.primaries() if isinstance(self._servers, ClusterSet) else [self._servers.primary()]
            node = self._dice.choice(nodes)
            node.kill()
            self._dead.append((time.monotonic() + self._plan.back, node))
        self.failovers += 1


def run(plan: Plan, directory: Path) -> dict[str, Any]:
    """Play ``plan`` in the empty ``directory``; returns facts and faults."""
    write_application(directory / "app")
    (directory / "books").mkdir()
    kind = SentinelSet if plan.kind == "sentinel" else ClusterSet
    servers: SentinelSet | ClusterSet = kind(directory / "s", down_after=plan.down_after)
    cast = Cast(list(_players(plan, directory, servers.url)), random.Random(1))
    probe = Probe(servers.url, _shards(plan))
    try:
        servers.start()
        cast.start()
        probe.start()
        wait_for(lambda: all(player.log.stat().st_size for player in cast.players if not player.finite))
        facts = _play(plan, cast, Trouble(plan, servers))
        facts["gap_ms"], facts["others_ms"] = (round(1000 * seconds) for seconds in probe.stop())
        facts["unclean"] = _end(plan, cast, servers)
        _collect(plan, servers, directory)
    finally:
        probe._stopped.set()
        cast.kill()
        servers.stop()
    findings = check(Books(directory, plan.conversations, TURNS, ANSWERING))
    facts |= {"slowest_ms": _slowest(directory)}
    return {**findings.facts, **facts, **findings.faults, "examples": findings.examples}


def _play(plan: Plan, cast: Cast, trouble: Trouble) -> dict[str, Any]:
    began = time.monotonic()
    while not all(player.done for player in cast.players if player.finite):
        if time.monotonic() - began > plan.seconds + 60:
            break
        trouble.tick(calm=time.monotonic() - began > plan.seconds - BACK_SECONDS)
        cast.revive()
        time.sleep(0.05)
    trouble.heal()
    seconds = round(time.monotonic() - began)
    return {"seconds": seconds, "failovers": trouble.failovers, "migrations": trouble.migrations}


def _end(plan: Plan, cast: Cast, servers: SentinelSet | ClusterSet) -> int:
    """End everyone, the scribe last; returns how many ended badly."""
    scribes = [player for player in cast.players if player.name == "scribe"]
    others = [player for player in cast.players if player not in scribes and not player.finite]
    unclean = sum(not player.ended_well() for player in others)

    def written() -> bool:
        with _client(servers) as client:
            return not any(client.xlen(shard.log) for shard in _shards(plan))

    with suppress(AssertionError):
        wait_for(written, 20)
    return unclean + sum(not player.ended_well() for player in scribes)


def _collect(plan: Plan, servers: SentinelSet | ClusterSet, directory: Path) -> None:
    """Write down what the outbox holds."""
    with _client(servers) as client, (directory / "books" / "outbox.jsonl").open("w") as book:
        for shard in _shards(plan):
            for entry_id, fields in client.xrange(shard.outbox(FRONT)):
                line = {"id": entry_id, "conversation": fields["c"], "turn": fields["t"], **json.loads(fields["e"])}
                book.write(json.dumps(line) + "\n")


def _client(servers: SentinelSet | ClusterSet) -> Any:
    if isinstance(servers, SentinelSet):
        return Redis(port=servers.primary().port, decode_responses=True)
    return RedisCluster(host="127.0.0.1", port=servers.nodes[0].port, decode_responses=True)


def _shards(plan: Plan) -> tuple[ShardKeys, ...]:
    return all_shards(1) if plan.kind == "sentinel" else all_shards(16, clustered=True)


def _players(plan: Plan, directory: Path, url: str) -> Iterator[Player]:
    surroundings = environment(url, {"WAIT_REPLICAS": str(plan.wait_replicas), "DRAIN_SECONDS": "5"})
    for role, count in PLAYERS:
        for number in range(count):
            name = role if role == "scribe" else f"{role}{number}"
            argv = ["tests.chaos.worker", "none", "worker", "--app", str(directory / "app"), "--role", role]
            yield Player(name, argv, surroundings, directory / f"{name}.log")
    book = directory / "books" / "producer0.jsonl"
    argv = ["tests.chaos.producer", str(directory / "app"), str(book), "0", str(plan.conversations), str(TURNS)]
    yield Player("producer0", [*argv, str(plan.seconds)], surroundings, directory / "producer0.log", finite=True)


def _slowest(directory: Path) -> int:
    """The longest time from acceptance to answer, in ms."""
    accepted, longest = dict[tuple[int, int], float](), 0.0
    for line in (directory / "books" / "producer0.jsonl").read_text().splitlines():
        entry = json.loads(line)
        turn = entry["conversation"], entry["number"]
        if entry["what"] == "admitted":
            accepted[turn] = entry["at"]
        else:
            longest = max(longest, entry["at"] - accepted[turn])
    return round(1000 * longest)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["sentinel", "cluster"], help="sentinel, cluster")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rate", type=float, default=50.0, help="turns a second")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between failovers")
    parser.add_argument("--planned", action="store_true", help="hand the primary over instead of killing it")
    parser.add_argument("--coordinated", action="store_true", help="the same, as Valkey 9 can: without a lost write")
    parser.add_argument("--wait-replicas", type=int, default=0)
    parser.add_argument("--down-after", type=int, default=5000, help="ms of silence after which a server is down")
    parser.add_argument("--back", type=float, default=BACK_SECONDS, help="seconds until a killed primary starts again")
    parser.add_argument("--keep", action="store_true", help="keep the books")
    given = parser.parse_args()
    print(f"{'':10}", *(f"{name:>{max(len(name), 5)}}" for name in (*FACTS, *FAULTS)), flush=True)
    failed = False
    for kind in given.kinds:
        directory = Path(tempfile.mkdtemp(prefix="fo"))
        plan = Plan(
            kind, given.seconds, given.rate, given.every, given.planned or given.coordinated, given.wait_replicas,
            given.coordinated, given.down_after, given.back,
        )  # fmt: skip
        found = run(plan, directory)
        print(f"{kind:10}", *(f"{found.get(name, 0):>{max(len(name), 5)}}" for name in (*FACTS, *FAULTS)), flush=True)
        faults = sum(found.get(name, 0) for name in FAULTS)
        print("\n".join(f"    {example}" for example in found["examples"]), end="\n" if faults else "")
        failed |= bool(faults) and not plan.planned
        if given.keep:
            print(f"    its books are in {directory}")
        else:
            shutil.rmtree(directory)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
