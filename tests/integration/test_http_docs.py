"""docs/http.md and docs/openai.md: their examples run as they stand, and what they say of names and limits is so."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.http.server import serving
from tests.http.stage import stage

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is needed"),
]
PAGE = (Path(__file__).parents[2] / "docs/http.md").read_text(encoding="utf-8")
OPENAI_PAGE = (Path(__file__).parents[2] / "docs/openai.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with stage(tmp_path_factory.mktemp("http")) as running, serving(running.session.application) as url:
        yield url


async def said(command: str, url: str) -> str:
    """What a shell prints for a command of the page."""
    command = command.replace("http://127.0.0.1:10007", url)
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    told = (await process.communicate())[0].decode()
    assert process.returncode == 0
    return told


async def test_the_first_example_is_answered_as_shown(url: str) -> None:
    told = json.loads(await said(SHOWN[0], url))
    shown = re.search(r"```json\n(\{.*?\n\})", PAGE, re.DOTALL)
    assert shown and list(told) == list(json.loads(shown[1]))
    assert told["state"] == "done"


async def test_the_stream_tells_the_events_of_the_table(url: str) -> None:
    names = re.findall(r"^event: (\w+)$", await said(SHOWN[1], url), re.MULTILINE)
    assert (names[0], names[-1]) == ("snapshot", "done")
    table = PAGE.partition("| event | data |")[2].partition("Every 15 s")[0]
    assert set(names) <= set(re.findall(r"`(\w+)`", table))


async def test_the_async_example_is_accepted(url: str) -> None:
    told = await said(SHOWN[2], url)
    assert told.startswith("HTTP/1.1 202 ")
    assert re.search(r"(?im)^location: /chat/task/\S+\r?$", told)


async def test_the_openai_examples_work(url: str) -> None:
    told = await said(SHOWN[3], url)
    assert '"id":"auto"' in told
    assert told.rstrip().endswith("data: [DONE]")
    example = re.search(r"```sh\n(.*?)```", OPENAI_PAGE, re.DOTALL)
    assert example is not None
    assert json.loads(await said(example[1], url))["status"] == "completed"
