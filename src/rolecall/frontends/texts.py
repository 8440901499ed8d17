"""The bot's own words, in its users' languages: the table is texts.toml beside this file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

LANGUAGES = ("en", "ru", "de", "fr", "es", "zh", "ja")
OTHERWISE = "en"
ENGLISH_ONLY = ("http", "page")


def say(language: str | None, key: str, **values: object) -> str:
    """The sentence ``key`` in ``language`` as Telegram names it (``pt-BR``), else in English, with ``values`` put in.

    Raises KeyError for a key that texts.toml does not have.
    """
    sentence = table()[key][spoken(language)]
    return sentence.format(**values) if values else sentence


def spoken(language: str | None) -> str:
    """The one of LANGUAGES to use for ``language``: itself, or the tongue it is a kind of, or English."""
    tongue = (language or "").replace("_", "-").lower().partition("-")[0]
    return tongue if tongue in LANGUAGES else OTHERWISE


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
