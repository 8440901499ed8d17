"""Google's Gemini models, over google-genai."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.errors import (
    ContentRefused,
    MissingExtra,
    ModelError,
    ModelRefused,
    ModelUnauthorised,
    ModelUnavailable,
)
from rolecall.models import failures
from rolecall.models.failures import Refusal
from rolecall.models.model import UNASKED, Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.endpoint import Endpoint, embedding_time, key_for, listed, usable_proxy
from rolecall.models.stream import Patience, Source, closing, image_type, read
from rolecall.models.thinking import Habit
from rolecall.models.tool_calls import arguments_of, names_of_calls, new_call_id, written
from rolecall.models.vectors import Vectors
from rolecall.models.wire import (
    Documents,
    NotTheProtocol,
    count_of,
    member,
    object_of,
    objects_of,
    text_of,
    whole_text,
    word_of,
)
from rolecall.settings import Settings
from rolecall.tracing.traceparent import add_traceparent

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client


GEMINI_URL = "https://generativelanguage.googleapis.com"
VERSION = "v1beta"
"""The SDK's own choice, v1, knows neither the aliases that end in -latest nor previews."""
NOT_SIGNED = base64.b64encode(b"skip_thought_signature_validator").decode()
"""Google's word for a call that another model made: Gemini 3 refuses calls without a signature."""
WHOLE = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}
REFUSED_CONTENT = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "JAILBREAK"),
)
URL_SAFE = str.maketrans("-_", "+/")
KEY_REASONS = ("API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_EXPIRED", "ACCESS_TOKEN_EXPIRED")
TOO_LONG = re.compile(r"token count.*exceeds the maximum|exceeds the maximum number of tokens", re.IGNORECASE)
NO_CREDIT = re.compile(r"\blimit: 0\b|credits are depleted", re.IGNORECASE)
"""A quota of nothing, as for a model that is not in the free tier: waiting does not help."""


class GeminiModel:
    """A model of the Gemini API. SDK and connections come with the first question.

    The SDK makes the requests; what comes back is read from the response itself, see _Reply.
    """

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._endpoint = endpoint
        self._sdk: tuple[Client, httpx2.AsyncClient, httpx2.Client] | None = None
        self._making = asyncio.Lock()
        self._replies: dict[asyncio.Task[Any] | None, _Reply] = {}
        self._habit = Habit.of(name)

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> GeminiModel:
        """``model`` as the settings reach it. Raises ConfigError for a missing key, extra or bad address."""
        name = f"{model}@gemini"
        return cls(name, _endpoint(name, settings))

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. What the model thinks before it speaks is counted, not shown."""
        patience = Patience(self._endpoint.first_token, self._endpoint.idle_token, request.timeout)
        async with closing(
            read(self._events(await self._ready(), request), patience, self.name, self._habit)
        ) as events:
            async for event in events:
                yield event

    async def names(self) -> list[str]:
        """The models that this key may ask. Raises ModelError."""
        client = await self._ready()
        try:
            async with self._answer_closed():
                listed = await client.aio.models.list(config={"page_size": 1000})
                return [_plain(model.name) async for model in listed if "generateContent" in _abilities(model)]
        except self._failures() as error:
            raise self._translated(error) from None

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """See Embedder.embed."""
        client, model = await self._ready(), self.name.rpartition("@")[0]
        options: Any = None if dimensions is None else {"output_dimensionality": dimensions}
        try:
            async with embedding_time(self.name), self._answer_closed():
                contents: Any = list(texts)  # its type depends on whether Pillow is installed
                found = await client.aio.models.embed_content(model=model, contents=contents, config=options)
                return Vectors(tuple(tuple(one.values or ()) for one in found.embeddings or ()))
        except self._failures() as error:
            raise self._translated(error) from None

    async def aclose(self) -> None:
        """Close the connections. Idempotent; a later question opens new ones."""
        sdk, self._sdk = self._sdk, None
        if sdk:
            await sdk[1].aclose()
            sdk[2].close()

    async def _events(self, client: Client, request: Request) -> Source:
        heard = _Heard(self.name, self._habit)
        body = _body(self.name.rpartition("@")[0], request)
        try:
            async with self._answer_closed():
                async for _ in await client.aio.models.generate_content_stream(**body):
                    yield None
                    for document in self._replies[asyncio.current_task()].documents():
                        if text := heard.take(document):
                            yield Delta(text)
        except ModelError:
            raise
        except _GeminiError as error:
            raise _refused(error, self.name, self._endpoint.url, self._endpoint.key, request) from None
        except self._failures() as error:
            raise self._translated(error, request) from None
        for event in heard.ending():
            yield event

    @asynccontextmanager
    async def _answer_closed(self) -> AsyncIterator[None]:
        """The SDK leaves the connection of a stream that is not read to its end to the garbage collector."""
        try:
            yield
        finally:
            reply = self._replies.pop(asyncio.current_task(), None)
            if reply is not None:
                await reply.response.aclose()

    def _failures(self) -> tuple[type[Exception], ...]:
        """What the SDK may raise. ValueError: no JSON; TypeError, AttributeError: JSON of another shape;
        RuntimeError: closed by aclose meanwhile."""
        import httpx2
        from google.genai.errors import APIError

        return (APIError, httpx2.HTTPError, ValueError, TypeError, AttributeError, RuntimeError)

    def _translated(self, error: Exception, request: Request = UNASKED) -> ModelError:
        return translated(error, self.name, self._endpoint.url, self._endpoint.key, request)

    async def _ready(self) -> Client:
        async with self._making:
            if self._sdk is None:
                # In a thread: importing the SDK takes most of a second, in which heartbeats must go on.
                self._sdk = await asyncio.to_thread(self._make)
            return self._sdk[0]

    def _make(self) -> tuple[Client, httpx2.AsyncClient, httpx2.Client]:
        import httpx2
        from google.genai import Client
        from google.genai.types import HttpOptions

        options = self._endpoint.client_options(httpx2)

        async def patient(request: httpx2.Request) -> None:
            # The SDK sends its own timeout with every request, which is for the whole of it or none at all.
            request.extensions["timeout"] = options["timeout"].as_dict()

        async def answered(response: httpx2.Response) -> None:
            streamed = response.is_success and ":streamGenerateContent" in response.request.url.path
            self._replies[asyncio.current_task()] = _Reply(response, streamed)

        hooks: dict[str, list[Callable[..., Any]]] = {"request": [patient, add_traceparent], "response": [answered]}
        with usable_proxy(self.name):
            http = httpx2.AsyncClient(event_hooks=hooks, **options)
            # Never used: without it the SDK makes one that may stumble over a proxy nobody wants.
            other = httpx2.Client(**options)
        # With a client of our own the SDK takes httpx2 also where aiohttp is installed; its errors are known.
        own = HttpOptions(base_url=self._endpoint.url, api_version=VERSION, httpx_async_client=http, httpx_client=other)
        return Client(vertexai=False, api_key=self._endpoint.key, http_options=own), http, other


async def list_models(settings: Settings) -> list[str]:
    """``name@gemini`` of all that the key of the settings may ask, sorted. Raises ConfigError and ModelError."""
    async with aclosing(GeminiModel("gemini", _endpoint("gemini", settings))) as model:
        return await listed("gemini", model.names())


def _endpoint(name: str, settings: Settings) -> Endpoint:
    """The server of ``settings``; ``name`` is what needs it, for messages."""
    if not _installed():
        raise MissingExtra("gemini", name)
    variable, own = "GEMINI_BASE_URL", settings.gemini_base_url
    key = key_for(name, settings.google_key, own, "GEMINI_API_KEY or GOOGLE_API_KEY: set one", variable)
    return Endpoint.of(settings, variable, own or GEMINI_URL, key, version=f"/{VERSION}")


class _Reply:
    """One response. Of a ``streamed`` one the SDK is given an empty object for each piece that comes, because it parses
    strictly, and ``documents`` returns what was really in it."""

    def __init__(self, response: httpx2.Response, streamed: bool) -> None:
        self.response = response
        self._found: list[dict[str, Any]] = []
        self._problem: Exception | None = None
        if streamed:
            import httpx2

            class Pieces(httpx2.AsyncByteStream):
                def __aiter__(self) -> AsyncIterator[bytes]:
                    return pieces

                async def aclose(self) -> None:
                    await source.aclose()

            # A response of its own decompresses what the SDK then gets as plain text.
            source = httpx2.Response(200, headers=response.headers, stream=response.stream)
            pieces = self._pieces(source.aiter_bytes())
            for header in ("content-encoding", "content-length"):
                response.headers.pop(header, None)
            response.stream = Pieces()

    def documents(self) -> list[dict[str, Any]]:
        """The objects that came since the last call. Raises NotTheProtocol."""
        if not self._found and self._problem is not None:
            raise self._problem
        found, self._found = self._found, []
        return found

    async def _pieces(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        reader = Documents()
        try:
            async for piece in source:
                self._found += reader.feed(piece)
                yield b"data: {}\n\n"
            self._found += reader.finish()
        except NotTheProtocol as error:
            self._problem = error
        yield b"data: {}\n\n"


@dataclass
class _Heard:
    """What has come of an answer but its text."""

    name: str
    habit: Habit
    usage: Usage | None = None
    finish: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def take(self, chunk: Mapping[str, Any]) -> str:
        """The text in ``chunk``; the rest of it is kept. Raises _GeminiError for an error in its place."""
        if chunk.get("error"):
            raise _GeminiError(chunk)
        if counts := object_of(chunk.get("usageMetadata")):
            tokens_in = count_of(counts.get("promptTokenCount"), counts.get("toolUsePromptTokenCount"))
            self.usage = Usage(
                tokens_in, count_of(counts.get("candidatesTokenCount"), counts.get("thoughtsTokenCount"))
            )
        if reason := word_of(member(chunk, "promptFeedback", "blockReason")):
            raise ContentRefused(f"{self.name}: the provider's content filter stopped this question ({reason})")
        candidate = object_of(chunk.get("candidates"))
        self.finish = word_of(candidate.get("finishReason")) or self.finish
        parts = objects_of(object_of(candidate.get("content")).get("parts"))
        self.calls += [_call(part) for part in parts if isinstance(part.get("functionCall"), Mapping)]
        if any(part.get("thought") for part in parts):
            self.habit.begins_thinking = False
        return "".join(text_of(part.get("text")) for part in parts if not part.get("thought"))

    def ending(self) -> list[ModelEvent]:
        """What follows the text; nothing if the stream gave no reason for its end. An answer cut at its limit loses
        its calls."""
        counted: list[ModelEvent] = [self.usage] if self.usage else []
        if not self.finish:
            return []
        if self.finish not in WHOLE:
            raise stopped(self.finish, self.name)
        if WHOLE[self.finish] == "length":
            return [*counted, Done("length")]
        return [*self.calls, *counted, Done("tool_calls" if self.calls else "stop")]


def _call(part: Mapping[str, Any]) -> ToolCall:
    call = part["functionCall"]
    name, signature = whole_text(word_of(call.get("name"))), _base64(word_of(part.get("thoughtSignature")))
    return ToolCall(word_of(call.get("id")) or new_call_id(), name, written(call.get("args")), signature)


def _base64(signature: str) -> str:
    """``signature`` in the alphabet of the standard; empty if it is no base64."""
    try:
        return base64.b64encode(base64.b64decode(signature.translate(URL_SAFE), validate=True)).decode()
    except ValueError:
        return ""


def _body(model: str, request: Request) -> dict[str, Any]:
    system = "\n\n".join(message.text for message in request.messages if message.role == "system")
    contents = _contents(model, request.messages)
    if not contents:
        # There has to be something to answer.
        contents, system = [{"role": "user", "parts": [{"text": system}]}], ""
    config: dict[str, Any] = {
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop_sequences": list(request.stop) or None,
        # Both would have the SDK ask again by itself.
        "automatic_function_calling": {"disable": True},
        "automatic_continuation": False,
    }
    if system:
        config["system_instruction"] = system
    if request.tools:
        config["tools"] = [{"function_declarations": [_tool(tool) for tool in request.tools]}]
    if request.tools and request.must_call:
        config["tool_config"] = {"function_calling_config": {"mode": "ANY"}}
    if request.schema is not None:
        config |= {"response_mime_type": "application/json", "response_json_schema": request.schema}
    return {"model": model, "contents": contents, "config": config}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters_json_schema": tool.parameters}


def _contents(model: str, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The conversation less its instructions, one entry for neighbours of the same side."""
    names, contents = names_of_calls(messages), list[dict[str, Any]]()
    for message in messages:
        parts = [] if message.role == "system" else _parts(model, message, names)
        role = "model" if message.role == "assistant" else "user"
        if parts and contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(model: str, message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool":
        answered = {"name": names.get(message.call, message.call), "response": {"output": message.text}}
        return [{"function_response": {"id": message.call, **answered}}]
    parts: list[dict[str, Any]] = [{"text": message.text}] if message.text else []
    parts += [{"inline_data": {"mime_type": image_type(image), "data": image}} for image in message.images]
    for number, call in enumerate(message.calls):
        part: dict[str, Any] = {"function_call": {"id": call.id, "name": call.name, "args": arguments_of(call)}}
        # Of calls made at once only the first is signed.
        missing = NOT_SIGNED if number == 0 and model.startswith("gemini-3") else ""
        if signature := _base64(call.signature) or missing:  # another provider's is none
            part["thought_signature"] = base64.b64decode(signature)
        parts.append(part)
    return parts


def _installed() -> bool:
    try:
        return importlib.util.find_spec("google.genai") is not None
    except ModuleNotFoundError:
        return False


def _plain(name: str | None) -> str:
    return (name or "").removeprefix("models/")


def _abilities(model: Any) -> list[str]:
    return model.supported_actions or []


def translated(error: Exception, name: str, url: str, key: str, request: Request = UNASKED) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``, which was asked ``request``; never shows ``key``."""
    import httpx2
    from google.genai.errors import APIError

    where = failures.host_of(url)
    if isinstance(error, APIError):
        body = {"error": {"code": error.code, "message": error.message, "status": error.status}}
        if isinstance(error.details, dict) and isinstance(error.details.get("error"), dict):
            body["error"] |= {"details": error.details["error"].get("details")}
        return _refused(_GeminiError(body, getattr(error.response, "headers", None)), name, url, key, request)
    if isinstance(error, httpx2.TimeoutException):
        return failures.not_accepted(name, where)
    if isinstance(error, httpx2.HTTPError):
        return failures.unreachable(name, where, error)
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return failures.not_the_protocol(name, where, "Gemini", error)


def stopped(reason: str, name: str) -> ModelError:
    """What it means that the answer, or the question, ended for ``reason``, none of WHOLE."""
    if reason in REFUSED_CONTENT:
        return ContentRefused(f"{name}: the provider's content filter stopped this answer ({reason})")
    if reason == "PUP_LIMITED_DISABLED":
        return ModelUnauthorised(f"{name}: the provider has limited this account for what it was used for")
    if reason == "MISSING_THOUGHT_SIGNATURE":
        return ModelRefused(f"{name}: the provider misses what belongs to an earlier call of a tool ({reason})")
    return ModelUnavailable(f"{name}: the provider broke its answer off ({reason})")


class _GeminiError(Exception):
    """An error object: of a response that the SDK refused, or within a stream."""

    def __init__(self, body: object, headers: Mapping[str, str] | None = None) -> None:
        error = member(body, "error")
        self.code = member(error, "code")
        self.status = word_of(member(error, "status"))
        self.words = member(error, "message") or self.status or (error if isinstance(error, str) else "")
        self.details = objects_of(member(error, "details"))
        self.headers = headers or {}
        super().__init__(self.words)


def _refused(error: _GeminiError, name: str, url: str, key: str, request: Request) -> ModelError:
    said = Refusal(
        name,
        failures.host_of(url),
        error.code if isinstance(error.code, int) else 0,
        failures.safe_words(error.words, key),
        _retry_after(error),
    )
    if any(detail.get("reason") in KEY_REASONS for detail in error.details):
        return said.unauthorised()
    if said.status == 429 and NO_CREDIT.search(str(error.words)):
        return said.no_credit()
    if said.status == 400 and TOO_LONG.search(said.words):
        return said.too_long()
    if request.has_images and said.status == 400 and failures.SAYS_NO_IMAGES.search(said.words):
        return said.no_images()
    if error.status == "FAILED_PRECONDITION":
        # Where the account is or how it is paid for: another model may do, so it is not the request's fault.
        return said.no_account()
    return said.error()


def _retry_after(error: _GeminiError) -> float | None:
    """Seconds, of the header or of what the body says in its place, such as 37s."""
    waits = (re.fullmatch(r"(\d{1,9}(?:\.\d+)?)s", str(detail.get("retryDelay"))) for detail in error.details)
    named = {str(header).lower(): str(value) for header, value in error.headers.items()}
    return next((float(wait[1]) for wait in waits if wait), failures.retry_after(named))
