"""The process log says with every line whose work it was."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall import Agent, Context, Envelope
from rolecall.agent.prompts import PLACE
from rolecall.agent.role import Role
from rolecall.bus.bus import Bus
from rolecall.bus.process.process_log import MOST_WAITING, ProcessLine, process_lines, public, publishing
from rolecall.cli.stderr_log import ForMachines, ForPeople
from rolecall.errors import ServerUnavailable
from rolecall.redis.server import RedisServer
from tests.deployment import deployed
from tests.waiting import wait_until

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
    took = {line["worker"]: line["text"] for line in lines if line["text"].startswith("handled ")}
    answering = [worker for worker in took if worker.startswith("samplellm:")]
    assert sorted(answering) == ["samplellm:host:1:0", "samplellm:host:1:1"]
    assert {took[worker].split("/")[0] for worker in answering} == {"handled a:0", "handled a:1"}
    beside = [line["worker"] for line in lines if line["logger"] == "rolecall.worker.runtime"]
    assert set(beside) == {PROCESS}


def test_people_see_it_in_every_line_too() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "the key is %s", ("sk-secret",), None)
    line = ForPeople(("sk-secret",)).format(record)
    assert line.split(" ", 1)[1] == f"warning {PROCESS} the key is •••"


def test_what_a_user_wrote_cannot_pass_for_a_line_or_reach_the_terminal() -> None:
    said = "\x1b]52;c;ZXZpbA==\x07\n12:00:00 error   root all is lost\r\x9b2J"
    record = logging.LogRecord("rolecall", logging.WARNING, __file__, 1, "no answer to %s", (said,), None)
    first, *rest = ForPeople(()).format(record).split("\n")
    assert first.endswith(r"no answer to \x1b]52;c;ZXZpbA==\x07")
    assert rest == [r"  12:00:00 error   root all is lost\x0d\x9b2J"]


class FailingManagerAgent(Agent):
    """Fails with what it was asked."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        raise RuntimeError(envelope.text)


async def published(bus: Bus, **wanted: Any) -> list[ProcessLine]:
    return [line for _, line in await process_lines(bus, **wanted)]


async def test_warnings_errors_and_how_a_process_lives_are_published_and_single_turns_are_not(bus: Bus) -> None:
    runtime, turns = logging.getLogger("rolecall.worker.runtime"), logging.getLogger("rolecall.worker.handling")
    for logger in (runtime, turns):
        logger.setLevel("INFO")
    async with publishing(bus):
        runtime.info("role %s: %d instances", "manager", 2)
        turns.info("handling telegram:42/1")
        runtime.warning("the key is %s", "sk-abcdefghijklmnopqrstuvwxyz0123456789")
        logging.getLogger("agents.manager").error("a user wrote: my secret")
        await asyncio.to_thread(turns.error, "two\nlines", extra=public("one line"))

    lines = await published(bus)
    assert [(line.level, line.process) for line in lines] == [
        ("info", bus.process), ("warning", bus.process), ("error", bus.process),
    ]  # fmt: skip
    assert [line.text for line in lines] == ["role manager: 2 instances", "the key is •••", "one line"]
    assert [line.level for line in await published(bus, level="warning")] == ["warning", "error"]
    assert await published(bus, process="host:2~bbbbbb") == []
    newest = (await process_lines(bus, limit=1))[0]
    assert newest[1].text == "one line"
    assert await process_lines(bus, newest[0]) == []


async def test_of_an_exception_only_the_type_is_published(bus: Bus) -> None:
    logger = logging.getLogger("rolecall.worker.worker")
    async with publishing(bus):
        try:
            raise ValueError("what a user wrote")
        except ValueError as error:
            logger.exception("an instance failed")
            logger.warning("not served: %s", error)
        logger.warning("not registered: %s", ServerUnavailable("no connection to the server"))
    assert [line.text for line in await published(bus)] == [
        "an instance failed: ValueError", "not served: ValueError", "not registered: no connection to the server",
    ]  # fmt: skip


async def test_what_is_given_up_is_published_without_its_reason(tmp_path: Path) -> None:
    async with deployed(tmp_path, (Role(FailingManagerAgent),)) as deployment:
        await deployment.ask("a:1", "my secret")

        async def told() -> bool:
            found = [line.text for line in await published(deployment.session.bus, level="warning")]
            assert not [text for text in found if "secret" in text]
            return {"gave up a:1/1 hop 0", "failed at a:1/1 hop 0: RuntimeError"} <= set(found)

        await wait_until(told)


async def test_a_flood_is_cut_and_counted(bus: Bus) -> None:
    logger = logging.getLogger("rolecall.worker.worker")
    async with publishing(bus):
        for n in range(MOST_WAITING + 20):
            logger.warning("line %d", n)
    lines = [line.text for line in await published(bus)]
    assert lines == ["20 more lines were left out", *(f"line {n}" for n in range(20, MOST_WAITING + 20))]


async def test_lines_of_an_outage_wait_for_its_end(bus: Bus, server: RedisServer) -> None:
    async with publishing(bus):
        await server.call("CONFIG", "RESETSTAT")
        await server.call("REPLICAOF", "127.0.0.1", "1")
        try:
            logging.getLogger("rolecall.worker.worker").warning("during the outage")

            async def refused() -> bool:
                told = (await server.info("commandstats")).get("cmdstat_xadd", "")
                return bool(told) and "rejected_calls=0" not in told

            await wait_until(refused)
        finally:
            await server.call("REPLICAOF", "NO", "ONE")

        async def told() -> bool:
            return "during the outage" in [line.text for line in await published(bus)]

        await wait_until(told)
