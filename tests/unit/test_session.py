"""An application's session: which server it uses, and who starts and stops the bundled one."""

from __future__ import annotations

import asyncio
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rolecall.config import Application
from rolecall.errors import ConfigError, NothingRunning, ServerError, ServerUnavailable
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


async def test_a_bundled_server_that_dies_of_a_full_disk_again_and_again_says_why_and_is_started_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / ".rolecall" / "server"
    data.mkdir(parents=True, mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(data)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        async with open_session(application(tmp_path, appendfsync="always"), "host:1~aaaaaa", start=True) as session:

            async def fill() -> None:
                while True:
                    with suppress(ServerError):
                        await session.server.call("RPUSH", "list", "x" * 50_000)
                    await asyncio.sleep(0.01)

            began, filling = time.monotonic(), asyncio.create_task(fill(), name="filling the disk")
            await wait_until(lambda: len(restarts(caplog)) == 4, seconds=40)
            assert time.monotonic() - began > 4, "1 and 3 seconds are between the last of them"
            filling.cancel()
            subprocess.run(["mount", "-o", "remount,size=50m", data], check=True)
    finally:
        subprocess.run(["umount", data], check=True)
    assert "AOF write error" in restarts(caplog)[0] and "server is full" in restarts(caplog)[0]


def restarts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [told for record in caplog.records if "died and was restarted" in (told := record.getMessage())]


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
