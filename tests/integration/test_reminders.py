"""Reminders where users are: buttons in Telegram, endpoints over HTTP, lines in the terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agents.command import CommandAgent
from agents.manager import ManagerAgent
from agents.remind import RemindAgent
from rolecall import Role
from rolecall.bus.conversation import preferences_of
from rolecall.bus.schedule.schedules import Schedule, schedule, schedules_of
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.bot import open_bot
from rolecall.frontends.telegram.telegram_front import TelegramFront
from rolecall.frontends.texts import say
from rolecall.redis.server import server_ms
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.http.stage import Events
from tests.telegram.api import TelegramApi

ANN, BOB, GROUP = 11, 12, -100
ROLES = (Role(ManagerAgent), Role(CommandAgent), Role(RemindAgent, match="/remind"))
CHAT = f"telegram:{ANN}"


@asynccontextmanager
async def bot(directory: Path, allowed: str = f"{ANN},{BOB},{GROUP}") -> AsyncIterator[tuple[TelegramApi, Deployment]]:
    """A bot that serves Ann, Bob and their group, on a local Bot API server."""
    async with TelegramApi() as api:
        settings: dict[str, Any] = {
            "telegram_bot_token": api.token, "telegram_api_url": api.url, "telegram_edit_seconds": 0.05,
            "telegram_allowed": allowed, "drain_seconds": 0.1,
        }  # fmt: skip
        async with deployed(directory, ROLES, **settings) as app:
            client = open_bot(app.session.application.settings)
            front = TelegramFront(client, app.session, app.runtime.wakeups, lambda line: None)
            running = asyncio.create_task(front.run())
            try:
                yield api, app
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


async def overdue(app: Deployment, made: Schedule, ms: float) -> None:
    """Make the schedule due ``ms`` ago."""
    bus = app.session.bus
    shard, due = bus.shard(made.conversation), round(await server_ms(bus.server) - ms)
    for key in (shard.planned, shard.deferred):
        await bus.server.call("ZADD", key, "XX", due, f"{made.conversation}\x1f{made.id}")


async def test_a_reminder_rings_in_the_chat_and_needs_no_buttons(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        ann = api.user(ANN, language_code="de")
        chat = api.world.private(ann)
        ann.write("/remind in 10 minutes: tea")
        await api.wait_for(lambda: any("tea\n/reminders" in answer.text for answer in chat.answers))
        (made,) = await schedules_of(app.session.bus, CHAT)
        await overdue(app, made, 1)
        await api.wait_for(lambda: chat.answers[-1].text == "⏰ tea")
        assert chat.answers[-1].buttons == []
        sent = [call for call in api.log if call.method == "sendMessage" and "🔔" in call.fields.get("text", "")]
        assert len(sent) == 1 and sent[0].fields.get("disable_notification", "false").lower() == "false"


async def test_one_that_comes_late_says_so_in_the_language_of_the_chat(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        api.user(ANN).write("/lang de")
        await api.wait_for(
            lambda: "Ich antworte ab jetzt auf Deutsch." in [answer.text for answer in api.chat(ANN).answers]
        )
        api.user(ANN).write("/remind every 1 hours: stretch")
        await api.wait_for(lambda: any("stretch" in answer.text for answer in api.chat(ANN).answers))
        (made,) = await schedules_of(app.session.bus, CHAT)
        await overdue(app, made, 2.5 * 3_600_000)
        await api.wait_for(lambda: api.chat(ANN).answers[-1].text == "⏰ stretch")
        assert api.chat(ANN).answers[-2].text.startswith("Fällig seit 20")


async def test_what_a_user_wrote_is_repeated_as_it_is_written(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        ann = api.user(ANN)
        chat, text = api.world.private(ann), "fix __init__.py, 2*3*4 and <b>x</b>"
        ann.write(f"/remind in 10 minutes: {text}")
        await api.wait_for(lambda: chat.answers and chat.answers[-1].text.endswith(f": {text}\n/reminders"))
        (made,) = await schedules_of(app.session.bus, CHAT)
        await overdue(app, made, 1)
        await api.wait_for(lambda: chat.answers[-1].text == f"⏰ {text}")
        ann.write("/timezone *a*b*")
        await api.wait_for(lambda: "*a*b*" in chat.answers[-1].text)


async def test_a_button_deletes_a_reminder_and_shows_the_rest(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        ann = api.user(ANN)
        chat = api.world.private(ann)
        for text in ("tea", "bread"):
            ann.write(f"/remind in 10 minutes: {text}")
            await api.wait_for(lambda text=text: any(text in answer.text for answer in chat.answers))
        ann.write("/reminders")
        await api.wait_for(lambda: chat.answers[-1].text.startswith("Your reminders:"))
        shown = chat.answers[-1]
        tea = next(button for button in shown.buttons if "tea" in button["text"])
        ann.press(shown, tea["callback_data"])
        await api.wait_for(lambda: "tea" not in shown.text and "bread" in shown.text)
        assert [one.text for one in await schedules_of(app.session.bus, CHAT)] == ["bread"]
        ann.press(shown, shown.buttons[0]["callback_data"])
        await api.wait_for(lambda: shown.text.startswith("There are no reminders.") and not shown.buttons)


async def test_a_request_in_a_group_is_read_without_the_name_of_who_speaks(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        group, ann, bus = api.group(GROUP), api.user(ANN, name="Ann"), app.session.bus
        ann.write("@rolecall_bot remind me in 10 minutes of tea", chat=GROUP)
        await api.wait_for(lambda: any("tea\n/reminders" in answer.text for answer in group.answers))
        assert [one.text for one in await schedules_of(bus, f"telegram:{GROUP}")] == ["tea"]
        ann.write("@rolecall_bot /timezone\u00a0Asia/Tokyo", chat=GROUP)  # to Telegram's rules no command
        await api.wait_for(lambda: len(group.answers) == 2 and "Thinking" not in group.answers[-1].text)
        assert await preferences_of(bus, f"telegram:{GROUP}") == {}


async def test_a_command_deletes_a_reminder_in_a_group_for_who_set_it_and_admins(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        group, ann, bob = api.group(GROUP), api.user(ANN), api.user(BOB)
        group.admins.add(BOB)
        place, bus = f"telegram:{GROUP}", app.session.bus
        for text, user in (("tea", ANN), ("bread", BOB), ("milk", BOB)):
            await schedule(bus, place, text, when=f"in {10 + len(text)} minutes", user=f"telegram:user:{user}")
        for person, number, said in (
            (ann, 2, say("en", "not_yours")), (ann, 1, "Deleted: tea"), (bob, 1, "Deleted: milk"),
            (ann, 7, "There is no such reminder."),
        ):  # fmt: skip
            person.write(f"/reminders delete {number}", chat=GROUP)
            await api.wait_for(lambda said=said: group.answers and group.answers[-1].text == said, what=said)
        assert [one.text for one in await schedules_of(bus, place)] == ["bread"]


async def test_a_denied_user_has_no_reminders_left_and_a_denied_group_none_of_anyone(tmp_path: Path) -> None:
    async with bot(tmp_path) as (_, app):
        bus = app.session.bus
        for place, user in ((CHAT, ANN), (f"{CHAT}:7", ANN), (f"telegram:{GROUP}", ANN), (f"telegram:{GROUP}", BOB)):
            await schedule(bus, place, "tea", when="every day at 9", user=f"telegram:user:{user}")
        await schedule(bus, f"{CHAT}1", "theirs", when="every day at 9")
        await schedule(bus, f"telegram2:{ANN}", "of another bot", when="every day at 9", user=f"telegram:user:{ANN}")
        access = Access(bus)
        assert await access.deny(ANN)
        assert await schedules_of(bus, CHAT) == await schedules_of(bus, f"{CHAT}:7") == []
        assert [one.definition.user for one in await schedules_of(bus, f"telegram:{GROUP}")] == [f"telegram:user:{BOB}"]
        assert await access.deny(GROUP)
        assert await schedules_of(bus, f"telegram:{GROUP}") == []
        assert len(await schedules_of(bus, f"{CHAT}1")) == len(await schedules_of(bus, f"telegram2:{ANN}")) == 1


@pytest.mark.parametrize("place", ["private", "group", "topic"])
async def test_reminders_of_a_chat_that_is_closed_to_the_bot_end_with_the_first_that_is_due(
    tmp_path: Path, place: str
) -> None:
    async with bot(tmp_path) as (api, app):
        ann, bus = api.user(ANN), app.session.bus
        api.world.private(ann)
        group = api.group(GROUP, topics={5: "Tea"})
        closed = {"private": CHAT, "group": f"telegram:{GROUP}", "topic": f"telegram:{GROUP}:5"}[place]
        user, front = f"telegram:user:{ANN}", "telegram"
        made = await schedule(bus, closed, "tea", when="every day at 9", user=user, front=front, role="remind")
        other = await schedule(bus, "telegram:12", "mine", when="every day at 9", user=user, front=front)

        await overdue(app, made, 1)
        await api.wait_for(lambda: any("tea" in one.text for chat in api.world.chats.values() for one in chat.answers))
        assert len(await schedules_of(bus, closed)) == 1
        ann.blocked, group.kicked = place == "private", place == "group"
        group.topics.clear()
        await overdue(app, made, 1)

        async def ended() -> bool:
            return not await schedules_of(bus, closed)

        await api.wait_for(ended)
        assert [one.id for one in await schedules_of(bus, "telegram:12")] == [other.id]


async def test_a_reminder_of_a_user_whom_the_settings_no_longer_name_ends_with_the_first_that_is_due(
    tmp_path: Path,
) -> None:
    async with bot(tmp_path, allowed=str(BOB)) as (api, app):
        bus, group = app.session.bus, api.group(GROUP)
        for user in (ANN, BOB):
            api.world.private(api.user(user))
        ann, bob = f"telegram:user:{ANN}", f"telegram:user:{BOB}"
        hers = await schedule(bus, CHAT, "tea", when="every day at 9", user=ann, role="remind")
        there = await schedule(bus, f"telegram:{GROUP}", "tea", when="every day at 9", user=ann, role="remind")
        his = await schedule(bus, f"telegram:{GROUP}", "bread", when="every day at 9", user=bob, role="remind")
        program = await schedule(bus, CHAT, "report", when="every day at 9", role="remind")
        for made in (hers, there, his, program):
            await overdue(app, made, 1)

        async def told() -> bool:
            texts = [one.text for chat in (api.chat(ANN), group) for one in chat.answers]
            left = [one.text for place in (CHAT, f"telegram:{GROUP}") for one in await schedules_of(bus, place)]
            return (sorted(texts), left) == (["⏰ bread", "⏰ report"], ["report", "bread"])

        await api.wait_for(told)


async def test_reminders_are_set_listed_and_deleted_over_http(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path, ROLES) as app, serving(app.session.application) as url,
        httpx2.AsyncClient(base_url=url, timeout=20) as client,
    ):  # fmt: skip
        body = {"conversation_id": "c1", "text": "tea", "when": "every day at 9", "timezone": "asia/tokyo"}
        made = await client.post("/chat/reminders", json=body)
        assert made.status_code == 201, made.text
        assert made.json()["when"].endswith(" 09:00 ↻ 0 9 * * *") and made.json()["timezone"] == "Asia/Tokyo"

        listed = (await client.get("/chat/reminders", params={"conversation_id": "c1"})).json()
        assert [one["text"] for one in listed["reminders"]] == ["tea"]
        conversation, name = listed["conversation_id"], listed["reminders"][0]["id"]

        found = Events(await client.send(client.build_request("GET", "/chat/notices/c1?messages=true"), stream=True))
        await overdue(app, (await schedules_of(app.session.bus, conversation))[0], 1)
        events = aiter(found)
        told = [await anext(events) for _ in range(3)]
        assert [kind for _, kind, _ in told] == ["listening", "accepted", "notice"]
        assert told[1][2] == {"turn": "1"} and told[2][2] == {"text": "⏰ tea", "plain": True, "turn": "1"}
        listed = (await client.get("/chat/reminders", params={"conversation_id": "c1"})).json()
        task = (await client.get(f"/chat/task/{listed['reminders'][0]['last_task']}")).json()
        assert (task["state"], task["text"], task["plain"]) == ("done", "⏰ tea", True)
        (one,) = (await client.get("/web/chat/c1")).json()["exchanges"]
        assert (one.get("said"), one["answer"]) == (None, "⏰ tea")

        gone = [await client.delete(f"/chat/reminders/{name}", params={"conversation_id": "c1"}) for _ in range(2)]
        assert [answer.status_code for answer in gone] == [204, 404]

        for wrong in (
            {"when": "soon"},
            {"when": "every 5 seconds"},
            {"timezone": "Mars"},
            {"text": ""},
            {"role": "nobody"},
        ):
            refused = await client.post("/chat/reminders", json={**body, **wrong})
            assert refused.status_code == 422 and "Traceback" not in refused.text
        said = (await client.post("/chat", json={"text": "/reminders", "conversation_id": "c1"})).json()
        assert said["text"].startswith("There are no reminders.")


async def test_a_request_that_is_asked_again_or_changed_has_one_reminder(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path, ROLES) as app, serving(app.session.application) as url,
        httpx2.AsyncClient(base_url=url, timeout=20) as client,
    ):  # fmt: skip

        async def ask(text: str, again: str = "") -> str:
            sent = (await client.post("/chat/page", json={"name": "c1", "text": text, "again": again})).json()
            task = (await client.get(f"/chat/task/{sent['id']}?wait=20")).json()
            return str(task["turn"])

        async def set_now() -> list[str]:
            listed = (await client.get("/chat/reminders", params={"conversation_id": "c1"})).json()
            return [one["text"] for one in listed["reminders"]]

        tea = await ask("/remind in 10 minutes tea")
        await ask("/remind in 20 minutes walk")
        tea = await ask("/remind in 10 minutes tea", again=tea)
        assert await set_now() == ["tea", "walk"]  # the walk was not asked again
        await ask("/remind in 10 minutes coffee", again=tea)
        assert await set_now() == ["coffee", "walk"]


async def test_a_request_that_is_regenerated_in_telegram_has_one_reminder(tmp_path: Path) -> None:
    async with bot(tmp_path) as (api, app):
        ann = api.user(ANN)
        chat = api.world.private(ann)
        ann.write("/remind in 10 minutes: tea")
        await api.wait_for(lambda: chat.answers and len(chat.answers[0].buttons) == 3)
        ann.press(chat.answers[0], chat.answers[0].buttons[0]["callback_data"])
        await api.wait_for(lambda: len(chat.answers) == 2 and "tea" in chat.answers[1].text)
        assert [one.text for one in await schedules_of(app.session.bus, CHAT)] == ["tea"]
