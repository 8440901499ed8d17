"""The bot's own words are there in all its languages."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from string import Formatter

import pytest

from rolecall.bus.commands import COMMANDS
from rolecall.errors import FAILURES, WAITS
from rolecall.frontends.telegram.buttons import TOAST_CHARS
from rolecall.frontends.texts import LANGUAGES, failure_text, rejection_text, say, spoken, table

SOURCES = Path(__file__).parents[2] / "src/rolecall/frontends/telegram"
TELLING = ("say", "_tell", "tell")


ISOLATED = re.compile("\u2068[^\u2068\u2069]*\u2069")
LEFT_TO_RIGHT = re.compile(r"\{\w+\}|[/@]\w+|[A-Za-z]{2,}", re.ASCII)


def values(sentence: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(sentence) if name is not None)


def not_isolated(arabic: str) -> list[str]:
    """The values, commands and Latin words that the right-to-left text around them would take apart."""
    return LEFT_TO_RIGHT.findall(ISOLATED.sub("", arabic))


@pytest.mark.parametrize("key", sorted(table()))
def test_a_sentence_is_there_in_every_language_with_the_same_values(key: str) -> None:
    sentences = table()[key]
    assert tuple(sentences) == LANGUAGES
    assert all(sentence.strip() for sentence in sentences.values())
    assert all(values(sentence) == values(sentences["en"]) for sentence in sentences.values())
    assert not not_isolated(sentences["ar"])
    assert sentences["ar"].count("\u2068") == sentences["ar"].count("\u2069")


def test_what_would_fall_apart_between_right_to_left_words_is_found() -> None:
    assert not_isolated("أرسل /start CODE إلى {id}") == ["/start", "CODE", "{id}"]
    assert not_isolated("أرسل \u2068/start CODE\u2069 إلى \u2068{id}\u2069") == []


def test_the_language_is_the_users_or_english() -> None:
    assert [spoken(code) for code in ("de", "de-AT", "zh_hans", "pt-BR", "ko", "", None)] == [
        "de",
        "de",
        "zh",
        "pt",
        *["en"] * 3,
    ]
    traditional = ("zh-hant", "zh_TW", "zh-HK", "zh-Hant-MO")
    assert {spoken(code) for code in traditional} == {"zh-hant"} and spoken("zh-Hans-SG") == "zh"
    assert say("ru", "thinking") == "Думаю…"
    assert say("fr-CA", "place", place=3) == "En attente : place 3"


def test_every_command_is_explained_for_the_menu_in_at_most_256_characters() -> None:
    for command in COMMANDS:
        assert all(len(text) <= 256 for text in table()[f"menu_{command.name}"].values())


def test_what_pops_up_after_a_press_fits_in_200_characters() -> None:
    source = (SOURCES / "buttons.py").read_text(encoding="utf-8")
    for key in re.findall(r"press\.say\(\"(\w+)\"", source):
        for sentence in table()[key].values():
            assert len(re.sub(r"\{\w+\}", "", sentence)) <= TOAST_CHARS - 60


def test_every_failure_and_every_delay_of_the_bus_is_translated() -> None:
    assert {f"failure_{kind}" for kind in FAILURES} | {f"waiting_{kind}" for kind in WAITS} <= set(table())
    letter = {"text": "Sorry, this did not work: no such city. (turn a-1)", "reason": "no such city"}
    assert rejection_text("de", letter, "a-1") == "Das hat leider nicht geklappt: no such city. (Anfrage a-1)"
    assert rejection_text("de", {"text": "something else", "reason": "no such city"}, "a-1") is None


def test_a_wait_is_told_in_the_units_of_the_language() -> None:
    waits = {"failure": {"kind": "model_limited", "wait": 5400, "turn": "a-1"}}
    assert "через 90 мин." in str(failure_text("ru", waits)) and "90 分钟后" in str(failure_text("zh", waits))
    assert "in 2 h." in str(failure_text("en", {"failure": {"kind": "model_limited", "wait": 7000, "turn": "a-1"}}))


@pytest.mark.parametrize("language", ["ru", "uk"])
def test_a_number_stands_for_itself_where_it_would_inflect_the_word_behind_it(language: str) -> None:
    inflected = re.compile(r"\{(count|tokens|missed|users)\} [а-яіїє]{4,}")
    assert not [key for key, sentences in table().items() if inflected.search(sentences[language])]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_used_up_budget_is_told_with_its_limit(language: str) -> None:
    tokens = failure_text(language, {"failure": {"kind": "budget_user", "tokens": 20_000}})
    money = failure_text(language, {"failure": {"kind": "budget_all", "cost": 2.5}})
    neither = failure_text(language, {"failure": {"kind": "budget_all"}})
    assert tokens and "20000" in tokens and money and "2.50 USD" in money and neither and "(" not in neither[:20]


def test_telegram_is_sent_no_text_of_the_front_as_it_is() -> None:
    """``Received.reply`` is in English, for front ends without a language."""
    assert not [path.name for path in SOURCES.rglob("*.py") if "received.reply" in path.read_text(encoding="utf-8")]


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
