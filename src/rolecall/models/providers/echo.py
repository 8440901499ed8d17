"""A model that needs nothing: it repeats the last question, at the pace the settings name."""

from __future__ import annotations

import asyncio
import itertools
import math
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rolecall.errors import ModelTimeout
from rolecall.models.model import Delta, Done, ModelEvent, Request, Usage
from rolecall.models.vectors import Vectors
from rolecall.settings import Settings


class EchoModel:
    """Answers ``echo: <last user text>`` within ``delay`` seconds in all, in up to ``deltas`` pieces."""

    def __init__(self, name: str = "echo@test", *, delay: float = 0, deltas: int = 1) -> None:
        self.name = name
        self._delay = delay
        self._deltas = deltas

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> EchoModel:
        """Whatever ``model`` is called, it echoes."""
        return cls(f"{model}@test", delay=settings.echo_delay, deltas=settings.echo_deltas)

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. A token is a word here."""
        asked = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
        answer = f"echo: {asked}"
        pieces = _pieces(answer, self._deltas)
        left = request.timeout
        for piece in pieces:
            left = await self._wait(self._delay / len(pieces), left)
            yield Delta(piece)
        words = sum(len(message.text.split()) for message in request.messages)
        yield Usage(words, len(answer.split()))
        yield Done("stop")

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """See Embedder.embed. Each word adds to one of the dimensions, so that texts of the same words are near."""
        return Vectors(tuple(_vector(text, dimensions or 64) for text in texts), sum(len(t.split()) for t in texts))

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _wait(self, seconds: float, left: float | None) -> float | None:
        if left is None:
            await asyncio.sleep(seconds)
            return None
        await asyncio.sleep(min(seconds, left))
        if seconds > left:
            raise ModelTimeout(f"{self.name}: no whole answer in the time given")
        return left - seconds


async def transcribe(model: str, sound: bytes, media_type: str, settings: Settings) -> str:
    """``sound`` itself, where that is text."""
    return sound.decode("utf-8", "replace")


def _vector(text: str, dimensions: int) -> tuple[float, ...]:
    found = [0.0] * dimensions
    for word in text.lower().split():
        found[zlib.crc32(word.encode()) % dimensions] += 1.0
    length = math.hypot(*found) or 1.0
    return tuple(value / length for value in found)


def _pieces(text: str, count: int) -> list[str]:
    count = min(count, len(text))
    ends = [len(text) * number // count for number in range(count + 1)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]
