"""Servers in numbers: a primary with Sentinels, a cluster. What is accepted is answered, whichever of them dies."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.crc import key_slot

from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.admission import admit
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import count_dead_letters
from rolecall.cli.checks.server_checks import ServerLook, look_at_server
from rolecall.config import Application
from rolecall.errors import RolecallError, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.address import checked_url
from rolecall.redis.server import RedisServer, connected
from rolecall.settings import Settings
from rolecall.transcripts.scribe import CONSUMER, COUNT, Scribe
from tests.certificates import Authority
from tests.cluster import SLOTS, ClusterSet, Node, SentinelSet, freeze, wait_for
from tests.deployment import deployed
from tests.proxy import free_port
from tests.valkey import ValkeyProcess, server_binary
from tests.waiting import wait_until

CLOCKS: dict[str, Any] = {"lease_seconds": 3.0, "heartbeat_seconds": 0.5, "scan_seconds": 0.5}


class ManagerAgent(Agent):
    """Answers after as many seconds as the text says; what is no number goes to another role."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if not envelope.text[0].isdigit():
            return envelope.via("second")
        await asyncio.sleep(float(envelope.text))
        return envelope.reply(f"after {envelope.text}")


class SecondAgent(Agent):
    """Answers at once."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("second")


ROLES = (Role(ManagerAgent, instances=8), Role(SecondAgent, instances=8))


@pytest.fixture
def sentinels(directory: Path) -> Iterator[SentinelSet]:
    servers = SentinelSet(directory / "s")
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def encrypted(directory: Path) -> Iterator[tuple[ValkeyProcess, int, Authority, str]]:
    """A server that wants a client certificate, its TLS port, its authority, and the options that name one."""
    authority = Authority(directory / "ca")
    (certificate, key), (own, own_key) = authority.sign("server"), authority.sign("client")
    (directory / "r").mkdir()
    port = free_port()
    process = ValkeyProcess(
        directory / "r", "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(authority.certificate), binary=server_binary("redis"), port=free_port(),
    )  # fmt: skip
    process.start()
    yield process, port, authority, f"ssl_certfile={own}&ssl_keyfile={own_key}"
    process.kill()


@pytest.fixture
def cluster(directory: Path) -> Iterator[ClusterSet]:
    servers = ClusterSet(directory / "c")
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


async def complaint(url: str) -> str:
    """What is said of an address that cannot be used: one line."""
    server = RedisServer(url)
    with pytest.raises(RolecallError) as caught:
        await server.check()
    await server.aclose()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def complains(url: str, why: str) -> bool:
    return why in await complaint(url)


async def test_tls_works_with_both_certificates_and_a_mismatch_is_named(
    encrypted: tuple[ValkeyProcess, int, Authority, str], directory: Path
) -> None:
    process, port, authority, own = encrypted
    other = Authority(directory / "other", "other").certificate
    trusted = f"127.0.0.1:{port}?ssl_ca_certs={authority.certificate}"
    for url in (f"rediss://{trusted}&{own}", f"valkeys://{trusted}&{own}"):
        async with connected(url) as server:
            assert await server.call("PING") == b"PONG"
    for url, named in (
        (f"rediss://127.0.0.1:{port}?ssl_ca_certs={other}&{own}", "set ssl_ca_certs to its authority's certificate"),
        (f"rediss://{trusted}", "it may require a client certificate: ssl_certfile and ssl_keyfile"),
        (f"redis://127.0.0.1:{port}", "if it uses TLS, write rediss://"),
        (f"rediss+sentinel://127.0.0.1:{port}/m?ssl_ca_certs={other}&{own}", "set ssl_ca_certs to its authority's"),
        (f"rediss+sentinel://127.0.0.1:{port}/m?ssl_ca_certs={authority.certificate}", "ssl_certfile and ssl_keyfile"),
        (f"redis+sentinel://127.0.0.1:{port}/m", "if it uses TLS, write rediss+sentinel://"),
        (f"rediss://127.0.0.1:{process.port}", "if it does not use TLS, write redis://"),
    ):
        assert named in await complaint(checked_url(url))


async def test_certificates_that_are_replaced_while_processes_run_are_used_and_a_refused_one_is_named(
    encrypted: tuple[ValkeyProcess, int, Authority, str], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process, port, authority, own = encrypted
    url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.certificate}&{own}"
    old, successor = authority.certificate.read_bytes(), Authority(directory / "ca2")
    for name in ("server", "client"):
        successor.sign(name)
    async with connected(process.url) as admin, deployed(directory, ROLES, redis_url=url, **CLOCKS) as deployment:

        async def reload() -> None:
            """Have the server read its certificates, and close all connections that used those of before."""
            folder = authority.certificate.parent
            files = {"cert": "server.crt", "key": "server.key", "ca-cert": "ca.crt"}
            names = [part for option, name in files.items() for part in (f"tls-{option}-file", str(folder / name))]
            await admin.call("CONFIG", "SET", *names)
            for kind in ("pubsub", "normal"):
                await admin.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

        assert (await deployment.ask("test:1", "0")).text == "after 0"
        for file in successor.certificate.parent.iterdir():
            shutil.copy(file, authority.certificate.parent)
        await reload()
        assert (await deployment.ask("test:1", "0")).text == "after 0"
        await wait_until(lambda: not deployment.session.server.outage.reason)
        async with asyncio.timeout(3):  # an answer that nobody is woken for takes 5 s
            assert (await deployment.ask("test:1", "0")).text == "after 0"

        authority.certificate.write_bytes(old)  # this authority signed nothing that is in use
        await admin.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert "; set ssl_ca_certs to its authority's certificate" in caplog.text
        shutil.copy(successor.certificate, authority.certificate)
        assert (await deployment.ask("test:1", "0")).text == "after 0"


async def test_turns_outlive_their_primary_and_the_sentinels_choice_is_followed(
    sentinels: SentinelSet, directory: Path
) -> None:
    assert "know no primary named 'nope'; they know mymaster" in await complaint(
        sentinels.url.replace("mymaster", "nope")
    )
    one = sentinels.hosts.partition(",")[0]
    assert f"redis://{one} is a Sentinel: write redis+sentinel://" in await complaint(f"redis://{one}")
    assert "no Sentinels are there" in await complaint(f"redis+sentinel://127.0.0.1:{sentinels.nodes[0].port}/mymaster")
    replica = f"redis://127.0.0.1:{sentinels.nodes[1].port}"
    look = ServerLook()
    await look_at_server(Application(directory, ROLES, Settings(redis_url=SecretStr(replica)), {}), look)
    failed = [finding.text for finding in look.findings if finding.state == "failed"]
    assert failed == ["no message is accepted: it is a read-only replica (READONLY)"]
    application = Application(directory, ROLES, Settings(redis_url=SecretStr(sentinels.url), wait_replicas=3), {})
    look = ServerLook()
    await look_at_server(application, look)
    states = {finding.name: (finding.state, finding.text) for finding in look.findings}
    assert states["failover"] == ("passed", "3 of 3 Sentinels answer and see a quorum")
    assert states["replication"] == ("failed", "WAIT_REPLICAS=3; replicas: the server has 2")
    async with deployed(directory, ROLES, redis_url=sentinels.url, scribe=True, **CLOCKS) as deployment:
        running = [await deployment.say(f"test:{number}", "2.5") for number in range(5)]
        await asyncio.sleep(0.3)  # a replica needs a moment for what was just accepted
        sentinels.primary().kill()
        taken = asyncio.create_task(deployment.front.receive("test:9", "0"), name="a front end that waits")
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(deployment.answer(received) for received in running))
            assert [answer.text for answer in answers] == ["after 2.5"] * 5
            assert (await deployment.answer(await taken)).text == "after 0"
        assert await count_dead_letters(deployment.session.bus) == 0
    sentinels.stop_sentinels(2)
    sentinels.primary().kill()
    await wait_until(lambda: complains(sentinels.url, "1 of 3 Sentinels answer and have not elected another"))
    sentinels.stop_sentinels(3)
    assert "no Sentinel answers" in await complaint(sentinels.url)


async def test_a_cluster_that_is_not_whole_is_named(directory: Path) -> None:
    servers = ClusterSet(directory / "c", replicas=False)
    try:
        servers.start()
        first, last = servers.nodes[0], servers.nodes[-1]
        assert "write redis+cluster://" in await complaint(f"redis://127.0.0.1:{first.port}")
        async with connected(servers.url) as server:
            await server.call("ACL", "SETUSER", "little", "on", ">pw", "~*", "&*", "+@all", "-info")
            await server.call("ACL", "SETUSER", "less", "on", ">pw", "~*", "&*", "+@all", "-info", "-ping")
        one = f"127.0.0.1:{first.port}"
        assert "does not give its user enough rights" in await complaint(f"redis+cluster://less:pw@{one}")
        last.kill()
        await wait_until(lambda: complains(servers.url, f"127.0.0.1:{last.port} does not answer"))
        for node in servers.nodes[:-1]:
            node.client.execute_command("CLUSTER", "DELSLOTS", SLOTS - 1)
        assert f"only {SLOTS - 1} of its {SLOTS} slots have a node" in await complaint(servers.url)
    finally:
        servers.stop()
    assert "none of the 3 nodes in REDIS_URL answers" in await complaint(servers.url)


async def test_turns_of_all_shards_outlive_a_node_of_their_cluster_and_follow_their_slots(
    cluster: ClusterSet, directory: Path
) -> None:
    async with deployed(directory, ROLES, redis_url=cluster.url, scribe=True, **CLOCKS) as deployment:
        bus = deployment.session.bus
        assert len(bus.shards) == 16
        for answer in await asyncio.gather(*(deployment.ask(f"test:{number}", "go on") for number in range(40))):
            assert answer.text == "second"
        for node in cluster.primaries():  # the steps that take the next envelope along are known to each node as well
            assert "errorstat_NOSCRIPT" not in node.client.info("errorstats")
        running = [await deployment.say(f"test:{number}", "2.5") for number in range(8)]
        await asyncio.to_thread(cluster.migrate, key_slot(bus.shard("test:1").prefix.encode()))
        await asyncio.sleep(0.3)  # a replica needs a moment for what was just accepted
        cluster.primaries()[1].kill()
        taken = [asyncio.create_task(deployment.front.receive(f"test:{n}", "0"), name="waits") for n in range(20, 40)]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(deployment.answer(received) for received in running))
            assert [answer.text for answer in answers] == ["after 2.5"] * 8
            later = await asyncio.gather(*taken)
            answers = await asyncio.gather(*(deployment.answer(received) for received in later))
            assert [answer.text for answer in answers] == ["after 0"] * 20
        assert await count_dead_letters(bus) == 0


async def test_slots_that_move_are_told_once_and_are_no_outage(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = ClusterSet(directory / "c", replicas=False)
    try:
        servers.start()
        async with deployed(directory, ROLES, redis_url=servers.url, scribe=True) as deployment:
            shards = deployment.session.bus.shards
            await asyncio.gather(*(deployment.ask(f"test:{number}", "go on") for number in range(40)))
            caplog.clear()
            for shard in shards[:4]:
                moving = asyncio.to_thread(servers.migrate, key_slot(shard.prefix.encode()), keys_at_once=5, pause=0.1)
                answers = [deployment.ask(f"test:{number}", "go on") for number in range(20)]
                answered = asyncio.gather(*answers)
                await moving
                assert [answer.text for answer in await answered] == ["second"] * 20
            told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(told) == 1 and "are moving: turns in them wait" in told[0]
    finally:
        servers.stop()


async def test_what_a_scribe_had_read_of_a_cluster_is_written_by_its_successor(
    cluster: ClusterSet, directory: Path
) -> None:
    async with connected(cluster.url) as server:
        keys.use("", spread=16)
        logs = [shard.log for shard in keys.all_shards(16, clustered=True)]
        for log in logs:
            await server.call("XGROUP", "CREATE", log, "g", "0", "MKSTREAM")
        record = ("c", "test:1", "s", 1, "t", "1", "w", "NOTE", "x", "said", "ms", 1)
        for number in range(2 * COUNT + 1):
            await server.call("XADD", logs[3], f"{number + 1}-0", *record)
        await server.call("XREADGROUP", "GROUP", "g", CONSUMER, "COUNT", 2 * COUNT + 1, "STREAMS", logs[3], ">")
        scribe = Scribe(server, 16, directory / "log", process="host:1~aaaaaa")
        writing = asyncio.create_task(scribe.run(), name="scribe of a test")
        await wait_until(lambda: scribe.writing)
        await wait_until(lambda: none_left(server, logs[3]), seconds=5)
        await scribe.stop()
        await writing


async def none_left(server: RedisServer, log: str) -> bool:
    return bool(await server.call("XLEN", log) == 0)


async def test_with_wait_replicas_nothing_is_accepted_that_no_replica_has(directory: Path) -> None:
    primary, replica = Node(directory / "p"), Node(directory / "r")
    for node in (primary, replica):
        node.start()
    replica.client.replicaof("127.0.0.1", primary.port)
    wait_for(lambda: replica.client.info("replication")["master_link_status"] == "up")
    server = RedisServer(f"redis://127.0.0.1:{primary.port}", patience=0.4, wait_replicas=1, wait_seconds=0.2)
    bus = Bus(server, Settings(), "host:1~aaaaaa")
    message = Envelope(conversation="test:1", payload={"text": "hello"})
    try:
        assert (await admit(bus, message, idempotency="first")).outcome == "RUN"
        freeze(replica)
        with pytest.raises(ServerUnavailable, match="0 of 1 replicas confirmed"):
            await admit(bus, message, idempotency="second")
        burst = [Envelope(conversation=f"test:{n}", payload={"text": "hello"}) for n in range(2, 22)]
        refused = await asyncio.gather(*(admit(bus, one) for one in burst), return_exceptions=True)
        assert {type(admission) for admission in refused} == {ServerUnavailable}
        replica.process.thaw()
        assert (await admit(bus, message, idempotency="second")).outcome == "DUP"
        assert replica.client.hget(bus.shard("test:1").conversation("test:1"), "seq") == "2"
        accepted = await asyncio.gather(*(admit(bus, message, idempotency=f"n{n}") for n in range(5)))
        assert [admission.outcome for admission in accepted] == ["WAIT"] * 5
        assert replica.client.hget(bus.shard("test:1").conversation("test:1"), "seq") == "7"
    finally:
        await server.aclose()
        for node in (primary, replica):
            node.kill()
