"""What operators see and do over HTTP: conversations with their transcripts, agents, queues, dead letters."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from rolecall import Context, Envelope, Role
from rolecall.bus.conversation import history
from rolecall.transcripts.record import conversation_dir
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.integration.test_http_app import ROLES, ManagerAgent
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class CallingAgent(ManagerAgent):
    """Answers a call for two with two calls."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text != "call two":
            return await super().handle(envelope, ctx)
        replies = await ctx.gather(ctx.call("samplellm", "a"), ctx.call("samplellm", "b"))
        return envelope.reply(" ".join(reply.text for reply in replies))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path_factory.mktemp("operators"), (Role(CallingAgent), *ROLES[1:]), scribe=True) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(deployment: Deployment) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as client:
        yield client


async def written(client: httpx2.AsyncClient, conversation: str, turns: int = 1) -> None:
    """Return once the transcript of ``conversation`` tells of the end of so many turns."""

    async def told() -> bool:
        answer = await client.get(f"/conversations/{conversation}/timeline")
        found = answer.json()["turns"] if answer.status_code == 200 else []
        return len([turn for turn in found if turn["state"] != "running"]) >= turns

    await wait_until(told, what=f"the transcript of {conversation}")


async def rows(client: httpx2.AsyncClient, **query: Any) -> list[str]:
    answer = await client.get("/conversations", params=query)
    assert answer.status_code == 200, answer.text
    return [row["id"] for row in answer.json()["conversations"]]


async def test_conversations_are_listed_searched_filtered_and_paged(
    deployment: Deployment, client: httpx2.AsyncClient
) -> None:
    for name, text in (("ann", "the colour of rain"), ("ben", "bees"), ("cas", "bury me")):
        await deployment.ask(f"listed:{name}", text, title=f"Title {name.upper()}")
        await written(client, f"listed:{name}")
    assert await rows(client, user="listed:") == ["listed:cas", "listed:ben", "listed:ann"]
    assert await rows(client, search="COLOUR of") == ["listed:ann"]
    assert await rows(client, search="title ben") == ["listed:ben"]
    assert await rows(client, search=".*") == []
    assert await rows(client, user="listed:b") == ["listed:ben"]
    assert await rows(client, user="listed:", errors=True) == ["listed:cas"]
    assert await rows(client, user="listed:", since="1h", page=2, size=2) == ["listed:ann"]
    assert await rows(client, since="2099-01-01") == []
    assert (await client.get("/conversations", params={"since": "x"})).status_code == 422


@pytest.mark.parametrize("conversation", ["terminal:ann", "http:a/b c?d#e/log", "telegram:42:7", "x:<script>", "ж:ñ"])
async def test_a_conversation_is_shown_with_its_log_and_timeline(
    deployment: Deployment, client: httpx2.AsyncClient, conversation: str
) -> None:
    await deployment.ask(conversation, "hello")
    which = conversation_dir(conversation)
    await written(client, which)
    shown = (await client.get(f"/conversations/{which}")).json()
    assert (shown["id"], shown["turns"], shown["errors"], shown["running"]) == (conversation, 1, 0, None)
    log = (await client.get(f"/conversations/{which}/log")).json()
    words = [record["word"] for record in log["records"]]
    assert "RECEIVED" in words[:2] and "PROCESSING_COMPLETE" in words
    after = log["records"][0]["id"]
    assert (await client.get(f"/conversations/{which}/log", params={"after": after})).json()["total"] == len(words) - 1
    assert (await client.get(f"/conversations/{which}/log", params={"after": "x"})).status_code == 422
    (turn,) = (await client.get(f"/conversations/{which}/timeline")).json()["turns"]
    assert [hop["instance"].split(":")[0] for hop in turn["hops"]] == ["manager", "samplellm"]
    text = await client.get(f"/conversations/{which}/log.txt")
    assert text.headers["content-type"].startswith("text/plain") and "attachment" in text.headers["content-disposition"]
    assert len(text.text.splitlines()) == len(words)


async def test_a_turn_stands_with_its_calls_which_count_as_none(
    deployment: Deployment, client: httpx2.AsyncClient
) -> None:
    await deployment.ask("calling:ann", "hello")
    await deployment.ask("calling:ann", "call two")
    await written(client, "calling:ann", 4)
    timeline = (await client.get("/conversations/calling:ann/timeline", params={"turns": 1})).json()["turns"]
    assert [turn["turn"] for turn in timeline] == ["2", "2.1", "2.2"]
    log = (await client.get("/conversations/calling:ann/log", params={"turn": "2"})).json()["records"]
    assert {record["turn"] for record in log} == {"2", "2.1", "2.2"}
    assert (await client.get("/conversations/calling:ann")).json()["turns"] == 2


@pytest.mark.parametrize("which", ["nobody", "..%2f..", "../../etc/passwd", "%2e%2e%2fconfig", "a" * 300])
async def test_what_is_not_there_is_not_found(client: httpx2.AsyncClient, which: str) -> None:
    for path in (f"/conversations/{which}", f"/conversations/{which}/log", f"/conversations/{which}/timeline"):
        assert (await client.get(path)).status_code == 404
    assert (await client.delete(f"/conversations/{which}")).status_code == 404


async def test_a_deleted_conversation_is_forgotten_everywhere(
    deployment: Deployment, client: httpx2.AsyncClient
) -> None:
    await deployment.ask("deleted:ann", "a secret word")
    await deployment.ask("deleted:ann", "bury me")
    await written(client, "deleted:ann", 2)
    answer = await client.delete("/conversations/deleted:ann")
    assert answer.json() == {"conversation": "deleted:ann", "turns_ended": 0}

    async def gone() -> bool:
        return (await client.get("/conversations/deleted:ann")).status_code == 404

    await wait_until(gone)
    server = deployment.session.server
    for name in await server.call("KEYS", "*deleted:ann*"):
        kind = await server.call("TYPE", name)
        assert kind in (b"hash", b"string"), name
        kept = await server.call("HGETALL", name) if kind == b"hash" else [await server.call("GET", name)]
        assert b"secret" not in b"".join(kept), name
    letters = (await client.get("/dead")).json()["dead_letters"]
    assert "deleted:ann" not in [letter["conversation"] for letter in letters]


async def test_a_conversation_whose_transcripts_are_elsewhere_is_deleted_by_its_id(
    deployment: Deployment, client: httpx2.AsyncClient
) -> None:
    await deployment.ask("elsewhere:ann", "a secret word")
    await written(client, "elsewhere:ann", 1)
    shutil.rmtree(deployment.session.application.log_dir / "conversations" / conversation_dir("elsewhere:ann"))
    assert (await client.delete("/conversations/elsewhere:ann")).status_code == 200
    assert await history(deployment.session.bus, "elsewhere:ann", 10) == []


async def test_agents_and_queues_tell_what_is_done_now(deployment: Deployment, client: httpx2.AsyncClient) -> None:
    agents = (await client.get("/agents")).json()
    assert agents["roles"]["samplellm"]["instances"] == 2
    assert sorted(len(process["instances"]) for process in agents["processes"]) == [0, 3]
    queues = (await client.get("/queues")).json()
    assert queues["roles"]["samplellm"] == {"high": 0, "normal": 0, "low": 0}
    assert queues["deferred"] == queues["in_flight"] == 0
    assert (await client.get("/stats")).json()["instances"].keys() == {"manager", "samplellm"}


async def test_what_the_processes_log_is_read_by_process_and_level(
    deployment: Deployment, client: httpx2.AsyncClient
) -> None:
    logger = logging.getLogger("rolecall.worker.worker")
    logger.warning("shard 0: a lease was late")
    logger.error("an instance failed")

    async def told() -> bool:
        found = (await client.get("/log", params={"level": "error", "process": "host:1~aaaaaa"})).json()["lines"]
        return [line["text"] for line in found] == ["an instance failed"]

    await wait_until(told)
    lines = (await client.get("/log", params={"level": "warning", "process": "host:1~aaaaaa"})).json()["lines"]
    late = next(line for line in lines if "lease" in line["text"])
    assert (late["level"], late["process"]) == ("warning", "host:1~aaaaaa")
    later = (await client.get("/log", params={"after": late["id"], "process": "host:1~aaaaaa"})).json()["lines"]
    assert [line["text"] for line in later] == ["an instance failed"]
    for wrong in ({"level": "loud"}, {"after": "yesterday"}, {"limit": 0}):
        assert (await client.get("/log", params=wrong)).status_code == 422


async def test_a_dead_letter_is_shown_replayed_and_dropped(deployment: Deployment, client: httpx2.AsyncClient) -> None:
    for _ in range(2):
        await deployment.ask("dead:ann", "bury me")
    listed = (await client.get("/dead")).json()
    assert listed["total"] >= 2
    first, second = (row["id"] for row in listed["dead_letters"] if row["conversation"] == "dead:ann")
    assert "it was asked for" in (await client.get(f"/dead/{first}")).json()["reason"]
    replayed = await client.post(f"/dead/{first}/replay")
    assert replayed.json()["conversation"] == "dead:ann"
    assert (await client.post(f"/dead/{first}/replay")).status_code == 404
    assert (await client.delete(f"/dead/{second}")).status_code == 204
    assert (await client.delete(f"/dead/{second}")).status_code == 404
    assert (await client.get("/dead/nonsense")).status_code == 422
