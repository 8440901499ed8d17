"""An application of version 0.1 runs on this version as it is: its directory, its ``.env`` and its data. What a later
version wrote waits for a worker that can read it.

``application-0.1.tar.gz`` was made by version 0.1: ``rolecall new``, the model echo@test, an agent that refuses, and
``RETRIES`` in ``.env``. Then ``rolecall up`` answered a question, gave one up and made an API key, and was killed while
it answered the first of three questions of one conversation.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.dead_letters import count_dead_letters
from tests.applications import run_rolecall, running
from tests.deployment import deployed
from tests.waiting import wait_until

MADE = 1_795_730_773_000
"""When it was killed, in milliseconds."""


@pytest.fixture
def application() -> Iterator[Path]:
    """The application as if version 0.1 had been killed just now; its path is short, for the socket in it."""
    with tempfile.TemporaryDirectory(prefix="rc") as directory:
        with tarfile.open(Path(__file__).with_name("application-0.1.tar.gz")) as archive:
            archive.extractall(directory, filter="data")
        age = int(time.time() * 1000) - MADE
        for path in Path(directory, "app/.rolecall/server/appendonlydir").glob("*.incr.aof"):
            path.write_bytes(re.sub(rb"\b1795\d{9}\b", lambda at: b"%d" % (int(at[0]) + age), path.read_bytes()))
        yield Path(directory, "app")


async def test_everything_the_version_before_left_is_there_and_goes_on(application: Path) -> None:
    environment = {"HTTP_PORT": "0", "ECHO_DELAY": "0"}

    def said(*arguments: str) -> str:
        done = run_rolecall(*arguments, cwd=application, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with running(application, environment=environment):
        asked = run_rolecall("ask", "--conversation", "terminal:old", "Again", cwd=application, environment=environment)
        assert (asked.stdout, asked.returncode) == ("echo: Again\n", 0)
        assert asked.stderr == "RETRIES still works, but is called MAX_DELIVERIES now: rename it\n"

        await wait_until(lambda: '"echo: question 3"' in said("logs", "terminal:waiting"), seconds=20)
        answers = re.findall(r'PROCESSING_COMPLETE.*"(.*)"', said("logs", "terminal:waiting"))
        assert answers == ["echo: question 1", "echo: question 2", "echo: question 3"]

        assert '"What did I say?"' in said("logs", "terminal:old"), "the transcript goes on in the same conversation"
        assert "it was asked for" in said("dead", "list")
        assert "ann" in said("key", "list")


def test_check_finds_nothing_wrong_with_it(application: Path) -> None:
    done = run_rolecall("check", cwd=application)
    assert done.returncode == 0, done.stdout
    assert re.search(r"MAX_DELIVERIES +5 +\.env", done.stdout), "the former name is read"


class ManagerAgent(Agent):
    """Answers what it can read."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("fine")


async def test_an_envelope_of_a_newer_version_waits_for_a_worker_that_can_read_it(tmp_path: Path) -> None:
    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        bus, shard = app.session.bus, app.session.bus.shards[0]
        for runtime in app.runtimes:
            runtime.roster.set_count("manager", 0)
        received = await app.say("terminal:ann", "hello")
        (entry_id, flat), *_ = await bus.server.call("XRANGE", shard.stream("manager", "n"), "-", "+")
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        fields[b"e"] = fields[b"e"].replace(b'{"', b'{"v":2,"mood":"new","', 1)
        await bus.server.call("XDEL", shard.stream("manager", "n"), entry_id)
        flattened = [part for pair in fields.items() for part in pair]
        new_id = await bus.server.call("XADD", shard.stream("manager", "n"), "*", *flattened)
        at = f"{shard.stream('manager', 'n')}|{new_id.decode()}"
        await bus.server.call("HSET", shard.conversation("terminal:ann"), "at", at)

        for runtime in app.runtimes:
            runtime.roster.set_count("manager", 1)
            runtime.worker.freed_up()
        await wait_until(lambda: bus.server.call("ZCARD", shard.deferred))

        assert not await count_dead_letters(bus)
        assert await cancel_turn(bus, "terminal:ann", received.turn)
