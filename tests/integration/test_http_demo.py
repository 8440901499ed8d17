"""`rolecall demo --http`: users of a running server, each seen to begin and to end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.applications import clean_environment
from tests.command_line import ROLECALL
from tests.http.server import serving
from tests.http.stage import stage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    directory = tmp_path_factory.mktemp("http")
    async with stage(directory, echo_delay=0.4) as running, serving(running.session.application) as url:
        yield url


async def demo(*arguments: str) -> tuple[int | None, str, str]:
    """Its exit status, and what it prints and complains of."""
    process = await asyncio.create_subprocess_exec(
        ROLECALL, "demo", *arguments, env=clean_environment(),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


async def test_users_at_once_are_answered_at_once(url: str) -> None:
    status, said, complained = await demo("--http", url, "--users", "4")
    assert (status, complained) == (0, "")
    for user in range(1, 5):
        assert re.search(rf"^ *\d+\.\d\d s  user {user} starts$", said, re.MULTILINE)
        assert re.search(rf"^ *\d+\.\d\d s  user {user} finishes after \d+\.\d\d s$", said, re.MULTILINE)
    assert said.count("samplellm:host:1:") == 4
    assert re.search(r"^total \d+\.\d\d s: CONCURRENT$", said, re.MULTILINE)


async def test_the_messages_of_one_user_follow_each_other(url: str) -> None:
    status, said, _ = await demo("--http", url, "--users", "1", "--messages", "2")
    assert status == 0
    assert said.rstrip().endswith(": SEQUENTIAL")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("--role", "nobody"), 1, "was refused: role: expected one of"),
        (("--http", "nonsense"), 2, "expected an address such as http://127.0.0.1:10007"),
        (("--http", "http://127.0.0.1:1"), 1, "no server answers at http://127.0.0.1:1"),
    ],
)
async def test_what_cannot_be_is_told_in_a_line(url: str, arguments: tuple[str, ...], status: int, told: str) -> None:
    found, _, complained = await demo("--http", url, "--users", "2", *arguments)
    assert found == status
    assert told in complained and complained.count("\n") == 1
