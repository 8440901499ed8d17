"""An application's session: which server it uses, and who starts and stops the bundled one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rolecall.config import Application
from rolecall.errors import ConfigError, NothingRunning, ServerUnavailable
from rolecall.redis.server import RedisServer
from rolecall.session import open_session
from rolecall.settings import Settings
from tests.waiting import wait_until


def application(directory: Path, **settings: object) -> Application:
    return Application(directory, (), Settings.model_validate({"appendfsync": "everysec", **settings}), {})


async def test_the_bundled_server_is_started_once_shared_and_stopped_by_the_last(tmp_path: Path) -> None:
    here = application(tmp_path)
    with pytest.raises(NothingRunning, match=r"nothing is running in .*rolecall up"):
        async with open_session(here, "host:1~aaaaaa", start=False):
            pass
    async with open_session(here, "host:1~aaaaaa", start=True) as first:
        assert first.embedded is not None and first.found.startswith("Valkey ")
        async with open_session(here, "host:2~bbbbbb", start=False) as second:
            await first.server.call("SET", "a", "b")
            assert await second.server.call("GET", "a") == b"b"
    with pytest.raises(NothingRunning):
        async with open_session(here, "host:1~aaaaaa", start=False):
            pass


async def test_a_server_of_ones_own_is_used_as_it_is(server: RedisServer, tmp_path: Path) -> None:
    async with open_session(application(tmp_path, redis_url=server.url), "host:1~aaaaaa", start=False) as session:
        assert session.embedded is None and await session.server.call("PING") == b"PONG"


async def test_a_bundled_server_that_dies_is_started_again(tmp_path: Path) -> None:
    async with open_session(application(tmp_path), "host:1~aaaaaa", start=True) as session:
        await session.server.call("SET", "a", "b")
        await asyncio.sleep(1.1)  # until it is on the disk
        with pytest.raises(ServerUnavailable):
            await session.server.call("SHUTDOWN", "NOSAVE", "FORCE")

        async def kept() -> bool:
            try:
                return bool(await session.server.call("GET", "a") == b"b")
            except ServerUnavailable:
                return False

        await wait_until(kept)


async def test_a_bus_made_with_other_shards_is_refused(tmp_path: Path) -> None:
    async with open_session(application(tmp_path), "host:1~aaaaaa", start=True):
        with pytest.raises(ConfigError, match="SHARDS"):
            async with open_session(application(tmp_path, shards=4), "host:2~bbbbbb", start=True):
                pass


async def test_processes_of_one_directory_lead_one_after_the_other(tmp_path: Path) -> None:
    here = application(tmp_path)
    async with (
        open_session(here, "host:1~aaaaaa", start=True) as first,
        open_session(here, "host:2~bbbbbb", start=True) as second,
    ):
        one, two = first.leader("telegram"), second.leader("telegram")
        assert (await one.renew(), await two.renew()) == (True, False)
        await one.resign()
        assert await two.renew()
        await two.resign()
