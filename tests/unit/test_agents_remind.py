"""Reminders: what is read directly, what is for the model, and what an answer says."""

from __future__ import annotations

import re

import pytest

from agents.command import CommandAgent
from agents.manager import ManagerAgent
from agents.remind import RemindAgent, asks_to_remind
from agents.samplellm import SampleLLMAgent
from agents.texts import Speaker
from rolecall import Role
from rolecall.testing import FakeModel, Turn, run_turn, tool_call

MODELS = ("fake@test",)
USAGE = Speaker("en").say("remind_how")
ROLES = (
    Role(ManagerAgent),
    Role(CommandAgent),
    Role(SampleLLMAgent, models=MODELS),
    Role(RemindAgent, models=MODELS, match="/remind"),
)
SET = r"⏰ \d{4}-\d\d-\d\d \d\d:\d\d(?P<rule>.*) \((?P<zone>.+)\): (?P<text>.+)\n/reminders"


async def sent(text: str, *answers: object, **options: object) -> tuple[Turn, FakeModel]:
    model = FakeModel(*answers)  # type: ignore[arg-type]
    return await run_turn(ROLES, text, model=model, **options), model  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "text", "rule"),
    [
        ("/remind in 10 minutes call Ann", "call Ann", ""),
        ("/remind me to call Ann tomorrow at 9", "call Ann", ""),
        ("Remind me tomorrow at 9 to call Ann", "call Ann", ""),
        ("remind me to call Ann in 2 hours", "call Ann", ""),
        ("Remind me that the oven is on in 10 minutes.", "the oven is on", ""),
        ("/remind every weekday at 8:30: stand-up", "stand-up", " ↻ 30 8 * * 1-5"),
        ("Erinnere mich in 10 Minuten an Tee", "Tee", ""),
        ("Напомни мне через 10 минут позвонить", "позвонить", ""),
        ("Rappelle-moi dans 2 heures d'appeler Ann", "appeler Ann", ""),
        ("提醒我10分钟后 喝水", "喝水", ""),
    ],
)
async def test_a_plain_request_needs_no_model(asked: str, text: str, rule: str) -> None:
    turn, model = await sent(asked)
    found = re.fullmatch(SET, turn.text)
    assert found is not None, turn.text
    assert (found["text"], found["rule"]) == (text, rule)
    assert (turn.trace[-1], model.requests) == ("remind", [])


async def test_the_wall_clock_is_that_of_the_conversation() -> None:
    turn, _ = await sent("/remind every day at 9 stretch", preferences={"timezone": "Asia/Tokyo"})
    assert " 09:00 ↻ 0 9 * * * (Asia/Tokyo): stretch" in turn.text


async def test_what_cannot_be_read_is_for_the_model_which_calls_the_tool() -> None:
    call = tool_call("remind", text="dinner", when="tomorrow at 19:00")
    turn, model = await sent("/remind me of the dinner which is at seven tomorrow evening", call, "I will!")
    found = re.fullmatch(SET, turn.text)
    assert found is not None and found["text"] == "dinner"
    assert len(model.requests) == 2


async def test_a_model_is_told_why_a_reminder_cannot_be_set() -> None:
    call = tool_call("remind", text="x", when="today at 00:00")
    turn, model = await sent("/remind me of what was", call, "It is too late.")
    assert "is in the past" in model.requests[-1].messages[-1].text
    assert turn.text == USAGE


async def test_a_chatting_model_gets_the_tool_when_reminders_are_spoken_of() -> None:
    call = tool_call("remind", text="tea", when="in 10 minutes")
    turn, model = await sent("Could you remind us of the tea in a while?", call, "Done, in ten minutes.")
    assert turn.text == "Done, in ten minutes." and turn.trace[-1] == "samplellm"
    assert "⏰" in model.requests[-1].messages[-1].text
    _, model = await sent("What is tea?", "A drink.")
    assert not model.requests[0].tools


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("/remind", USAGE),
        ("/remind today at 00:00 wake up", "is in the past: it is "),
        ("/remind every 10 seconds blink", "every 10 s is too often: expected at least every minute."),
        ("/remind cron 99 * * * * x", "cron line '99 * * * *' is invalid: bad minute; expected five fields"),
    ],
)
async def test_a_reminder_that_cannot_be_set_says_why(asked: str, says: str) -> None:
    turn, _ = await sent(asked)
    assert says in turn.text and "\n" not in turn.text


@pytest.mark.parametrize("asked", ["/remind tomorrow at 9", "remind me of this in 10 minutes", "remind me in 2 hours."])
async def test_a_reminder_without_a_text_is_about_the_message_that_it_replies_to(asked: str) -> None:
    turn, model = await sent(asked, payload={"quoted": {"from": "Bob", "text": "The rent is due."}})
    found = re.fullmatch(SET, turn.text)
    assert found is not None and found["text"] == "The rent is due.", turn.text
    assert model.requests == []
    assert (await sent("/remind in 10 minutes", payload={"quoted": {"text": "x" * 2001}}))[0].text.count("x") == 500


async def test_a_reminder_whose_time_has_come_is_said_whatever_its_text_looks_like() -> None:
    turn, _ = await sent("/help", payload={"role": "remind", "scheduled": {"id": "x"}})
    assert turn.text == "⏰ /help"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("/remind today at 00:00 x", "remind_past"),
        ("/remind in 900 weeks x", "remind_far"),
        ("/remind every 10 seconds x", "remind_often"),
        ("/remind cron 99 * * * * x", "remind_cron"),
        (f"/remind in 10 minutes {'x ' * 1100}", "remind_long"),
    ],
)
async def test_in_other_languages_the_reason_is_said_more_briefly(asked: str, key: str) -> None:
    turn = await run_turn(ROLES, asked, preferences={"lang": "tr"})
    assert turn.text == Speaker("tr").say(key)


@pytest.mark.parametrize(
    "asked",
    [
        "Me lembre em 10 minutos de chá", "Ricordami tra 10 minuti di chá", "Нагадай мені через 10 хвилин про chá",
        "Bana hatırlat 10 dakika sonra chá", "ذكّرني بعد 10 دقائق chá", "請提醒我 10分鐘後 chá",
    ],
)  # fmt: skip
async def test_a_reminder_is_asked_for_in_the_languages_of_the_bot(asked: str) -> None:
    assert asks_to_remind(asked)
    turn = await run_turn(ROLES, asked)
    assert turn.trace[-1] == "remind" and turn.text.endswith(": chá\n/reminders")


@pytest.mark.parametrize("said", ["I was reminded of you", "reminding is hard", "Remind them", "no"])
def test_other_texts_are_no_request(said: str) -> None:
    assert not asks_to_remind(said)


async def test_the_time_zone_is_shown_set_and_refused() -> None:
    assert (await sent("/timezone"))[0].text == "/timezone is auto. Set it: /timezone Europe/Berlin"
    turn, _ = await sent("/timezone berlin")
    assert (turn.text, turn.preferences) == ("/timezone is now Europe/Berlin.", {"timezone": "Europe/Berlin"})
    assert (await sent("/timezone auto", preferences={"timezone": "UTC"}))[0].preferences == {}
    assert (await sent("/timezone Mars"))[0].text.startswith("I don't know the time zone Mars. Send a name such as")
