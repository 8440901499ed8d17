"""``python -m tests.chaos``: chaos runs and, with ``--controls``, runs of a bus broken on purpose. Exit status 1 when
anything was lost, doubled, out of order, overlapping, stuck, wrong or torn, or when a control was not caught."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.chaos.checker import FAULTS, Findings
from tests.chaos.faults import KINDS_OF_FAULTS
from tests.chaos.run import Plan, run
from tests.chaos.steps import STEP_FACTS
from tests.chaos.worker import CONTROLS, STEPS_CONTROLS

FACTS = ("turns", "seconds", "kills", "freezes", "restarts", "taken over", "fenced", "apologies", "unclean")
CONTROL_RUNS = 5


def main() -> int:
    """The exit status."""
    options = _options()
    plan = Plan(options.conversations, options.turns, options.seed, interval=options.interval, faults=options.faults,
                steps=options.steps, patience=400.0 if options.steps else 180.0)  # fmt: skip
    _print_row("run", {name: name for name in (*facts(plan), *FAULTS)}, plan)
    failed = False
    if not options.only_controls:
        for seed in range(options.seed, options.seed + options.seeds):
            findings = _kept(replace(plan, seed=seed), f"seed {seed}", options.keep)
            if findings.total > 0 or findings.facts["unclean"] > 0:
                failed = True
                print(f"    this repeats it: {repeating(options, seed)}")
    if options.controls or options.only_controls:
        controls = STEPS_CONTROLS if options.steps else CONTROLS
        failed |= not all([_caught(plan, control, options.keep) for control in controls])
    return int(failed)


def repeating(options: argparse.Namespace, seed: int) -> str:
    """The command that repeats the run of ``seed`` and keeps its books."""
    size = f"--conversations {options.conversations} --turns {options.turns} --interval {options.interval:g}"
    faults = " --faults" * options.faults + " --steps" * options.steps
    return f'make chaos ARGS="--seed {seed} {size}{faults} --keep"'


def control_plan(plan: Plan, control: str, seed: int) -> Plan:
    """A run that hurts where the control is weak: sleepers without a fence, deaths between answer and release."""
    freezes = 1.0 if control == "no-fence" else 0.0
    size = min(plan.conversations, 60)
    return replace(
        plan, conversations=size, control=control, seed=seed, freezes=freezes, everyone=False, spread=5.0,
        patience=45.0, interval=0.7, faults=False,
    )  # fmt: skip


def _caught(plan: Plan, control: str, keep: bool) -> bool:
    for attempt in range(1, CONTROL_RUNS + 1):
        findings = _kept(control_plan(plan, control, attempt), f"{control} {attempt}", keep)
        if findings.caught:
            return True
    print(f"{control}: {CONTROL_RUNS} runs, and the checker saw nothing")
    return False


def _kept(plan: Plan, name: str, keep: bool) -> Findings:
    """The findings of a run; its directory stays with ``keep`` and when a sound bus failed."""
    directory = Path(tempfile.mkdtemp(prefix="chaos"))
    findings = run(plan, directory)
    _print_row(name, {**findings.facts, **findings.faults}, plan)
    if findings.total and plan.control == "none":
        print("\n".join(f"    {example}" for example in findings.examples))
        keep = True
    if keep:
        print(f"    its books are in {directory}")
    else:
        shutil.rmtree(directory)
    return findings


def facts(plan: Plan) -> tuple[str, ...]:
    """The columns before those of what went wrong."""
    return (*FACTS, *(KINDS_OF_FAULTS if plan.faults else ()), *(STEP_FACTS if plan.steps else ()))


def _print_row(name: str, values: dict[str, object], plan: Plan) -> None:
    cells = [f"{values.get(column, 0)!s:>{max(len(column), 5)}}" for column in (*facts(plan), *FAULTS)]
    print(f"{name:14}", *cells, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="how many runs")
    parser.add_argument("--seed", type=int, default=1, help="the first one's")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between strikes")
    parser.add_argument(
        "--faults", action="store_true", help="also failovers, READONLY, MISCONF and half-open connections"
    )
    parser.add_argument("--steps", action="store_true", help="handlers that record steps, call, ask and sleep")
    parser.add_argument("--controls", action="store_true", help="also run the bus broken on purpose")
    parser.add_argument("--only-controls", action="store_true", help="run nothing else")
    parser.add_argument("--keep", action="store_true", help="keep the books of every run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
