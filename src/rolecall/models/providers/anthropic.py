"""Anthropic's Claude models, and those of every server that speaks the Messages API."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rolecall.errors import (
    ContentRefused,
    MissingExtra,
    ModelError,
    ModelUnavailable,
)
from rolecall.models import failures
from rolecall.models.failures import Refusal
from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.endpoint import Endpoint, key_for, listed, usable_proxy
from rolecall.models.stream import Patience, Source, image_type, read
from rolecall.models.thinking import Habit
from rolecall.models.tool_calls import arguments_of, new_call_id, written
from rolecall.models.wire import Documents, count_of, member, object_of, objects_in, objects_of, text_of, word_of
from rolecall.settings import Settings

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

ANTHROPIC_URL = "https://api.anthropic.com"
MAX_TOKENS = 16_384
"""The limit of an answer where the request names none: the API needs one."""
NOT_SAMPLED = re.compile(r"claude-(opus-4-[7-9]|[a-z]+-([5-9]|\d\d)\b|[a-z]+-preview)")
"""Models that refuse a temperature."""
FINISHES = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls"}
SIGNED = "anthropic:"
"""Before what a call carries of the thoughts that led to it, as JSON: the API wants them back with its result."""
TOO_LONG = re.compile(r"prompt is too long|exceeds? (the )?(model's )?(maximum )?context|context (window|limit)", re.I)
NO_CREDIT = re.compile(r"credit balance is too low|billing|reached your specified API usage limits", re.I)
NO_ACCOUNT = re.compile(r"organization has been disabled", re.I)
FILTERED = re.compile(r"blocked by content filtering", re.I)
NO_IMAGES = re.compile(r"image", re.I)
STATUSES = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500,
    "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
"""The status that an error within a stream would have had."""


class AnthropicModel:
    """A model of the Messages API. SDK and connections come with the first question.

    A stream of its events is read from the response itself: the SDK parses strictly.
    """

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._endpoint = endpoint
        self._sdk: AsyncAnthropic | None = None
        self._making = asyncio.Lock()
        self._habit = Habit.of(name)

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> AnthropicModel:
        """``model`` as the settings reach it. Raises ConfigError for a missing key, extra or bad address."""
        name = f"{model}@anthropic"
        return cls(name, _endpoint(name, settings))

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. What the model thinks before it speaks is counted, not shown."""
        patience = Patience(self._endpoint.first_token, self._endpoint.idle_token, request.timeout)
        async with aclosing(
            read(self._events(await self._ready(), request), patience, self.name, self._habit)
        ) as events:
            async for event in events:
                yield event

    async def names(self) -> list[str]:
        """The models that this key may ask. Raises ModelError."""
        sdk = await self._ready()
        try:
            return [model.id async for model in sdk.models.list(limit=1000)]
        except _failures() as error:
            raise self._translated(error) from None

    async def aclose(self) -> None:
        """Close the connections. Idempotent; a later question opens new ones."""
        sdk, self._sdk = self._sdk, None
        if sdk:
            await sdk.close()

    async def _events(self, sdk: AsyncAnthropic, request: Request) -> Source:
        heard, documents = _Heard(self.name, self._habit), Documents()
        body = _body(self.name.rpartition("@")[0], request)
        try:
            async with sdk.messages.with_streaming_response.create(**body) as response:
                async for document in objects_in(response.iter_bytes(), documents):
                    text = heard.take(document) if document else ""
                    yield Delta(text) if text else None
        except ModelError:
            raise
        except _failures() as error:
            raise self._translated(error, images=request.has_images) from None
        for event in heard.ending():
            yield event

    def _translated(self, error: Exception, *, images: bool = False) -> ModelError:
        return translated(error, self.name, self._endpoint.url, self._endpoint.key, images=images)

    async def _ready(self) -> AsyncAnthropic:
        async with self._making:
            if self._sdk is None:
                # In a thread: importing the SDK takes most of a second, in which heartbeats must go on.
                self._sdk = await asyncio.to_thread(self._make)
            return self._sdk

    def _make(self) -> AsyncAnthropic:
        import httpx2
        from anthropic import AsyncAnthropic

        endpoint = self._endpoint
        options = endpoint.client_options(httpx2)
        with usable_proxy(self.name):
            http = httpx2.AsyncClient(follow_redirects=True, event_hooks=failures.HOOKS, **options)
        return AsyncAnthropic(
            api_key=endpoint.key, base_url=endpoint.url, max_retries=0, timeout=http.timeout, http_client=http
        )


async def list_models(settings: Settings) -> list[str]:
    """``name@anthropic`` of all that the key of the settings may ask, sorted. Raises ConfigError and ModelError."""
    async with aclosing(AnthropicModel("anthropic", _endpoint("anthropic", settings))) as model:
        return await listed("anthropic", model.names())


def _endpoint(name: str, settings: Settings) -> Endpoint:
    """The server of ``settings``; ``name`` is what needs it, for messages."""
    if importlib.util.find_spec("anthropic") is None:
        raise MissingExtra("anthropic", name)
    variable, own = "ANTHROPIC_BASE_URL", settings.anthropic_base_url
    key = key_for(name, settings.anthropic_api_key, own, "ANTHROPIC_API_KEY: set it", variable)
    return Endpoint.of(settings, variable, own or ANTHROPIC_URL, key, version="/v1")


@dataclass
class _Block:
    """A block of the answer: text, a thought, or a call of a tool whose arguments come in pieces."""

    start: Mapping[str, Any]
    text: str = ""
    signature: str = ""

    def call(self, thoughts: str) -> ToolCall:
        given = self.text or (written(self.start["input"]) if self.start.get("input") else "{}")
        return ToolCall(
            word_of(self.start.get("id")) or new_call_id(), word_of(self.start.get("name")), given, thoughts
        )

    def thought(self) -> dict[str, Any]:
        """As the API wants it back."""
        if self.start.get("type") == "redacted_thinking":
            return dict(self.start)
        thought = text_of(self.start.get("thinking")) + self.text
        signature = word_of(self.start.get("signature")) + self.signature
        return {"type": "thinking", "thinking": thought, "signature": signature}


@dataclass
class _Heard:
    """What has come of an answer but its text."""

    name: str
    habit: Habit
    blocks: dict[object, _Block] = field(default_factory=dict)
    counted: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = ""

    def take(self, event: Mapping[str, Any]) -> str:
        """The text in ``event``; the rest of it is kept. Raises _StreamError."""
        kind = word_of(event.get("type"))
        if kind == "error" or event.get("error"):
            raise _StreamError(event.get("error"))
        if kind == "message_start":
            return self._whole(object_of(event.get("message")))
        if kind == "content_block_start":
            block = self.blocks[event.get("index")] = _Block(object_of(event.get("content_block")))
            return self._opening(block)
        if kind == "content_block_delta":
            return self._delta(event.get("index"), object_of(event.get("delta")))
        if kind == "message_delta":
            self.finish = word_of(member(event, "delta", "stop_reason")) or self.finish
            self._count(event)
            return ""
        return self._whole(event) if kind == "message" else ""

    def ending(self) -> list[ModelEvent]:
        """What follows the text; nothing if the stream gave no reason for its end. An answer cut at its limit loses
        its calls."""
        counted: list[ModelEvent] = [Usage(self.tokens_in, self.tokens_out)] if self.counted else []
        if not self.finish:
            return []
        if self.finish == "refusal":
            raise ContentRefused(f"{self.name}: the provider's content filter stopped this answer (refusal)")
        if FINISHES.get(self.finish) == "length":
            return [*counted, Done("length")]
        calls = self._calls()
        return [*calls, *counted, Done("tool_calls" if calls else "stop")]

    def _whole(self, message: Mapping[str, Any]) -> str:
        """The text of a whole message: the beginning of a stream, or all there is where none was sent."""
        self._count(message)
        self.finish = word_of(message.get("stop_reason")) or self.finish
        text = ""
        for number, content in enumerate(objects_of(message.get("content"))):
            block = self.blocks[number] = _Block(content)
            text += self._opening(block)
        return text

    def _opening(self, block: _Block) -> str:
        if block.start.get("type") in ("thinking", "redacted_thinking"):
            self.habit.begins_thinking = False
        return text_of(block.start.get("text")) if block.start.get("type") == "text" else ""

    def _delta(self, index: object, delta: Mapping[str, Any]) -> str:
        kind, block = word_of(delta.get("type")), self.blocks.setdefault(index, _Block({}))
        if kind == "text_delta":
            return text_of(delta.get("text"))
        if kind == "input_json_delta":
            block.text += text_of(delta.get("partial_json"))
        elif kind == "thinking_delta":
            self.habit.begins_thinking = False
            block.text += text_of(delta.get("thinking"))
        elif kind == "signature_delta":
            block.signature += word_of(delta.get("signature"))
        return ""

    def _count(self, event: Mapping[str, Any]) -> None:
        usage = object_of(event.get("usage"))
        cached = count_of(usage.get("cache_creation_input_tokens"), usage.get("cache_read_input_tokens"))
        self.counted = self.counted or bool(usage)
        self.tokens_in = max(self.tokens_in, count_of(usage.get("input_tokens")) + cached)
        if "output_tokens" in usage:  # each event has the sum so far
            self.tokens_out = count_of(usage["output_tokens"])

    def _calls(self) -> list[ToolCall]:
        """Its calls. The first one carries the thoughts."""
        kinds = ("thinking", "redacted_thinking")
        thoughts = [block.thought() for block in self.blocks.values() if block.start.get("type") in kinds]
        signed = SIGNED + msgspec.json.encode(thoughts).decode() if thoughts else ""
        calls = [block for block in self.blocks.values() if block.start.get("type") == "tool_use"]
        return [block.call("" if number else signed) for number, block in enumerate(calls)]


class _StreamError(Exception):
    """Raised for an error object in place of an event."""

    def __init__(self, error: object) -> None:
        self.kind = word_of(member(error, "type"))
        self.words = str(member(error, "message") or (error if isinstance(error, str) else "the answer failed"))
        super().__init__(self.words)


def _body(model: str, request: Request) -> dict[str, Any]:
    system = "\n\n".join(message.text for message in request.messages if message.role == "system")
    messages = _messages(request.messages)
    if not messages or messages[0]["role"] != "user":
        # It begins with the user.
        begin = {"role": "user", "content": [{"type": "text", "text": "…" if messages else system or "…"}]}
        messages, system = [begin, *messages], system if messages else ""
    body: dict[str, Any] = {
        "model": model, "messages": messages, "max_tokens": request.max_tokens or MAX_TOKENS, "stream": True,
    }  # fmt: skip
    if system:
        body["system"] = system
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        choice = {"type": "any" if request.must_call else "auto"}
        body["tool_choice"] = choice if request.parallel else {**choice, "disable_parallel_tool_use": True}
    if request.schema is not None and (schema := _schema(request.schema)) is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    # Of the two, only one may be given.
    sampling = {"temperature": request.temperature} if request.temperature is not None else {"top_p": request.top_p}
    if not NOT_SAMPLED.match(model) and any(value is not None for value in sampling.values()):
        body["extra_body"] = sampling
    return body


def _schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """``schema`` in the part of JSON schema that the API takes: limits become descriptions, objects are closed. None
    where that would say something else, as of an object with any keys: the caller also asks in words, and checks."""
    from anthropic import transform_schema

    try:
        return None if _open(schema, schema, {}) else transform_schema(schema)
    except (ValueError, AssertionError, TypeError, AttributeError, RecursionError):
        return None


def _open(schema: Any, root: dict[str, Any], seen: dict[str, bool]) -> bool:
    """Whether ``schema``, a part of ``root``, has an object of keys that it does not name, or itself in it. ``seen``
    are definitions, True while they are looked into."""
    name = schema.get("$ref")
    if name is not None:
        found = root.get("$defs", {}).get(name.removeprefix("#/$defs/"))
        if name not in seen:
            seen[name] = True
            seen[name] = found is None or _open(found, root, seen)
        return seen[name]
    if schema.get("type") == "object" and (schema.get("additionalProperties") or not schema.get("properties")):
        return True
    parts = [*schema.get("properties", {}).values(), *(schema[key] for key in ("items",) if key in schema)]
    parts += [one for key in ("anyOf", "oneOf", "allOf", "prefixItems") for one in schema.get(key, ())]
    return any(_open(part, root, seen) for part in parts)


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The conversation less its instructions, one entry for neighbours of the same side."""
    made = list[dict[str, Any]]()
    for message in messages:
        blocks = [] if message.role == "system" else _blocks(message)
        role = "assistant" if message.role == "assistant" else "user"
        if blocks and made and made[-1]["role"] == role:
            made[-1]["content"] += blocks
        elif blocks:
            made.append({"role": role, "content": blocks})
    return made


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": _id(message.call), "content": message.text or "(nothing)"}]
    blocks = [block for call in message.calls for block in _thoughts(call)]
    blocks += [{"type": "image", "source": _source(image)} for image in message.images]
    if message.text.strip():  # blank text is refused
        blocks.append({"type": "text", "text": message.text})
    return blocks + [
        {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": arguments_of(call)}
        for call in message.calls
    ]


def _id(call: str) -> str:
    """The id of a call as the API takes it; another model's, such as ``functions.weather:0``, may be none."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", call)


def _thoughts(call: ToolCall) -> list[dict[str, Any]]:
    if not call.signature.startswith(SIGNED):
        return []
    return list(msgspec.json.decode(call.signature.removeprefix(SIGNED)))


def _source(image: bytes) -> dict[str, Any]:
    return {"type": "base64", "media_type": image_type(image), "data": base64.b64encode(image).decode()}


def _failures() -> tuple[type[Exception], ...]:
    """What the SDK and its HTTP client raise, and the reading of what they bring. ValueError: no JSON; TypeError,
    AttributeError: JSON of another shape in a list of models; RuntimeError: closed by aclose meanwhile."""
    import httpx2
    from anthropic import AnthropicError

    return AnthropicError, httpx2.HTTPError, _StreamError, ValueError, TypeError, AttributeError, RuntimeError


def translated(error: Exception, name: str, url: str, key: str, *, images: bool = False) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``; never shows ``key``. ``images``: some were sent."""
    import anthropic
    import httpx2

    where = failures.host_of(url)
    if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
        return failures.not_accepted(name, where)
    if isinstance(error, anthropic.APIConnectionError | httpx2.HTTPError):
        return failures.unreachable(name, where, error)
    if isinstance(error, anthropic.APIStatusError):
        said = error.body.get("error") if isinstance(error.body, Mapping) else error.body
        words = failures.safe_words(failures.words_in(error.body) or error.message, key)
        return _refused(
            Refusal(name, where, error.status_code, words, failures.retry_after(error.response.headers)),
            word_of(member(said, "type")), images,
        )  # fmt: skip
    if isinstance(error, _StreamError):
        return _refused(
            Refusal(name, where, STATUSES.get(error.kind, 0), failures.safe_words(error.words, key)), error.kind, images
        )
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return failures.not_the_protocol(name, where, "Anthropic", error)


def _refused(said: Refusal, kind: str, images: bool) -> ModelError:
    if kind == "billing_error" or (said.status in (400, 403) and NO_CREDIT.search(said.words)):
        return said.no_credit()
    if said.status in (400, 413) and TOO_LONG.search(said.words):
        return said.too_long()
    if images and said.status == 400 and NO_IMAGES.search(said.words):
        return said.no_images()
    if said.status == 400 and FILTERED.search(said.words):
        return ContentRefused(f"{said.model}: the provider's content filter stopped this: {said.words}")
    if said.status == 400 and NO_ACCOUNT.search(said.words):
        return said.no_account()
    if kind == "rate_limit_error":
        return said.rate_limited()
    return said.error()
