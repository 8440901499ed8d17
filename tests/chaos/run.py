"""One chaos run: the cast at work, a strike a second, the server restarted twice, then silence and the books."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from tests.chaos.application import ANSWERING, CLOCKS, DELIVERIES, write_application
from tests.chaos.cast import Cast, ChaosServer, Player, environment
from tests.chaos.checker import Books, Findings, check
from tests.chaos.faults import Faults
from tests.chaos.producer import FRONT
from tests.chaos.steps import check_steps

MANAGERS, WORKERS, PARTS = 2, 4, 2
RESTARTS = ((1 / 3, False), (2 / 3, True))
"""When the server ends, by the share of turns answered, and whether gently."""


@dataclass(frozen=True)
class Plan:
    """What a run is made of. ``control`` breaks the bus; with ``faults`` the server and the connections suffer too,
    and with ``steps`` the handlers record, call, ask and wait."""

    conversations: int = 300
    turns: int = 5
    seed: int = 1
    control: str = "none"
    interval: float = 1.0
    freezes: float = 0.3
    spread: float = 10.0
    patience: float = 180.0
    producers: int = 2
    everyone: bool = True
    faults: bool = False
    steps: bool = False

    @property
    def total(self) -> int:
        """Turns in all."""
        return self.conversations * self.turns


def run(plan: Plan, directory: Path) -> Findings:
    """Play ``plan`` in the empty ``directory``, whose path is short, and check the books. Takes as long as it takes
    to answer everything, at most ``patience`` seconds and the end."""
    write_application(directory / "app", steps=plan.steps)
    (directory / "data").mkdir()
    (directory / "books").mkdir()
    faults = Faults(directory, plan.seed) if plan.faults else None
    server = faults or Unhurt(directory)
    began = time.monotonic()
    url = server.start()
    cast = Cast([*_workers(plan, directory, url), *_producers(plan, directory, url)], random.Random(plan.seed))
    try:
        cast.start()
        server.begin()
        restarts = _play(plan, cast, server, directory)
        seconds = time.monotonic() - began
        server.end()
        unclean = _silence(cast, server.primary)
        _collect(server.primary, directory)
    finally:
        cast.kill()
        server.kill()
    findings = check(Books(directory, plan.conversations, plan.turns, ANSWERING))
    findings.facts |= {"seconds": round(seconds), **cast.struck, "restarts": restarts, "unclean": unclean}
    findings.facts |= server.struck
    if plan.steps:
        check_steps(Books(directory, plan.conversations, plan.turns, ANSWERING), findings)
    return findings


class Unhurt:
    """One server that suffers nothing but restarts, and is reached without a proxy."""

    def __init__(self, directory: Path) -> None:
        self.primary = ChaosServer(directory / "data")
        self.struck = dict[str, int]()

    def start(self) -> str:
        """Start it; its address."""
        self.primary.start()
        return self.primary.url

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def restart(self, *, gently: bool) -> None:
        """End it and start it again."""
        self.primary.restart(gently=gently)

    def kill(self) -> None:
        """End it at once."""
        self.primary.kill()


def _play(plan: Plan, cast: Cast, server: Faults | Unhurt, directory: Path) -> int:
    """Strike until all is answered or patience ends; returns how often the server was restarted."""
    ahead, give_up = list(RESTARTS), time.monotonic() + plan.patience
    next_strike = time.monotonic() + 2 * plan.interval
    victims = [player for player in cast.players if plan.everyone or player.name.startswith(ANSWERING)]
    struck = Cast(victims, cast.dice, plan.freezes, cast.struck)
    while time.monotonic() < give_up and not all(player.done for player in cast.players if player.finite):
        time.sleep(0.05)
        cast.revive()
        if time.monotonic() > next_strike:
            next_strike += plan.interval
            struck.strike()
        if ahead and _answered(directory) > ahead[0][0] * plan.total:
            server.restart(gently=ahead.pop(0)[1])
    return len(RESTARTS) - len(ahead)


def _silence(cast: Cast, server: ChaosServer) -> int:
    """Let zombies wake and try what they had in mind, then end everyone; returns how many ended badly."""
    cast.thaw()
    cast.revive()
    time.sleep(2.5)  # longer than any handler takes: nothing else tells that a zombie has tried
    unclean, scribes = 0, []
    for player in cast.players:
        if player.name == "scribe":
            scribes.append(player)
        elif not player.finite:
            unclean += not player.ended_well()
    with _connected(server) as client:
        give_up = time.monotonic() + 20
        while client.xlen("{bus:0}:l") and time.monotonic() < give_up:
            time.sleep(0.05)
    return unclean + sum(not player.ended_well() for player in scribes)


def _collect(server: ChaosServer, directory: Path) -> None:
    """Write down what the front end's outbox holds: every answer the bus ever gave, in its order."""
    with _connected(server) as client, (directory / "books" / "outbox.jsonl").open("w") as book:
        for entry_id, fields in client.xrange(f"{{bus:0}}:o:{FRONT}"):
            if json.loads(fields["e"])["kind"] == "asked":
                continue
            line = {"id": entry_id, "conversation": fields["c"], "turn": fields["t"], **json.loads(fields["e"])}
            book.write(json.dumps(line) + "\n")


def _workers(plan: Plan, directory: Path, url: str) -> Iterator[Player]:
    roles = ["manager"] * MANAGERS + [ANSWERING] * WORKERS + ["part"] * PARTS * plan.steps + ["scribe"]
    numbers = [*range(MANAGERS), *range(WORKERS), *range(PARTS * plan.steps), 0]
    for role, number in zip(roles, numbers, strict=True):
        control = "none" if role == "scribe" else plan.control
        argv = ["tests.chaos.worker", control, "worker", "--app", str(directory / "app"), "--role", role]
        name = role if role == "scribe" else f"{role}{number}"
        yield Player(name, argv, environment(url, CLOCKS | DELIVERIES), directory / f"{name}.log")


def _producers(plan: Plan, directory: Path, url: str) -> Iterator[Player]:
    share = -(-plan.conversations // plan.producers)
    for number in range(plan.producers):
        first, beyond = number * share, min((number + 1) * share, plan.conversations)
        book = directory / "books" / f"producer{number}.jsonl"
        argv = ["tests.chaos.producer", str(directory / "app"), str(book)]
        argv += [str(first), str(beyond), str(plan.turns), str(plan.spread)]
        log = directory / f"producer{number}.log"
        yield Player(f"producer{number}", argv, environment(url, CLOCKS | DELIVERIES), log, finite=True)


def _answered(directory: Path) -> int:
    books = (directory / "books").glob("producer*.jsonl")
    return sum(book.read_bytes().count(b'"what": "answered"') for book in books)


def _connected(server: ChaosServer) -> Redis:
    return Redis(unix_socket_path=str(server.socket), decode_responses=True)
