"""The bot's own words, in its users' languages: the table is texts.toml in this directory."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from rolecall.errors import money, rounded

LANGUAGES = ("en", "ru", "de", "fr", "es", "zh", "ja", "pt", "it", "uk", "tr", "ar", "zh-hant")
OTHERWISE = "en"
TRADITIONAL = re.compile(r"zh-(.*-)?(hant|tw|hk|mo)\b")
"""The language codes of people who read traditional Chinese."""
ENGLISH_ONLY = ("http", "page")


def say(language: str | None, key: str, **values: object) -> str:
    """The sentence ``key`` in ``language`` as Telegram names it (``pt-BR``), else in English, with ``values`` put in.

    Raises KeyError for a key that texts.toml does not have.
    """
    sentence = table()[key][spoken(language)]
    return sentence.format(**values) if values else sentence


def failure_text(language: str | None, payload: Mapping[str, Any]) -> str | None:
    """What to tell about a turn that failed, by the ``payload`` of its final event; None if its text says it best."""
    failure = payload.get("failure")
    key = f"failure_{failure.get('kind')}" if isinstance(failure, Mapping) else ""
    if not isinstance(failure, Mapping) or key not in table():
        return None
    limit = limit_text(language, failure)
    return say(language, key, turn=failure.get("turn", ""), wait=_wait(language, failure), limit=limit)


def limit_text(language: str | None, failure: Mapping[str, Any]) -> str:
    """The used-up limit that ``failure`` names, such as `` (5.00 USD)``; empty if it names none."""
    if isinstance(tokens := failure.get("tokens"), int | float):
        return f" ({say(language, 'limit_tokens', count=round(tokens))})"
    cost = failure.get("cost")
    return f" ({money(cost)})" if isinstance(cost, int | float) else ""


def rejection_text(language: str | None, payload: Mapping[str, Any], turn: str) -> str | None:
    """What to tell about a ``turn`` that was given up for a reason in an agent's own words, by the ``payload`` of its
    final event; None if its text says something else."""
    reason = payload.get("reason")
    if not isinstance(reason, str) or not reason or reason not in str(payload.get("text", "")):
        return None
    return say(language, "rejected", reason=reason, turn=turn)


def answer_notes(language: str | None, payload: Mapping[str, Any]) -> list[str]:
    """What to say under an answer, by the ``payload`` of its final event: that it was cut off, or the history was."""
    found = (("answer_cut", payload.get("finish") == "length"), ("history_cut", bool(payload.get("shortened"))))
    return [say(language, key) for key, applies in found if applies]


def waiting_text(language: str | None, payload: Mapping[str, Any]) -> str | None:
    """What to tell about a turn that waits, by the ``payload`` of its event ``queued``; None without a known reason."""
    key = f"waiting_{payload.get('kind')}"
    return say(language, key, wait=_wait(language, payload)) if key in table() else None


def help_line(language: str | None, name: str, usage: str) -> str:
    """The line of /help for the command ``name``. In Arabic, its usage still reads from left to right."""
    shown = f"\u2068{usage}\u2069" if spoken(language) == "ar" else usage
    return f"{shown} – {say(language, f'menu_{name}')}"


def spoken(language: str | None) -> str:
    """The one of LANGUAGES to use for ``language``: itself, or the tongue it is a kind of, or English."""
    code = (language or "").replace("_", "-").lower()
    tongue = "zh-hant" if TRADITIONAL.match(code) else code.partition("-")[0]
    return tongue if tongue in LANGUAGES else OTHERWISE


def meta_of(language: str | None) -> dict[str, str]:
    """The ``meta`` of envelopes of a user who reads ``language``: agents say in it what they say themselves."""
    return {"language": language} if language else {}


def _wait(language: str | None, payload: Mapping[str, Any]) -> str:
    """How long it is to wait."""
    wait = payload.get("wait")
    count, unit = rounded(float(wait) if isinstance(wait, int | float) else 0.0)
    return say(language, f"unit_{unit}", count=count)


@cache
def table() -> Mapping[str, Mapping[str, str]]:
    """Every sentence by key and language."""
    return {key: sentences for key, sentences in _catalogue().items() if key not in ENGLISH_ONLY}


def section(name: str) -> Mapping[str, str]:
    """The texts of an English-only section, by key."""
    return _catalogue()[name]


@cache
def _catalogue() -> Mapping[str, Mapping[str, str]]:
    return tomllib.loads(files(__package__).joinpath("texts.toml").read_text(encoding="utf-8"))
