"""Texts to vectors by EMBEDDING_MODEL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from rolecall.errors import ConfigError, ModelRefused
from rolecall.models.gate import Gate, GatedModel
from rolecall.models.model import Caller, Delta, Done, Message, Model, ModelEvent, Request, Usage
from rolecall.models.stream import closing
from rolecall.settings import Settings

BY_KEY = {
    "openai_api_key": "text-embedding-3-small@openai",
    "gemini_api_key": "gemini-embedding-001@gemini",
    "google_api_key": "gemini-embedding-001@gemini",
}
"""The embedding models that need nothing but a key, the best one first."""
EXAMPLE = "text-embedding-3-small@openai"


class Vectors(msgspec.Struct, frozen=True):
    """The vectors of some texts, in their order; ``tokens`` is what they cost, 0 if the provider does not say."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int = 0


@runtime_checkable
class Embedder(Protocol):
    """A model, opened as any other, that has vectors too."""

    name: str

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """The vectors of ``texts``, shortened to ``dimensions`` by models that can. Raises ModelError."""
        ...


def embedding_model(settings: Settings) -> str:
    """EMBEDDING_MODEL; else the model of the first key that is set; empty if there is none. The tiny model of this
    machine is not made for it: of three sentences, its vectors bring the wrong two together."""
    by_key = (model for name, model in BY_KEY.items() if getattr(settings, name))
    return settings.embedding_model or next(by_key, "")


@dataclass
class _Texts:
    """Some texts as a model that answers every request with their vectors, so that it passes the same gate as all
    models."""

    embedder: Model
    texts: Sequence[str]
    dimensions: int | None

    def __post_init__(self) -> None:
        self.name = self.embedder.name
        self.found = Vectors(())

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        if not isinstance(self.embedder, Embedder):
            raise ConfigError(f"EMBEDDING_MODEL={self.name} has no embeddings: expected a model such as {EXAMPLE}")
        self.found = await self.embedder.embed(self.texts, self.dimensions)
        if len(self.found.vectors) != len(self.texts):
            raise ModelRefused(f"{self.name} gave {len(self.found.vectors)} vectors for {len(self.texts)} texts")
        yield Delta("")
        yield Usage(self.found.tokens or sum(len(text) for text in self.texts) // 4, 0)
        yield Done("stop")

    async def aclose(self) -> None:
        """Do nothing: the model is closed by who opened it."""


async def embed(
    embedder: Model, texts: Sequence[str], dimensions: int | None, gate: Gate | None = None,
    caller: Caller | None = None,
) -> Vectors:  # fmt: skip
    """The vectors of ``texts``. With a ``gate``, the call counts in the model's quota and in the budgets of ``caller``.
    Raises ModelError, NotNow and OverBudget as GatedModel does, and ConfigError for a model without vectors."""
    asked = _Texts(embedder, texts, dimensions)
    model: Model = asked if gate is None else GatedModel(asked, gate)
    request = Request(tuple(Message("user", text) for text in texts), max_tokens=1, caller=caller)
    async with closing(model.stream(request)) as events:
        async for _ in events:
            pass
    return asked.found
