"""Models served by a program that config.py names."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from shlex import quote

import pytest

from rolecall.config import load
from rolecall.errors import ConfigError
from rolecall.models.providers.local import commanded
from rolecall.models.registry import probe
from rolecall.redis.server import RedisServer
from rolecall.serving.footprint import estimate
from rolecall.serving.launcher import Launcher
from rolecall.serving.spec import ModelCommand
from rolecall.settings import Settings
from tests.applications import CONFIG, make_application, own_modules
from tests.serving.processes import running, weights
from tests.waiting import wait_until

PROGRAM = Path(__file__).with_name("llama_like.py")


@pytest.fixture
async def serving(server: RedisServer, tmp_path: Path) -> AsyncIterator[Launcher]:
    serving = Launcher(server, "p1", tmp_path)
    yield serving
    await serving.aclose()
    await wait_until(lambda: not running(tmp_path, "llama_like.py"))


@pytest.fixture(scope="module")
def file() -> Path:
    return weights()


async def test_a_program_that_serves_the_openai_api_answers(serving: Launcher, file: Path) -> None:
    line = f"{quote(sys.executable)} {quote(str(PROGRAM))} -m {file} --port 0 -np {{slots}} -c {{tokens}}"
    model = commanded("tiny@served", ModelCommand(line, slots=2, context=512), Settings(), serving)
    assert (await probe(model)).startswith("tiny@served: first word after")
    (one,) = await serving.directory.servers()
    assert (one.model, one.slots, one.state) == ("tiny@served", 2, "ready")
    await model.aclose()


def test_memory_is_reckoned_from_the_weights_that_the_command_names(file: Path) -> None:
    two, four = (estimate(ModelCommand(f"x -m {file}", slots=n).spec("a@served", 0)) for n in (2, 4))
    assert 40 * 4 < four - two < 50 * 4, "24 kB for each of 4096 tokens of each slot"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('ModelCommand("")', "command is invalid: expected a program with its arguments"),
        ('ModelCommand("x \'y")', "command: No closing quotation"),
        ('ModelCommand("x -m y")', "ram=MB is required"),
        ('ModelCommand("x -m y.gguf", slots=0)', "slots and context of at least 1"),
        ("()", "or a ModelCommand"),
    ],
)
def test_what_is_wrong_about_it_is_said_when_the_application_is_loaded(tmp_path: Path, written: str, said: str) -> None:
    config = CONFIG.replace("import Config", "import Config, ModelCommand")
    config = config.replace('    appendfsync="everysec",', f'    servers={{"a@served": {written}}},')
    make_application(tmp_path, config=config)
    with own_modules(), pytest.raises(ConfigError, match="servers of a@served") as caught:
        load(tmp_path)
    assert said in str(caught.value)
