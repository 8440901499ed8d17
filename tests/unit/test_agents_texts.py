"""What the agents say themselves is there in every language of the bot, and they say nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from agents.command import ANSWERS, CommandAgent
from agents.manager import ManagerAgent
from agents.stats import StatsAgent
from agents.texts import Speaker, spoken, table
from rolecall import Role
from rolecall.frontends.texts import LANGUAGES
from rolecall.testing import run_turn
from tests.unit.test_telegram_words import not_isolated, values

AGENTS = sorted((Path(__file__).parents[2] / "agents").glob("*.py"))
WORDS = re.compile(r"[^\W\d_]{3,}")
LISTS_COMMANDS = ("help",)
"""Its lines are those of rolecall.COMMANDS; Telegram answers it itself."""


@pytest.mark.parametrize("key", sorted(table()))
def test_a_text_is_there_in_every_language_with_the_same_values(key: str) -> None:
    texts = table()[key]
    assert tuple(texts) == LANGUAGES
    assert all(text.strip() for text in texts.values())
    assert all(values(text) == values(texts["en"]) for text in texts.values())
    assert not not_isolated(texts["ar"])


def test_the_language_is_the_one_asked_for_or_english() -> None:
    codes = ("pt-BR", "zh_Hans", "zh-Hant-TW", "zh-HK", "ko", "")
    assert [spoken(code) for code in codes] == ["pt", "zh", "zh-hant", "zh-hant", "en", "en"]


def test_agents_reply_with_texts_of_the_catalogue() -> None:
    """The first argument of every reply: no words but the keys of texts."""
    offenders = []
    for path in AGENTS:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "envelope.reply":
                given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "text")]
                offenders += [f"{path.name}:{call.lineno}: {said}" for one in given for said in own_words(one)]
    assert not offenders


def test_every_text_that_agents_say_exists_and_every_text_is_said() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in AGENTS)
    said = {
        one.value
        for call in ast.walk(ast.parse(source.replace("from __future__", "from typing")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("say", "fixed")
        for one in ast.walk(call.args[0])
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value.isidentifier()
    }
    assert said - set(table()) <= {"remind_"}
    assert [key for key in table() if f'"{key}"' not in source and f'"{key.partition("_")[2]}"' not in source] == []


@pytest.mark.parametrize(
    "command", [*sorted(ANSWERS.keys() - LISTS_COMMANDS), "lang xx", "model xx", "timezone xx", "dance"]
)
async def test_a_command_is_answered_in_the_language_that_was_chosen(command: str) -> None:
    roles = (Role(ManagerAgent), Role(CommandAgent), Role(StatsAgent))
    english = await run_turn(roles, f"/{command}")
    for language in sorted({*LANGUAGES} - {"en", "zh-hant"}):
        answer = await run_turn(roles, f"/{command}", preferences={"lang": language})
        assert answer.text and answer.text.split("\n")[0] != english.text.split("\n")[0], language


def test_a_speaker_says_a_text_with_its_values() -> None:
    assert Speaker("de").say("unknown_command", word="x") == "Den Befehl /x kenne ich nicht. /help zeigt alle Befehle."
    assert Speaker("ar").say("setting_changed", name="role", value="x") == "\u2068/role\u2069: أصبح \u2068x\u2069."


def own_words(given: ast.expr) -> list[str]:
    """The words in literals of ``given``, apart from those within other calls."""
    if isinstance(given, ast.Call):
        return []
    if isinstance(given, ast.Constant):
        return WORDS.findall(given.value) if isinstance(given.value, str) else []
    return [word for child in ast.iter_child_nodes(given) if isinstance(child, ast.expr) for word in own_words(child)]
