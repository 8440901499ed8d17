"""OpenAI's models, and those of every server that speaks its protocols."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.errors import (
    ContentRefused,
    MissingExtra,
    ModelError,
    ModelRefused,
    ModelUnavailable,
    NoSuchModel,
)
from rolecall.models.failures import (
    HOOKS,
    SAYS_NO_IMAGES,
    SAYS_NO_TOOLS,
    Refusal,
    host_of,
    not_accepted,
    not_the_protocol,
    retry_after,
    safe_words,
    unreachable,
    words_in,
)
from rolecall.models.model import UNASKED, ModelEvent, Request
from rolecall.models.providers.endpoint import Endpoint, embedding_time, key_for, listed, usable_proxy
from rolecall.models.providers.openai_wire import (
    RESPONSES,
    StreamError,
    chat_body,
    chat_events,
    chats,
    needs_responses,
    reasons,
    responses_body,
    responses_events,
    wire_name,
)
from rolecall.models.stream import Patience, Source, read
from rolecall.models.thinking import Habit
from rolecall.models.vectors import Vectors
from rolecall.models.wire import member, objects_of, word_of
from rolecall.settings import Settings

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI


OPENAI_URL = "https://api.openai.com/v1"
SOUND_NAMES = {"audio/mpeg": "mp3", "audio/mp4": "m4a", "audio/x-m4a": "m4a", "audio/x-wav": "wav"}
"""Endings of files by media type, where they differ: OpenAI goes by the ending."""
NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
FILTERED = {"content_filter", "invalid_prompt"}
UNKNOWN = {"model_not_found", "model_not_available"}
NOT_WRITTEN = {"tool_use_failed", "json_validate_failed"}
"""Groq's codes for a call or an answer that the model wrote in a form of its own: the next one may be right."""
SAYS_TOO_LONG = re.compile(
    r"(maximum|max|available) (context|prompt)|context (length|size|window)|(prompt|input) is too long|too many tokens"
    r"|exceeds the maximum number of tokens|inputs. (tokens|must have less)",
    re.I,
)
OPTIONAL = {
    "stream_options": re.compile(r"stream_options|include_usage"),
    "response_format": re.compile(r"response[_ ]format|json_schema", re.I),
    "parallel_tool_calls": re.compile(r"parallel_tool_calls"),
    "seed": re.compile(r"\bseed\b"),
}
"""Fields of a request that an answer may do without, and how servers say that they refuse them."""
ACCOUNT = re.compile(r"organization must be verified|(organization|account) has been (disabled|deactivated)", re.I)
SAYS_BAD_KEY = re.compile(r"api[ _-]?key (is )?(not valid|invalid|expired)|(incorrect|invalid) api[ _-]?key", re.I)


class OpenAIModel:
    """A model behind a server that speaks OpenAI's protocols. SDK and connections come with the first question.

    Asked by chat completions, unless ``responses``: then by the Responses API.
    """

    def __init__(self, name: str, endpoint: Endpoint, responses: bool = False) -> None:
        self.name = name
        self.responses = responses
        self._endpoint = endpoint
        self._sdk: AsyncOpenAI | None = None
        self._making = asyncio.Lock()
        self._habit = Habit.of(name)
        self._refused = frozenset[str]()
        """The fields that the server refuses."""
        self._wants_thoughts = False
        """Whether it refuses calls without what the model thought before them; other servers may refuse that."""

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> OpenAIModel:
        """``model`` as the settings reach it; with ``responses:`` before its name by the Responses API, which OpenAI's
        own server is also asked by where a model has no other. Raises ConfigError for a missing key, extra or bad
        address."""
        name = f"{model}@openai"
        endpoint = _endpoint(name, settings)
        responses = model.startswith(RESPONSES) or (endpoint.official and needs_responses(model))
        return cls(name, endpoint, responses)

    @property
    def logprobs(self) -> bool:
        """Whether it can be asked for log probabilities: not where it thinks before it speaks."""
        return not self.responses and not reasons(wire_name(self.name.rpartition("@")[0]))

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream."""
        patience = Patience(self._endpoint.first_token, self._endpoint.idle_token, request.timeout)
        events = read(self._events(await self._ready(), request), patience, self.name, self._habit)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """See Embedder.embed."""
        more: dict[str, Any] = {} if dimensions is None else {"dimensions": dimensions}
        sdk, model = await self._ready(), wire_name(self.name.rpartition("@")[0])
        try:
            async with embedding_time(self.name):
                found = await sdk.embeddings.create(model=model, input=list(texts), encoding_format="float", **more)
                vectors = [tuple(one.embedding) for one in sorted(found.data, key=lambda one: one.index)]
        except _failures() as error:
            raise translated(error, self.name, self._endpoint.url, self._endpoint.key) from None
        return Vectors(tuple(vectors), found.usage.prompt_tokens if found.usage else 0)

    async def aclose(self) -> None:
        """Close the connections. Idempotent; a later question opens new ones."""
        sdk, self._sdk = self._sdk, None
        if sdk:
            await sdk.close()

    async def _events(self, sdk: AsyncOpenAI, request: Request, without: frozenset[str] = frozenset()) -> Source:
        """The answer, asked for without the fields that the server refuses. Some count tokens unasked, as Mistral's
        does; some take no schemas, as DeepSeek's: what is asked in words is left then."""
        without |= self._refused
        gave_thoughts, begun = self._wants_thoughts, False
        try:
            async with aclosing(self._asked(sdk, request, without)) as events:
                async for event in events:
                    begun = begun or event is not None
                    yield event
            return
        except ModelError:
            raise
        except _failures() as error:
            failed = translated(error, self.name, self._endpoint.url, self._endpoint.key, request)
        refused = {field for field, says in OPTIONAL.items() if says.search(str(failed))} - without
        wants_thoughts = "reasoning_content" in str(failed) and not gave_thoughts
        if begun or not (refused or wants_thoughts) or not isinstance(failed, ModelRefused):
            raise failed
        self._wants_thoughts = self._wants_thoughts or wants_thoughts
        self._refused |= refused - {"response_format"}  # a schema may be refused for what is in it
        async with aclosing(self._events(sdk, request, without | refused)) as again:
            async for event in again:
                yield event

    def _asked(self, sdk: AsyncOpenAI, request: Request, without: frozenset[str]) -> Source:
        model = wire_name(self.name.rpartition("@")[0])
        if self.responses:
            return responses_events(sdk, self.name, responses_body(model, request))
        body = chat_body(model, request, self._endpoint.official)
        body = {field: value for field, value in body.items() if field not in without}
        if not self._wants_thoughts:
            for message in body["messages"]:
                message.pop("reasoning_content", None)
        if self._endpoint.sampling and not (request.schema or request.tools):
            body["extra_body"] = dict(self._endpoint.sampling)
        return chat_events(sdk, self.name, body, self._habit)

    async def _ready(self) -> AsyncOpenAI:
        async with self._making:
            if self._sdk is None:
                # In a thread: importing the SDK takes most of a second, in which heartbeats must go on.
                self._sdk = await asyncio.to_thread(_connected, self.name, self._endpoint)
            return self._sdk


async def list_models(settings: Settings) -> list[str]:
    """``name@openai`` of all the server offers, sorted; of OpenAI's own only what answers in text.

    Raises ConfigError as open does, and ModelError.
    """
    endpoint = _endpoint("openai", settings)
    sdk = await asyncio.to_thread(_connected, "openai", endpoint)

    async def names() -> list[str]:
        # Not by the SDK's reading of it: some servers, such as Together's, send a bare list.
        said = (await sdk.models.with_raw_response.list()).http_response.json()
        found = said if isinstance(said, list) else member(said, "data") or member(said, "models")
        ids = [word_of(one.get("id") or one.get("name")) for one in objects_of(found)]
        return [name for name in ids if name and (chats(name) or not endpoint.official)]

    try:
        async with sdk:
            return await listed("openai", names())
    except _failures() as error:
        raise translated(error, "openai", endpoint.url, endpoint.key) from None


async def transcribe(model: str, sound: bytes, media_type: str, settings: Settings) -> str:
    """The words in ``sound``. Raises ConfigError as open does, and ModelError."""
    name = f"{model}@openai"
    endpoint = _endpoint(name, settings)
    sdk = await asyncio.to_thread(_connected, name, endpoint)
    file = (f"sound.{SOUND_NAMES.get(media_type, media_type.rpartition('/')[2])}", sound, media_type)
    try:
        async with sdk:
            return (await sdk.audio.transcriptions.create(model=model, file=file)).text
    except _failures() as error:
        raise translated(error, name, endpoint.url, endpoint.key) from None


def _endpoint(name: str, settings: Settings) -> Endpoint:
    """The server of ``settings``; ``name`` is what needs it, for messages."""
    if importlib.util.find_spec("openai") is None:
        raise MissingExtra("openai", name)
    variable, own = "OPENAI_BASE_URL", settings.openai_base_url
    key = key_for(name, settings.openai_api_key, own, "OPENAI_API_KEY: set it", variable)
    return Endpoint.of(settings, variable, own or OPENAI_URL, key)


def _connected(name: str, endpoint: Endpoint) -> AsyncOpenAI:
    import httpx2
    from openai import AsyncOpenAI

    with usable_proxy(name):
        http = httpx2.AsyncClient(follow_redirects=True, event_hooks=HOOKS, **endpoint.client_options(httpx2))
    return AsyncOpenAI(
        api_key=endpoint.key, base_url=endpoint.url, max_retries=0, timeout=http.timeout, http_client=http
    )


def _failures() -> tuple[type[Exception], ...]:
    """What the SDK and its HTTP client raise, and the reading of what they bring. ValueError: no JSON; TypeError,
    AttributeError: JSON of another shape in a list of models; RuntimeError: closed by aclose meanwhile."""
    import httpx2
    from openai import OpenAIError

    return OpenAIError, httpx2.HTTPError, StreamError, ValueError, TypeError, AttributeError, RuntimeError


def translated(error: Exception, name: str, url: str, key: str, request: Request = UNASKED) -> ModelError:
    """What ``error`` means for the model ``name`` at ``url``, which was asked ``request``; never shows ``key``."""
    import httpx2
    import openai

    where = host_of(url)
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return not_accepted(name, where)
    if isinstance(error, openai.APIConnectionError | httpx2.HTTPError):
        return unreachable(name, where, error)
    if isinstance(error, openai.APIError):
        found, words = _object_in(error.body), words_in(error.body) or error.message
        status = _number(getattr(error, "status_code", None) or member(found, "code"))
        return _refused(
            Refusal(name, where, status, safe_words(words, key), retry_after(_headers(error))), found, request
        )
    if isinstance(error, StreamError):
        found = _object_in(error.body)
        return _refused(
            Refusal(name, where, _number(member(found, "code")), safe_words(str(error), key)), found, request
        )
    if isinstance(error, RuntimeError):
        return ModelUnavailable(f"{name}: {error}")
    return not_the_protocol(name, where, "OpenAI", error)


def _object_in(body: object) -> Mapping[str, Any]:
    """The object in the body of an error that has its code; some servers send a list of them."""
    found = next(iter(objects_of(body)), {})
    inner = found.get("error")
    return inner if isinstance(inner, Mapping) else found


def _refused(said: Refusal, error: Mapping[str, Any], request: Request) -> ModelError:
    reasons = (detail.get("reason") for detail in objects_of(error.get("details")))
    kinds = {str(one) for one in (error.get("code"), error.get("type"), *reasons) if one}
    if said.status == 403 and member(error, "metadata", "reasons"):
        kinds.add("content_filter")  # OpenRouter moderates
    return _by_kind(said, kinds) or _by_words(said, request) or said.error()


def _by_kind(said: Refusal, kinds: set[str]) -> ModelError | None:
    """What the code within the answer says; it stands where the status is missing, and says more than it."""
    if kinds & NO_CREDIT:
        return said.no_credit()
    if kinds & TOO_LONG:
        return said.too_long()
    if kinds & FILTERED or any("policy" in kind for kind in kinds):
        return ContentRefused(f"{said.model}: the provider's content filter stopped this question: {said.words}")
    if kinds & UNKNOWN:
        return _unknown(said)
    if "rate_limit_exceeded" in kinds:
        return said.rate_limited()
    if kinds & NOT_WRITTEN:
        return ModelUnavailable(f"{said.model}: what it wrote cannot be used: {said.words}")
    if "API_KEY_INVALID" in kinds:
        return said.unauthorised()
    if not said.status and any(kind.startswith("invalid_") or "image" in kind for kind in kinds):
        return ModelRefused(f"{said.model}: {said.where} refuses this request: {said.words}")
    return None


def _by_words(said: Refusal, request: Request) -> ModelError | None:
    """Servers other than OpenAI's tell these apart by their words only, and not all by 400."""
    status = said.status
    if request.has_images and status in (0, 400, 404, 415, 422, 500) and SAYS_NO_IMAGES.search(said.words):
        return said.no_images()
    if request.tools and status in (0, 400, 404, 422, 500) and SAYS_NO_TOOLS.search(said.words):
        return said.no_tools()
    if status in (0, 400, 413, 422) and SAYS_TOO_LONG.search(said.words):
        return said.too_long()
    if status == 400 and SAYS_BAD_KEY.search(said.words):
        return said.unauthorised()
    if ACCOUNT.search(said.words):
        return said.no_account()
    return _unknown(said) if said.status == 404 else None


def _unknown(said: Refusal) -> NoSuchModel:
    if "v1/responses" in said.words:
        return NoSuchModel(f"{said.model}: needs the Responses API: name it {RESPONSES}{said.model}")
    return NoSuchModel(f"{said.model}: {said.where} has no such model for this key; check the name: {said.words}")


def _number(status: object) -> int:
    """The HTTP status; 0 where an error within a stream names none."""
    return int(str(status)) if re.fullmatch(r"[1-5]\d\d", str(status)) else 0


def _headers(error: APIError) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    return response.headers if response is not None else {}
