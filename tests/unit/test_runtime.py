"""A deployment in one process: what it refuses, counts, reloads and registers."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.leases import Reads
from rolecall.bus.process.processes import instances_of, live_processes, process_name, scale
from rolecall.config import Application
from rolecall.errors import ConfigError
from rolecall.models.model import Caller
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from rolecall.worker.duties import Duties
from rolecall.worker.runtime import Runtime
from tests.deployment import deployed
from tests.waiting import wait_until


class ManagerAgent(Agent):
    """Answers with the name of its version."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("old")


class NewManagerAgent(Agent):
    """A later version of it, with a role of its own to send to."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("echo")


class EchoAgent(Agent):
    """Answers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("new")


def application(directory: Path, *roles: Role, **settings: object) -> Application:
    return Application(directory, roles, Settings.model_validate(settings), {})


def test_every_start_of_a_process_has_a_name_of_its_own() -> None:
    first, second = process_name(), process_name()
    assert first != second and first.partition("~")[0] == second.partition("~")[0]


@pytest.mark.parametrize(
    ("roles", "only", "why"),
    [
        ((Role(ManagerAgent),), ["nobody"], "role 'nobody' is not in config.py; there are manager"),
        ((Role(ManagerAgent, models=("m@nowhere",)),), None, "role manager has no usable model: .*nowhere"),
    ],
)
async def test_a_wrong_deployment_ends_before_anything_starts(
    server: RedisServer, tmp_path: Path, roles: tuple[Role, ...], only: list[str] | None, why: str
) -> None:
    runtime = Runtime(application(tmp_path, *roles), server, "host:1~aaaaaa", roles=only)
    with pytest.raises(ConfigError, match=why):
        await runtime.run()
    assert await live_processes(runtime.bus) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "EMBEDDING_MODEL is not set: expected a model such as text-embedding-3-small@openai"),
        ({"embedding_model": "m@nowhere"}, "EMBEDDING_MODEL=m@nowhere cannot be used: .*nowhere"),
    ],
)
async def test_an_embedding_model_that_cannot_be_used_is_named(
    server: RedisServer, tmp_path: Path, settings: dict[str, str], why: str
) -> None:
    runtime = Runtime(application(tmp_path, Role(ManagerAgent), **settings), server, "host:1~aaaaaa")
    with pytest.raises(ConfigError, match=why):
        await runtime.models.embed(["one"], None, Caller("http:1", "1"))


async def test_only_the_roles_that_are_asked_for_run_here(server: RedisServer, tmp_path: Path) -> None:
    both = application(tmp_path, Role(ManagerAgent), Role(EchoAgent, 3))
    runtime = Runtime(both, server, "host:1~aaaaaa", roles=["echo"])
    runtime.deploy(both)
    assert {role: len(group) for role, group in runtime.roster.instances.items()} == {"echo": 3}
    assert set(runtime.roster.services.roles) == {"manager", "echo"}


async def test_new_agents_and_roles_answer_from_the_next_envelope_on(tmp_path: Path) -> None:
    async with deployed(tmp_path, [Role(ManagerAgent)]) as deployment:
        assert (await deployment.ask("a", "hi")).text == "old"
        running = deployment.runtime.application
        await deployment.runtime.redeploy(replace(running, roles=(Role(NewManagerAgent), Role(EchoAgent))))
        assert (await deployment.ask("a", "hi")).text == "new"
        broken = replace(running, roles=(Role(ManagerAgent, models=("m@nowhere",)),))
        with pytest.raises(ConfigError, match="m@nowhere was not configured when this process started"):
            await deployment.runtime.redeploy(broken)
        assert (await deployment.ask("a", "hi")).text == "new"


async def test_a_scale_order_reaches_every_process_at_once_and_is_registered(tmp_path: Path) -> None:
    role = Role(ManagerAgent)
    async with deployed(tmp_path, [role], processes=2) as deployment:
        await scale(deployment.session.bus, role.name, 1, 3)

        async def scaled() -> bool:
            alive = await live_processes(deployment.session.bus)
            return [len(state.instances) for state in alive] == [3, 3]

        await wait_until(scaled)
        assert await instances_of(deployment.session.bus, "manager") == 6


async def test_a_process_that_stops_leaves_the_registry_at_once(tmp_path: Path) -> None:
    async with deployed(tmp_path, [Role(ManagerAgent)], processes=2) as deployment:
        bus = deployment.session.bus
        await wait_until(lambda: _count(deployment.runtime, 2))
        await deployment.runtimes[1].stop()
        assert [state.process for state in await live_processes(bus)] == ["host:1~aaaaaa"]


async def _count(runtime: Runtime, count: int) -> bool:
    await asyncio.sleep(0)
    return len(await live_processes(runtime.bus)) == count


async def test_a_server_that_fills_up_or_may_evict_is_said_once_and_so_is_its_end(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    duties = Duties(Runtime(application(tmp_path, Role(ManagerAgent)), server, "host:1~aaaaaa"))
    await duties.watch_server()
    used = int((await server.info("memory"))["used_memory"])
    with caplog.at_level(logging.INFO, "rolecall.worker.duties"):
        await server.call("CONFIG", "SET", "maxmemory", used * 105 // 100)
        await duties.watch_server()
        await duties.watch_server()
        await server.call("CONFIG", "SET", "maxmemory", 10 * used, "maxmemory-policy", "allkeys-lru")
        await duties.watch_server()
        await server.call("CONFIG", "SET", "maxmemory", 0, "maxmemory-policy", "noeviction")
        await duties.watch_server()
    told = [record.getMessage().partition(": ")[2].split(";")[0] for record in caplog.records]
    deletes = "it deletes keys when it is full (maxmemory-policy allkeys-lru): turns would be lost"
    full = "it uses over 90% of its memory limit"
    assert told == [full, deletes, f"no longer: {full}", f"no longer: {deletes}"]


class RoutesAgent(Agent):
    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("reads")


class ReadsAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        ctx.memory.prefer(seen=envelope.text)
        return envelope.reply(" ".join([message.text for message in await ctx.memory.history()]))


async def test_what_a_role_read_comes_along_with_its_next_envelopes(tmp_path: Path) -> None:
    async with deployed(tmp_path, (Role(RoutesAgent), Role(ReadsAgent))) as app:
        assert [(await app.ask("test:1", text)).text for text in ("one", "two", "three")] == [
            "", "one", "one two one",
        ]  # fmt: skip
        assert app.runtime.roster.reads == {"manager": Reads(), "reads": Reads(history=True)}


# ── memory ──────────────────────────────────────────────────────────────────────────────────────


class RemembersAgent(Agent):
    """Uses what a handling has: memory, a model, a step, pieces of an answer."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        history = await ctx.memory.history()
        counted = await ctx.once("count", lambda: len(history))
        return envelope.reply(f"{counted} {await ctx.stream(ctx.model, history, envelope.text)}")


async def test_a_turn_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """What holds itself stays until the collector looks through everything, which stops all turns meanwhile."""
    async with deployed(tmp_path, (Role(RemembersAgent, models=("echo@test",)),)) as app:
        await app.ask("test:1", "the first of its kind, which imports what is needed")
        gc.collect()
        gc.disable()
        try:
            for number in range(20):
                await app.ask("test:1", f"question {number}")
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = Counter(type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("rolecall."))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert {name: count for name, count in left.items() if count > 5} == {}
