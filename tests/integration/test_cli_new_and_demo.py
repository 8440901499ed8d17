"""`rolecall new` and `rolecall demo`: what a stranger tries first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from rolecall.cli.new import fill
from tests.applications import run_rolecall, running

ROOT = Path(__file__).resolve().parents[2]
VERDICT = re.compile(r"wall (\d+\.\d\d) s, ideal (\d+\.\d\d) s: (CONCURRENT|SEQUENTIAL)")


def demo(*arguments: str, cwd: Path) -> tuple[list[str], float, float, str]:
    """The lines of a demo that must do well, and its figures."""
    done = run_rolecall("demo", *arguments, cwd=cwd, environment={"TMPDIR": str(cwd)})
    assert (done.stderr, done.returncode) == ("", 0)
    lines = done.stdout.splitlines()
    found = VERDICT.fullmatch(lines[-1])
    assert found, lines[-1]
    # The directory of this user's sockets is shared by all deployments, and stays, empty.
    left = [path for path in cwd.rglob("*") if not (path.is_dir() and path.name == f"rolecall-{os.getuid()}")]
    assert left == [], "it left something behind"
    return lines, float(found[1]), float(found[2]), found[3]


@pytest.fixture
def cwd() -> Iterator[Path]:
    """An empty directory with a short path, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="rc") as directory:
        yield Path(directory)


def test_as_many_instances_as_users_answer_all_at_once(cwd: Path) -> None:
    lines, wall, ideal, verdict = demo("--users", "6", "--delay", "0.8", cwd=cwd)
    assert verdict == "CONCURRENT"
    assert ideal == 0.8
    assert wall < 0.8 + 0.5
    assert sum("█" in line and line.startswith("user ") for line in lines) == 6
    assert len(set(re.findall(r"samplellm:\S+", "\n".join(lines)))) == 6


def test_fewer_instances_take_turns_close_to_the_ideal(cwd: Path) -> None:
    _, wall, ideal, verdict = demo("--users", "6", "--delay", "0.5", "--instances", "2", cwd=cwd)
    assert (verdict, ideal) == ("CONCURRENT", 1.5)
    assert wall < 1.5 + 0.5


def test_one_instance_is_sequential(cwd: Path) -> None:
    _, wall, ideal, verdict = demo("--users", "3", "--delay", "0.2", "--instances", "1", cwd=cwd)
    assert (verdict, ideal) == ("SEQUENTIAL", 0.6)
    assert wall >= 0.6


def test_one_user_s_messages_are_answered_one_after_the_other(cwd: Path) -> None:
    lines, _, ideal, verdict = demo("--users", "1", "--messages", "10", "--delay", "0.05", cwd=cwd)
    assert (verdict, ideal) == ("SEQUENTIAL", 0.5)
    assert [line.split("  ")[0] for line in lines[1:11]] == [f"user 1, {n}" for n in range(1, 11)]


def test_a_new_application_checks_and_runs_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "my own bot"
    done = run_rolecall("new", directory)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines()[-3:] == [f"  cd '{directory}'", "  rolecall check", "  rolecall up"]
    assert not list(directory.rglob("__pycache__")) and not list(directory.glob(".*_cache"))
    environment = {"GEN_MODEL": "echo@test", "HOME": str(tmp_path)}  # no weights in this home: none are asked for
    checked = run_rolecall("check", "--app", directory, environment=environment)
    assert checked.returncode == 0, checked.stdout
    with running(directory, environment=environment):
        assert "manager" in run_rolecall("scale", "--app", directory).stdout


def test_the_wheel_and_a_checkout_give_the_same_new_application(tmp_path: Path) -> None:
    wheel = tmp_path / "wheel"
    building = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheel)]
    if find_spec("hatchling") is None:
        building = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheel), str(ROOT)]
    subprocess.run(building, cwd=ROOT, check=True, capture_output=True)
    (built,) = wheel.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "installed")
    fill(tmp_path / "checkout")
    command = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rolecall.cli.new import fill; from pathlib import Path; "
    )
    command += "import rolecall; assert rolecall.__file__.startswith(sys.argv[1]); fill(Path(sys.argv[2]))"
    arguments = [str(tmp_path / "installed"), str(tmp_path / "packaged")]
    subprocess.run([sys.executable, "-c", command, *arguments], check=True, cwd=tmp_path)

    def contents(directory: Path) -> dict[str, bytes]:
        found = (path for path in directory.rglob("*") if path.is_file())
        return {str(path.relative_to(directory)): path.read_bytes() for path in found}

    assert contents(tmp_path / "checkout") == contents(tmp_path / "packaged")
    assert "agents/manager.py" in contents(tmp_path / "packaged")


def test_new_touches_nothing_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    done = run_rolecall("new", tmp_path / "mine")
    assert done.stderr == (
        f"rolecall: {tmp_path}/mine is not empty: expected a directory that is empty or does not exist\n"
    )
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_the_version_is_told(tmp_path: Path) -> None:
    assert re.fullmatch(r"rolecall \d+\.\d+\.\d+\n", run_rolecall("--version", cwd=tmp_path).stdout)
