"""The web page as the server sends it: who sees what, what is escaped, and what comes live."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from markdown_it import MarkdownIt

from rolecall import stats
from rolecall.bus.access_keys import create_key
from rolecall.bus.conversation import history
from rolecall.frontends import documents
from rolecall.frontends.http import problems
from rolecall.frontends.http.web import own_chats, rendering
from rolecall.frontends.texts import section
from rolecall.redis import keys
from rolecall.serving.directory import Directory
from rolecall.serving.spec import ModelServer
from rolecall.transcripts.record import conversation_dir
from tests.browser.stage import Stage, staged
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{7*7}}"
PAGES = ("/", "/web/conversations", "/web/now", "/web/log", "/web/dead")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("pages")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stage: Stage) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=stage.url) as client:
        yield client


async def shown(client: httpx2.AsyncClient, path: str, status: int = 200) -> str:
    answer = await client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


async def transcribed(client: httpx2.AsyncClient, conversation: str, state: str = "answered|given up|cancelled") -> str:
    """The directory of ``conversation``, once its transcript tells how its last turn ended."""
    which = conversation_dir(conversation)

    async def told() -> bool:
        answer = await client.get(f"/conversations/{which}/timeline")
        turns = answer.json()["turns"] if answer.status_code == 200 else []
        return bool(turns) and re.fullmatch(state, turns[-1]["state"]) is not None

    await wait_until(told, what=f"the transcript of {conversation}")
    return which


async def events(client: httpx2.AsyncClient, path: str) -> AsyncGenerator[tuple[str, Any]]:
    async with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        name = ""
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_runs_nothing_but_its_own_files(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|\sstyle=|javascript:", answer.text)
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
        asset = await client.get(address)
        assert asset.status_code == 200 and "immutable" in asset.headers["cache-control"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', answer.text)


async def test_files_that_are_not_the_pages_own_are_not_sent(client: httpx2.AsyncClient) -> None:
    for path in ("/static/x/nothing.js", "/static/x/..%2fpages.py", "/static/x/layout.html", "/static/x/%2e%2e"):
        assert (await client.get(path)).status_code == 404
    assert (await client.get("/static/old/page.js")).headers["cache-control"] == "no-cache"
    assert (await client.get("/favicon.ico")).headers["content-type"] == "image/svg+xml"


async def test_a_browser_gets_a_page_where_there_is_none_and_a_program_a_problem(client: httpx2.AsyncClient) -> None:
    for path in ("/nosuchpage", "/web/nosuch"):
        page = await client.get(path, headers={"accept": "text/html,*/*"})
        assert page.status_code == 404 and "<h1>Not found</h1>" in page.text and "default-src" in str(page.headers)
        told = await client.get(path, headers={"accept": "application/json"})
        assert told.status_code == 404 and told.headers["content-type"] == "application/problem+json"
    assert (await client.get("/chat", headers={"accept": "text/html"})).status_code == 405


async def test_what_others_wrote_is_shown_as_text(stage: Stage, client: httpx2.AsyncClient) -> None:
    conversation = f"telegram:{EVIL}"
    await stage.deployment.ask(conversation, f"bury me because {EVIL}", title=EVIL)
    which = await transcribed(client, conversation)
    for path in ("/web/conversations", f"/web/conversations/{which}", "/web/dead", f"/web/conversations?search={EVIL}"):
        page = await shown(client, path)
        assert "<script>alert" not in page and "<img" not in page and "{{7*7}}" in page
    letter = (await client.get("/dead")).json()["dead_letters"][0]["id"]
    assert (await client.delete(f"/dead/{letter}")).status_code == 204


async def test_a_conversation_is_found_by_what_names_it(stage: Stage, client: httpx2.AsyncClient) -> None:
    received = await stage.deployment.say("telegram:42", "hello")
    await stage.deployment.answer(received)
    which = await transcribed(client, "telegram:42")
    for name in (which, "telegram:42", received.short_id):
        page = await shown(client, f"/web/conversations/{name}")
        assert "telegram:42" in page and page.count('class="hop-row"') == 4  # and one to copy
        assert "PROCESSING_COMPLETE" in page
    assert "telegram:42" in await shown(client, "/web/conversations?search=telegram:42&errors=0")
    assert "No matches" in await shown(client, "/web/conversations?search=nobody+said+that")
    assert "No conversation" in await shown(client, "/web/conversations/nobody", 404)


async def test_a_conversation_and_the_list_of_them_are_followed_live(stage: Stage, client: httpx2.AsyncClient) -> None:
    await stage.deployment.ask("telegram:77", "one")
    which = await transcribed(client, "telegram:77")
    async with asyncio.timeout(20):
        seen: list[str] = []
        asked = False
        async for name, told in events(client, f"/web/conversations/{which}/events"):
            seen += [record["id"] for record in told.get("records", ())]
            if name == "gone":
                break
            if not asked:
                asked = True
                await stage.deployment.say("telegram:77", "slowly, please " * 3)
            elif told["shown"]["running"]:
                assert told["turns"][-1]["state"] == "running"
                assert (await client.post(f"/web/conversations/{which}/stop")).json() == {"turns": 1}
            elif told["turns"][-1]["state"] == "cancelled":
                await client.delete(f"/conversations/{which}")
        assert len(seen) == len(set(seen)) and seen == sorted(seen, key=lambda one: [*map(float, one.split("-"))])
        rows = events(client, "/web/conversations/events?search=telegram:78")
        assert (await anext(rows))[1]["total"] == 0
        await stage.deployment.say("telegram:78", "new")
        name, found = await anext(rows)
        assert found["conversations"][0]["id"] == "telegram:78"
        await rows.aclose()


async def test_the_chat_keeps_conversations_and_knows_what_is_being_answered(client: httpx2.AsyncClient) -> None:
    assert "samplellm" in await shown(client, "/")
    done = await client.post("/chat", json={"text": "a **bold** word", "conversation_id": "web-1"})
    assert done.json()["state"] == "done"
    running = await client.post("/chat/async", json={"text": "slowly now", "conversation_id": "web-1"})
    waiting = await client.post("/chat/async", json={"text": "and then", "conversation_id": "web-1"})
    talk = (await client.get("/web/chat/web-1")).json()
    (one,) = talk["exchanges"]
    assert (one["said"], one["answer"]) == ("a **bold** word", "a **bold** word")
    assert [(task["id"], task["said"]) for task in talk["tasks"]] == [
        (running.json()["id"], "slowly now"), (waiting.json()["id"], "and then"),
    ]  # fmt: skip
    await transcribed(client, "http:local:web-1")
    kept = (await client.get("/web/chat")).json()["conversations"]
    assert [(row["name"], row["title"]) for row in kept] == [("web-1", "a **bold** word")]
    never = (await client.get("/web/chat/never")).json()
    assert (never["exchanges"], never["tasks"]) == ([], [])


async def test_a_message_that_the_history_no_longer_has_is_replaced_with_all_that_followed(
    stage: Stage, client: httpx2.AsyncClient
) -> None:
    bus, limit = stage.deployment.session.bus, stage.deployment.session.bus.settings.assistant_history_limit
    turns = limit // 2 + 1
    for number in range(turns):
        await client.post("/chat", json={"text": f"no {number}", "conversation_id": "web-long"})
    assert "1" not in {entry.turn for entry in await history(bus, "http:local:web-long", limit)}
    again = await client.post("/chat/page", json={"name": "web-long", "text": "anew", "again": "1"})
    await client.get(f"/chat/task/{again.json()['id']}?wait=20")
    assert {entry.turn for entry in await history(bus, "http:local:web-long", limit)} == {str(turns + 1)}


async def test_own_conversations_are_found_by_what_was_said_and_not_crowded_out(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listed(search: str = "") -> list[str]:
        answer = await client.get("/web/chat", params={"search": search})
        return [row["name"] for row in answer.json()["conversations"]]

    monkeypatch.setattr(own_chats, "MOST_ROWS", 1)
    for name, said in (
        ("web-found", "a rare page"),
        ("crm:42", "a rare desk"),
        ("", "a rare call"),
        ("", "a rare call"),
    ):
        sent = await client.post("/chat", json={"text": said, "conversation_id": name})
        await transcribed(client, sent.json()["conversation_id"], "answered|delivered")
    assert await listed() == ["crm:42"]
    await client.post("/web/chat/web-found", json={"title": "Zanzibar", "pinned": True})
    await wait_until(lambda: listed("zanzibar"), what="the title in the transcript")
    assert await listed() == ["web-found"]
    monkeypatch.undo()
    assert "crm:42" in await listed() and len(await listed("a rare call")) == 2
    assert await listed("a rare desk") == await listed("crm:") == ["crm:42"]
    for word in ("samplellm", "PROCESSING_COMPLETE", "session of", "http:local", "web-"):
        assert await listed(word) == [], word
    await client.post("/web/chat/web-found", json={"pinned": False})


async def test_an_export_keeps_what_is_no_markdown_as_it_was_written(client: httpx2.AsyncClient) -> None:
    written = "1. in   *ten*\n\n```\n# minutes"
    for said in (f"repeat {written}", "a **bold** word"):
        await client.post("/chat", json={"text": said, "conversation_id": "web-md"})
    shown = MarkdownIt().parse((await client.get("/web/export/md/web-md")).text)
    assert [token.content for token in shown if token.type == "fence"] == ["# minutes\n", f"{written}\n"]
    words = [token.content for token in shown if token.type == "inline"]
    assert words[-5:] == ["**Assistant**", "**You**", "a **bold** word", "**Assistant**", "a **bold** word"]


async def test_a_conversation_is_changed_replaced_and_shared_by_its_owner_only(
    stage: Stage, client: httpx2.AsyncClient
) -> None:
    for text in ("one", "two"):
        await client.post("/chat", json={"text": text, "conversation_id": "web-2"})
    again = await client.post("/chat/page", json={"name": "web-2", "text": "one, better", "again": "1"})
    await client.get(f"/chat/task/{again.json()['id']}?wait=20")
    entries = await history(stage.deployment.session.bus, "http:local:web-2", 20)
    assert {entry.turn for entry in entries} == {"3"}
    renamed = (await client.post("/web/chat/web-2", json={"title": " A  name ", "pinned": True, "shared": True})).json()
    assert (renamed["title"], renamed["pinned"]) == ("A name", True)
    link = renamed["shared"]
    assert (await client.post("/web/chat/web-2", json={"shared": True})).json()["shared"] == link
    which = await transcribed(client, "http:local:web-2")
    log = (await client.get(f"/conversations/{which}/log.txt")).text
    assert link.rpartition(".")[2] not in log + (await client.get(f"/conversations/{which}")).text
    read = (await client.get(f"{link}/thread")).json()
    assert [one["said"] for one in read["exchanges"]] == ["one, better"] and "turn" not in read["exchanges"][0]
    for wrong in (link[:-1], f"{link[:-4]}AAAA", "/web/shared/x.y", f"/web/shared/dGVsZWdyYW06NDI.{'A' * 22}"):
        assert (await client.get(f"{wrong}/thread")).status_code == 404
        page = await client.get(wrong)
        assert page.status_code == 404 and "withdrawn" in page.text
    assert (await client.post("/web/chat/web-2", json={"shared": False})).json()["shared"] == ""
    assert (await client.get(f"{link}/thread")).status_code == 404
    bad = {"name": "web-2", "text": "x", "files": [{"name": "a.exe", "type": "application/x-dosexec", "data": "AAAA"}]}
    assert (await client.post("/chat/page", json=bad)).status_code == 400
    assert (await client.post("/chat/page", json={"name": "web-2", "text": " "})).status_code == 422
    assert (await client.delete("/web/chat/web-2")).status_code == 204

    async def gone() -> bool:
        found: list[Any] = (await client.get("/web/chat/web-2")).json()["exchanges"]
        return not found

    await wait_until(gone, what="the end of the transcript")


async def test_a_role_is_scaled_paused_and_resumed_within_the_limit(stage: Stage, client: httpx2.AsyncClient) -> None:
    async def instances(count: int) -> None:
        async def seen() -> bool:
            found = (await client.get("/agents")).json()["roles"]["translation"]["instances"]
            return bool(found == count)

        await wait_until(seen, what=f"{count} instances")

    assert (await client.post("/web/roles/translation", json={"count": 0})).json()["translation"]["count"] == 0
    await instances(0)
    waiting = await client.post("/chat/async", json={"text": "/translate hello", "conversation_id": "web-paused"})
    assert (await client.post("/web/roles/translation", json={"count": 2})).json()["translation"]["count"] == 2
    await instances(2)
    assert (await client.get(f"/chat/task/{waiting.json()['id']}?wait=20")).json()["state"] == "done"
    assert (await client.post("/web/roles/translation", json={"count": 1000})).status_code == 422
    assert (await client.post("/web/roles/nobody", json={"count": 1})).status_code == 404
    await client.post("/web/roles/translation", json={"count": 1})
    await instances(1)


async def test_many_dead_letters_are_replayed_and_dropped_by_a_filter(stage: Stage, client: httpx2.AsyncClient) -> None:
    for n in range(3):
        await stage.deployment.ask(f"telegram:9{n}", f"bury me because herons {n}")
    await stage.deployment.ask("telegram:99", "bury me because storks")
    assert "herons 2" in await shown(client, "/web/dead?search=HERONS")
    assert "storks" not in await shown(client, "/web/dead?search=HERONS")
    replayed = (await client.post("/web/dead", json={"act": "replay", "search": "herons"})).json()
    assert (len(replayed["done"]), replayed["refused"]) == (3, [])

    async def buried_again() -> bool:
        return bool((await client.get("/dead")).json()["total"] == 4)

    await wait_until(buried_again, what="the same failures")
    (storks,) = [one["id"] for one in (await client.get("/dead")).json()["dead_letters"] if "storks" in one["reason"]]
    assert (await client.post("/web/dead", json={"act": "drop", "ids": [storks]})).json()["done"] == [storks]
    assert len((await client.post("/web/dead", json={"act": "drop", "search": "herons"})).json()["done"]) == 3
    assert (await client.get("/dead")).json()["total"] == 0


async def test_usage_is_told_by_day_model_and_user(stage: Stage, client: httpx2.AsyncClient) -> None:
    spent = {"tokens": 30, "cost": 2_000_000, "u:http:ann:tokens": 30, "m:big@openai:in": 10, "m:big@openai:out": 20}
    for field, by in spent.items():
        await stage.deployment.session.server.call("HINCRBY", keys.spent(keys.today()), field, by)
    before, _, today = (await client.get("/web/usage/data?days=3")).json()
    assert before["tokens"] == 0 and (today["tokens"], today["cost"]) == (30, 2.0)
    assert today["models"]["big@openai"]["tokens"] == 30 and today["users"]["http:ann"]["tokens"] == 30
    assert (await client.get("/web/usage/data?days=36")).status_code == 422


async def test_now_tells_everything_and_the_series_has_a_sample_of_every_five_seconds(
    stage: Stage, client: httpx2.AsyncClient
) -> None:
    pulse = (await client.get("/web/pulse")).json()
    assert pulse == {"missing": [], "instances": 6, "dead": 0}
    served = ModelServer("s1", "tiny@local", "spec", "ready", "m4", "m4:1", key="secret", slots=4, ram=300)
    await Directory(stage.deployment.session.server).beat(served, again="always")
    stream = events(client, "/web/now/events")
    assert [(await anext(stream))[0] for _ in range(2)] == ["series", "minutes"]
    name, now = await anext(stream)
    await stream.aclose()
    (server,) = now["servers"]
    assert (server["model"], server["slots"], server["ram"], "key" in server) == ("tiny@local", 4, 300, False)
    assert name == "now" and now["stats"]["instances"]["samplellm"]["instances"] == 3
    assert now["sample"]["queues"].keys() == now["stats"]["queues"].keys()
    assert now["sample"]["ms"] % stats.SAMPLE_MS == 0
    assert {process.get("kind", "worker") for process in now["agents"]["processes"]} == {"worker", "http"}
    entries = await stage.deployment.session.server.fetch("XRANGE", keys.SERIES, "-", "+")
    moments = [int(entry_id.partition(b"-")[0]) for entry_id, _ in entries]
    assert moments and len(moments) == len(set(moments))


async def test_only_operators_see_more_than_the_chat_and_nobody_without_a_key(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, httpx2.AsyncClient(base_url=stage.url) as client:
        bus = stage.deployment.session.bus
        _, secret = await create_key(bus, "ann")
        _, admin = await create_key(bus, "olga <b>", admin=True)

        async def locked() -> bool:
            return (await client.get("/")).status_code == 303

        await wait_until(locked)
        for path in (*PAGES, "/web/conversations/x?y=1"):
            answer = await client.get(path)
            assert answer.headers["location"].startswith("/web/login?next=/")
        for path in ("/web/pulse", "/web/chat", "/web/now/events", "/web/conversations/events"):
            assert (await client.get(path)).status_code == 401
        for unfit in ("//evil.example", "/\\evil.example", "https://evil.example"):
            assert 'data-next="/"' in (await client.get("/web/login", params={"next": unfit})).text
        assert 'data-next="/web/now"' in await shown(client, "/web/login?next=/web/now")

        await client.post("/login", json={"key": secret})
        page = await shown(client, "/")
        assert "/web/now" not in page
        await shown(client, "/web/now", 403)
        assert (await client.get("/web/conversations/events")).status_code == 403
        assert (await client.get("/web/pulse")).json()["dead"] is None
        assert (await client.get("/web/chat/http:local:web-1")).status_code == 403

        told = (await client.post("/login", json={"key": admin})).json()
        page = await shown(client, "/web/now")
        assert "olga &lt;b&gt;" in page and f'content="{told["csrf"]}"' in page
        assert (await client.post("/web/conversations/x/stop")).status_code == 403


async def test_every_template_is_escaped_and_names_only_what_it_is_given() -> None:
    assert [rendering.seconds(ms) for ms in (12, 1234, 12_345)] == ["12 ms", "1.23 s", "12.3 s"]
    assert (rendering.share(1, 0), rendering.share(5, 10), rendering.share(20, 10)) == (0.0, 500.0, 1000.0)
    for path in rendering.TEMPLATES.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|autoescape|Markup", text), path.name


async def test_every_text_of_the_http_front_end_exists_and_is_used() -> None:
    package = Path(problems.__file__).parent
    texts = (".py", ".js", ".html")
    files = [Path(documents.__file__), *(path for path in package.rglob("*.*") if path.suffix in texts)]
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    for name, call in (("http", r'\btext\(\s*"(\w+)"'), ("page", r'\b(?:t|page_text)\(\s*"(\w+)"')):
        called = {key for source in sources.values() for key in re.findall(call, source)}
        assert called <= set(section(name)), called - set(section(name))
        quoted = {key for source in sources.values() for key in re.findall(r'"(\w+)"', source)}
        assert set(section(name)) <= quoted, set(section(name)) - quoted


async def test_the_scripts_parse_no_html() -> None:
    static = Path(rendering.__file__).with_name("static")
    for path in static.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc"
        assert not re.search(sinks, text), path.name
