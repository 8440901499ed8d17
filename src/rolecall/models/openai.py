"""OpenAI's chat completions, and every server that speaks them."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rolecall.errors import ConfigError, MissingExtra, ModelRefused, ModelUnavailable
from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, Usage
from rolecall.models.openai_errors import translated
from rolecall.models.reading import Patience, Source, read
from rolecall.models.transport import address, client_options, image_type, proxy_of
from rolecall.settings import Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionChunk

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks OpenAI's protocol, and how to treat it; times in seconds, None is no limit."""

    url: str
    key: str = field(repr=False)
    proxy: str = "SYSTEM"
    connect: float = 5
    first_token: float | None = 60
    idle_token: float | None = 30


class OpenAIModel:
    """A model behind an OpenAI-compatible server. SDK and connections come with the first question."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._endpoint = endpoint
        self._sdk: AsyncOpenAI | None = None
        self._making = asyncio.Lock()

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> OpenAIModel:
        """``model`` as the settings reach it. Raises ConfigError for a missing key, extra or bad address."""
        name = f"{model}@openai"
        if importlib.util.find_spec("openai") is None:
            raise MissingExtra("openai", name)
        secret = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
        if not secret and not settings.openai_base_url:
            raise ConfigError(
                f"{name} needs OPENAI_API_KEY: set it in the environment or in .env, "
                "or set OPENAI_BASE_URL to a server of your own"
            )
        endpoint = Endpoint(
            url=address("OPENAI_BASE_URL", settings.openai_base_url or OPENAI_URL),
            # The SDK wants one, and servers of one's own often ask for none.
            key=secret or "none",
            proxy=proxy_of(settings.proxy),
            connect=settings.connect_seconds,
            first_token=settings.first_token_seconds,
            idle_token=settings.idle_token_seconds,
        )
        return cls(name, endpoint)

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream."""
        patience = Patience(self._endpoint.first_token, self._endpoint.idle_token, request.timeout)
        events = read(self._events(await self._ready(), request), patience, self.name)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent; a later question opens new ones."""
        sdk, self._sdk = self._sdk, None
        if sdk:
            await sdk.close()

    async def _events(self, sdk: AsyncOpenAI, request: Request) -> Source:
        from openai import OpenAIError

        usage: Usage | None = None
        finish: str | None = None
        try:
            async with await sdk.chat.completions.create(**self._body(request)) as chunks:
                async for chunk in chunks:
                    usage = _usage(chunk) or usage
                    text, reason = _choice(chunk)
                    finish = reason or finish
                    yield Delta(text) if text else None
        # ValueError: no JSON; TypeError, AttributeError: JSON of another shape, which the SDK lets through
        # unchecked; RuntimeError: closed by aclose meanwhile.
        except (OpenAIError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise translated(error, self.name, self._endpoint.url, self._endpoint.key) from None
        if finish == "content_filter":
            raise ModelRefused(f"{self.name}: the provider's content filter stopped this answer")
        if usage:
            yield usage
        if finish:
            yield Done("length" if finish == "length" else "stop")

    def _body(self, request: Request) -> dict[str, Any]:
        limit = "max_completion_tokens" if self._endpoint.url == OPENAI_URL else "max_tokens"
        given = {limit: request.max_tokens, "temperature": request.temperature}
        return {
            "model": self.name.rpartition("@")[0],
            "messages": [_message(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in given.items() if value is not None},
        }

    async def _ready(self) -> AsyncOpenAI:
        async with self._making:
            if self._sdk is None:
                # In a thread: importing the SDK takes most of a second, in which heartbeats must go on.
                self._sdk = await asyncio.to_thread(self._make)
            return self._sdk

    def _make(self) -> AsyncOpenAI:
        import httpx2
        from openai import AsyncOpenAI

        options = client_options(self._endpoint.url, self._endpoint.proxy, httpx2.Limits)
        wait = httpx2.Timeout(connect=self._endpoint.connect, read=None, write=30, pool=None)
        try:
            http = httpx2.AsyncClient(timeout=wait, follow_redirects=True, **options)
        except (ImportError, ValueError) as error:
            raise ModelUnavailable(f"{self.name}: the proxy cannot be used: {error}; PROXY=NO goes without") from None
        return AsyncOpenAI(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            max_retries=0,
            timeout=wait,
            http_client=http,
        )


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in message.images]
    return {"role": message.role, "content": [{"type": "text", "text": message.text}, *images]}


def _data_url(image: bytes) -> str:
    return f"data:{image_type(image)};base64,{base64.b64encode(image).decode()}"


def _usage(chunk: ChatCompletionChunk) -> Usage | None:
    usage = chunk.usage
    return Usage(usage.prompt_tokens, usage.completion_tokens) if usage else None


def _choice(chunk: ChatCompletionChunk) -> tuple[str, str | None]:
    """The text and the finish reason in ``chunk``; a chunk with usage alone has no choice."""
    if not chunk.choices:
        return "", None
    choice = chunk.choices[0]
    return (choice.delta.content if choice.delta else None) or "", choice.finish_reason
