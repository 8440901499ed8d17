"""``python -m tests.hosts``: three hosts under load, one cut off for a while, one far away on a bad line.

Each host is a network namespace with workers and an application directory of its own; a fourth has the server, the
scribe and a producer. Exit status 1 when an accepted turn was lost, doubled, out of order or stuck, or when what the
host that was cut off had begun was taken over late. See ``tests/network.py`` for what it needs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from redis import Redis

from rolecall.redis.embedded import find_binary
from rolecall.redis.keys import all_shards
from tests.chaos.application import ANSWERING, write_application
from tests.chaos.cast import ROOT, Cast, Player, environment
from tests.chaos.checker import FAULTS, Books, Findings, check, transcript_records
from tests.chaos.producer import FRONT
from tests.cluster import wait_for
from tests.network import Host, Network, missing

TURNS = 5
TAKEN_OVER_SECONDS = 18.0
"""LEASE_SECONDS and SCAN_SECONDS."""
CUT_AT = 10.0
FACTS = ("turns", "seconds", "taken over", "fenced", "p50_s", "p100_s", "passed", "lost_packets", "cut_packets")


@dataclass(frozen=True)
class Plan:
    """``rate`` turns a second for ``seconds``; one host is cut off for ``cut`` seconds, another one sends ``delay``
    seconds late and loses the share ``loss`` of its packets."""

    seconds: float = 60.0
    rate: float = 10.0
    cut: float = 30.0
    delay: float = 0.2
    loss: float = 0.01

    @property
    def conversations(self) -> int:
        """How many there are."""
        return round(self.seconds * self.rate / TURNS)


@dataclass
class HostPlayer(Player):
    """A process on a host."""

    inside: Sequence[str] = ()

    def started(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """See Player."""
        command = [*self.inside, sys.executable, "-m", *self.argv]
        return subprocess.Popen(command, env=dict(self.environment), cwd=ROOT, stdout=log, stderr=log)


def run(plan: Plan, directory: Path) -> dict[str, Any]:
    """Play ``plan`` in the empty ``directory``; returns facts and faults."""
    home, near, cut, far = hosts = [Host(number) for number in range(1, 5)]
    far.delay, far.loss = plan.delay, plan.loss
    for name in ("app", *(f"app{host.number}" for host in (near, cut, far))):
        write_application(directory / name)
    (directory / "books").mkdir()
    network, server = Network(hosts), None
    cast = Cast(list(_players(plan, directory, home, (near, cut, far))), random.Random(1))
    try:
        network.start()
        server = _server(home, directory)
        cast.start()
        wait_for(lambda: all(player.log.stat().st_size for player in cast.players if not player.finite))
        began, cut_at = _play(plan, cast, cut)
        unclean = _end(cast, directory)
        _collect(directory)
    finally:
        cast.kill()
        if server is not None:
            server.kill()
            server.wait()
        network.stop()
    books = Books(directory, plan.conversations, TURNS, ANSWERING)
    findings = check(books)
    waits = sorted(take_over_seconds(books, cut_at, plan.cut))
    fenced = sum(path.read_text(errors="replace").count("too late to settle") for path in directory.glob("*.log"))
    facts = {
        "fenced": fenced, "seconds": round(time.time() - began), "unclean": unclean, "passed": network.counts["passed"],
        "lost_packets": network.counts["lost"], "cut_packets": network.counts["cut"],
        "p50_s": round(waits[len(waits) // 2], 1) if waits else 0, "p100_s": round(waits[-1], 1) if waits else 0,
    }  # fmt: skip
    return {**findings.facts, **facts, **findings.faults, "examples": findings.examples}


def take_over_seconds(books: Books, cut_at: float, lasted: float) -> list[float]:
    """How long after the cut, or after it was accepted if that was later, each turn was taken over meanwhile."""
    accepted = {
        (entry["conversation"], entry["turn"]): entry["at"]
        for entry in books.read("producer*.jsonl")
        if entry["what"] == "admitted"
    }
    waits: list[float] = []
    for conversation in range(books.conversations):
        for record in transcript_records(books, conversation, Findings()):
            if record.word == "TAKEN_OVER" and cut_at <= record.ms / 1000 <= cut_at + lasted:
                waits.append(record.ms / 1000 - max(cut_at, accepted[conversation, record.turn]))
    return waits


def _play(plan: Plan, cast: Cast, cut: Host) -> tuple[float, float]:
    """Returns when it began, and when the host was cut off, by the clock on the wall."""
    began, cut_at = time.time(), 0.0
    while not all(player.done for player in cast.players if player.finite):
        since = time.time() - began
        if since > plan.seconds + plan.cut + 60:
            break
        cut.cut = CUT_AT <= since < CUT_AT + plan.cut
        if cut.cut and not cut_at:
            cut_at = time.time()
        time.sleep(0.02)
    while time.time() < cut_at + plan.cut + 5:  # the one that was cut off is heard again
        cut.cut = time.time() < cut_at + plan.cut
        time.sleep(0.02)
    return began, cut_at


def _end(cast: Cast, directory: Path) -> int:
    """End everyone, the scribe last; returns how many ended badly."""
    scribes = [player for player in cast.players if player.name == "scribe"]
    others = [player for player in cast.players if player not in scribes and not player.finite]
    unclean = sum(not player.ended_well() for player in others)
    with suppress(AssertionError):
        wait_for(lambda: not _client(directory).xlen(all_shards(1)[0].log), 20)
    return unclean + sum(not player.ended_well() for player in scribes)


def _collect(directory: Path) -> None:
    """Write down what the outbox holds."""
    with (directory / "books" / "outbox.jsonl").open("w") as book:
        for entry_id, fields in _client(directory).xrange(all_shards(1)[0].outbox(FRONT)):
            line = {"id": entry_id, "conversation": fields["c"], "turn": fields["t"], **json.loads(fields["e"])}
            book.write(json.dumps(line) + "\n")


def _client(directory: Path) -> Any:
    return Redis(unix_socket_path=str(directory / "s"), decode_responses=True)


def _server(home: Host, directory: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *home.inside, str(find_binary()), "--bind", home.address, "--port", "6379", "--protected-mode", "no",
            "--unixsocket", str(directory / "s"), "--save", "", "--appendonly", "yes", "--dir", str(directory),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def answers() -> bool:
        with suppress(Exception):
            return bool(_client(directory).ping())
        return False

    wait_for(answers)
    return process


def _players(plan: Plan, directory: Path, home: Host, others: Sequence[Host]) -> Iterator[HostPlayer]:
    surroundings = environment(f"redis://{home.address}:6379", {"DRAIN_SECONDS": "5", "APP_NAME": "hosts"})

    def player(name: str, host: Host, *argv: str, finite: bool = False) -> HostPlayer:
        return HostPlayer(name, argv, surroundings, directory / f"{name}.log", finite=finite, inside=host.inside)

    def worker(name: str, host: Host, app: str, role: str) -> HostPlayer:
        return player(name, host, "tests.chaos.worker", "none", "worker", "--app", str(directory / app), "--role", role)

    yield worker("scribe", home, "app", "scribe")
    for host in others:
        yield worker(f"manager{host.number}", host, f"app{host.number}", "manager")
        yield worker(f"{ANSWERING}{host.number}", host, f"app{host.number}", ANSWERING)
    book = directory / "books" / "producer0.jsonl"
    numbers = ("0", str(plan.conversations), str(TURNS), str(plan.seconds))
    yield player(
        "producer0", home, "tests.chaos.producer", str(directory / "app"), str(book), *numbers, finite=True
    )  # fmt: skip


def main() -> int:
    """The exit status; 0 where hosts are not possible."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=10.0, help="turns a second")
    parser.add_argument("--cut", type=float, default=30.0, help="seconds for which a host is cut off")
    parser.add_argument("--keep", action="store_true", help="keep the books")
    given = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}; run it as root on Linux")
        return 0
    directory = Path(tempfile.mkdtemp(prefix="ho"))
    found = run(Plan(given.seconds, given.rate, given.cut), directory)
    columns = (*FACTS, *FAULTS)
    print(*(f"{name:>{max(len(name), 5)}}" for name in columns))
    print(*(f"{found.get(name, 0):>{max(len(name), 5)}}" for name in columns))
    print("\n".join(f"    {example}" for example in found["examples"]))
    if given.keep:
        print(f"    its books are in {directory}")
    else:
        shutil.rmtree(directory)
    late = found["p100_s"] > TAKEN_OVER_SECONDS
    return int(late or not found["p100_s"] or any(found.get(name, 0) for name in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
