"""The workflows, issue forms and the rest of what GitHub reads: valid, pinned, and true to the Makefile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": [path for path in WORKFLOWS if path.stem != "release"],
    "vendor.dependabot": [ROOT / ".github/dependabot.yml"],
    "vendor.github-issue-forms": [ROOT / f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "idea")],
    "vendor.github-issue-config": [ROOT / ".github/ISSUE_TEMPLATE/config.yml"],
}


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("schema", SCHEMAS)
def test_they_are_valid(schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, SCHEMAS[schema])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_reads_only_and_uses_actions_by_their_commit(workflow: Path) -> None:
    assert read(workflow)["permissions"] == {"contents": "read"}
    for used in re.findall(r"uses: (\S+)(.*)", workflow.read_text(encoding="utf-8")):
        pinned = re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used[0]) and re.fullmatch(r" # v\d+\.\d+\.\d+", used[1])
        assert pinned or used[0].startswith("./"), used


def test_an_action_has_the_same_commit_everywhere() -> None:
    used = {tuple(found) for path in WORKFLOWS for found in re.findall(r"uses: ([\w./-]+)@(\w{40})", path.read_text())}
    assert len({name for name, _ in used}) == len(used)


def test_what_they_make_is_a_target_of_the_makefile() -> None:
    files = [*WORKFLOWS, ROOT / ".github/pull_request_template.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci/run"]
    made = {name for path in files for name in re.findall(r"\bmake ([a-z][a-z-]*)", path.read_text(encoding="utf-8"))}
    assert {"test", "check", "docs", "audit", "dist", "chaos", "test-browser"} <= made <= TARGETS


def test_nothing_of_an_event_is_put_into_a_script() -> None:
    """What somebody else wrote, such as a branch's name, would be run."""
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            scripts = [step["run"] for step in job.get("steps", ()) if "run" in step]
            assert not [script for script in scripts if "${{" in script]


def test_the_matrix_has_the_supported_pythons() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert pythons == re.findall(r"Programming Language :: Python :: (3\.\d+)", project)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_that_makes_something_uses_the_python_it_set_up(workflow: Path) -> None:
    """The Makefile takes the newest Python it finds, and runners have several."""
    for name, job in read(workflow)["jobs"].items():
        steps = job.get("steps", ())
        if any(re.search(r"\bmake [a-z]", step.get("run", "")) for step in steps):
            (version,) = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
            assert job.get("env", {}).get("PYTHONS") == f"python{version}", name


def test_the_devcontainer_makes_a_target_that_exists() -> None:
    told = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert told["postCreateCommand"] == "make .venv/dev"
    assert "$(VENV)/dev:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_hooks_before_a_commit_run_files_that_exist() -> None:
    for hook in read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]:
        assert all((ROOT / word).exists() for word in hook["entry"].split() if word.startswith("tests/"))
