"""Models behind an Ollama server."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rolecall.errors import MissingExtra, ModelError, ModelUnavailable, NoSuchModel
from rolecall.models import failures
from rolecall.models.failures import Refusal
from rolecall.models.model import UNASKED, Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.endpoint import Endpoint, embedding_time, listed, usable_proxy
from rolecall.models.stream import Patience, Source, closing, read
from rolecall.models.thinking import Habit
from rolecall.models.tool_calls import arguments_of, names_of_calls, new_call_id, written
from rolecall.models.vectors import Vectors
from rolecall.models.wire import (
    Documents,
    count_of,
    object_of,
    objects_in,
    objects_of,
    text_of,
    whole_text,
    word_of,
)
from rolecall.settings import Settings

if TYPE_CHECKING:
    import httpx
    from ollama import AsyncClient, ResponseError


OLLAMA_URL = "http://127.0.0.1:11434"
TOO_LONG = re.compile(r"exceeds? the (available )?context|exceed_context_size|context (length|size) exceeded", re.I)


class OllamaModel:
    """A model of an Ollama server. SDK and connections come with the first question.

    How much of a conversation the model sees is the server's setting; it drops the oldest messages without a word.
    It knows no way to insist on a call: with ``must_call`` a model may still answer in words.
    """

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._model = name.rpartition("@")[0]
        self._endpoint = endpoint
        self._sdk: AsyncClient | None = None
        self._making = asyncio.Lock()
        self._habit = Habit.of(name)

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> OllamaModel:
        """``model`` as the settings reach it, on this machine if they say nothing. Raises ConfigError for a
        missing extra or bad address."""
        name = f"{model}@ollama"
        return cls(name, _endpoint(name, settings))

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. What the model thinks before it speaks is counted, not shown.

        While the server reads the model from disk, which may take minutes, there is no limit to the first token.
        """
        clock = asyncio.get_running_loop().time
        begun, sdk = clock(), await self._ready()
        first = None if await self._loads(sdk) else self._endpoint.first_token
        whole = None if request.timeout is None else max(0.0, request.timeout - (clock() - begun))
        patience = Patience(first, self._endpoint.idle_token, whole)
        async with closing(read(self._events(sdk, request), patience, self.name, self._habit)) as events:
            async for event in events:
                yield event

    async def names(self) -> list[str]:
        """The models that the server has. Raises ModelError."""
        sdk = await self._ready()
        try:
            return [model.model for model in (await sdk.list()).models if model.model]
        except self._failures() as error:
            raise self._translated(error) from None

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """See Embedder.embed."""
        sdk = await self._ready()
        try:
            async with embedding_time(self.name):
                found = await sdk.embed(self._model, list(texts), dimensions=dimensions)
                return Vectors(tuple(tuple(one) for one in found.embeddings), found.prompt_eval_count or 0)
        except self._failures() as error:
            raise self._translated(error) from None

    async def aclose(self) -> None:
        """Close the connections. Idempotent; a later question opens new ones."""
        sdk, self._sdk = self._sdk, None
        if sdk:
            await sdk.close()  # type: ignore[no-untyped-call]

    async def _loads(self, sdk: AsyncClient) -> bool:
        """Whether the server says that the model is not in its memory yet. Raises ModelUnavailable."""
        import httpx

        if self._endpoint.first_token is None:
            return False
        try:
            async with asyncio.timeout(self._endpoint.connect):
                running = (await sdk.ps()).models
        except (httpx.TransportError, ConnectionError) as error:
            raise self._translated(error) from None
        except self._failures():
            return False
        return _full(self._model) not in {_full(model.model or model.name or "") for model in running}

    async def _events(self, sdk: AsyncClient, request: Request) -> Source:
        heard = _Heard(self._habit)
        try:
            # Not sdk.chat(): it drops from the tools' parameters whatever lies deeper than one level, and parses
            # strictly.
            async with sdk._client.stream("POST", "/api/chat", json=self._body(request)) as response:
                if response.is_error:
                    await response.aread()
                    raise _refused(response, self.name, self._endpoint.url, self._endpoint.key, request)
                async for document in objects_in(response.aiter_bytes(), Documents()):
                    if document and document.get("error"):
                        raise self._failed(document["error"], request)
                    text = heard.take(document) if document else ""
                    yield Delta(text) if text else None
        except self._failures() as error:
            raise self._translated(error, request) from None
        for event in heard.ending():
            yield event

    def _failed(self, error: object, request: Request) -> ModelError:
        """What an error within the stream means."""
        words = failures.safe_words(failures.words_in(error) or error, self._endpoint.key)
        return _by_words(Refusal(self.name, failures.host_of(self._endpoint.url), 0, words), request)

    def _body(self, request: Request) -> dict[str, Any]:
        given = {
            "num_predict": request.max_tokens, "temperature": request.temperature, "top_p": request.top_p,
            "seed": request.seed, "stop": list(request.stop) or None,
        }  # fmt: skip
        options = {name: value for name, value in given.items() if value is not None}
        names = names_of_calls(request.messages)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_message(message, names) for message in request.messages],
            "stream": True,
        }
        if options:
            body["options"] = options
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.schema is not None:
            body["format"] = request.schema
        return body

    def _failures(self) -> tuple[type[Exception], ...]:
        """What the SDK may raise. ValueError: no JSON; TypeError, AttributeError: JSON of another shape;
        RuntimeError: closed by aclose meanwhile."""
        import httpx
        from ollama import ResponseError

        return (ResponseError, httpx.HTTPError, OSError, ValueError, TypeError, AttributeError, RuntimeError)

    def _translated(self, error: Exception, request: Request = UNASKED) -> ModelError:
        return translated(error, self.name, self._endpoint.url, self._endpoint.key, request)

    async def _ready(self) -> AsyncClient:
        async with self._making:
            if self._sdk is None:
                # In a thread: importing the SDK takes a good part of a second, in which heartbeats must go on.
                self._sdk = await asyncio.to_thread(self._make)
            return self._sdk

    def _make(self) -> AsyncClient:
        import httpx
        from ollama import AsyncClient

        url, key = self._endpoint.url, self._endpoint.key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        options = self._endpoint.client_options(httpx)
        with usable_proxy(self.name):
            return AsyncClient(url, headers=headers, event_hooks=failures.HOOKS, **options)


async def list_models(settings: Settings) -> list[str]:
    """``name@ollama`` of all that the server of the settings has, sorted. Raises ConfigError and ModelError."""
    async with aclosing(OllamaModel("ollama", _endpoint("ollama", settings))) as model:
        return await listed("ollama", model.names())


def _endpoint(name: str, settings: Settings) -> Endpoint:
    """The server of ``settings``; ``name`` is what needs it, for messages."""
    if importlib.util.find_spec("ollama") is None:
        raise MissingExtra("ollama", name)
    variable = "OLLAMA_HOST" if settings.ollama_host and not settings.ollama_url else "OLLAMA_URL"
    key = settings.ollama_api_key.get_secret_value() if settings.ollama_api_key else ""
    return Endpoint.of(settings, variable, settings.ollama_address or OLLAMA_URL, key)


def _full(model: str) -> str:
    """With its tag, as the server shows it."""
    return (model if ":" in model.rpartition("/")[2] else f"{model}:latest").lower()


@dataclass
class _Heard:
    """What has come of an answer but its text."""

    habit: Habit
    calls: list[ToolCall] = field(default_factory=list)
    last: Mapping[str, Any] = field(default_factory=dict)

    def take(self, document: Mapping[str, Any]) -> str:
        """The text in ``document``; the rest of it is kept."""
        self.last, message = document, object_of(document.get("message"))
        self.calls += _calls(message)
        if message.get("thinking"):
            self.habit.begins_thinking = False
        return text_of(message.get("content")) or text_of(document.get("response"))

    def ending(self) -> list[ModelEvent]:
        """What follows the text; nothing if the server did not say that it is done. An answer cut at its limit loses
        its calls."""
        if self.last.get("done") is not True and not self.last.get("done_reason"):
            return []
        counted = Usage(count_of(self.last.get("prompt_eval_count")), count_of(self.last.get("eval_count")))
        if self.last.get("done_reason") == "length":
            return [counted, Done("length")]
        return [*self.calls, counted, Done("tool_calls" if self.calls else "stop")]


def _calls(message: Mapping[str, Any]) -> list[ToolCall]:
    functions = [object_of(call.get("function")) for call in objects_of(message.get("tool_calls"))]
    return [
        ToolCall(new_call_id(), whole_text(word_of(function.get("name"))), _arguments(function.get("arguments")))
        for function in functions
    ]


def _arguments(given: object) -> str:
    return whole_text(given) if isinstance(given, str) else written(given)


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"type": "function", "function": msgspec.structs.asdict(tool)}


def _message(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.images:
        written["images"] = [base64.b64encode(image).decode() for image in message.images]
    if message.calls:
        calls = [{"name": call.name, "arguments": arguments_of(call)} for call in message.calls]
        written["tool_calls"] = [{"function": call} for call in calls]
    if message.role == "tool":
        written["tool_name"] = names.get(message.call, message.call)
    return written


def translated(error: Exception, name: str, url: str, key: str, request: Request = UNASKED) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``, which was asked ``request``; never shows ``key``."""
    import httpx
    from ollama import ResponseError

    where = failures.host_of(url)
    if isinstance(error, ResponseError):
        words = failures.safe_words(error.error, key)
        return _by_words(Refusal(name, where, max(0, error.status_code), words, _retry_after(error)), request)
    if isinstance(error, httpx.TimeoutException):
        return failures.not_accepted(name, where)
    # The SDK makes a ConnectionError of some of httpx's errors, with words of its own.
    if isinstance(error, (httpx.HTTPError, OSError)):
        return failures.unreachable(name, where, error)
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return failures.not_the_protocol(name, where, "Ollama", error)


def _refused(response: httpx.Response, name: str, url: str, key: str, request: Request) -> ModelError:
    """What a response with an error status means."""
    try:
        said = failures.words_in(json.loads(response.text)) or response.text
    except (ValueError, RecursionError):
        said = response.text
    words = failures.safe_words(said, key)
    retry_after = failures.retry_after(response.headers)
    return _by_words(Refusal(name, failures.host_of(url), response.status_code, words, retry_after), request)


def _by_words(said: Refusal, request: Request) -> ModelError:
    """The server has no codes."""
    if request.has_images and said.status in (0, 400, 500) and failures.SAYS_NO_IMAGES.search(said.words):
        return said.no_images()
    if request.tools and said.status in (0, 400, 500) and failures.SAYS_NO_TOOLS.search(said.words):
        return said.no_tools()
    if said.status == 404:
        model = said.model.rpartition("@")[0]
        return NoSuchModel(f"{said.model}: {said.where} has no such model; `ollama pull {model}` fetches it there")
    if said.status in (0, 400, 413, 500) and TOO_LONG.search(said.words):
        return said.too_long()
    return said.error()


def _retry_after(error: ResponseError) -> float | None:
    """The SDK drops the headers, but not the error of httpx that it raised its own for."""
    headers = getattr(getattr(error.__context__, "response", None), "headers", None)
    return None if headers is None else failures.retry_after(headers)
