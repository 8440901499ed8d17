"""`rolecall models ps|load|unload|clean|pull` as an operator uses them, with a real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall.serving.process import birth_of, lives
from tests.applications import CONFIG, make_application, run_rolecall, running
from tests.serving.processes import weights


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """At work with a model of this machine, which it loads as it starts."""
    weights()
    config = CONFIG.replace('"echo@test",', '"echo@test", "smollm2@local"')
    dotenv = "LOCAL_SLOTS=2\nLOCAL_CONTEXT=512\n"
    directory = make_application(tmp_path_factory.mktemp("app"), config=config, dotenv=dotenv)
    with running(directory):
        yield directory


def models(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_rolecall("models", *arguments, "--app", directory)


def test_a_model_is_loaded_shown_and_unloaded(application: Path) -> None:
    loaded = models(application, "load", "smollm2")
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert "smollm2@local is loaded after" in loaded.stdout
    head, row = models(application, "ps").stdout.splitlines()
    assert head.split() == ["model", "state", "slots", "in", "flight", "memory", "up", "idle", "where"]
    assert row.split()[:5] == ["smollm2@local", "pinned", "2", "0", row.split()[4]]
    assert 80 < int(row.split()[4]) < 2000, "MB"
    shown = json.loads(models(application, "ps", "--json").stdout)
    assert (shown["state"], shown["pinned"], shown["key"]) == ("ready", True, "")
    assert lives(shown["pid"], shown["birth"])

    left = models(application, "unload", "smollm2@local")
    assert (left.returncode, left.stdout.strip().endswith("is unloaded")) == (0, True)
    assert not lives(shown["pid"], shown["birth"])
    assert models(application, "ps").stdout.startswith("no model server is running")


def test_a_stray_is_shown_and_ended_and_nobody_else(application: Path) -> None:
    logs = application / ".rolecall" / "models"
    logs.mkdir(exist_ok=True)
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    with (logs / "old.log").open("wb") as log, (application / "other.log").open("wb") as other:
        stray = subprocess.Popen(sleep, stdout=log, stderr=log)
        stranger = subprocess.Popen(sleep, stdout=other, stderr=other)
    try:
        assert birth_of(stray.pid)
        cleaned = models(application, "clean")
        assert cleaned.returncode == 0, cleaned.stderr
        assert f"pid {stray.pid} ended" in cleaned.stdout
        assert str(stranger.pid) not in cleaned.stdout
        assert stray.wait(timeout=10) == -15
        assert stranger.poll() is None
    finally:
        for process in (stray, stranger):
            process.kill()
            process.wait()


def test_a_model_that_there_is_not_is_not_fetched(application: Path) -> None:
    pulled = models(application, "pull", "nobody")
    assert (pulled.returncode, pulled.stderr) == (
        2,
        "rolecall: 'nobody' is invalid: expected better or one of smollm2, qwen2.5-coder-1.5b\n",
    )
