"""``instances="auto"``: as many instances over all processes as the live model servers have slots, soon after a model
was loaded or left."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall.agent.prompts import PLACE
from rolecall.agent.role import Role
from rolecall.redis.server import RedisServer
from rolecall.serving.capacity import MOST, Follower, auto_counts, available_mb
from rolecall.serving.directory import Directory
from rolecall.serving.footprint import Room
from rolecall.serving.spec import ModelServer
from rolecall.worker.runtime import Runtime
from tests.deployment import Deployment, deployed
from tests.serving.processes import LONG
from tests.waiting import wait_until

MODEL = "echo@test"


async def load(directory: Directory, name: str, slots: int, model: str = MODEL) -> ModelServer:
    """A server as its host process has it in the directory."""
    server = ModelServer(name, model, f"spec of {name}", state="starting", machine="m", slots=slots)
    assert (await directory.claim(server, "somebody", Room(1000, 1000))).word == "START"
    server = msgspec.structs.replace(server, state="ready", url="http://127.0.0.1:1")
    assert (await directory.beat(server)).known
    return server


def counts(deployment: Deployment) -> list[int]:
    return [_count(runtime) for runtime in deployment.runtimes]


def _count(runtime: Runtime) -> int:
    return sum(not one.retiring for one in runtime.roster.instances["samplellm"])


async def reached(deployment: Deployment, *wanted: int) -> float:
    """Seconds until the processes have so many instances."""
    began = time.monotonic()
    await wait_until(lambda: counts(deployment) == list(wanted), what=f"{wanted} instances")
    return time.monotonic() - began


async def test_instances_follow_the_slots_of_live_servers_across_processes(tmp_path: Path) -> None:
    (tmp_path / PLACE).parent.mkdir(parents=True)
    (tmp_path / PLACE).symlink_to(Path(__file__).parents[2] / PLACE)
    roles = (Role(ManagerAgent), Role(SampleLLMAgent, "auto", (MODEL,)))
    async with deployed(tmp_path, roles, processes=2) as deployment:
        directory = Directory(deployment.session.server)
        assert counts(deployment) == [1, 1], "one each, to wake a model"

        one = await load(directory, "one", 6)
        took = [await reached(deployment, 3, 3)]
        two = await load(directory, "two", 3)
        await load(directory, "other", 50, model="another@test")
        took.append(await reached(deployment, 5, 4))
        three = await load(directory, "three", 64)
        took.append(await reached(deployment, MOST // 2, MOST // 2))

        for server in (one, two, three):
            await directory.end(server.id)
        took.append(await reached(deployment, 1, 1))
        print(f"\nslots to instances: {', '.join(f'{seconds:.2f} s' for seconds in took)}")
        assert not LONG or max(took) <= 2
        assert (await deployment.ask("a:1", "Hello")).text == "echo: Hello"


@pytest.mark.parametrize(("machines", "instances"), [(2.5, 2), (0.001, 1)])
async def test_memory_bounds_them(server: RedisServer, machines: float, instances: int) -> None:
    directory = Directory(server)
    await load(directory, "one", 6)
    counts = await auto_counts(directory, {"a": Follower([MODEL], running=0)}, each=available_mb() / machines)
    assert counts == {"a": instances}
