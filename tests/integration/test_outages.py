"""A whole deployment while its server cannot do what it is asked: front ends say so or wait, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.dead_letters import count_dead_letters
from rolecall.frontends.http import problems
from rolecall.redis.server import RedisServer
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.outages import CASES, Case, fail_over, follow
from tests.proxy import Proxy, free_port
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

CLOCKS: dict[str, Any] = {"lease_seconds": 1.0, "heartbeat_seconds": 0.25, "scan_seconds": 0.2}
LOUD = {"rolecall.redis.outage"}
"""Who may speak of an outage."""


class ManagerAgent(Agent):
    """Answers after as many seconds as the text says."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await asyncio.sleep(float(envelope.text))
        return envelope.reply(f"after {envelope.text}")


ROLES = (Role(ManagerAgent, instances=8),)


@asynccontextmanager
async def at_work(directory: Path, proxied: ValkeyProcess) -> AsyncIterator[tuple[Deployment, Proxy, RedisServer]]:
    """A deployment behind a proxy, and a way to the server past it."""
    proxied.start()
    proxy, admin = Proxy(proxied.socket), RedisServer(proxied.url)
    await proxy.start()
    try:
        async with deployed(directory, ROLES, redis_url=proxy.url, **CLOCKS) as deployment:
            yield deployment, proxy, admin
    finally:
        await admin.aclose()
        await proxy.stop()
        proxied.kill()


@pytest.mark.parametrize("case", [case for case in CASES if not case.options], ids=lambda case: case.code)
async def test_nothing_is_lost_while_the_server_cannot_write(
    case: Case, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(problems, "BUS_SECONDS", 0.5)
    data = directory / "data"
    data.mkdir()
    async with (
        at_work(directory, ValkeyProcess(data)) as (deployment, _, admin),
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url) as client,
    ):
        running = [await deployment.say(f"test:{number}", f"{number / 2 + 0.1}") for number in range(5)]
        await case.spoil(admin, data)
        caplog.clear()
        taken = asyncio.create_task(deployment.front.receive("test:9", "0"), name="a front end that waits")
        refused = await client.post("/chat/async", json={"text": "0"})
        assert (refused.status_code, refused.json()["code"]) == (503, "bus_unavailable"), refused.text
        assert int(refused.headers["retry-after"]) > 0
        await wait_until(lambda: not_ready(client, case.code))
        await asyncio.sleep(2.5)  # longer than leases last, and than the handlers take
        assert not taken.done()
        await case.mend(admin, data)
        answers = await asyncio.gather(*(deployment.answer(received) for received in running))
        assert [answer.text for answer in answers] == [f"after {number / 2 + 0.1}" for number in range(5)]
        assert (await deployment.answer(await taken)).text == "after 0"
        assert (await client.post("/chat/async", json={"text": "0"})).status_code == 202
        await wait_until(lambda: ready(client))
        assert await count_dead_letters(deployment.session.bus) == 0
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING and record.name not in LOUD]
    assert len(loud) <= 12, [record.getMessage() for record in loud]


async def test_a_failover_by_address_loses_nothing_and_is_over_at_once(directory: Path) -> None:
    """The primary becomes a replica of its successor, to which the address leads from then on."""
    old, new = (ValkeyProcess(directory / name, port=free_port()) for name in ("old", "new"))
    for node in (old, new):
        node.directory.mkdir()
    new.start()
    successor = RedisServer(new.url)
    async with at_work(directory, old) as (deployment, proxy, admin):
        await follow(successor, old, admin)
        running = [await deployment.say(f"test:{number}", f"{number / 2 + 0.1}") for number in range(5)]
        await fail_over(admin, successor, proxy, old, new)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(deployment.answer(received) for received in running))
            assert [answer.text for answer in answers] == [f"after {number / 2 + 0.1}" for number in range(5)]
            assert (await deployment.ask("test:0", "0")).text == "after 0"
        assert await count_dead_letters(deployment.session.bus) == 0
        assert await successor.call("EXISTS", "{bus:0}:c:test:0") == 1
    await successor.aclose()
    new.kill()


async def test_a_pause_of_all_shards_is_one_line_of_the_log(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (directory / "d").mkdir()
    server = ValkeyProcess(directory / "d")
    server.start()
    try:
        async with deployed(directory, ROLES, redis_url=server.url, shards=8, **CLOCKS) as deployment:
            server.freeze()
            await asyncio.sleep(4 * deployment.session.bus.settings.heartbeat_seconds)  # how long a pause may be
            server.thaw()
            await wait_until(lambda: "no heartbeat for" in caplog.text)
            assert (await deployment.ask("test:0", "0.6")).text == "after 0.6"  # all shards beat meanwhile
            assert caplog.text.count("no heartbeat for") == 1
    finally:
        server.kill()


async def not_ready(client: httpx2.AsyncClient, code: str) -> bool:
    """Because of ``code``. A replica without its primary refuses reads by MASTERDOWN and writes by READONLY."""
    answer = await client.get("/health/ready")
    codes = (code, "READONLY") if code == "MASTERDOWN" else (code,)
    return answer.status_code == 503 and any(one in answer.json()["why"] for one in codes)


async def ready(client: httpx2.AsyncClient) -> bool:
    answer = await client.get("/health/ready")
    return answer.status_code == 200 and not answer.json()["why"]
