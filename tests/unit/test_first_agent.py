"""docs/first-agent.md: its code is what `rolecall new` makes, and it works as the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rolecall.cli.new import new

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "src/rolecall/template"
PAGE = (ROOT / "docs/first-agent.md").read_text()
FILES = dict(re.findall(r"^In `([\w./]+)`:\n\n```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
CONFIG_LINES = next(re.finditer(r"in `config\.py`.*?\n\n```python\n(.*?)```", PAGE, re.DOTALL))[1].splitlines()


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """What `rolecall new` makes."""
    new(tmp_path / "my-assistant", Console(file=StringIO()))
    return tmp_path / "my-assistant"


def run(application: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=application,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_page_tells_of_an_agent_and_its_test() -> None:
    assert sorted(FILES) == ["agents/dice.py", "tests/test_dice.py"]
    assert len(CONFIG_LINES) == 2


def test_a_new_application_contains_what_the_page_shows(application: Path) -> None:
    assert {name: (application / name).read_text() for name in FILES} == FILES
    assert set(CONFIG_LINES) <= set((application / "config.py").read_text().splitlines())


def test_its_test_passes_once_its_steps_are_taken(application: Path) -> None:
    config = (application / "config.py").read_text()
    before = [line for line in config.splitlines() if line not in CONFIG_LINES]
    assert "Dice" not in "".join(before)
    for name in FILES:
        (application / name).unlink()
    for name, code in FILES.items():
        (application / name).write_text(code)
    (application / "config.py").write_text("\n".join(with_the_steps(before)))
    assert "2 passed" in run(application, "-m", "pytest", "-p", "no:cacheprovider")


def test_three_instances_are_what_runs(application: Path) -> None:
    script = "from rolecall.config import load; role = load('.').role('dice'); print(role.instances, role.match)"
    assert run(application, "-c", script) == "3 /roll\n"


def test_a_new_application_has_the_agents_of_this_one(application: Path) -> None:
    own = {path.name: path.read_text() for path in (ROOT / "agents").glob("*.py")}
    new_ones = {path.name: path.read_text() for path in (application / "agents").glob("*.py")}
    assert {name: text for name, text in new_ones.items() if name != "dice.py"} == own


def test_a_new_application_is_configured_like_this_one_but_for_the_new_agent(application: Path) -> None:
    assert without((application / "config.py").read_text(), CONFIG_LINES) == (ROOT / "config.py").read_text()


def test_a_new_application_keeps_its_secrets_and_logs_out_of_git(application: Path) -> None:
    ignored = (application / ".gitignore").read_text().split()
    assert {".env", ".rolecall/", "log/*", "!log/.gitkeep"} <= set(ignored)
    assert (application / "log/.gitkeep").exists()
    assert (application / ".env.example").read_text() == (ROOT / ".env.example").read_text()


def with_the_steps(before: list[str]) -> list[str]:
    """The lines of a config.py after step 3 of the page: an import on top of the others, a role as the last one."""
    imports = next(number for number, line in enumerate(before) if line.startswith("from agents."))
    last = max(number for number, line in enumerate(before) if line.lstrip().startswith("Role("))
    lines = [*before[: last + 1], CONFIG_LINES[1], *before[last + 1 :], ""]
    return [*lines[:imports], CONFIG_LINES[0], *lines[imports:]]


def without(text: str, lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line not in lines)
