"""Who may what in a group, whom admins hear of, and what a group keeps when it becomes a supergroup."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from telegram import ChatPermissions

from rolecall.frontends.telegram import telegram_front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.admins import REQUESTS_PER_HOUR, Admins
from rolecall.frontends.texts import say
from rolecall.redis import keys
from tests.integration.test_telegram_control import ADA, BEN, CY, GROUP, Stage, data_of, staged
from tests.telegram.api import Chat, Message, User
from tests.telegram.chats import BOT

NEW = -1_001_234_567_890
RESTRICTED = {
    "status": "restricted", "is_member": True, "until_date": 0, **ChatPermissions.no_permissions().to_dict()
}  # fmt: skip
ANONYMOUS = {"id": 1087968824, "is_bot": True, "first_name": "Group", "username": "GroupAnonymousBot"}


def speak_as(stage: Stage, chat: Chat, text: str, sender_chat: dict[str, Any]) -> Message:
    """A message that names no person."""
    message = chat.add(ANONYMOUS, text, media={"sender_chat": sender_chat})
    mention = {"type": "mention", "offset": 0, "length": len("@rolecall_bot")}
    body = {name: value for name, value in message.as_json().items() if name not in ("caption", "caption_entities")}
    entities = [mention] if text.startswith("@") else [{"type": "bot_command", "offset": 0, "length": len(text)}]
    stage.api.world.updates.push("message", {**body, "text": text, "entities": entities})
    return message


def add_bot(
    stage: Stage, chat: Chat, user: User, *, before: Mapping[str, Any] = MappingProxyType({}), **other: Any
) -> None:  # fmt: skip
    """``user`` adds the bot to the group, which Telegram describes otherwise by ``other``, or changes what it was
    ``before``."""
    old, new = ({"user": BOT, "status": "left", **before}, {"user": BOT, "status": "member"})
    body = {"chat": {**chat.as_json(), **other}, "from": user.as_json(), "date": int(time.time())}
    stage.api.world.updates.push("my_chat_member", {**body, "old_chat_member": old, "new_chat_member": new})


# Who decides


async def test_in_a_group_the_asker_and_admins_stop_an_answer_and_nobody_else(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ben, cy, dan = stage.api.user(BEN), stage.api.user(CY), stage.api.user(10)
        group = stage.api.group(GROUP)
        group.admins.add(dan.id)
        for stopper in (ben, dan):
            answers = len(group.answers)
            ben.write("@rolecall_bot long", chat=GROUP)
            await stage.api.wait_for(lambda seen=answers: any("half" in one.text for one in group.answers[seen:]))
            cy.write("/stop", chat=GROUP)
            await stage.api.wait_for(
                lambda seen=answers: any(one.text == say("en", "not_yours") for one in group.answers[seen:])
            )
            assert not [one for one in group.answers[answers:] if one.text == say("en", "stopped")]
            stopper.write("/stop", chat=GROUP)
            await stage.api.wait_for(
                lambda seen=answers: any(one.text == say("en", "stopped") for one in group.answers[seen:])
            )


@pytest.mark.parametrize(
    "command", ["/clear", "/reset", "/model", "/role weather", "/queue", "/lang de", "/files clear"]
)
async def test_only_admins_change_what_concerns_a_whole_group(tmp_path: Path, command: str) -> None:
    async with staged(tmp_path) as stage:
        ben, dan = stage.api.user(BEN), stage.api.user(10)
        group = stage.api.group(GROUP)
        group.admins.add(dan.id)
        assert (await stage.answered(ben, "@rolecall_bot one", chat=GROUP)).text
        assert (await stage.answered(ben, command, chat=GROUP)).text == say("en", "group_admins_only")
        assert len(await stage.history(f"telegram:{GROUP}")) == 2
        assert (await stage.answered(dan, command, chat=GROUP)).text != say("en", "group_admins_only")


async def test_only_admins_press_a_group_s_pickers(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ben, dan = stage.api.user(BEN), stage.api.user(10)
        stage.api.group(GROUP).admins.add(dan.id)
        picker = await stage.answered(dan, "/model", chat=GROUP)
        data = data_of(picker, "second@test")
        assert await stage.toast(ben, picker, data) == say("en", "group_admins_only")
        assert await stage.preferences(f"telegram:{GROUP}") == {}
        await stage.toast(dan, picker, data)
        assert await stage.preferences(f"telegram:{GROUP}") == {"model": "second@test"}


async def test_stop_and_other_commands_are_never_throttled(tmp_path: Path) -> None:
    async with staged(tmp_path, telegram_per_minute=2) as stage:
        ben = stage.api.user(BEN)
        for text in ("long", "two", "three", "four"):
            ben.write(text)
        await stage.until(BEN, say("en", "too_fast"))
        ben.write("/stop")
        await stage.until(BEN, say("en", "stopped"))
        for command, answer in (("/clear", say("en", "forgotten")), ("/stats", "command /stats")):
            ben.write(command)
            await stage.until(BEN, answer)


# Who speaks


async def test_an_anonymous_admin_is_a_member_and_an_admin_of_the_group(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group = stage.api.group(GROUP, title="Friends")
        speak_as(stage, group, "@rolecall_bot hi", group.as_json())
        await stage.api.wait_for(lambda: any(one.text.startswith("Friends: hi by") for one in group.answers))
        speak_as(stage, group, "/clear", group.as_json())
        await stage.until(group, say("en", "forgotten"))


async def test_what_an_agent_asks_an_anonymous_admin_the_group_s_admins_answer(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group, ben, cy = stage.api.group(GROUP, title="Ben"), stage.api.user(BEN), stage.api.user(CY)
        group.admins.add(CY)
        speak_as(stage, group, "@rolecall_bot ask me", group.as_json())
        asked = await stage.until(group, "Which colour?")
        assert await stage.toast(ben, asked, data_of(asked, "red")) == say("en", "not_asked")
        assert await stage.toast(cy, asked, data_of(asked, "green")) == "green"
        await stage.until(group, "it is green")


async def test_a_channel_that_speaks_in_a_group_has_the_group_s_standing(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group, news = stage.api.group(GROUP), {"id": -1009, "type": "channel", "title": "News"}
        speak_as(stage, group, "@rolecall_bot hi", news)
        await stage.api.wait_for(lambda: any(one.text.startswith("News: hi by") for one in group.answers))
        speak_as(stage, group, "/clear", news)
        await stage.until(group, say("en", "group_admins_only"))


async def test_a_process_that_begins_to_receive_knows_which_groups_became_supergroups_before(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ben, serving = stage.api.user(BEN, name="Ben"), stage.front.serving
        old, new = stage.api.group(GROUP), stage.api.group(NEW)
        await stage.answered(ben, "@rolecall_bot one", chat=GROUP)
        assert serving is not None and await serving.access.moves() == {}
        old.moved_to = NEW
        server = stage.app.session.bus.server
        await server.call("SET", keys.lease("telegram"), "another process", "PX", 6000)
        await stage.api.wait_for(lambda: serving.receiving is None, what="another process receives")
        await Access(stage.app.session.bus).move(GROUP, NEW)
        await stage.api.wait_for(lambda: serving.receiving is not None, seconds=20, what="this one receives again")
        answer = await stage.answered(ben, "@rolecall_bot two", chat=NEW)
        assert answer.text.startswith("Ben: two by any after ['Ben: one', ")
        assert len(new.answers) == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_a_group_that_becomes_a_supergroup_keeps_access_memory_and_preferences(
    tmp_path: Path, restart: bool
) -> None:
    async with staged(tmp_path) as stage:
        ben, old = stage.api.user(BEN, name="Ben"), stage.api.group(GROUP)
        old.admins.add(BEN)
        picker = await stage.answered(ben, "/model", chat=GROUP)
        await stage.toast(ben, picker, data_of(picker, "second@test"))
        await stage.answered(ben, "@rolecall_bot one", chat=GROUP)
        new = stage.api.group(NEW)
        new.admins.add(BEN)
        leaving = old.add(ben.as_json(), "", media={"migrate_to_chat_id": NEW})
        arriving = new.add(ben.as_json(), "", media={"migrate_from_chat_id": GROUP})
        old.moved_to = NEW
        for message in (leaving, arriving):
            stage.api.world.updates.push("message", message.as_json())
        reply = await stage.answered(ben, "@rolecall_bot and", chat=NEW)  # with the same poll
        assert reply.text.startswith("Ben: and by second@test after ['Ben: one', ")
        if restart:  # a new process knows what the server keeps
            serving = stage.front.serving
            assert serving is not None
            serving.access._moves = None
            serving.chats._moved.clear()
        answer = await stage.answered(ben, "@rolecall_bot two", chat=NEW)
        left = new.add(BOT, "Thinking…", markup={"inline_keyboard": [[{"text": "⏹ Stop", "callback_data": "stop:99"}]]})
        assert await stage.toast(ben, left, "stop:99") == say("en", "nothing_to_stop")
        await stage.api.wait_for(lambda: not left.buttons, what="a button that does nothing goes")
        assert answer.text.startswith("Ben: two by second@test after ['Ben: one', ")
        assert (await stage.answered(stage.api.user(CY), "/whoami", chat=NEW)).text.startswith(
            "Your Telegram ID: 9 (guest)"
        )
        assert (await stage.answered(ben, "/clear", chat=NEW)).text == say("en", "forgotten")


async def test_a_bot_that_is_renamed_answers_to_its_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telegram_front, "NAME_SECONDS", 0.05)
    async with staged(tmp_path) as stage:
        group, ben = stage.api.group(GROUP), stage.api.user(BEN, name="Ben")
        await stage.answered(ben, "@rolecall_bot one", chat=GROUP)
        with monkeypatch.context() as renamed:
            renamed.setitem(BOT, "username", "renamed_bot")
            asked = stage.api.calls["getMe"]
            await stage.api.wait_for(lambda: stage.api.calls["getMe"] > asked + 1)
            assert (await stage.answered(ben, "@renamed_bot two", chat=GROUP)).text.startswith("Ben: two by")
        assert len(group.answers) == 2


# Access requests


async def test_a_stranger_is_let_in_by_an_admin_s_button(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, cy = stage.api.user(ADA, language_code="de"), stage.api.user(CY, name="Cy", language_code="fr")
        await stage.answered(ada, "/whoami")
        assert (await stage.answered(cy, "hello")).text == say("fr", "requested", id=CY)
        request = await stage.until(ADA, say("de", "access_request", name="Cy", id=CY))
        assert await stage.toast(cy, request, data_of(request, say("de", "allow"))) != ""
        await stage.toast(ada, request, data_of(request, say("de", "allow")))
        await stage.until(CY, say("fr", "welcome"))
        assert (await stage.answered(cy, "hello")).text.startswith("hello by")
        await stage.api.wait_for(lambda: not request.buttons and "Cy (9)" in request.text)


async def test_a_stranger_who_is_denied_is_not_asked_about_again(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, cy = stage.api.user(ADA), stage.api.user(CY, name="Cy")
        stage.api.world.private(ada)
        await stage.answered(cy, "hello")
        request = await stage.until(ADA, say("en", "access_request", name="Cy", id=CY))
        await stage.toast(ada, request, data_of(request, say("en", "deny")))
        await stage.app.session.bus.server.call("DEL", keys.front("telegram", f"refused:{CY}"))
        assert (await stage.answered(cy, "and now?")).text == say("en", "stranger", id=CY)
        assert sum("would like to use" in one.text for one in stage.api.chat(ADA).answers) == 0


async def test_a_flood_of_strangers_is_a_few_requests_and_one_line(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.api.user(ADA).write("hi")
        for user in range(100, 100 + REQUESTS_PER_HOUR + 5):
            stage.api.user(user).write("hello")
        await stage.received()
        await stage.until(ADA, say("en", "more_requests"))
        asked = [one for one in stage.api.chat(ADA).answers if "would like to use" in one.text]
        assert len(asked) == REQUESTS_PER_HOUR


async def test_a_group_is_allowed_by_a_button_and_says_how_to_reach_the_bot(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, cy = stage.api.user(ADA), stage.api.user(CY, name="Cy")
        stage.api.world.private(ada)
        group = stage.api.group(-1005, title="Club")
        add_bot(stage, group, cy)
        await stage.until(group, say("en", "group_closed"))
        request = await stage.until(ADA, say("en", "group_request", name="Cy", title="Club", id=-1005))
        await stage.toast(ada, request, data_of(request, say("en", "allow")))
        await stage.until(group, say("en", "group_welcome", bot="rolecall_bot"))
        answer = await stage.answered(cy, "@rolecall_bot hi", chat=-1005)
        assert answer.text.startswith("Cy: hi by")


async def test_who_is_let_in_by_a_command_is_welcomed_as_by_the_button(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(tmp_path) as stage:
        ada, cy = stage.api.user(ADA), stage.api.user(CY, name="Cy", language_code="fr")
        group = stage.api.group(-1005, title="Club")
        await stage.answered(cy, "hello")
        add_bot(stage, group, cy)
        await stage.until(group, say("fr", "group_closed"))
        for _ in range(2):
            for number in (CY, group.id, 99):  # 99 never wrote to the bot
                await stage.answered(ada, f"/allow {number}")
        await stage.until(CY, say("fr", "welcome"))
        await stage.until(group, say("fr", "group_welcome", bot="rolecall_bot"))
        assert (await stage.answered(cy, "hello")).text.startswith("hello by")
        assert [one.text for one in stage.api.chat(CY).answers].count(say("fr", "welcome")) == 1
    assert "telegram:99" not in caplog.text  # where Telegram would have refused a message


async def test_a_stranger_s_link_that_adds_the_bot_to_a_group_is_refused_once_and_is_no_code(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group, cy = stage.api.group(-1005, title="Club"), stage.api.user(CY, name="Cy")
        add_bot(stage, group, cy)
        await stage.until(group, say("en", "group_closed"))
        cy.write("/start@rolecall_bot true", chat=group.id)  # what t.me/rolecall_bot?startgroup=true sends
        await stage.answered(stage.api.user(ADA), "hello")
        assert [one.text for one in group.answers] == [say("en", "group_closed")]
        assert (await stage.answered(cy, "/start nope")).text == say("en", "code_wrong", id=CY)


async def test_a_group_that_an_admin_adds_the_bot_to_is_allowed(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group = stage.api.group(-1005, title="Club")
        add_bot(stage, group, stage.api.user(ADA))
        await stage.until(group, say("en", "group_welcome", bot="rolecall_bot"))
        add_bot(stage, group, stage.api.user(ADA), before=RESTRICTED)
        assert (await stage.answered(stage.api.user(CY), "@rolecall_bot hi", chat=-1005)).text
        assert len(group.answers) == 2


async def test_the_readers_of_a_channel_are_told_nothing_when_the_bot_is_added(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        for number, adder in ((-1005, ADA), (-1006, CY)):
            add_bot(stage, stage.api.group(number, title="News"), stage.api.user(adder), type="channel")
        await stage.answered(stage.api.user(ADA), "hello")
        assert not stage.api.chat(-1005).answers + stage.api.chat(-1006).answers
        assert len(stage.api.chat(ADA).answers) == 1


async def test_a_request_that_several_admins_decide_is_one_welcome_and_takes_no_rank_away(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, ben, cy, dan = (stage.api.user(number, name=f"User {number}") for number in (ADA, BEN, CY, 10))
        for admin in (ben, dan):
            await stage.answered(ada, f"/allow {admin.id} admin")
            await stage.answered(admin, "/whoami")
        await stage.answered(cy, "hello")
        asked = say("en", "access_request", name="User 9", id=CY)
        first, second, third = [await stage.until(admin, asked) for admin in (ADA, BEN, dan.id)]
        allow = data_of(first, say("en", "allow"))
        presses = [ada.press(first, allow), ada.press(first, allow), ben.press(second, allow)]
        for press in presses:
            await stage.popped(press)
        await stage.until(CY, say("en", "welcome"))
        await stage.answered(ada, f"/allow {CY} admin")
        assert await stage.popped(dan.press(third, allow)) == say(
            "en", "let_in", id="User 9 (9)", rank=say("en", "rank_admin")
        )
        assert (await stage.answered(cy, "/whoami")).text.startswith("Your Telegram ID: 9 (admin)")
        assert [one.text for one in stage.api.chat(CY).answers].count(say("en", "welcome")) == 1


async def test_a_link_that_names_its_source_greets_whom_the_bot_knows(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        assert (await stage.answered(stage.api.user(BEN), "/start ref_1")).text == say("en", "welcome")


# Alarms and budgets


async def test_admins_hear_once_of_a_model_that_fails_and_of_used_up_budgets(tmp_path: Path) -> None:
    async with staged(tmp_path, cost_per_day=1.0, user_tokens_per_day=100) as stage:
        await stage.answered(stage.api.user(ADA), "/whoami")
        bus = stage.app.session.bus
        admins = Admins(bus, Access(bus), ["echo@test", "second@test"])
        await bus.server.call("HSET", keys.model("echo@test", "state"), "open", 1, "why", "refused the connection")
        spent = keys.spent(keys.today())
        await bus.server.call("HSET", spent, "cost", 1_250_000, f"u:telegram:user:{BEN}:tokens", 120)
        away: set[str] = set()
        for _ in range(3):
            away = await admins.check(away)
        expected = [
            say("en", "model_away", model="echo@test", why="refused the connection"),
            say("en", "budget_used", spent="1.25", limit="1"),
            say("en", "user_budget_used", name=f"telegram:user:{BEN}"),
        ]
        for text in expected:
            await stage.until(ADA, text)
        assert sum(one.text.startswith("⚠️") for one in stage.api.chat(ADA).answers) == 3


async def test_whoami_tells_the_budgets_with_their_limits(tmp_path: Path) -> None:
    async with staged(tmp_path, user_tokens_per_day=1000, user_cost_per_day=2.0) as stage:
        stage.api.group(GROUP)
        lines = (await stage.answered(stage.api.user(BEN), "/whoami")).text.splitlines()
        assert lines[2:] == ["Used today: 0 of 1000 tokens.", "Spent today: 0.00 of 2.00 USD."]
        lines = (await stage.answered(stage.api.user(CY), "/whoami", chat=GROUP)).text.splitlines()
        assert lines[2:] == ["Used today: 0 of 500 tokens.", "Spent today: 0.00 of 1.00 USD."]
