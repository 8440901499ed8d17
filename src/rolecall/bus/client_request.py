"""What a client of the HTTP API brings along with its message: a history of its own, tools and options.

It can be larger than an envelope, so it is stored as a blob, and the payload's ``request`` is its id. A client may also
have its message and the answer stored, to come back to them later. Whatever its JSON schemas say, checking one takes
bounded time, fetches nothing and runs no pattern of its author.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.errors import MissingExtra, RolecallError
from rolecall.redis.scripts import milliseconds

Stored = TypeVar("Stored")
MEDIA_TYPE = "application/vnd.rolecall.request"
MAX_MESSAGES = 2048
MAX_BYTES = 2 * 1024 * 1024
PLAIN_BYTES = 64 * 1024
CUT_TEXT = "[{count} earlier messages of this conversation are left out here, because they did not fit]"
CUT_MARK = " … [cut] … "
SCHEMA_SECONDS, ANSWER_SECONDS = 5.0, 2.0
"""How long the check of a schema and that of an answer may take: a few hundred bytes can describe more work than
anybody has time for."""
PATTERNS = ("pattern", "patternProperties")
"""Left to the model's provider: a regular expression of others can take forever."""
BY_PATTERNS = ("additionalProperties", "unevaluatedProperties")
"""What runs the patterns of ``patternProperties`` as well."""


class ClientCall(msgspec.Struct, frozen=True):
    """A tool call of an earlier answer; ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str = "{}"
    signature: str = ""
    """What the model's provider wants back with the call."""


class ClientMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message of the client's history. ``images`` are ids of blobs; ``call`` is the call that a tool's message is the
    result of."""

    role: Literal["system", "user", "assistant", "tool"]
    text: str = ""
    images: tuple[str, ...] = ()
    calls: tuple[ClientCall, ...] = ()
    call: str = ""
    name: str = ""
    """The name of its author, where several take part."""

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        return len(self.text.encode("utf-8", "replace")) + sum(len(call.arguments) + 100 for call in self.calls) + 100


class ClientTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the client runs itself; ``parameters`` is the JSON schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class ClientRequest(msgspec.Struct, frozen=True, omit_defaults=True, rename={"schema": "json_schema"}):
    """A client's request but for the user's last message, which is the envelope's. ``before`` and ``after`` are the
    messages before and after that one. ``choice`` is auto, none, required, or the name of the tool to call."""

    before: tuple[ClientMessage, ...] = ()
    after: tuple[ClientMessage, ...] = ()
    tools: tuple[ClientTool, ...] = ()
    choice: str = "auto"
    parallel: bool = True
    schema: dict[str, Any] | None = None
    """The JSON schema that the answer has to match; the empty one asks for any JSON object."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives to each token are wanted with its log probability; None: no log probabilities."""

    @property
    def plain(self) -> bool:
        """Whether it is nothing but a short history of text, which an envelope can carry."""
        if msgspec.structs.replace(self, before=()) != ClientRequest():
            return False
        only_text = all(one == ClientMessage(one.role, one.text) and one.role != "tool" for one in self.before)
        return only_text and sum(one.size for one in self.before) <= PLAIN_BYTES


def fitting(request: ClientRequest, most: int = MAX_BYTES) -> tuple[ClientRequest, int]:
    """``request`` with at most about ``most`` bytes, and how many messages are left out for that. What comes after the
    user's last message stays; of long texts the middle goes."""
    after, budget = request.after, most // 2
    if (size := sum(message.size for message in after)) > budget:
        after = tuple(_shortened(message, budget // len(after)) for message in after)
        size = budget
    before, cut = _newest(request.before, most - size)
    return msgspec.structs.replace(request, before=tuple(before), after=after), cut


def _newest(messages: Sequence[ClientMessage], most: int) -> tuple[list[ClientMessage], int]:
    """The newest ``messages`` of ``most`` bytes, and how many older ones are left out. System messages stay; a message
    stands for those left out. A tool's result never stays without its call."""
    kept: list[ClientMessage] = []
    room, full, cut = most, False, 0
    for message in reversed(messages):
        one = _shortened(message, most // 2)
        full = full or one.size > room or len(kept) >= MAX_MESSAGES
        if full and (message.role != "system" or one.size > room):
            cut += 1
            continue
        room -= one.size
        kept.append(one)
    kept.reverse()
    if not cut:
        return kept, 0
    first = next((n for n, message in enumerate(kept) if message.role != "system"), len(kept))
    while first < len(kept) and kept[first].role == "tool":
        del kept[first]
        cut += 1
    kept.insert(first, ClientMessage("system", CUT_TEXT.format(count=cut)))
    return kept, cut


class TextsToEmbed(msgspec.Struct, frozen=True):
    """What a client wants vectors of; the payload's ``texts`` is the id of it."""

    texts: tuple[str, ...]
    dimensions: int | None = None


class EmbeddedTexts(msgspec.Struct, frozen=True):
    """Its vectors, each as little-endian floats of 32 bits, and the tokens that they cost, 0 if unknown."""

    vectors: tuple[bytes, ...]
    tokens: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True):
    """The log probabilities of an answer's tokens, as OpenAI's API has them; the final event's ``logprobs`` is the id
    of it."""

    content: tuple[dict[str, Any], ...] = ()


async def store_value(bus: Bus, conversation: str, value: TextsToEmbed | EmbeddedTexts | TokenLogprobs) -> str:
    """Store a value for as long as its turn can last; returns the id of the blob. Raises BlobTooLarge."""
    return await Blobs(bus, lifetime(bus)).put(conversation, msgspec.msgpack.encode(value), MEDIA_TYPE)


async def load_value(bus: Bus, conversation: str, blob_id: str, kind: type[Stored]) -> Stored | None:
    """The stored value; None once it has expired."""
    blob = await Blobs(bus).get(conversation, blob_id)
    return msgspec.msgpack.decode(blob.data, type=kind) if blob is not None else None


async def store_request(bus: Bus, conversation: str, request: ClientRequest) -> str:
    """Store a request for as long as its turn can last; returns the id of the blob."""
    return await Blobs(bus, lifetime(bus)).put(conversation, msgspec.json.encode(request), MEDIA_TYPE)


async def load_request(bus: Bus, conversation: str, blob_id: str) -> ClientRequest | None:
    """The stored request; None once it has expired."""
    blob = await Blobs(bus).get(conversation, blob_id)
    return msgspec.json.decode(blob.data, type=ClientRequest) if blob is not None else None


def lifetime(bus: Bus) -> float:
    """How many hours what belongs to a single turn is stored."""
    return 2 * bus.settings.turn_seconds / 3600


class StoredResponse(msgspec.Struct, omit_defaults=True):
    """A turn as its client can come back to it: the ``messages`` that the client sent, and its ``answer``, the turn's
    final event, once that is known. ``chain`` are the turns of the same conversation that it goes on from, oldest
    first. ``shown`` is what the client is told of its request."""

    turn: str
    messages: tuple[ClientMessage, ...] = ()
    chain: tuple[str, ...] = ()
    shown: dict[str, Any] = {}
    answer: dict[str, Any] | None = None


async def store_response(bus: Bus, conversation: str, response: StoredResponse) -> None:
    """Store ``response`` for CONVERSATION_DAYS since its last use; replaces what was stored of its turn."""
    key, keep = bus.shard(conversation).response(conversation, response.turn), _response_ms(bus)
    await bus.server.fetch("SET", key, msgspec.json.encode(response), "PX", keep)


async def load_responses(bus: Bus, conversation: str, turns: Sequence[str]) -> list[StoredResponse]:
    """What is stored of ``turns``, in their order; those that have expired or were deleted are left out."""
    names = [bus.shard(conversation).response(conversation, turn) for turn in turns]
    found: list[bytes | None] = await asyncio.gather(*(bus.server.fetch("GET", name) for name in names))
    await asyncio.gather(*(bus.server.fetch("PEXPIRE", name, _response_ms(bus)) for name in names))
    return [msgspec.json.decode(raw, type=StoredResponse) for raw in found if raw is not None]


async def delete_response(bus: Bus, conversation: str, turn: str) -> None:
    """Delete what is stored of ``turn``. Idempotent."""
    await bus.server.fetch("DEL", bus.shard(conversation).response(conversation, turn))


# ── JSON schemas ─────────────────────────────────────────────────────────────────────────────────


class SchemaTooSlow(RolecallError):
    """Raised when a check takes too long."""


def is_schema(value: dict[str, Any]) -> bool:
    """Whether ``value`` is a JSON schema; not one whose check takes too long."""
    from jsonschema import Draft202012Validator as Draft  # type: ignore[import-untyped]

    errors = _validator(Draft.META_SCHEMA, SCHEMA_SECONDS, formats=Draft.FORMAT_CHECKER).iter_errors(value)
    try:
        return next(errors, None) is None
    except (SchemaTooSlow, RecursionError):
        return False


def schema_mismatch(schema: dict[str, Any], value: object) -> str:
    """Why ``value`` does not match ``schema``, as far as that is checked; empty if it does. Raises SchemaTooSlow,
    MissingExtra without the library, and whatever that raises for a schema which cannot be used."""
    try:
        from jsonschema.exceptions import best_match  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtra("http", "an answer in the form of a JSON schema") from None

    unchecked = PATTERNS if PATTERNS[1] not in json.dumps(schema) else (*PATTERNS, *BY_PATTERNS)
    error = best_match(_validator(schema, ANSWER_SECONDS, unchecked).iter_errors(value))
    if error is None:
        return ""
    where = ".".join(str(part) for part in error.absolute_path)
    return ": ".join(filter(None, (where, error.message)))


def _validator(
    schema: dict[str, Any], seconds: float, unchecked: tuple[str, ...] = (), *, formats: object = None
) -> Any:
    """A validator for ``schema`` that fetches nothing and raises SchemaTooSlow after ``seconds`` from now."""
    from jsonschema import Draft202012Validator as Draft
    from jsonschema import validators
    from referencing import Registry

    deadline = time.monotonic() + seconds

    def timed(check: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*given: Any) -> Any:
            if time.monotonic() > deadline:
                raise SchemaTooSlow(f"checking the JSON schema took more than {seconds:g} s")
            return check(*given)

        return checked

    def evolve(self: Any, **changes: Any) -> Any:
        # The library's own would go on with an unbounded validator where a part of the schema names a dialect.
        part, resolver = changes.get("schema", self.schema), changes.get("_resolver", self._resolver)
        return kind(part, format_checker=formats, registry=nothing, _resolver=resolver)

    nothing: Any = Registry()
    checks = {**Draft.VALIDATORS, "uniqueItems": _unique}
    kind = validators.extend(
        Draft, {name: timed(_anything if name in unchecked else check) for name, check in checks.items()}
    )  # fmt: skip
    kind.evolve = evolve
    return kind(schema, format_checker=formats, registry=nothing)


def _anything(*given: object) -> tuple[()]:
    return ()


def _unique(validator: Any, wanted: object, value: object, schema: object) -> Iterator[Exception]:
    """``uniqueItems`` in linear time; the library compares each item with all others."""
    from jsonschema import ValidationError

    if wanted and validator.is_type(value, "array"):
        assert isinstance(value, list)
        if len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
            yield ValidationError("it has the same item twice")


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────


def _response_ms(bus: Bus) -> int:
    return milliseconds(bus.settings.conversation_days * 86_400)


def _shortened(message: ClientMessage, most: int) -> ClientMessage:
    """``message`` without its middle if the message by itself is too long."""
    if message.size <= most:
        return message
    half = most // 8  # characters have up to four bytes
    text = f"{message.text[:half]}{CUT_MARK}{message.text[-half:]}"
    return msgspec.structs.replace(message, text=text)
