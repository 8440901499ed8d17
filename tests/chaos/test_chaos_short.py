"""Chaos in a quarter of a minute: what ``make chaos`` does at length. That its checker finds a bus broken on purpose
is shown by ``make proof``."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.run import Plan, run

SHORT = Plan(conversations=60, seed=11, interval=0.7, spread=6.0, patience=60.0)


def test_nothing_is_lost_doubled_disordered_or_stuck_while_processes_die_freeze_and_the_server_restarts(
    directory: Path,
) -> None:
    findings = run(SHORT, directory)
    assert not findings.examples
    assert findings.facts["kills"] + findings.facts["freezes"] >= 5
    assert (findings.facts["restarts"], findings.facts["unclean"]) == (2, 0)
