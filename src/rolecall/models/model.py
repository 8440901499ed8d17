"""What a language model is to Rolecall: a request in, a stream of events out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A model's wish to have a tool run; ``arguments`` is JSON as the model wrote it, checked by nobody yet.

    As an event it comes whole, once per call, after the text and before Usage. ``id`` is the provider's, or made up
    by the adapter where the provider gives none. ``signature`` is what some providers want back with the call.
    """

    id: str
    name: str
    arguments: str
    signature: str = ""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a model sees it; ``parameters`` is the JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One utterance of a conversation as a model sees it; ``images`` are whole encoded files.

    An assistant's message may hold ``calls``; each is answered by a message of the role ``tool`` whose ``call`` is
    the id of the call and whose ``text`` is the result.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    images: tuple[bytes, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    call: str = ""
    name: str = ""
    """The name of its author, where several take part; adapters whose provider has no place for it leave it out."""


class Caller(msgspec.Struct, frozen=True):
    """On whose behalf a model is asked: bookings are made for the turn, budgets are the user's."""

    conversation: str
    turn: str
    user: str = ""
    share: float = 1.0
    """Of what a user may use in a day; 0 for one whom this does not bind."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to answer: the messages, oldest first, and limits; ``timeout`` in seconds for the whole answer.

    ``tools`` may be called; with ``must_call``, one of them must be. ``schema``, a JSON schema, asks for an answer that
    is JSON of that form. The adapter only passes it on: the caller checks the answer. Adapters leave out the options
    that their provider does not support: ``top_p``, ``seed``, ``stop``, ``parallel``.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    timeout: float | None = None
    tools: tuple[ToolSpec, ...] = ()
    must_call: bool = False
    schema: dict[str, Any] | None = None
    caller: Caller | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Words that end the answer, and are not part of it."""
    parallel: bool = True
    """Whether the model may call several tools at once."""
    logprobs: int | None = None
    """How many alternatives to each token are wanted with its log probability; None: no log probabilities."""

    @property
    def has_images(self) -> bool:
        """Whether one of the messages has images."""
        return any(message.images for message in self.messages)


UNASKED = Request(())
"""Stands for the request where a model was asked for something else, such as its name."""


class Delta(msgspec.Struct, frozen=True):
    """The next piece of the answer's text."""

    text: str


class Retracted(msgspec.Struct, frozen=True):
    """All text of the answer so far was what the model thought, and is no part of it."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of this request, as the provider counts them, those of thoughts among ``tokens_out``; comes at most
    once."""

    tokens_in: int
    tokens_out: int


class Logprobs(msgspec.Struct, frozen=True):
    """The log probabilities of the answer's tokens, in the form of OpenAI's API; comes at most once, if asked for."""

    content: tuple[dict[str, Any], ...]


class Done(msgspec.Struct, frozen=True):
    """The provider's own finish marker; the last event of every whole answer."""

    reason: Literal["stop", "length", "tool_calls"]


class Spoke(msgspec.Struct, frozen=True):
    """Which model answers (``name@provider``); comes first, and only from a model made of several. ``why`` is empty
    for the first choice, else what kept those before it from answering."""

    model: str
    why: str = ""


ModelEvent = Spoke | Delta | Retracted | ToolCall | Usage | Logprobs | Done


class Answer(msgspec.Struct, frozen=True):
    """A whole answer: its text, the model that spoke (``name@provider``), what it cost, and, where it was not the
    first choice, ``why``."""

    text: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = "stop"
    why: str = ""
    calls: tuple[ToolCall, ...] = ()
    """Calls of tools that an API client runs; none of the role's own."""
    logprobs: tuple[dict[str, Any], ...] = ()
    """Those of the answer's tokens, if an API client asked for them."""
    shortened: bool = False
    """Whether the history was too long for the model, so that it was asked without the oldest part."""


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
