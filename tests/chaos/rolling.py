"""A rolling upgrade under load: workers change from one version to another, one after the other, while turns go on;
then the books are checked as after chaos. Front ends and the scribe are of this version throughout: the scribe is
upgraded first, and taken back last, because an older one may not know what newer processes write.

    python -m tests.chaos.rolling REVISION              # from that version to this one, and back
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.chaos.application import ANSWERING, CLOCKS, DELIVERIES, write_application
from tests.chaos.cast import ROOT, Cast, Player, environment
from tests.chaos.checker import Books, Findings, check
from tests.chaos.run import MANAGERS, WORKERS, Plan, Unhurt, _answered, _collect, _producers, _silence

STAY_SECONDS = 1.0
"""How long both versions work side by side before the next process changes, at least."""


def sources(revision: str, directory: Path) -> Path:
    """The directory with the package of ``revision``, which git has."""
    archive = subprocess.run(["git", "archive", revision, "src"], cwd=ROOT, capture_output=True, check=True)
    directory.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory / "src"


def roll(plan: Plan, directory: Path, before: Path, after: Path) -> Findings:
    """Play ``plan`` in the empty ``directory``, with workers from the sources ``before`` that become ``after``."""
    write_application(directory / "app")
    for name in ("data", "books"):
        (directory / name).mkdir()
    server = Unhurt(directory)
    url, began = server.start(), time.monotonic()
    old, new = (list(_workers(directory, url, path)) for path in (before, after))
    cast = Cast([*old, _scribe(directory, url), *_producers(plan, directory, url)], random.Random(plan.seed))
    try:
        cast.start()
        changed, unclean = _change(plan, cast, old, new, directory)
        unclean += _silence(cast, server.primary)
        _collect(server.primary, directory)
    finally:
        cast.kill()
        server.kill()
    findings = check(Books(directory, plan.conversations, plan.turns, ANSWERING))
    findings.facts |= {"seconds": round(time.monotonic() - began), "changed": changed, "unclean": unclean}
    return findings


def _change(plan: Plan, cast: Cast, old: list[Player], new: list[Player], directory: Path) -> tuple[int, int]:
    """Replace ``old`` by ``new`` while turns are answered, then wait for the rest; returns how many were replaced and
    how many of them ended badly."""
    ahead, unclean, give_up, changed = list(zip(old, new, strict=True)), 0, time.monotonic() + plan.patience, 0.0
    while time.monotonic() < give_up and not all(player.done for player in cast.players if player.finite):
        time.sleep(0.05)
        cast.revive()
        share = (len(old) - len(ahead)) / (len(old) + 1)
        due = _answered(directory) > share * plan.total and time.monotonic() > changed + STAY_SECONDS
        if ahead and due:
            leaving, coming = ahead.pop(0)
            cast.players[cast.players.index(leaving)] = coming
            coming.start()  # as a deployment does: first the new one, then the end of the old one
            unclean += not leaving.ended_well()
            changed = time.monotonic()
    return len(old) - len(ahead), unclean


def _workers(directory: Path, url: str, package: Path) -> Iterator[Player]:
    for role, count in (("manager", MANAGERS), (ANSWERING, WORKERS)):
        for number in range(count):
            yield _player(directory, url, package, role, f"{role}{number}")


def _scribe(directory: Path, url: str) -> Player:
    return _player(directory, url, ROOT / "src", "scribe", "scribe")


def _player(directory: Path, url: str, package: Path, role: str, name: str) -> Player:
    given = {**environment(url, CLOCKS | DELIVERIES), "PYTHONPATH": f"{ROOT}{os.pathsep}{package}"}
    argv = ["tests.chaos.plain", "worker", "--app", str(directory / "app"), "--role", role]
    return Player(name, argv, given, directory / f"{name}-{package.parent.name}.log")


def main() -> int:
    """Both directions; 1 if anything was found in either."""
    parser = argparse.ArgumentParser(description="a rolling upgrade under load, there and back")
    parser.add_argument("revision", help="the version before, as git knows it")
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--turns", type=int, default=10)
    given = parser.parse_args()
    plan, bad = replace(Plan(), conversations=given.conversations, turns=given.turns), 0
    with tempfile.TemporaryDirectory(prefix="rc") as place:
        before, after = sources(given.revision, Path(place, "before")), ROOT / "src"
        for name, one, other in (("there", before, after), ("back", after, before)):
            Path(place, name).mkdir()
            findings = roll(plan, Path(place, name), one, other)
            bad += bool(findings.faults)
            print(name, dict(findings.facts), dict(findings.faults) or "nothing found", flush=True)
            for example in findings.examples:
                print(" ", example)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
