"""Runs the tests of the cases that docs/faults.md lists, by their names there.

    python -m tests.cases [CASE …]

The page is the only list: it names the tests, and this program reads them there.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/faults.md"
TEST = re.compile(r"`(test_\w+\.py[^`]*)`")


class Case(NamedTuple):
    """A case of the page: its number, and its tests, each a file with a ``-k`` expression or none."""

    number: str
    tests: tuple[tuple[Path, str], ...]


def cases() -> list[Case]:
    """The numbered cases of the page."""
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [Case(row[0].strip(), named_tests(row[-1])) for row in rows if re.fullmatch(r" ?\d+(\.\d+)? ?", row[0])]


def named_tests(text: str) -> tuple[tuple[Path, str], ...]:
    """The tests that ``text`` names: the file of each and its ``-k`` expression. Raises ValueError for one that does
    not exist."""
    found = []
    for name, *options in map(shlex.split, TEST.findall(text)):
        path = next(iter(TESTS.rglob(name)), None)
        if path is None:
            raise ValueError(f"there is no {name}")
        expression = options[1] if options[:1] == ["-k"] else ""
        source = path.read_text(encoding="utf-8")
        for word in expression.split(" or "):
            if not re.search(rf"def test_\w*{word}", source, re.IGNORECASE):
                raise ValueError(f"{name} has no test with {word!r} in its name")
        found.append((path, expression))
    return tuple(found)


def main(wanted: list[str]) -> int:
    """Run the tests of the ``wanted`` cases, else of all; returns the exit status."""
    chosen = [case for case in cases() if not wanted or case.number in wanted]
    if unknown := set(wanted) - {case.number for case in chosen}:
        print(f"docs/faults.md has no case {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    failed = []
    for case in chosen:
        for path, expression in case.tests:
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-n",
                "2",
                str(path),
                *(["-k", expression] * bool(expression)),
            ]
            done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
            summary = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
            print(f"{case.number:5} {path.name} {expression}: {'ok' if not done.returncode else summary}", flush=True)
            failed += [case.number] * bool(done.returncode)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
