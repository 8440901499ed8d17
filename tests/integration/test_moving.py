"""An application moves to another server as docs/scale-out.md, *Move to another server*, says, with all that it has."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.access_keys import create_key, list_keys
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import history
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.events import follow
from rolecall.bus.schedule.schedules import schedule, schedules_of
from rolecall.bus.turn import turns_in_flight
from rolecall.cli.checks.server_checks import ServerLook, look_at_server
from rolecall.config import Application
from rolecall.errors import ConfigError
from rolecall.session import open_session
from rolecall.settings import Settings
from tests.cluster import ClusterSet, Node, SentinelSet
from tests.deployment import Deployment, deployed
from tests.waiting import wait_until

CHARGED: list[str] = []


async def charge(key: str) -> str:
    CHARGED.append(key)
    return key


class ManagerAgent(Agent):
    """Charges and asks, fails, or counts what it remembers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "order":
            await ctx.once("charge", charge, ctx.step_key)
            return envelope.reply("ordered" if await ctx.confirm("Really?") else "not ordered")
        if envelope.text == "fail":
            raise ValueError("broken")
        return envelope.reply(f"{len(await ctx.memory.history())} before")


ROLES = (Role(ManagerAgent, instances=4),)


async def fill(deployment: Deployment) -> str:
    """Give the application something of all that it may have; returns the question that waits for an answer."""
    CHARGED.clear()
    bus = deployment.session.bus
    for _ in range(3):
        await deployment.ask("test:talk", "hello")
    await deployment.ask("test:broken", "fail")
    await schedule(bus, "test:talk", "drink", at=timedelta(hours=1))
    await create_key(bus, "grafana", admin=True)
    following = deployment.front.follow(await deployment.say("test:shop", "order", meta={"asks": True}))
    return await anext(str(event.payload["id"]) async for event in following if event.kind == "asked")


async def whole(bus: Bus) -> tuple[object, ...]:
    """What ``fill`` left, as a reader of the bus sees it."""
    return (
        await history(bus, "test:talk", 20), str(await schedules_of(bus, "test:talk")), await list_keys(bus),
        await dead_letters(bus), await turns_in_flight(bus, bus.shards[0]),
    )  # fmt: skip


async def written_as_commands(bus: Bus) -> None:
    """Have the append-only file hold commands only, which servers of all versions read."""
    await bus.server.call("CONFIG", "SET", "aof-use-rdb-preamble", "no")
    await bus.server.call("BGREWRITEAOF")

    async def rewritten() -> bool:
        found = await bus.server.call("INFO", "persistence")
        return b"aof_rewrite_in_progress:0" in found and b"aof_rewrite_scheduled:0" in found

    await wait_until(rewritten)


def replay(files: Path, node: Node) -> None:
    """What ``valkey-cli --pipe`` does."""
    names = sorted(files.glob("*.base.aof")) + sorted(files.glob("*.incr.aof"))
    assert names
    with socket.create_connection(("127.0.0.1", node.port)) as client:
        for name in names:
            client.sendall(name.read_bytes())
        client.sendall(b"ECHO moved\r\n")
        said = b""
        while not said.endswith(b"moved\r\n"):
            said += client.recv(65_536)
    assert b"\r\n-" not in said


def application(directory: Path, url: str) -> Application:
    return Application(directory, ROLES, Settings(redis_url=SecretStr(url)), {})


async def bus_finding(directory: Path, url: str) -> str:
    look = ServerLook()
    await look_at_server(application(directory, url), look)
    return next(f"{found.state}: {found.text} {found.remedy}" for found in look.findings if found.name == "bus")


@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_an_application_moves_to_a_server_and_to_sentinels_and_nothing_is_lost(
    directory: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = SentinelSet(directory / "s", kind=kind, replicas=1)
    own = servers.nodes[0]
    one = f"redis://127.0.0.1:{own.port}"
    try:
        own.start()
        async with deployed(directory, ROLES, scribe=True) as deployment:
            question = await fill(deployment)
            before = await whole(deployment.session.bus)
            await written_as_commands(deployment.session.bus)
        assert "tells how to bring them along" in await bus_finding(directory, one)

        replay(directory / ".rolecall/server/appendonlydir", own)
        assert "made with 1" in await bus_finding(directory, one)
        async with deployed(directory, ROLES, scribe=True, redis_url=one) as deployment:
            assert await whole(deployment.session.bus) == before
            assert (await deployment.ask("test:talk", "hello")).text == "6 before"
            before = await whole(deployment.session.bus)
        own.kill()

        servers.start()
        async with deployed(directory, ROLES, scribe=True, redis_url=servers.url) as deployment:
            bus = deployment.session.bus
            assert await whole(bus) == before
            await deployment.front.answer("test:shop", question, 0)
            events = [event async for event in follow(bus, deployment.runtime.wakeups, "test:shop", "1")]
            assert (events[-1].text, len(CHARGED)) == ("ordered", 1)
        assert "are not on it" not in caplog.text
    finally:
        servers.stop()


async def test_a_cluster_with_the_data_of_a_single_server_is_refused_with_the_reason(directory: Path) -> None:
    servers = ClusterSet(directory / "c", primaries=1, replicas=False)
    try:
        servers.start()
        async with deployed(directory, ROLES) as deployment:
            await deployment.ask("test:talk", "hello")
            await written_as_commands(deployment.session.bus)
        replay(directory / ".rolecall/server/appendonlydir", servers.nodes[0])
        for shards in (1, 16):
            settings = Settings(redis_url=SecretStr(servers.url), shards=shards)
            with pytest.raises(ConfigError, match="its data comes from a single server, where keys have other names"):
                async with open_session(Application(directory, ROLES, settings, {}), "host:9~a", start=True):
                    pass
        assert (await bus_finding(directory, servers.url)).startswith("failed: this is a cluster, but its data")
    finally:
        servers.stop()


async def test_a_new_server_says_that_the_conversations_of_the_bundled_one_are_elsewhere(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Node(directory / "o")
    own.start()
    try:
        async with deployed(directory, ROLES) as deployment:
            await deployment.ask("test:talk", "hello")
        for _ in range(2):
            async with deployed(directory, ROLES, redis_url=f"redis://127.0.0.1:{own.port}"):
                pass
        assert caplog.text.count("conversations of the bundled server are not on it") == 1
    finally:
        own.kill()
