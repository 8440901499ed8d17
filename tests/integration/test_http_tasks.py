"""The native HTTP API: ask and wait, stream, come back later, cancel; and every way to get it wrong."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from rolecall.bus.access_keys import create_key
from rolecall.bus.conversation import prefer
from rolecall.frontends.texts import say
from tests.bus.steps import log_records
from tests.deployment import Deployment
from tests.http.server import open_again, serving
from tests.http.stage import Events, GateAgent, stage
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n picture").decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    async with stage(tmp_path_factory.mktemp("http")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(deployment: Deployment) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield client


async def asked(client: httpx2.AsyncClient, **question: Any) -> dict[str, Any]:
    """The task that a question became."""
    answer = await client.post("/chat/async", json=question)
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


async def streamed(client: httpx2.AsyncClient, method: str, url: str, **options: Any) -> list[tuple[str, str, Any]]:
    """All events of a stream."""
    async with client.stream(method, url, **options) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return [one async for one in Events(response)]


async def test_commands_are_answered_in_the_language_of_the_client_or_of_the_conversation(
    client: httpx2.AsyncClient, deployment: Deployment
) -> None:
    clear = {"text": "/clear", "conversation_id": "spoken"}
    for accepted, language in (
        ("de-CH, en;q=0.8", "de"), ("xx;q=0, fr;q=0.5, es;q=0.7", "es"), ("*", "en"), ("zh-TW", "zh-hant"),
        ("\u0665;q=9", "en"), (";,;q=", "en"),
    ):  # fmt: skip
        headers = {"Accept-Language": accepted.encode()}
        assert (await client.post("/chat", json=clear, headers=headers)).json()["text"] == say(language, "forgotten")  # type: ignore[arg-type]
        page = {"name": "spoken", "text": "/stop"}
        task = (await client.post("/chat/page", json=page, headers=headers)).json()  # type: ignore[arg-type]
        assert task["text"] == say(language, "nothing_to_stop")
    await prefer(deployment.session.bus, "http:local:spoken", "lang", "tr", instance="test")
    answer = await client.post("/chat", json=clear, headers={"Accept-Language": "de"})
    assert answer.json()["text"] == say("tr", "forgotten")


def problem(answer: httpx2.Response, status: int, code: str = "") -> str:
    """The detail of a problem of that kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert code in ("", told["code"])
    detail: str = told["detail"]
    return detail


async def test_a_question_is_answered(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat", json={"text": "hello"})
    assert answer.status_code == 200
    task = answer.json()
    assert (task["state"], task["text"], task["model"]) == ("done", "echo: hello", "echo@test")
    assert task["usage"] == {"tokens_in": 1, "tokens_out": 2}
    assert answer.headers["x-task-id"] == task["id"]
    assert answer.headers["location"] == f"/chat/task/{task['id']}"
    assert (await client.get(answer.headers["location"])).json() == task


async def test_a_conversation_goes_on_by_its_name_and_by_its_whole_id(client: httpx2.AsyncClient) -> None:
    first = (await client.post("/chat", json={"text": "one", "conversation_id": "my trip"})).json()
    assert first["conversation_id"] == "http:local:my trip"
    second = (await client.post("/chat", json={"text": "two", "conversation_id": first["conversation_id"]})).json()
    assert (second["conversation_id"], second["turn"]) == (first["conversation_id"], "2")
    told = await client.post("/chat", json={"text": "?", "conversation_id": "my trip", "role": "tell"})
    assert ["user", "one"] in json.loads(told.json()["text"])["history"]


async def test_any_letters_make_a_conversation(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat", json={"text": "grüß 你好 🙂", "conversation_id": "Zoë/旅行 🙂"})
    assert answer.json()["text"] == "echo: grüß 你好 🙂"
    assert (await client.get(answer.headers["location"])).json()["conversation_id"] == "http:local:Zoë/旅行 🙂"


async def test_what_is_asked_for_reaches_the_agent(client: httpx2.AsyncClient) -> None:
    question = {
        "text": "look", "role": "tell", "model": "echo@test", "priority": 90, "metadata": {"order": "4711"},
        "images": [f"data:image/png;base64,{PIXEL}"],
    }  # fmt: skip
    told = json.loads((await client.post("/chat", json=question)).json()["text"])
    assert told == {
        "text": "look", "history": [], "images": [16], "priority": 90, "model": "echo@test",
        "metadata": {"order": "4711"},
    }  # fmt: skip


async def test_a_command_that_is_carried_out_at_once_is_no_task(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat/async", json={"text": "/stop"})
    assert (answer.status_code, answer.json()["id"]) == (200, None)
    assert answer.json()["text"] == "There is nothing to stop."
    assert "location" not in answer.headers
    found = await streamed(client, "POST", "/chat/stream", json={"text": "/stop"})
    assert [name for _, name, _ in found] == ["snapshot", "done"]


async def test_who_follows_a_conversation_is_told_that_it_is_cleared(client: httpx2.AsyncClient) -> None:
    body = {"conversation_id": "cleared", "text": "hi"}
    async with client.stream("GET", "/chat/notices/cleared?messages=true") as response:
        told = aiter(Events(response))
        assert (await anext(told))[1] == "listening"
        for text in ("hi", "/clear", "ho"):
            assert (await client.post("/chat", json={**body, "text": text})).status_code == 200
        assert [(await anext(told))[1:] for _ in range(3)] == [
            ("accepted", {"turn": "1"}), ("cleared", {"turn": "1"}), ("accepted", {"turn": "2"})
        ]  # fmt: skip


async def test_an_answer_is_streamed_as_it_is_made(client: httpx2.AsyncClient) -> None:
    GateAgent.gate.clear()
    found = []
    async with client.stream("POST", "/chat/stream", json={"text": "hello", "role": "gate"}) as response:
        async for _, name, data in Events(response):
            found.append((name, data))
            if name == "delta":
                GateAgent.gate.set()
    assert [name for name, _ in found] == ["snapshot", "accepted", "started", "started", "delta", "done"]
    assert [data["role"] for name, data in found if name == "started"] == ["manager", "gate"]
    assert found[-2][1] == {"position": 0, "text": "one "}
    assert found[-1][1]["text"] == "one two"


async def test_a_task_is_there_at_once_and_its_answer_later(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat/async", json={"text": "4 0.1", "role": "slow"})
    task = answer.json()
    assert (answer.status_code, task["state"]) == (202, "pending")
    where = answer.headers["location"]

    async def running() -> bool:
        now = (await client.get(where)).json()
        return bool(now["state"] == "running" and now["role"] == "slow" and now["text"])

    await wait_until(running)
    assert (await client.get(where, params={"wait": 20})).json()["text"] == "0 1 2 3 "


async def test_a_cancelled_task_has_what_there_was_of_its_answer(client: httpx2.AsyncClient) -> None:
    GateAgent.gate.clear()
    async with client.stream("POST", "/chat/stream", json={"text": "hello", "role": "gate"}) as response:
        async for _, name, data in Events(response):
            if name == "delta":
                cancelled = (await client.post(f"{response.headers['location']}/cancel")).json()
            last = (name, data)
    assert last == ("cancelled", cancelled)
    assert (cancelled["state"], cancelled["text"]) == ("cancelled", "one ")
    assert (await client.get(response.headers["location"])).json() == cancelled


async def test_waiting_ends_when_its_time_is_over(client: httpx2.AsyncClient) -> None:
    task = await asked(client, text="1 60", role="slow")
    now = (await client.get(f"/chat/task/{task['id']}", params={"wait": 0.05})).json()
    assert now["state"] in ("pending", "running")
    await client.post(f"/chat/task/{task['id']}/cancel")


async def test_turns_of_one_conversation_wait_in_their_places(client: httpx2.AsyncClient) -> None:
    tasks = [await asked(client, text="1 60", role="slow", conversation_id="queue") for _ in range(3)]
    assert [(task["state"], task["place"]) for task in tasks] == [("pending", 0), ("pending", 1), ("pending", 2)]
    stopped = await client.post("/chat", json={"text": "/stop", "conversation_id": "queue"})
    assert stopped.json()["text"] == "Stopped."
    for task in tasks:
        assert (await client.get(f"/chat/task/{task['id']}")).json()["state"] == "cancelled"


@pytest.mark.parametrize("where", ["/chat", "/chat/stream"])
async def test_the_transcript_tells_that_an_answer_was_handed_over(
    client: httpx2.AsyncClient, deployment: Deployment, where: str
) -> None:
    answer = await client.post(where, json={"text": "hello", "conversation_id": f"handed over by {where}"})
    assert answer.status_code == 200
    name = f"http:local:handed over by {where}"

    async def noted() -> bool:
        records = await log_records(deployment.session.bus)
        return any((record["c"], record["w"]) == (name, "DELIVERED") for record in records)

    await wait_until(noted)


async def test_a_task_is_cancelled_once_and_stays_so(client: httpx2.AsyncClient) -> None:
    task = await asked(client, text="9 60", role="slow", conversation_id="cancelled")
    where = f"/chat/task/{task['id']}"
    watching = asyncio.create_task(streamed(client, "GET", f"{where}/events"))
    for _ in range(2):
        answer = await client.post(f"{where}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (await watching)[-1][1] == "cancelled"
    done = (await client.post("/chat", json={"text": "hello", "conversation_id": "cancelled"})).json()
    answer = await client.post(f"/chat/task/{done['id']}/cancel")
    assert (answer.status_code, answer.json()) == (200, done)


async def test_what_was_cancelled_is_remembered_as_far_as_it_came(client: httpx2.AsyncClient) -> None:
    task = await asked(client, text="9 30", role="slow", conversation_id="broken off")

    async def said() -> bool:
        return bool((await client.get(f"/chat/task/{task['id']}")).json()["text"])

    await wait_until(said)
    await client.post(f"/chat/task/{task['id']}/cancel")
    told = await client.post("/chat", json={"text": "?", "conversation_id": "broken off", "role": "tell"})
    assert json.loads(told.json()["text"])["history"] == [["user", "9 30"], ["assistant", "0 "]]


async def test_a_turn_that_fails_says_so(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat", json={"text": "bury me"})
    assert "it was asked for" in problem(answer, 502, "failed")
    assert answer.headers["x-should-retry"] == "false"
    task = (await client.get(answer.headers["location"])).json()
    assert (task["state"], task["error"]["reason"]) == ("failed", "it was asked for")
    assert answer.json()["task"] == task
    found = await streamed(client, "POST", "/chat/stream", json={"text": "bury me"})
    assert found[-1][1] == "failed"


async def test_a_repeat_with_the_same_key_is_the_same_task(client: httpx2.AsyncClient) -> None:
    question, headers = {"text": "once"}, {"Idempotency-Key": "order-4711"}
    answers = await asyncio.gather(
        *(client.post(where, json=question, headers=headers) for where in ("/chat/async", "/chat", "/chat/async"))
    )
    assert len({answer.json()["id"] for answer in answers}) == 1
    again = await client.post("/chat", json=question, headers=headers)
    assert again.json()["text"] == "echo: once"
    found = await streamed(client, "POST", "/chat/stream", json=question, headers=headers)
    assert [name for _, name, _ in found] == ["snapshot", "done"]
    other = await client.post("/chat", json={"text": "twice"}, headers=headers)
    problem(other, 422, "idempotency_conflict")


async def test_a_command_that_is_repeated_with_the_same_key_is_carried_out_once(client: httpx2.AsyncClient) -> None:
    for text, hour in (("tea", 9), ("coffee", 10)):
        body = {"conversation_id": "twice", "text": text, "when": f"tomorrow at {hour}"}
        assert (await client.post("/chat/reminders", json=body)).status_code == 201
    key, delete = {"Idempotency-Key": "delete-1"}, {"text": "/reminders delete 1", "conversation_id": "twice"}
    first, again = [(await client.post("/chat", json=delete, headers=key)).json() for _ in range(2)]
    assert first["text"] == again["text"] and "tea" in first["text"]
    left = (await client.get("/chat/reminders", params={"conversation_id": "twice"})).json()["reminders"]
    assert [one["text"] for one in left] == ["coffee"]
    for other in ("/clear", "hello"):
        answer = await client.post("/chat", json={**delete, "text": other}, headers=key)
        assert problem(answer, 422, "idempotency_conflict")


async def test_a_repeat_after_the_result_is_gone_is_told_so(client: httpx2.AsyncClient, deployment: Deployment) -> None:
    headers = {"Idempotency-Key": "long ago"}
    task = (await client.post("/chat", json={"text": "once"}, headers=headers)).json()
    shard = deployment.session.bus.shard(task["conversation_id"])
    await deployment.session.server.call("DEL", shard.result(task["conversation_id"], task["turn"]))
    problem(await client.post("/chat", json={"text": "once"}, headers=headers), 410, "gone")
    problem(await client.get(f"/chat/task/{task['id']}"), 410, "gone")
    problem(await client.get(f"/chat/task/{task['id']}/events"), 410, "gone")
    problem(await client.post(f"/chat/task/{task['id']}/cancel"), 410, "gone")


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("where", ["/chat", "/chat/stream"])
async def test_a_client_that_leaves_ends_nothing_unless_it_said_so(
    client: httpx2.AsyncClient, where: str, cancels: bool
) -> None:
    name = f"left {where} {cancels}"
    question = {"text": "9 60", "role": "slow", "conversation_id": name, "cancel_on_disconnect": cancels}
    asking = asyncio.create_task(client.post(where, json=question))
    task_id = f"{base64.urlsafe_b64encode(f'http:local:{name}'.encode()).decode().rstrip('=')}.1"

    async def state() -> str:
        return str((await client.get(f"/chat/task/{task_id}")).json().get("state"))

    async def running() -> bool:
        return await state() == "running"

    async def cancelled() -> bool:
        return await state() == "cancelled"

    await wait_until(running)
    asking.cancel()
    if cancels:
        await wait_until(cancelled)
    else:
        assert await state() == "running"
        await client.post(f"/chat/task/{task_id}/cancel")


async def test_too_much_is_refused_with_the_time_to_come_back(client: httpx2.AsyncClient) -> None:
    question = {"text": "1 60", "role": "slow", "conversation_id": "full"}
    for _ in range(9):
        await asked(client, **question)
    answer = await client.post("/chat/async", json=question)
    problem(answer, 429, "full")
    assert int(answer.headers["retry-after"]) > 0
    assert (await client.post("/chat", json={"text": "/stop", "conversation_id": "full"})).status_code == 200


@pytest.mark.parametrize(
    ("question", "status", "named"),
    [
        ({}, 422, "text"),
        ({"text": "  "}, 422, "text"),
        ({"text": 7}, 422, "text"),
        ({"text": "x", "priority": 101}, 422, "priority"),
        ({"text": "x", "role": "nobody"}, 422, "samplellm"),
        ({"text": "x", "role": "manager"}, 422, "samplellm"),
        ({"text": "x", "model": "gpt@nowhere"}, 422, "echo@test"),
        ({"text": "x", "conversation_id": "a\nb"}, 422, "conversation"),
        ({"text": "x", "conversation_id": "x" * 195}, 422, "200"),
        ({"text": "x", "metadata": {"a": ["b"]}}, 422, "metadata"),
        ({"text": "x", "images": ["https://example.org/a.png"]}, 422, "data URL"),
        ({"text": "x", "images": ["data:image/png;base64,!"]}, 422, "base64"),
        ({"text": "x", "images": ["data:image/png;base64,AAAA"]}, 422, "PNG, JPEG, GIF or WebP"),
        ({"text": "x", "images": [f"data:image/png;base64,{'A' * 100_000}"]}, 422, "PNG, JPEG, GIF or WebP"),
        ({"text": "x", "conversation": "typo"}, 422, "conversation"),
        ({"text": "ü" * 40_000}, 413, "64 kB"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx2.AsyncClient, question: dict[str, Any], status: int, named: str
) -> None:
    for where in ("/chat", "/chat/stream", "/chat/async"):
        content = json.dumps(question)
        answer = await client.post(where, content=content, headers={"content-type": "application/json"})
        assert named in problem(answer, status)


async def test_what_is_no_json_is_refused(client: httpx2.AsyncClient) -> None:
    for content in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000):
        answer = await client.post("/chat", content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), content[:10]
        problem(answer, answer.status_code)


@pytest.mark.parametrize("task_id", ["x", "x.1", "aHR0cDpsb2NhbDp4.99", "aHR0cDpsb2NhbDp4.01", "%00.1", "4pyT.c1"])
async def test_an_unknown_task_is_not_found(client: httpx2.AsyncClient, task_id: str) -> None:
    problem(await client.get(f"/chat/task/{task_id}"), 404)
    problem(await client.get(f"/chat/task/{task_id}/events"), 404)
    problem(await client.post(f"/chat/task/{task_id}/cancel"), 404)


@pytest.mark.parametrize("after", ["x", "-1", "1-99999999999999999999", "1-2-3", "٣"])
async def test_only_an_event_id_resumes(client: httpx2.AsyncClient, after: str) -> None:
    task = await asked(client, text="hello")
    problem(await client.get(f"/chat/task/{task['id']}/events", params={"after": after}), 422)


async def test_keys_see_nothing_of_each_other(client: httpx2.AsyncClient, deployment: Deployment) -> None:
    bus = deployment.session.bus
    (ann, ann_key), (_, bob_key) = await create_key(bus, "ann"), await create_key(bus, "bob")
    _, admin_key = await create_key(bus, "root", admin=True)
    of = {name: {"Authorization": f"Bearer {key}"} for name, key in
          (("ann", ann_key), ("bob", bob_key), ("root", admin_key))}  # fmt: skip
    async with serving(deployment.session.application) as url, httpx2.AsyncClient(base_url=url) as other:
        same = {"Idempotency-Key": "1"}
        question = {"text": "mine", "conversation_id": "trip"}
        anns = await other.post("/chat", json=question, headers={**of["ann"], **same})
        bobs = await other.post("/chat", json=question, headers={**of["bob"], **same})
        assert anns.json()["conversation_id"] == f"http:{ann.id}:trip"
        assert bobs.json()["conversation_id"] != anns.json()["conversation_id"]
        where, whole = anns.headers["location"], anns.json()["conversation_id"]
        assert (await other.get(where, headers=of["ann"])).status_code == 200
        assert (await other.get(where, headers=of["root"])).status_code == 200
        problem(await other.get(where, headers=of["bob"]), 404)
        problem(await other.post(f"{where}/cancel", headers=of["bob"]), 404)
        problem(await other.post("/chat", json={"text": "x", "conversation_id": whole}, headers=of["bob"]), 403)
        problem(await other.get(where), 401)
    await open_again(bus, str(client.base_url).rstrip("/"))


async def test_streams_of_one_key_are_counted(client: httpx2.AsyncClient, deployment: Deployment) -> None:
    application = deployment.session.application
    few = application.settings.model_copy(update={"http_streams": 1})
    task = await asked(client, text="1 60", role="slow")
    where = f"/chat/task/{task['id']}/events"
    async with (
        serving(type(application)(application.directory, application.roles, few, {})) as url,
        httpx2.AsyncClient(base_url=url) as other,
    ):
        async with other.stream("GET", where) as response:
            assert response.status_code == 200
            refused = await other.get(where)
            problem(refused, 429, "too_many_streams")
            assert refused.headers["retry-after"]

        async def free() -> bool:
            async with other.stream("GET", where) as response:
                return response.status_code == 200

        await wait_until(free)
    await client.post(f"/chat/task/{task['id']}/cancel")


async def test_an_agent_asks_and_the_task_goes_on_with_the_answer(client: httpx2.AsyncClient) -> None:
    task = await asked(client, text="colour?", role="ask")
    url = f"/chat/task/{task['id']}"

    async def open_question() -> list[Any]:
        return (await client.get(url)).json()["questions"]  # type: ignore[no-any-return]

    await wait_until(open_question)
    (question,) = await open_question()
    assert (question["text"], question["options"], question["style"]) == ("Which colour?", ["red", "green"], "choose")

    wrong = await client.post(f"{url}/answer", json={"question": question["id"], "choice": 2})
    assert problem(wrong, 422) == "choice: this question has no such option."
    yes = await client.post(f"{url}/answer", json={"question": question["id"], "choice": True})
    assert problem(yes, 422).startswith("choice: ")
    unknown = await client.post(f"{url}/answer", json={"question": "9-0-1", "choice": 0})
    assert problem(unknown, 404) == "This task no longer asks this question."
    assert (await client.post(f"{url}/answer", json={"question": question["id"], "choice": 1})).status_code == 200

    events = await streamed(client, "GET", f"{url}/events")
    assert events[-1][2]["text"] == "green"
    again = await client.post(f"{url}/answer", json={"question": question["id"], "choice": 0})
    assert again.status_code in (404, 409)


async def test_a_stream_tells_the_question_and_its_answer(client: httpx2.AsyncClient) -> None:
    told: list[tuple[str, Any]] = []
    async with client.stream("POST", "/chat/stream", json={"text": "colour?", "role": "ask"}) as response:
        url = f"/chat/task/{response.headers['X-Task-Id']}/answer"
        async for _, name, data in Events(response):
            told.append((name, data))
            if name == "asked":
                assert (await client.post(url, json={"question": data["id"], "choice": 0})).status_code == 200
    assert ("answered", {"question": dict(told)["asked"]["id"], "choice": 0}) in told
    assert told[-1][1]["text"] == "red"


async def test_a_client_that_waits_for_the_answer_cannot_be_asked(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/chat", json={"text": "colour?", "role": "ask"})
    assert answer.status_code == 502
