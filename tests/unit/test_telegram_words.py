"""The bot's own words are there in all its languages."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from string import Formatter

import pytest

from rolecall.bus.commands import COMMANDS
from rolecall.frontends.texts import LANGUAGES, say, spoken, table

SOURCES = Path(__file__).parents[2] / "src/rolecall/frontends/telegram"
TELLING = ("say", "_tell", "tell")


def values(sentence: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(sentence) if name is not None)


@pytest.mark.parametrize("key", sorted(table()))
def test_a_sentence_is_there_in_every_language_with_the_same_values(key: str) -> None:
    sentences = table()[key]
    assert tuple(sentences) == LANGUAGES
    assert all(sentence.strip() for sentence in sentences.values())
    assert all(values(sentence) == values(sentences["en"]) for sentence in sentences.values())


def test_the_language_is_the_users_or_english() -> None:
    assert [spoken(code) for code in ("de", "de-AT", "zh_hans", "pt-BR", "", None)] == ["de", "de", "zh", *["en"] * 3]
    assert say("ru", "thinking") == "Думаю…"
    assert say("fr-CA", "place", place=3) == "En attente : place 3"


def test_every_command_is_explained_for_the_menu_in_at_most_256_characters() -> None:
    for command in COMMANDS:
        assert all(len(text) <= 256 for text in table()[f"menu_{command.name}"].values())


def test_every_sentence_that_is_said_exists() -> None:
    said = {
        argument.value
        for path in SOURCES.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in TELLING
        for argument in call.args[1:2]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    assert said - set(table()) == set()
    assert not [key for key in table() if not re.fullmatch(r"[a-z_]+", key)]
