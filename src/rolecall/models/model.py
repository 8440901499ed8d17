"""What a language model is to Rolecall: a request in, a stream of events out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One utterance of a conversation as a model sees it; ``images`` are whole encoded files."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[bytes, ...] = ()


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to answer: the messages, oldest first, and limits; ``timeout`` in seconds for the whole answer."""

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    timeout: float | None = None


class Delta(msgspec.Struct, frozen=True):
    """The next piece of the answer's text."""

    text: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens of this request, as the provider counts them; comes at most once."""

    tokens_in: int
    tokens_out: int


class Done(msgspec.Struct, frozen=True):
    """The provider's own finish marker; the last event of every whole answer."""

    reason: Literal["stop", "length"]


class Spoke(msgspec.Struct, frozen=True):
    """Which model answers (``name@provider``); comes first, and only from a model made of several."""

    model: str


ModelEvent = Spoke | Delta | Usage | Done


class Answer(msgspec.Struct, frozen=True):
    """A whole answer: its text, the model that spoke (``name@provider``) and what it cost."""

    text: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = "stop"


class Model(Protocol):
    """A model one can ask. Implementations hold one client per process and are safe for concurrent use."""

    name: str
    """``name@provider``, as configured and as shown to users."""

    def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """Answer ``request``: deltas as they come, then Usage where known, then Done.

        A stream that ends without Done was cut: implementations raise Truncated themselves. Any failure is a
        ModelError. Cancelling the consuming task closes the provider's connection and so frees the model.
        """
        ...

    async def aclose(self) -> None:
        """Close the client. Idempotent."""
        ...
