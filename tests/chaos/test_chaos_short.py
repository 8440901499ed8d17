"""Chaos in half a minute: what ``make chaos`` does at length, and one bus broken on purpose."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.__main__ import control_plan
from tests.chaos.run import Plan, run

SHORT = Plan(conversations=60, seed=11, interval=0.7, spread=6.0, patience=60.0)
CONTROL_RUNS = 3


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="chaos"))  # short, for it holds a socket
    yield made
    shutil.rmtree(made)


def test_nothing_is_lost_doubled_disordered_or_stuck_while_processes_die_freeze_and_the_server_restarts(
    directory: Path,
) -> None:
    findings = run(SHORT, directory)
    assert not findings.examples
    assert findings.facts["kills"] + findings.facts["freezes"] >= 5
    assert (findings.facts["restarts"], findings.facts["unclean"]) == (2, 0)


def test_a_bus_that_answers_and_settles_in_two_steps_is_found_out(directory: Path) -> None:
    for attempt in range(1, CONTROL_RUNS + 1):
        plan = replace(control_plan(Plan(conversations=25, turns=4), "split-reply", attempt), patience=15.0)
        if run(plan, directory / str(attempt)).caught:
            return
    pytest.fail(f"{CONTROL_RUNS} runs of a broken bus, and the checker saw nothing")
