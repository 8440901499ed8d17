"""Google's Gemini models, over google-genai."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from rolecall.errors import (
    ConfigError,
    ContentRefused,
    MissingExtra,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
)
from rolecall.models import failures
from rolecall.models.failures import Refusal
from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.providers.openai import Endpoint
from rolecall.models.stream import Patience, Source, closing, image_type, read
from rolecall.models.tool_calls import arguments_of, names_of_calls, new_call_id, written
from rolecall.settings import Settings, address, client_options, proxy_of

if TYPE_CHECKING:
    from google.genai import Client
    from google.genai.errors import APIError
    from google.genai.types import GenerateContentResponse, Part


GEMINI_URL = "https://generativelanguage.googleapis.com"
VERSION = "v1beta"
"""The SDK's own choice, v1, knows neither the aliases that end in -latest nor previews."""
LIST_SECONDS = 20
NOT_SIGNED = base64.b64encode(b"skip_thought_signature_validator").decode()
"""Google's word for a call that another model made: Gemini 3 refuses calls without a signature."""
WHOLE = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}
REFUSED_CONTENT = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION"),
    *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "JAILBREAK"),
)
KEY_REASONS = ("API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_EXPIRED", "ACCESS_TOKEN_EXPIRED")
TOO_LONG = re.compile(r"token count.*exceeds the maximum|exceeds the maximum number of tokens", re.IGNORECASE)
NO_CREDIT = re.compile(r"\blimit: 0\b|credits are depleted", re.IGNORECASE)
"""A quota of nothing, as for a model that is not in the free tier: waiting does not help."""


class GeminiModel:
    """A model of the Gemini API. SDK and connections come with the first question."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._endpoint = endpoint
        self._sdk: tuple[Client, httpx2.AsyncClient, httpx2.Client] | None = None
        self._making = asyncio.Lock()
        self._answers: dict[asyncio.Task[Any] | None, httpx2.Response] = {}

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> GeminiModel:
        """``model`` as the settings reach it. Raises ConfigError for a missing key, extra or bad address."""
        name = f"{model}@gemini"
        return cls(name, _endpoint(name, settings))

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. What the model thinks before it speaks is counted, not shown."""
        patience = Patience(self._endpoint.first_token, self._endpoint.idle_token, request.timeout)
        async with closing(read(self._events(await self._ready(), request), patience, self.name)) as events:
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

    async def aclose(self) -> None:
        """Close the connections. Idempotent; a later question opens new ones."""
        sdk, self._sdk = self._sdk, None
        if sdk:
            await sdk[1].aclose()
            sdk[2].close()

    async def _events(self, client: Client, request: Request) -> Source:
        heard = _Heard(self.name)
        body = _body(self.name.rpartition("@")[0], request)
        try:
            async with self._answer_closed():
                async for chunk in await client.aio.models.generate_content_stream(**body):
                    text = heard.take(chunk)
                    yield Delta(text) if text else None
        except self._failures() as error:
            raise self._translated(error) from None
        for event in heard.ending():
            yield event

    @asynccontextmanager
    async def _answer_closed(self) -> AsyncIterator[None]:
        """The SDK leaves the connection of a stream that is not read to its end to the garbage collector."""
        try:
            yield
        finally:
            answer = self._answers.pop(asyncio.current_task(), None)
            if answer is not None:
                await answer.aclose()

    def _failures(self) -> tuple[type[Exception], ...]:
        """What the SDK may raise. ValueError: no JSON; TypeError, AttributeError: JSON of another shape;
        RuntimeError: closed by aclose meanwhile."""
        import httpx2
        from google.genai.errors import APIError

        return (APIError, httpx2.HTTPError, ValueError, TypeError, AttributeError, RuntimeError)

    def _translated(self, error: Exception) -> ModelError:
        return translated(error, self.name, self._endpoint.url, self._endpoint.key)

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

        wait = httpx2.Timeout(connect=self._endpoint.connect, read=None, write=30, pool=None)
        options = client_options(self._endpoint.url, self._endpoint.proxy, httpx2.Limits)

        async def patient(request: httpx2.Request) -> None:
            # The SDK sends its own timeout with every request, which is for the whole of it or none at all.
            request.extensions["timeout"] = wait.as_dict()

        async def answered(response: httpx2.Response) -> None:
            self._answers[asyncio.current_task()] = response

        try:
            http = httpx2.AsyncClient(event_hooks={"request": [patient], "response": [answered]}, **options)
            # Never used: without it the SDK makes one that may stumble over a proxy nobody wants.
            other = httpx2.Client(**options)
        except (ImportError, ValueError) as error:
            raise ModelUnavailable(f"{self.name}: the proxy cannot be used: {error}; PROXY=NO goes without") from None
        # With a client of our own the SDK takes httpx2 also where aiohttp is installed; its errors are known.
        own = HttpOptions(base_url=self._endpoint.url, api_version=VERSION, httpx_async_client=http, httpx_client=other)
        return Client(vertexai=False, api_key=self._endpoint.key, http_options=own), http, other


async def list_models(settings: Settings) -> list[str]:
    """``name@gemini`` of all that the key of the settings may ask, sorted. Raises ConfigError and ModelError."""
    model = GeminiModel("gemini", _endpoint("gemini", settings))
    try:
        async with asyncio.timeout(LIST_SECONDS):
            return sorted(f"{name}@gemini" for name in await model.names())
    except TimeoutError:
        raise ModelTimeout(f"gemini: no list of models within {LIST_SECONDS} s") from None
    finally:
        await model.aclose()


def _endpoint(name: str, settings: Settings) -> Endpoint:
    """The server of ``settings``; ``name`` is what needs it, for messages."""
    if not _installed():
        raise MissingExtra("gemini", name)
    secret = settings.google_key.get_secret_value().strip() if settings.google_key else ""
    if not secret and not settings.gemini_base_url:
        raise ConfigError(
            f"{name} needs GEMINI_API_KEY or GOOGLE_API_KEY: set one in the environment or in .env, "
            "or set GEMINI_BASE_URL to a server of your own"
        )
    return Endpoint(
        url=address("GEMINI_BASE_URL", settings.gemini_base_url or GEMINI_URL).removesuffix(f"/{VERSION}"),
        # The SDK wants one, and servers of one's own often ask for none.
        key=secret or "none",
        proxy=proxy_of(settings.proxy),
        connect=settings.connect_seconds,
        first_token=settings.first_token_seconds,
        idle_token=settings.idle_token_seconds,
    )


@dataclass
class _Heard:
    """What has come of an answer but its text."""

    name: str
    usage: Usage | None = None
    finish: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def take(self, chunk: GenerateContentResponse) -> str:
        """The text in ``chunk``; the rest of it is kept."""
        if chunk.usage_metadata:
            counts = chunk.usage_metadata
            tokens_in = (counts.prompt_token_count or 0) + (counts.tool_use_prompt_token_count or 0)
            self.usage = Usage(tokens_in, (counts.candidates_token_count or 0) + (counts.thoughts_token_count or 0))
        if chunk.prompt_feedback and chunk.prompt_feedback.block_reason:
            self.finish = chunk.prompt_feedback.block_reason.value
        candidate = chunk.candidates[0] if chunk.candidates else None
        if candidate is None:
            return ""
        if candidate.finish_reason:
            self.finish = candidate.finish_reason.value
        parts = (candidate.content and candidate.content.parts) or []
        self.calls += [_call(part) for part in parts if part.function_call]
        return "".join(part.text for part in parts if part.text and not part.thought)

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


def _call(part: Part) -> ToolCall:
    call = part.function_call
    assert call is not None
    signature = base64.b64encode(part.thought_signature or b"").decode()
    return ToolCall(call.id or new_call_id(), call.name or "", written(call.args), signature)


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
        if signature := call.signature or missing:
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


def translated(error: Exception, name: str, url: str, key: str) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``; never shows ``key``."""
    import httpx2
    from google.genai.errors import APIError

    where = failures.host_of(url)
    if isinstance(error, APIError):
        return _answered(error, name, where, key)
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


def _answered(error: APIError, name: str, where: str, key: str) -> ModelError:
    details = _details(error)
    said = Refusal(
        name,
        where,
        error.code if isinstance(error.code, int) else 0,
        failures.safe_words(error.message or error.status, key),
        _retry_after(error, details),
    )
    if any(detail.get("reason") in KEY_REASONS for detail in details):
        return said.unauthorised()
    if said.status == 429 and NO_CREDIT.search(str(error.message)):
        return said.no_credit()
    if said.status == 400 and TOO_LONG.search(said.words):
        return said.too_long()
    if error.status == "FAILED_PRECONDITION":
        # Where the account is or how it is paid for: another model may do, so it is not the request's fault.
        return ModelUnauthorised(f"{name}: {where} refuses this account: {said.words}")
    return said.error()


def _details(error: APIError) -> list[Mapping[str, Any]]:
    """What the provider says for machines; empty if it did not."""
    found: Any = error.details
    for part in ("error", "details"):
        found = found.get(part) if isinstance(found, dict) else None
    return [detail for detail in found if isinstance(detail, dict)] if isinstance(found, list) else []


def _retry_after(error: APIError, details: list[Mapping[str, Any]]) -> float | None:
    """Seconds, of the header or of what the body says in its place, such as 37s."""
    waits = (re.fullmatch(r"(\d+(?:\.\d+)?)s", str(detail.get("retryDelay"))) for detail in details)
    headers = getattr(error.response, "headers", None) or {}
    named = {str(header).lower(): str(value) for header, value in headers.items()}
    return next((float(wait[1]) for wait in waits if wait), failures.retry_after(named))
