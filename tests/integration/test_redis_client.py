"""The connections of a process: pipelined commands, blocking readers, servers that go away, return or are too old."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from rolecall.errors import ConfigError, ServerRefused, ServerUnavailable
from rolecall.redis.leader import LEASE
from rolecall.redis.server import RedisServer, connected
from tests.listening import listening
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until


async def test_commands_of_one_tick_share_a_connection_and_keep_their_order(server: RedisServer) -> None:
    replies = await asyncio.gather(*(server.call("RPUSH", "list", number) for number in range(500)))

    assert replies == list(range(1, 501))
    assert await server.call("LRANGE", "list", 0, -1) == [str(number).encode() for number in range(500)]
    assert server.connections == 1


async def test_a_refused_command_does_not_disturb_its_neighbours(server: RedisServer) -> None:
    good, bad, also_good = (server.send("SET", "a", 1), server.send("LPUSH", "a", 1), server.send("GET", "a"))

    assert await good == b"OK"
    with pytest.raises(ServerRefused, match="WRONGTYPE") as refused:
        await bad
    assert refused.value.code == "WRONGTYPE"
    assert await also_good == b"1"


async def test_a_script_the_server_has_forgotten_is_sent_again(server: RedisServer) -> None:
    await server.call("PING")
    await server.call("SCRIPT", "FLUSH")

    assert await server.run(LEASE, lease="{bus:0}:lease:x", token="me", lasts=1000) == 1


async def test_a_read_that_blocks_can_be_woken_and_a_read_just_beginning_too(server: RedisServer) -> None:
    reader = server.reader()
    for _ in range(20):
        read = asyncio.create_task(reader.read("XREAD", "BLOCK", 60_000, "STREAMS", "nothing", "$"))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await reader.wake()
            assert await read is None


async def test_a_server_that_comes_back_is_used_again_by_scripts_without_a_word(tmp_path: Path) -> None:
    process = ValkeyProcess(tmp_path)
    process.start()
    server = RedisServer(process.url)
    assert await server.run(LEASE, lease="{bus:0}:lease:x", token="me", lasts=60_000) == 1

    process.kill()
    with pytest.raises(ServerUnavailable) as away:
        await server.call("PING")
    assert isinstance(away.value.__cause__, RedisConnectionError)
    waiting = asyncio.create_task(server.run(LEASE, lease="{bus:0}:lease:x", token="me", lasts=60_000))
    await wait_until(lambda: not server.connected)
    process.start()

    assert await waiting == 1
    await server.aclose()
    process.kill()


async def test_a_server_that_stays_away_is_given_up_with_a_clear_error(tmp_path: Path) -> None:
    server = RedisServer(f"unix://{tmp_path}/nobody", patience=0.2)

    with pytest.raises(ServerUnavailable, match=r"did not answer for 0\.2 s"):
        await server.run(LEASE, lease="{bus:0}:lease:x", token="me", lasts=1)
    await server.aclose()


async def test_the_address_in_messages_has_no_password() -> None:
    server = RedisServer("redis://user:verysecret@127.0.0.1:1/0")

    with pytest.raises(ServerUnavailable) as refused:
        await server.check()
    assert "verysecret" not in str(refused.value)
    assert "redis://127.0.0.1:1/0" in str(refused.value)
    await server.aclose()


async def test_a_server_too_old_for_streams_like_ours_is_refused_with_what_was_found() -> None:
    async with saying_it_is("redis_version:6.2.14") as url:
        server = RedisServer(url)
        with pytest.raises(ServerUnavailable, match=r"Redis 6\.2\.14 at .* is too old: Redis 7\.0 or Valkey 7\.2"):
            await server.check()
        await server.aclose()


@asynccontextmanager
async def saying_it_is(info: str) -> AsyncIterator[str]:
    """A server that answers every command as an old Redis would: +OK, and INFO with ``info``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            arguments = [await _argument(reader) for _ in range(int(line[1:]))]
            body = f"{info}\r\n" if arguments[0] == b"INFO" else ""
            writer.write(f"${len(body)}\r\n{body}\r\n".encode() if body else b"+OK\r\n")

    async def _argument(reader: asyncio.StreamReader) -> bytes:
        length = int((await reader.readline())[1:])
        return (await reader.readexactly(length + 2))[:-2]

    async with listening(serve) as port:
        yield f"redis://127.0.0.1:{port}"


async def test_a_wrong_password_is_the_settings_fault_and_is_not_shown() -> None:
    process = ValkeyProcess(Path(tempfile.mkdtemp(prefix="rolecall")))
    process.start()
    try:
        async with connected(process.url) as admin:
            await admin.call("CONFIG", "SET", "requirepass", "right")
        for user in ("", "someone", "default"):
            server = RedisServer(process.url.replace("unix://", f"unix://{user}:wrong-one@"))
            with pytest.raises(ConfigError, match=r"refuses the login.*REDIS_PASSWORD") as caught:
                await server.check()
            assert "wrong-one" not in str(caught.value)
            await server.aclose()
    finally:
        process.kill()
        shutil.rmtree(process.directory)
