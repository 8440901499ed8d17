"""Commands: what each says, sets and refuses; and the figures of /stats."""

from __future__ import annotations

import pytest

from agents.command import ANSWERS, CommandAgent
from agents.languages import LANGUAGES, OFFERED, chosen_code
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from agents.stats import StatsAgent, report
from agents.texts import Speaker
from agents.translation import TranslationAgent
from rolecall import COMMANDS, Agent, Role
from rolecall.testing import Turn, run_turn


class WeatherAgent(Agent):
    """Knows the weather."""


ROLES = (
    Role(ManagerAgent),
    Role(CommandAgent),
    Role(TranslationAgent, models=("tiny@local",)),
    Role(SampleLLMAgent, models=("big@openai", "tiny@local")),
    Role(StatsAgent),
    Role(WeatherAgent, match="/forecast"),
)


async def sent(text: str, **preferences: str) -> Turn:
    """``text`` through the manager, in the order of the conversation."""
    return await run_turn(ROLES, text, preferences=preferences, history=[("user", "hi"), ("assistant", "hello")])


def test_every_command_has_its_answer() -> None:
    assert set(ANSWERS) == {command.name for command in COMMANDS}


async def test_help_names_every_command_and_every_prefix() -> None:
    turn = await sent("/help")
    assert all(command.usage in turn.text and command.help in turn.text for command in COMMANDS)
    assert "/forecast – Knows the weather." in turn.text


async def test_start_says_hello_and_names_help() -> None:
    assert "/help" in (await sent("/start")).text


@pytest.mark.parametrize("command", [command.name for command in COMMANDS if command.name not in ("clear", "reset")])
async def test_a_command_leaves_no_trace_in_the_history(command: str) -> None:
    turn = await sent(f"/{command}")
    assert turn.kind == "final"
    assert turn.text
    assert turn.history == (("user", "hi"), ("assistant", "hello"))


@pytest.mark.parametrize("command", ["clear", "reset"])
async def test_clear_forgets_the_history_but_not_the_preferences(command: str) -> None:
    turn = await sent(f"/{command}", lang="de")
    assert (turn.history, turn.preferences) == ((), {"lang": "de"})
    assert turn.text == "Verlauf gelöscht. Wir beginnen ein neues Gespräch."


@pytest.mark.parametrize(
    ("text", "preference"),
    [
        ("/lang de", {"lang": "de"}),
        ("/LANG DE", {"lang": "de"}),
        ("/model tiny@local", {"model": "tiny@local"}),
        ("/role weather", {"role": "weather"}),
        ("/role Samplellm", {"role": "samplellm"}),
    ],
)
async def test_a_choice_that_is_allowed_is_kept(text: str, preference: dict[str, str]) -> None:
    assert (await sent(text)).preferences == preference


@pytest.mark.parametrize("name", ["lang", "model", "role"])
async def test_auto_takes_a_choice_back(name: str) -> None:
    turn = await sent(f"/{name} auto", **{name: "something"})
    assert turn.preferences == {}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("/model huge@nowhere", "auto, big@openai, tiny@local"),
        ("/role poet", "auto, samplellm, stats, translation, weather"),
        ("/role manager", "auto, samplellm, stats, translation, weather"),
    ],
)
async def test_a_choice_that_is_not_allowed_changes_nothing_and_lists_what_is(text: str, allowed: str) -> None:
    turn = await sent(text, lang="fr")
    assert turn.preferences == {"lang": "fr"}
    assert turn.text.endswith(f"Choix possibles : {allowed}.")
    assert text.split()[1] in turn.text


async def test_a_command_without_its_argument_tells_what_is_in_force() -> None:
    assert (await sent("/model")).text == "/model is auto. Choices: auto, big@openai, tiny@local."


async def test_the_languages_are_a_list_with_numbers_and_the_choice_is_confirmed_in_its_language() -> None:
    lines = (await sent("/lang")).text.split("\n")
    assert lines[0] == "Which language should I answer in? Now: automatic"
    assert lines[1:-1] == [f"{number}. {one.name}" for number, one in enumerate(OFFERED.values(), 1)]
    number = next(line.partition(".")[0] for line in lines if line.endswith(" Deutsch"))
    turn = await sent(f"/lang {number}")
    assert (turn.preferences, turn.text) == ({"lang": "de"}, "Ich antworte ab jetzt auf Deutsch.")
    assert (await sent("/lang ko", lang="de")).text == OFFERED["ko"].confirmation
    assert (await sent("/lang", lang="de")).text.startswith("In welcher Sprache soll ich antworten? Jetzt: Deutsch\n")


@pytest.mark.parametrize("said", ["0", "30", "-1", "klingon", "²"])
async def test_a_language_that_is_not_offered_changes_nothing_and_lists_those_that_are(said: str) -> None:
    turn = await sent(f"/lang {said}", lang="fr")
    assert turn.preferences == {"lang": "fr"}
    assert turn.text.startswith(f"Je ne connais pas la langue {said}.\n") and "\n3. " in turn.text


def test_a_language_is_named_by_number_code_or_name() -> None:
    assert set(OFFERED) == set(LANGUAGES)
    assert [chosen_code(said) for said in ("5", "DE", "deutsch", "German", "العربية")] == ["de"] * 4 + ["ar"]


async def test_whoami_tells_the_conversation_and_its_preferences() -> None:
    turn = await sent("/whoami", lang="fr")
    assert turn.text == "Cette conversation : test:1 (/lang fr, /model auto, /role auto)."


async def test_an_unknown_command_gets_a_hint() -> None:
    assert (await sent("/dance")).text == "Unknown command /dance. /help lists all commands."


async def test_a_role_asked_nothing_tells_how_to_ask_it() -> None:
    assert (await sent("/weather")).text.endswith("Add your question: /weather TEXT")


async def test_stats_goes_on_to_the_stats_role() -> None:
    turn = await sent("/stats")
    assert turn.trace == ("manager", "command", "stats")
    assert turn.text.startswith("Turns today: 0")


async def test_stats_without_that_role_says_so() -> None:
    turn = await run_turn((Role(ManagerAgent), Role(CommandAgent)), "/stats")
    assert turn.text == "Statistics are not available: this deployment has no role named stats."


def test_figures_become_lines_for_a_person() -> None:
    figures = {
        "instances": {"samplellm": {"instances": 2, "busy": 1, "handled": 7, "errors": 1}},
        "queues": {"samplellm": 3, "lang": 0},
        "turns": {"today": 9, "errors": 1, "in_flight": 2, "average_ms": 1534},
        "tokens": {"in": 120, "out": 48},
        "users_now": 2,
    }
    assert report(figures, Speaker("en")).split("\n") == [
        "Turns today: 9 (1 failed)",
        "In flight now: 2, users: 2",
        "Average turn: 1.5 s",
        "Tokens: 120 in, 48 out",
        "lang: 0 of 0 busy, 0 waiting, 0 handled, 0 failed",
        "samplellm: 1 of 2 busy, 3 waiting, 7 handled, 1 failed",
    ]
