"""Files that users send: fetched from Telegram, put away as blobs, documents read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from telegram import Bot

from rolecall.blobs import Blobs
from rolecall.frontends.telegram.incoming import Incoming


@dataclass(frozen=True)
class Fetched:
    """What a message's files add to the payload, and ``problems``: keys of words.py with their values, one for each
    file that could not be had or read."""

    payload: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[tuple[str, Mapping[str, str]], ...] = ()


@dataclass(frozen=True)
class Media:
    """Fetches files. ``voice`` says whether a model is there that hears."""

    bot: Bot
    blobs: Blobs
    voice: bool = False

    async def fetch(self, incoming: Incoming) -> Fetched:
        """The files of ``incoming`` as ``images`` (blob ids) and ``files`` ({blob, name, type}) of a payload. Never
        raises for what a file is, or for Telegram being away."""
        raise NotImplementedError
