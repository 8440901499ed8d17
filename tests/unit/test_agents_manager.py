"""The manager's table: for each rule, what it decides and what it must leave alone."""

from __future__ import annotations

import pytest

from agents.calculator import CalculatorAgent
from agents.command import CommandAgent
from agents.lang import LangAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from agents.stats import StatsAgent
from agents.translation import TranslationAgent
from rolecall import Agent, Context, Envelope, Role
from rolecall.testing import FakeModel, Turn, run_turn


class EchoAgent(Agent):
    """Says what it was given."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(f"<{envelope.text}> {envelope.payload.get('model', '')}".strip())


class WeatherAgent(EchoAgent):
    """Knows the weather."""


class VisionAgent(EchoAgent):
    """Looks at pictures."""


AGENTS = (ManagerAgent, CommandAgent, LangAgent, TranslationAgent, SampleLLMAgent, StatsAgent)
ROLES = (*(Role(agent) for agent in AGENTS), Role(WeatherAgent, match="/forecast"))
ANSWERED = ("manager", "lang", "samplellm")


async def test_a_plain_question_goes_through_lang_to_samplellm() -> None:
    turn = await run_turn(ROLES, "What is the capital of France?", model=FakeModel("Paris."))
    assert (turn.text, turn.trace) == ("Paris.", ANSWERED)


async def test_without_a_lang_role_it_goes_straight_to_samplellm() -> None:
    turn = await run_turn((Role(ManagerAgent), Role(SampleLLMAgent)), "hello")
    assert turn.trace == ("manager", "samplellm")


@pytest.mark.parametrize("text", ["/help", "/lang de", "  /whoami", "/help@some_bot"])
async def test_a_command_goes_to_the_command_role(text: str) -> None:
    assert (await run_turn(ROLES, text)).trace == ("manager", "command")


async def test_a_command_is_a_command_whatever_role_is_preferred() -> None:
    turn = await run_turn(ROLES, "/role auto", preferences={"role": "weather"})
    assert turn.trace == ("manager", "command")
    assert turn.preferences == {}


async def test_a_command_wins_over_a_role_of_the_same_name() -> None:
    turn = await run_turn(ROLES, "/lang fr")
    assert (turn.trace, turn.preferences) == (("manager", "command"), {"lang": "fr"})


@pytest.mark.parametrize("text", ["/nonsense", "/nonsense with words", "/weather"])
async def test_a_slash_word_that_is_no_command_is_explained_not_answered_by_a_model(text: str) -> None:
    turn = await run_turn(ROLES, text)
    assert turn.trace == ("manager", "command")
    assert turn.text.startswith(("Unknown command", "Add your question"))
    assert turn.history == ()


@pytest.mark.parametrize("text", ["/etc/hosts is what?", "/ is a slash", "//", "1/2 of 10?", "what does /help do?"])
async def test_a_slash_that_begins_no_word_is_just_text(text: str) -> None:
    assert (await run_turn(ROLES, text)).trace == ANSWERED


@pytest.mark.parametrize(
    ("text", "given"),
    [("/forecast Berlin", "<Berlin>"), ("/Forecast  Berlin\nnow", "<Berlin\nnow>"), ("/forecast", "<>")],
)
async def test_a_roles_prefix_brings_it_the_text_without_the_prefix(text: str, given: str) -> None:
    turn = await run_turn(ROLES, text)
    assert (turn.text, turn.trace) == (given, ("manager", "weather"))


async def test_a_prefix_is_a_whole_word() -> None:
    assert (await run_turn(ROLES, "/forecasting is hard")).trace == ("manager", "command")


async def test_a_prefix_need_not_be_a_command() -> None:
    roles = (Role(ManagerAgent), Role(SampleLLMAgent), Role(WeatherAgent, match="weather in"))
    assert (await run_turn(roles, "Weather in Rome")).text == "<Rome>"
    assert (await run_turn(roles, "The weather in Rome")).trace == ("manager", "samplellm")


async def test_any_role_is_asked_once_by_its_name() -> None:
    turn = await run_turn(ROLES, "/weather will it rain?")
    assert (turn.text, turn.trace) == ("<will it rain?>", ("manager", "weather"))
    assert turn.preferences == {}
    assert turn.history[0] == ("user", "will it rain?")


async def test_samplellm_by_its_name_knows_the_language_too() -> None:
    assert (await run_turn(ROLES, "/samplellm hello", preferences={"role": "weather"})).trace == ANSWERED


async def test_nobody_asks_the_manager_itself() -> None:
    assert (await run_turn(ROLES, "/manager hello")).trace == ("manager", "command")
    turn = await run_turn(ROLES, "hello", payload={"role": "manager"})
    assert turn.text.startswith("Unknown role manager")


async def test_the_role_of_the_request_is_asked() -> None:
    assert (await run_turn(ROLES, "hello", payload={"role": "weather"})).trace == ("manager", "weather")


async def test_the_preferred_role_is_asked_and_the_request_wins_over_it() -> None:
    preferences = {"role": "weather"}
    assert (await run_turn(ROLES, "hello", preferences=preferences)).trace == ("manager", "weather")
    turn = await run_turn(ROLES, "hello", preferences=preferences, payload={"role": "samplellm"})
    assert turn.trace == ANSWERED


async def test_a_role_that_does_not_exist_is_answered_with_those_that_do() -> None:
    turn = await run_turn(ROLES, "hello", payload={"role": "poet"})
    assert turn.kind == "final"
    assert turn.text == ("Unknown role poet. Available: command, lang, samplellm, stats, translation, weather.")
    assert (turn.trace, turn.history) == (("manager",), ())


async def test_a_preferred_role_that_is_gone_is_answered_with_the_way_back() -> None:
    assert (await run_turn(ROLES, "hello", preferences={"role": "poet"})).text.endswith(
        "Send /role auto to reset your choice."
    )


async def test_a_picture_goes_to_vision_where_there_is_one() -> None:
    payload = {"images": ["aGk="]}
    turn = await run_turn((*ROLES, Role(VisionAgent)), "what is this?", payload=payload)
    assert turn.trace == ("manager", "vision")
    assert (await run_turn(ROLES, "what is this?", payload=payload)).trace == ANSWERED
    assert (await run_turn((*ROLES, Role(VisionAgent)), "hello", payload={"images": []})).trace == ANSWERED


async def test_the_model_of_the_request_or_the_preferred_one_goes_with_the_turn() -> None:
    async def model(payload: dict[str, str], preferences: dict[str, str]) -> Turn:
        return await run_turn(ROLES, "/weather now?", payload=payload, preferences=preferences)

    assert (await model({}, {})).text == "<now?>"
    assert (await model({}, {"model": "a@test"})).text == "<now?> a@test"
    assert (await model({"model": "b@test"}, {"model": "a@test"})).text == "<now?> b@test"


SUMS = (Role(ManagerAgent), Role(SampleLLMAgent), Role(CalculatorAgent, match="/calc"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("What is 17 times 23?", "391"),
        ("17 x 23 =", "391"),
        ("2+2", "4"),
        ("How much is 15 percent of 80?", "12"),
        ("1,000 * 3", "3000"),
        ("What's the square root of 144?", "12"),
        ("what is 20 / 4", "5"),
        ("2 to the power of 8", "256"),
        ("Wie viel ist 3,5 mal 2?", "7"),
        ("¿Cuánto es 17 por 23?", "391"),
        ("Combien font 12 fois 12 ?", "144"),
        ("Quanto fa 6 per 7?", "42"),
        ("Quanto é 6 vezes 7?", "42"),
        ("Сколько будет 6 умножить на 7?", "42"),
    ],
)
async def test_a_sum_is_calculated_not_guessed_by_a_model(text: str, value: str) -> None:
    turn = await run_turn(SUMS, text, model=FakeModel("a guess"))
    assert turn.trace == ("manager", "calculator")
    assert turn.text.rpartition(" = ")[2] == value


@pytest.mark.parametrize(
    "text",
    ["24/7", "What is 9/11?", "555-1234", "2026-11-27", "+49 170 1234567", "C++", "50%", "-3", "What is 2 + two?",
     "2+2=4?", "I have 2 * 3 apples", "1/2 of 10?", "times", "", "7", "1 + " * 100],
)  # fmt: skip
async def test_what_only_looks_like_a_sum_is_left_to_the_model(text: str) -> None:
    assert (await run_turn(SUMS, text or " ", model=FakeModel("ok"))).trace == ("manager", "samplellm")


async def test_a_role_asked_for_a_file_or_no_calculator_keeps_a_sum_from_the_calculator() -> None:
    model = FakeModel("4")
    asked = await run_turn(SUMS, "2+2", payload={"role": "samplellm"}, model=model)
    assert asked.trace == ("manager", "samplellm")
    pictured = await run_turn(SUMS, "2+2", payload={"images": ["aGk="]}, model=model)
    assert pictured.trace == ("manager", "samplellm")
    assert (await run_turn(SUMS[:2], "2+2", model=model)).trace == ("manager", "samplellm")
