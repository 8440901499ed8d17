"""One engine per model on the real engine, whoever asks, whatever is killed; the longer forms are in
test_serving_long.py."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rolecall.errors import ModelUnavailable
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.serving.directory import USER_SECONDS
from rolecall.serving.keeper import ALONE_SECONDS
from rolecall.serving.launcher import Launcher
from rolecall.serving.process import birth_of, lives, ports_of, send
from rolecall.serving.spec import ModelServer, Spec
from tests.serving.processes import LONG, PROCESSES, measured, running, stub, tiny, users
from tests.waiting import wait_until

long = pytest.mark.skipif(not LONG, reason="ROLECALL_SERVING_PROOF=1 runs it")


async def only(serving: Launcher) -> ModelServer:
    (server,) = await serving.directory.servers()
    return server


async def test_all_who_ask_in_several_processes_share_one_engine_and_two_models_have_two(
    server: RedisServer, server_url: str, serving: Launcher, tmp_path: Path, file: Path
) -> None:
    async with users(PROCESSES, server_url, tmp_path, file) as asking:
        begun = time.monotonic()
        await asyncio.gather(*(user.ensure("tiny", 20 // PROCESSES) for user in asking))
        ready = [await user.said() for user in asking]
        measured("20 ensure from several processes, cold", time.monotonic() - begun)
        assert ready[0][0] == "ready" and len(ready[0]) == 2
        assert all(line == ready[0] for line in ready)
        assert len(running(tmp_path)) == len(running(tmp_path, "host.py")) == 1
        await asyncio.gather(*(user.ensure("other", 5) for user in asking[:2]))
        others = [await user.said() for user in asking[:2]]
        assert others[0] == others[1] != ready[0]
        assert len(running(tmp_path)) == 2

        # Whoever started it is killed; the others, and those who come, have the same one.
        for user in asking[1:]:
            await user.kill()
        await asking[0].ensure("tiny")
        assert await asking[0].said() == ready[0]
        assert ready[0][1].startswith(f"{(await serving.ensure(tiny(file))).pid}@")
        await asking[0].kill()
    if LONG:
        gone = time.monotonic()
        await serving.aclose()
        await wait_until(lambda: not running(tmp_path, "host.py"), seconds=USER_SECONDS + ALONE_SECONDS + 2)
        measured("engines gone after all who used them were killed", time.monotonic() - gone)
        assert [key for key in await server.call("KEYS", "*served*") if key] == []
    await server.call("DEL", keys.SERVED_USERS)  # else the dead are waited for


async def test_a_model_is_found_by_those_who_started_it_under_a_key_prefix(
    server: RedisServer, server_url: str, tmp_path: Path, file: Path
) -> None:
    async with users(1, server_url, tmp_path, file, "staging") as (user,):
        await user.ensure("tiny")
        assert (await user.said())[0] == "ready"
        assert await server.call("KEYS", "{bus:0}*") == []
    await wait_until(lambda: not running(tmp_path, "host.py"), seconds=USER_SECONDS + ALONE_SECONDS + 2)


async def test_ten_rapid_calls_start_one_and_later_ones_find_it_at_once(serving: Launcher, file: Path) -> None:
    spec = tiny(file)
    found = await asyncio.gather(*(serving.ensure(spec) for _ in range(10)))
    assert len({one.pid for one in found}) == 1
    assert ports_of(found[0].pid) == [int(found[0].url.rpartition(":")[2])], "the port is the engine's own"
    took = []
    for _ in range(40):
        begun = time.perf_counter()
        await serving.ensure(spec)
        took.append(time.perf_counter() - begun)
    measured("warm ensure, 95 of 100", sorted(took)[38])
    assert sorted(took)[20] < (0.005 if LONG else 0.1)


async def test_a_log_that_cannot_be_written_is_one_line_and_holds_no_place(
    server: RedisServer, tmp_path: Path, file: Path
) -> None:
    (tmp_path / "state").touch()
    serving = Launcher(server, "p1", tmp_path / "state" / "models")
    try:
        with pytest.raises(ModelUnavailable, match=f"cannot be started: Not a directory: {tmp_path}/state/models"):
            await serving.ensure(tiny(file))
        assert await serving.directory.servers() == []
    finally:
        await serving.aclose()


@long
async def test_threads_with_loops_of_their_own_share_it_too(server_url: str, tmp_path: Path, file: Path) -> None:
    pids: set[int] = set()

    async def ask(number: int) -> None:
        server = RedisServer(server_url)
        serving = Launcher(server, f"thread-{number}", tmp_path)
        pids.add((await serving.ensure(tiny(file, "threads"))).pid)
        await asyncio.to_thread(together.wait, 20)
        await serving.aclose()
        await server.aclose()

    together = threading.Barrier(3)
    threads = [threading.Thread(target=lambda n=n: asyncio.run(ask(n))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    assert len(pids) == 1
    assert not running(tmp_path)


async def test_a_killed_host_takes_its_engine_along_and_is_replaced(
    serving: Launcher, tmp_path: Path, file: Path
) -> None:
    first = await serving.ensure(tiny(file))
    os.kill(first.host_pid, signal.SIGKILL)
    await wait_until(lambda: not lives(first.pid, first.birth), seconds=5, what="the engine dies with its host")
    second = await serving.ensure(tiny(file))
    assert second.pid != first.pid
    assert running(tmp_path) == {second.pid}


@long
async def test_a_host_killed_while_it_loads_is_replaced_by_one(serving: Launcher, tmp_path: Path) -> None:
    asking = [asyncio.create_task(serving.ensure(stub("slow", delay=0.7))) for _ in range(5)]
    await wait_until(lambda: running(tmp_path, "host.py"))
    await wait_until(lambda: _has_host(serving))
    os.kill((await only(serving)).host_pid, signal.SIGKILL)
    found = await asyncio.gather(*asking)
    assert len({one.pid for one in found}) == 1
    assert len(running(tmp_path, "host.py")) == 1


async def test_a_host_that_slept_and_was_replaced_leaves_by_itself(serving: Launcher, tmp_path: Path) -> None:
    first = await serving.ensure(stub("a"))
    os.kill(first.host_pid, signal.SIGSTOP)
    await serving.directory.end(first.id)
    second = await serving.ensure(stub("a"))
    assert second.pid != first.pid
    os.kill(first.host_pid, signal.SIGCONT)
    await wait_until(lambda: running(tmp_path, "host.py") == {second.host_pid})
    assert not lives(first.pid, first.birth)
    assert (await only(serving)).id == second.id


@long
async def test_a_server_that_forgot_everything_is_told_anew(serving: Launcher, server: RedisServer) -> None:
    first = await serving.ensure(stub("a"))
    await server.call("FLUSHALL")
    await wait_until(serving.directory.servers)
    assert (await serving.ensure(stub("a"))).pid == first.pid


async def test_a_model_that_cannot_be_loaded_fails_once_for_all_who_ask(
    server_url: str, server: RedisServer, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    async with users(2, server_url, tmp_path, broken) as asking:
        await asyncio.gather(*(user.ensure("broken", 10) for user in asking))
        failed = [await user.said() for user in asking]
        assert [line[:2] for line in failed] == [["failed", "10"], ["failed", "10"]]
        assert "gguf_init" in " ".join(failed[0])
        logs = [path.read_text() for path in tmp_path.glob("broken-*.log")]
        assert len(logs) == 1 and logs[0].count("has ended: broken@local cannot be loaded") == 1


async def test_what_cannot_be_run_or_fit_is_said_with_the_numbers(server: RedisServer, tmp_path: Path) -> None:
    serving = Launcher(server, "p1", tmp_path, limit=1000, patience=0.1)
    wrong = {
        "a": (Spec("a@local", command=("/no/such/program",), ram=1), "a@local: /no/such/program cannot be run"),
        "b": (Spec("b@local", command=(sys.executable,)), "its memory needs are unknown"),
        "c": (stub("c", ram=1001), r"c@local needs about 1001 MB of memory; model servers here may take 1000 MB"),
    }
    for spec, said in wrong.values():
        with pytest.raises(ModelUnavailable, match=said):
            await serving.ensure(spec)
    await serving.aclose()


async def test_a_command_is_told_its_port_only_where_it_asks_and_its_own_port_is_found(serving: Launcher) -> None:
    chosen, given = await asyncio.gather(serving.ensure(stub("a")), serving.ensure(stub("b", port="{port}")))
    assert chosen.url != given.url
    for one in (chosen, given):
        assert ports_of(one.pid) == [int(one.url.rpartition(":")[2])]


async def test_an_idle_model_makes_room_and_a_busy_one_answers_first(server: RedisServer, tmp_path: Path) -> None:
    serving = Launcher(server, "p1", tmp_path, limit=150, resident=0.2)
    most = 0

    async def reserve() -> None:
        nonlocal most
        while True:
            most = max(most, sum(one.ram for one in await serving.directory.servers()))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(reserve())
    async with serving.calling(stub("a", ram=120)) as first:
        asking = asyncio.create_task(serving.ensure(stub("b", ram=120)))
        await asyncio.wait([asking], timeout=1)
        assert not asking.done() and lives(first.pid, first.birth), "a running answer is never cut"
        first_over = time.monotonic()
    second = await asking
    assert time.monotonic() - first_over < 10
    await wait_until(lambda: not lives(first.pid, first.birth))

    async def told() -> bool:
        return [one.id for one in await serving.directory.servers()] == [second.id]

    await wait_until(told, what="its host, which outlives it by a moment, says that it is gone")
    watching.cancel()
    assert most <= 150
    await serving.aclose()


async def test_a_model_that_nobody_asks_leaves_and_comes_back(serving: Launcher, tmp_path: Path) -> None:
    spec = stub("a", idle=0.5)
    async with serving.calling(spec) as first:
        with pytest.raises(AssertionError):
            await wait_until(lambda: not lives(first.pid, first.birth), seconds=1.0)
    await wait_until(lambda: not running(tmp_path, "host.py"))
    assert not await serving.directory.servers()
    async with serving.calling(spec) as second:
        assert second.pid != first.pid


@long
async def test_a_pinned_model_stays_though_nobody_asks(serving: Launcher) -> None:
    first = await serving.ensure(stub("a", idle=0.3))
    assert await serving.directory.pin(first.id, True)
    with pytest.raises(AssertionError):
        await wait_until(lambda: not lives(first.pid, first.birth), seconds=1.0)
    assert await serving.directory.pin(first.id, False)
    await wait_until(lambda: not lives(first.pid, first.birth))


async def test_a_model_is_unloaded_on_order_but_not_amid_an_answer_unless_told_so(serving: Launcher) -> None:
    async with serving.calling(stub("a")) as busy:
        assert await serving.directory.stop(busy.id) == "busy"
        assert await serving.directory.stop(busy.id, busy=True) == "stopping"
        await wait_until(lambda: not lives(busy.pid, busy.birth))

    async def told() -> bool:
        return await serving.directory.stop(busy.id) == "unknown"

    await wait_until(told, what="its host, which outlives it by a moment, says that it is gone")


def test_a_process_is_known_by_its_birth_and_a_stranger_with_its_pid_is_spared() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        birth = birth_of(process.pid)
        assert lives(process.pid, birth)
        assert not lives(process.pid, f"{birth}0")
        assert not send(process.pid, f"{birth}0", signal.SIGKILL)
        assert process.poll() is None
        assert send(process.pid, birth, signal.SIGKILL)
        process.wait()
        assert not lives(process.pid, birth)
        assert not send(process.pid, birth, signal.SIGKILL)


async def _has_host(serving: Launcher) -> bool:
    return any(one.host_pid for one in await serving.directory.servers())


def test_all_processes_of_a_machine_without_a_network_card_are_on_the_same_machine() -> None:
    """As in a container with --network none, where uuid.getnode() is another random number in each process."""
    program = (
        "import uuid; uuid._GETTERS, uuid._generate_time_safe = [], None\n"
        "from rolecall.serving.process import machine; print(uuid.getnode(), machine())"
    )
    command = [sys.executable, "-c", program]
    said = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split() for _ in range(2)]
    assert said[0][0] != said[1][0] and said[0][1] == said[1][1]
