"""What the tests of model servers share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rolecall.redis.server import RedisServer
from rolecall.serving.launcher import Launcher
from tests.serving.processes import running, weights, zombies
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def file() -> Path:
    return weights()


@pytest.fixture
async def serving(server: RedisServer, tmp_path: Path) -> AsyncIterator[Launcher]:
    serving = Launcher(server, "p1", tmp_path)
    yield serving
    await serving.aclose()
    await wait_until(lambda: not running(tmp_path) | running(tmp_path, "host.py"))
    await wait_until(lambda: not zombies())
