"""Models on servers that Rolecall does not start: LM Studio, Ollama, llama.cpp or vLLM, local or remote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rolecall.errors import ConfigError, ModelError, ModelUnavailable, RateLimited, Truncated
from rolecall.models.fallback import Fallback
from rolecall.models.model import Model, ModelEvent, Request
from rolecall.models.providers.endpoint import Endpoint
from rolecall.models.providers.openai import OpenAIModel
from rolecall.models.stream import closing
from rolecall.models.vectors import Vectors
from rolecall.redis.server import Server
from rolecall.serving.balance import Balance, HeldCall
from rolecall.serving.external import ModelAt, look
from rolecall.settings import Settings
from rolecall.transport.http_client import client_options
from rolecall.transport.proxy import proxy_of


class ServedModel:
    """The model ``name`` at ``places``. Each call goes to the least busy server. If it fails before the first token,
    another server answers, and the failed one is left out until it is back. Raises NotNow while all are away."""

    logprobs = True

    def __init__(self, name: str, places: Sequence[ModelAt], settings: Settings, server: Server) -> None:
        self.name = name
        self.places = {place.candidate(name).id: place for place in places}
        self.balance = Balance(server, name, self.look)
        self._candidates = [place.candidate(name) for place in places]
        self._speakers = {one: OpenAIModel(*_speaking(name, place, settings)) for one, place in self.places.items()}
        self._proxies = {one: proxy_of(settings.proxy, place.url) for one, place in self.places.items()}

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> ServedModel:
        """Raises ConfigError: the addresses of its servers can only be set in config.py."""
        name = f"{model}@served"
        raise ConfigError(
            f"{name}: config.py does not say where it is: servers={{{name!r}: (ModelAt('http://…/v1'),)}} "
            "or a ModelCommand('llama-server …')"
        )

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream."""
        for others in reversed(range(len(self.places))):
            place = await self.balance.pick(self._candidates)
            try:
                async with closing(self._asked(place, request)) as events:
                    async for event in events:
                        yield event
                return
            except _Elsewhere as failed:
                if not others:
                    raise failed.error from None

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """See Embedder.embed. Asks the least busy server."""
        place = await self.balance.pick(self._candidates)
        try:
            found = await self._speakers[place.server].embed(texts, dimensions)
        except ModelError as error:
            theirs = isinstance(error, ModelUnavailable | RateLimited)
            await self.balance.left(place, "FAILED" if theirs else "OK", str(error))
            raise
        await self.balance.left(place, "OK")
        return found

    async def look(self, server: str) -> None:
        """Check the server with this id. Raises ModelUnavailable."""
        import httpx2

        place = self.places[server]
        await look(place, client_options(place.url, self._proxies[server], httpx2))

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self.balance.aclose()
        for speaker in self._speakers.values():
            await speaker.aclose()

    async def _asked(self, place: HeldCall, request: Request) -> AsyncIterator[ModelEvent]:
        begun = over = False
        try:
            async with closing(self._speakers[place.server].stream(request)) as events:
                async for event in events:
                    begun = True
                    yield event
            over = True
            await self.balance.left(place, "OK")
        except ModelError as error:
            over = True
            theirs = isinstance(error, ModelUnavailable | Truncated | RateLimited)
            after = error.retry_after if isinstance(error, RateLimited) else None
            await self.balance.left(place, "FAILED" if theirs else "OK", str(error), after)
            if theirs and not begun:
                raise _Elsewhere(error) from None
            raise
        finally:
            if not over:  # cancelled, or the consumer stopped early
                self.balance.abandoned(place)


def unbalanced(name: str, places: Sequence[ModelAt], settings: Settings) -> Model:
    """The model for a single question without Redis: tries its servers in order."""
    speakers = [OpenAIModel(*_speaking(name, place, settings)) for place in places]
    return speakers[0] if len(speakers) == 1 else Fallback(speakers)


def _speaking(name: str, place: ModelAt, settings: Settings) -> tuple[str, Endpoint]:
    endpoint = Endpoint(
        place.url,
        place.key or "none",
        proxy=proxy_of(settings.proxy, place.url),
        connect=settings.connect_seconds,
        first_token=settings.first_token_seconds,
        idle_token=settings.idle_token_seconds,
    )
    return f"{place.alias}@served" if place.alias else name, endpoint


class _Elsewhere(Exception):
    """``error`` came before the first token and is the server's fault, so another server may answer."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(str(error))
        self.error = error
