"""The longer forms of test_serving.py, run by ROLECALL_SERVING_PROOF=1; they print what they measure."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from rolecall.errors import ModelUnavailable
from rolecall.models import Done, Message, Request
from rolecall.models.providers.local import LocalModel
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.serving.directory import LAPSE_SECONDS, RETRY_SECONDS
from rolecall.serving.footprint import estimate
from rolecall.serving.launcher import Launcher
from rolecall.serving.process import lives, memory_of
from rolecall.settings import Settings
from tests import applications
from tests.integration.rolecall_process import environment, make_application
from tests.serving.processes import LONG, measured, running, stub, tiny, users, zombies
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not LONG, reason="ROLECALL_SERVING_PROOF=1 runs it")


async def test_a_load_longer_than_the_hold_on_its_place_starts_one(serving: Launcher, tmp_path: Path) -> None:
    spec = stub("slow", delay=LAPSE_SECONDS + 3)
    begun = time.monotonic()
    found = await asyncio.gather(*(serving.ensure(spec) for _ in range(10)))
    measured(f"10 ensure of a model that loads {LAPSE_SECONDS + 3:g} s", time.monotonic() - begun)
    assert len({one.pid for one in found}) == len(running(tmp_path, "host.py")) == 1


async def test_the_starter_is_killed_while_it_loads(
    server: RedisServer, server_url: str, serving: Launcher, tmp_path: Path, file: Path
) -> None:
    async with users(1, server_url, tmp_path, file) as (starter,):
        await starter.ensure("tiny")
        await wait_until(lambda: running(tmp_path))
        await starter.kill()
        loading = running(tmp_path)
        assert {(await serving.ensure(tiny(file))).pid} == loading
    await server.call("DEL", keys.SERVED_USERS)


async def test_killed_engines_and_hosts_are_replaced_in_time(serving: Launcher, tmp_path: Path, file: Path) -> None:
    for _ in range(5):
        for whose in ("pid", "host_pid"):
            one = await serving.ensure(tiny(file))
            begun = time.monotonic()
            os.kill(getattr(one, whose), signal.SIGKILL)
            await wait_until(lambda one=one: not lives(one.pid, one.birth), seconds=1)
            assert (await serving.ensure(tiny(file))).id != one.id
            took = time.monotonic() - begun
            measured(f"kill -9 of {whose} to the next ready engine", took)
            assert took < 5
            assert len(running(tmp_path)) == 1
    assert not zombies()


async def test_a_model_that_failed_may_be_tried_again_after_three_seconds(serving: Launcher, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    spec = tiny(broken, "broken")
    begun = time.monotonic()
    failed = await asyncio.gather(*(serving.ensure(spec) for _ in range(20)), return_exceptions=True)
    measured("20 errors of a model that cannot be loaded", time.monotonic() - begun)
    assert {type(one) for one in failed} == {ModelUnavailable}
    (log,) = tmp_path.glob("broken-*.log")
    first = log.stat().st_mtime_ns
    with pytest.raises(ModelUnavailable):
        await serving.ensure(spec)
    assert log.stat().st_mtime_ns == first
    await asyncio.sleep(RETRY_SECONDS)
    with pytest.raises(ModelUnavailable):
        await serving.ensure(spec)
    assert log.stat().st_mtime_ns > first


async def test_memory_for_one_real_model_is_used_by_two_in_turn(
    server: RedisServer, tmp_path: Path, file: Path
) -> None:
    need = estimate(tiny(file))
    serving = Launcher(server, "p1", tmp_path, limit=round(need * 1.3), resident=0.2)
    model = LocalModel(str(file), Settings(local_slots=2, local_context=512, local_threads=1), serving)
    most, kept, said = 0, [0], []

    async def reserve() -> None:
        nonlocal most
        while True:
            servers = await serving.directory.servers()
            most = max(most, sum(one.ram for one in servers))
            kept.append(sum(await asyncio.gather(*(asyncio.to_thread(memory_of, one.host_pid) for one in servers))))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(reserve())
    asking = None
    async for event in model.stream(Request((Message("user", "Write a long story about a dog."),), max_tokens=200)):
        said.append(event)
        asking = asking or asyncio.create_task(serving.ensure(tiny(file, "second")))
    assert isinstance(said[-1], Done) and asking is not None and not asking.done()
    begun = time.monotonic()
    second = await asking
    measured("swap after the first answer", time.monotonic() - begun)
    assert [one.id for one in await serving.directory.servers()] == [second.id]
    watching.cancel()
    print(f"reserved at most {most} MB, resident at most {max(kept)} MB of {round(need * 1.3)} MB")
    assert max(most, max(kept)) <= need * 1.3
    await serving.aclose()


async def test_an_engine_that_hangs_is_ended_and_replaced(serving: Launcher, tmp_path: Path) -> None:
    first = await serving.ensure(stub("a"))
    begun = time.monotonic()
    os.kill(first.pid, signal.SIGSTOP)
    await wait_until(lambda: not running(tmp_path, "host.py"), seconds=90)
    measured("an engine that hangs is gone", time.monotonic() - begun)
    assert not lives(first.pid, first.birth)
    assert (await serving.ensure(stub("a"))).pid != first.pid


async def test_a_system_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    with applications.running(make_application(tmp_path), environment=environment(GEN_MODEL="smollm2@local")) as up:
        await wait_until(lambda: running(tmp_path), seconds=30)
        begun = time.monotonic()
        up.terminate()
        await asyncio.to_thread(up.wait)
        await wait_until(lambda: not running(tmp_path) | running(tmp_path, "host.py"), seconds=5)
        measured("SIGTERM to nothing left", time.monotonic() - begun)


async def test_users_who_come_and_go_always_find_an_engine(server: RedisServer, tmp_path: Path, file: Path) -> None:
    # The last one to go takes the engine along, just when the next one comes.
    leaving = None
    for number in range(25):
        serving = Launcher(server, f"p{number}", tmp_path)
        async with serving.calling(tiny(file)) as one:
            assert lives(one.pid, one.birth)
        leaving = asyncio.create_task(serving.aclose())
    assert leaving is not None
    await leaving
    await wait_until(lambda: not running(tmp_path, "host.py"), seconds=20)
