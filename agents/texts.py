"""What the agents say themselves, in the user's language: the table is texts.toml beside this file."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rolecall import Context, Envelope

ENGLISH = "en"


class Speaker(NamedTuple):
    """Says texts in one language."""

    language: str

    def say(self, key: str, /, **values: object) -> str:
        """The text ``key`` with ``values`` put in."""
        text = table()[key][self.language]
        return text.format(**values) if values else text


async def speaker(envelope: Envelope, ctx: Context) -> Speaker:
    """A speaker of the language that the conversation prefers, else the one of the user's app, else English."""
    chosen = (await ctx.memory.preferences()).get("lang", "")
    app = str(envelope.meta.get("language", ""))
    return Speaker(spoken(app) if not chosen or spoken(app).startswith(f"{chosen}-") else spoken(chosen))


def spoken(code: str) -> str:
    """The language of the table for ``code``, such as ``pt`` for ``pt-BR``; English if there is none."""
    code = code.replace("_", "-").lower()
    tongue = "zh-hant" if {"hant", "tw", "hk", "mo"} & set(code.split("-")) else code.partition("-")[0]
    return tongue if tongue in table()["hello"] else ENGLISH


@cache
def table() -> Mapping[str, Mapping[str, str]]:
    """Every text by key and language."""
    return tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))
