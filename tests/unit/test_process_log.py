"""The process log says with every line whose work it was."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall.agent.prompts import PLACE
from rolecall.agent.role import Role
from rolecall.cli.runner import ForMachines, ForPeople
from tests.deployment import deployed

PROCESS = f"{socket.gethostname()}:{os.getpid()}"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What ForMachines makes of the log at INFO."""
    root, kept = logging.getLogger(), logging.getLogger().level
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(ForMachines(()))
    root.addHandler(handler)
    root.setLevel("INFO")
    yield handler.stream
    root.removeHandler(handler)
    root.setLevel(kept)


async def test_one_can_see_which_instance_took_what(tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / PLACE).parent.mkdir(parents=True)
    (tmp_path / PLACE).symlink_to(Path(__file__).parents[2] / PLACE)
    roles = (Role(ManagerAgent), Role(SampleLLMAgent, 2, ("echo@test",)))
    async with deployed(tmp_path, roles, echo_delay=0.2) as deployment:
        await asyncio.gather(*(deployment.ask(f"a:{n}", "Hello") for n in range(2)))

    lines = [msgspec.json.decode(line) for line in log.getvalue().splitlines()]
    assert all(line["worker"] for line in lines)
    took = {line["worker"]: line["text"] for line in lines if line["text"].startswith("handling ")}
    answering = [worker for worker in took if worker.startswith("samplellm:")]
    assert sorted(answering) == ["samplellm:host:1:0", "samplellm:host:1:1"]
    assert {took[worker].split("/")[0] for worker in answering} == {"handling a:0", "handling a:1"}
    done = [line["worker"] for line in lines if line["text"].startswith("handled a:")]
    assert set(answering) < set(done)
    beside = [line["worker"] for line in lines if line["logger"] == "rolecall.worker.runtime"]
    assert set(beside) == {PROCESS}


def test_people_see_it_in_every_line_too() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "the key is %s", ("sk-secret",), None)
    line = ForPeople(("sk-secret",)).format(record)
    assert line.split(" ", 1)[1] == f"warning {PROCESS} the key is •••"
