"""The bundled server: one per directory, shared by processes, ended by the last, through every kill."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from rolecall.errors import ConfigError, MissingExtra, ServerUnavailable
from rolecall.redis.embedded import EmbeddedServer, find_binary
from tests.command_line import open_module
from tests.waiting import alive, wait_until


class Impatient(EmbeddedServer):
    answer_seconds = 0.3


class User:
    """A process that uses the server until its input ends."""

    def __init__(self, state_dir: Path, runtime_dir: Path, verb: str = "hold", *rest: str) -> None:
        self.process = open_module("tests.integration.embedded_user", verb, state_dir, runtime_dir, *rest)

    async def heard(self) -> dict[str, Any]:
        found = json.loads(await asyncio.to_thread(self.process.stdout.readline))
        assert isinstance(found, dict)
        return found

    async def end(self) -> int:
        await asyncio.to_thread(self.process.communicate)
        return self.process.wait()

    async def kill(self) -> None:
        self.process.kill()
        await self.end()


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rc-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def state_dir(tmp_path: Path, runtime_dir: Path) -> AsyncIterator[Path]:
    path = tmp_path / ".rolecall"
    yield path
    await end_server(path, runtime_dir)


async def end_server(state_dir: Path, runtime_dir: Path) -> None:
    """End it even if a failed test still uses it."""
    if server := await EmbeddedServer.find(state_dir, runtime_dir=runtime_dir):
        pid = await pid_of(server)
        os.kill(pid, signal.SIGTERM)
        await wait_until(lambda: not alive(pid))
        await server.leave()


async def about(server: EmbeddedServer) -> dict[str, Any]:
    async with Redis.from_url(server.url) as redis:
        found = await redis.info("server")
    return dict(found)


async def pid_of(server: EmbeddedServer) -> int:
    return int((await about(server))["process_id"])


async def test_the_first_user_starts_a_server_and_the_last_one_ends_it(state_dir: Path, runtime_dir: Path) -> None:
    first = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    second = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    assert (first.started, second.started) == (True, False)
    assert first.url == second.url
    pid = await pid_of(second)
    await first.leave()
    await first.leave()
    assert await pid_of(second) == pid
    await second.leave()
    await wait_until(lambda: not alive(pid))
    assert not list(runtime_dir.rglob("*.sock"))


async def test_data_outlives_the_server(state_dir: Path, runtime_dir: Path) -> None:
    for expected in (1, 2, 3):
        server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
        assert server.started
        async with Redis.from_url(server.url) as redis:
            assert await redis.incr("count") == expected
        await server.leave()


async def test_processes_that_start_at_once_share_one_server(state_dir: Path, runtime_dir: Path) -> None:
    users = [User(state_dir, runtime_dir) for _ in range(4)]
    heard = [await user.heard() for user in users]
    assert len({each["run"] for each in heard}) == 1
    assert sum(each["started"] for each in heard) == 1
    assert [await user.end() for user in users] == [0, 0, 0, 0]
    await wait_until(lambda: not alive(heard[0]["pid"]))


async def test_starts_racing_with_stops_lose_no_acknowledged_write(state_dir: Path, runtime_dir: Path) -> None:
    users = [User(state_dir, runtime_dir, "race", name, "15") for name in ("a", "b")]
    acknowledged = [(await user.heard())["acknowledged"] for user in users]
    assert [await user.end() for user in users] == [0, 0]
    assert (state_dir / "server.log").read_bytes().count(b"ready to exit") > 1
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    assert server.started
    async with Redis.from_url(server.url, decode_responses=True) as redis:
        entries = list(await redis.lrange("entries", 0, -1))
    await server.leave()
    for mine in acknowledged:
        assert [entry for entry in entries if entry[0] == mine[0][0]] == mine


async def test_a_killed_user_leaves_the_server_to_the_next(state_dir: Path, runtime_dir: Path) -> None:
    user = User(state_dir, runtime_dir)
    heard = await user.heard()
    async with Redis.from_url(heard["url"]) as redis:
        await redis.set("kept", "yes")
    await user.kill()
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    assert not server.started
    assert await pid_of(server) == heard["pid"]
    async with Redis.from_url(server.url) as redis:
        assert await redis.get("kept") == b"yes"
    await server.leave()
    await wait_until(lambda: not alive(heard["pid"]))


async def test_after_kill_9_of_the_server_the_next_user_starts_one_with_the_data(
    state_dir: Path, runtime_dir: Path
) -> None:
    first = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    async with Redis.from_url(first.url) as redis:
        await redis.set("kept", "yes")
    os.kill(await pid_of(first), signal.SIGKILL)
    second = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    assert second.started
    async with Redis.from_url(first.url) as redis:
        assert await redis.get("kept") == b"yes"
    await first.leave()
    await second.leave()


async def test_a_user_can_revive_a_killed_server_at_the_same_address(state_dir: Path, runtime_dir: Path) -> None:
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    url = server.url
    assert not await server.revive()
    os.kill(await pid_of(server), signal.SIGKILL)
    assert await server.revive()
    assert server.url == url
    await server.leave()
    with pytest.raises(ServerUnavailable, match="has left"):
        await server.revive()


async def test_a_very_long_application_directory_works(state_dir: Path, runtime_dir: Path) -> None:
    server = await EmbeddedServer.join(state_dir / ("a" * 200) / ".rolecall", runtime_dir=runtime_dir)
    async with Redis.from_url(server.url) as redis:
        assert await redis.ping()
    path = server.url.partition("@")[2]
    assert len(path) < 100
    await server.leave()


async def test_a_long_runtime_directory_is_passed_over(state_dir: Path, tmp_path: Path) -> None:
    long = tmp_path / ("r" * 100)
    long.mkdir()
    server = await EmbeddedServer.join(state_dir, runtime_dir=long)
    assert len(server.url.partition("@")[2]) < 100
    await server.leave()


async def test_users_with_different_runtime_directories_meet(state_dir: Path, runtime_dir: Path) -> None:
    first = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    second = await EmbeddedServer.join(state_dir)
    assert second.url == first.url
    await first.leave()
    await second.leave()


async def test_the_password_is_required(state_dir: Path, runtime_dir: Path) -> None:
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    path = server.url.partition("@")[2]
    for url in (f"unix://{path}", f"unix://:guess@{path}"):
        async with Redis.from_url(url, protocol=2) as stranger:
            with pytest.raises(RedisError, match=r"Authentication required|invalid username-password"):
                await stranger.ping()
    await server.leave()


async def test_files_are_for_this_user_only(state_dir: Path, runtime_dir: Path) -> None:
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    paths = [state_dir, *state_dir.rglob("*"), *runtime_dir.rglob("*")]
    assert state_dir / "server.password" in paths
    assert state_dir / "server" / "appendonlydir" in paths
    for path in paths:
        expected = 0o600 if path.is_file() else 0o700
        assert path.stat().st_mode & 0o777 == expected, path
    await server.leave()


async def test_the_server_hears_no_ctrl_c_and_knows_no_keys_of_its_starter(
    state_dir: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    pid = await pid_of(server)
    assert os.getsid(pid) == pid
    proc = Path(f"/proc/{pid}")
    if proc.exists():
        assert b"sk-secret" not in (proc / "environ").read_bytes()
        assert server.url[8:40].encode() not in (proc / "cmdline").read_bytes()
    await server.leave()


async def test_a_stale_record_of_another_process_is_neither_trusted_nor_harmed(
    state_dir: Path, runtime_dir: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        state_dir.mkdir()
        record = {"socket": str(runtime_dir / "elsewhere" / "x.sock"), "pid": bystander.pid}
        (state_dir / "server.json").write_text(json.dumps(record))
        server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
        assert server.started
        assert await pid_of(server) != bystander.pid
        await server.leave()
        assert bystander.poll() is None
        bystander.communicate(b"\n")


async def test_everysec_is_obeyed_and_always_makes_a_live_server_stricter(state_dir: Path, runtime_dir: Path) -> None:
    first = await EmbeddedServer.join(state_dir, appendfsync="everysec", runtime_dir=runtime_dir)
    async with Redis.from_url(first.url, decode_responses=True) as redis:
        assert (await redis.config_get("appendfsync"))["appendfsync"] == "everysec"
        second = await EmbeddedServer.join(state_dir, appendfsync="always", runtime_dir=runtime_dir)
        assert (await redis.config_get("appendfsync"))["appendfsync"] == "always"
        third = await EmbeddedServer.join(state_dir, appendfsync="everysec", runtime_dir=runtime_dir)
        assert (await redis.config_get("appendfsync"))["appendfsync"] == "always"
        expected = {"appendonly": "yes", "save": "", "maxmemory-policy": "noeviction", "port": "0"}
        assert await redis.config_get(*expected) == expected
    for server in (first, second, third):
        await server.leave()


async def test_finding_starts_nothing_and_makes_nothing(state_dir: Path, runtime_dir: Path) -> None:
    assert await EmbeddedServer.find(state_dir, runtime_dir=runtime_dir) is None
    assert not state_dir.exists()
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    found = await EmbeddedServer.find(state_dir, runtime_dir=runtime_dir)
    assert found is not None and not found.started
    await server.leave()
    pid = await pid_of(found)
    await found.leave()
    await wait_until(lambda: not alive(pid))
    assert await EmbeddedServer.find(state_dir, runtime_dir=runtime_dir) is None


async def test_a_server_that_dies_at_start_is_explained_by_its_log(state_dir: Path, runtime_dir: Path) -> None:
    (state_dir / "server" / "appendonlydir").mkdir(parents=True)
    (state_dir / "server" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(ServerUnavailable, match=r"ended while starting: .*manifest.*server.log") as caught:
        await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    assert (state_dir / "server.password").read_text() not in str(caught.value)
    assert await EmbeddedServer.find(state_dir, runtime_dir=runtime_dir) is None


async def test_a_server_that_cannot_start_on_a_full_disk_says_so(state_dir: Path, runtime_dir: Path) -> None:
    data = state_dir / "server"
    data.mkdir(parents=True, mode=0o700)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", data], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        (data / "ballast").write_bytes(b"x" * (os.statvfs(data).f_bavail * 4096))
        with pytest.raises(ServerUnavailable, match=r"; the disk of .*server is full"):
            await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    finally:
        subprocess.run(["umount", data], check=True)


async def test_a_damaged_file_of_the_server_is_told_and_repaired_as_the_docs_say(
    state_dir: Path, runtime_dir: Path, tmp_path: Path
) -> None:
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    async with Redis.from_url(server.url) as redis:
        for number in range(100):
            await redis.set(str(number), "x" * 100)
    await server.leave()
    (data,) = (state_dir / "server/appendonlydir").glob("*.incr.aof")
    whole = data.read_bytes()
    middle = len(whole) // 2
    data.write_bytes(whole[:middle] + b"\0" * 50 + whole[middle + 50 :])
    with pytest.raises(ServerUnavailable, match=r"docs/operators.md, .When the append-only file is damaged"):
        await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    repair = tmp_path / "valkey-check-aof"
    repair.symlink_to(find_binary())
    assert subprocess.run([repair, "--fix", data], input=b"y\n", capture_output=True).returncode == 0
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    async with Redis.from_url(server.url) as redis:
        assert await redis.exists("0") and 30 < await redis.dbsize() < 60
    await server.leave()


async def test_a_silent_server_is_reported_and_not_replaced(state_dir: Path, runtime_dir: Path) -> None:
    server = await Impatient.join(state_dir, runtime_dir=runtime_dir)
    pid = await pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ServerUnavailable, match=rf"has not answered for 0\.3 s; its process is {pid}"):
            await Impatient.join(state_dir, runtime_dir=runtime_dir)
        with pytest.raises(ServerUnavailable, match="does not stop"):
            await server.leave()
    finally:
        os.kill(pid, signal.SIGCONT)
    await wait_until(lambda: not alive(pid) or bool(list(runtime_dir.rglob("*.sock"))))


async def test_a_lost_password_of_a_live_server_is_explained(state_dir: Path, runtime_dir: Path) -> None:
    server = await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    password = state_dir / "server.password"
    password.rename(state_dir / "aside")
    with pytest.raises(ServerUnavailable, match=r"refuses the password in .*server\.password"):
        await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)
    (state_dir / "aside").rename(password)
    await server.leave()


async def test_a_start_that_is_cancelled_leaves_no_server(state_dir: Path, runtime_dir: Path) -> None:
    start = asyncio.create_task(EmbeddedServer.join(state_dir, runtime_dir=runtime_dir), name="start")
    await wait_until((state_dir / "server.json").exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert await EmbeddedServer.find(state_dir, runtime_dir=runtime_dir) is None


async def test_a_linked_runtime_directory_is_refused(state_dir: Path, runtime_dir: Path, tmp_path: Path) -> None:
    (runtime_dir / f"rolecall-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="must be a directory of this user, not a link"):
        await EmbeddedServer.join(state_dir, runtime_dir=runtime_dir)


async def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, runtime_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot use .*/file/.*REDIS_URL"):
        await EmbeddedServer.join(tmp_path / "file" / ".rolecall", runtime_dir=runtime_dir)


def test_the_missing_package_is_named_by_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"rolecall\[embedded\]"):
        find_binary("no_such_package")


def test_a_platform_without_a_server_is_told_the_way_out() -> None:
    with pytest.raises(ServerUnavailable, match=r"no server for windows-amd64.*REDIS_URL"):
        find_binary(system="Windows", machine="AMD64")
