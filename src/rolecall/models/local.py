"""Models that run on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from rolecall.errors import ConfigError, MissingExtra, ModelTimeout, ModelUnavailable, NoSuchModel
from rolecall.models.by_schema import calling_by_schema
from rolecall.models.model import ModelEvent, Request
from rolecall.models.openai import Endpoint, OpenAIModel
from rolecall.models.reading import closing
from rolecall.models.weights import CATALOGUE, Progress, default_cache, ensure_weights
from rolecall.serving.server import WAYS_OUT
from rolecall.serving.stake import Engine, ModelServer, Shape
from rolecall.settings import Settings


@dataclass(frozen=True)
class Manner:
    """What a request gets that does not say: small models ramble without a limit and stray when warm.

    Asked for the capital of France, smollm2 missed it up to once in four at a temperature of 0.2, once in 200 at
    0.1, and never in 600 at 0.
    """

    max_tokens: int
    temperature: float | None = None
    calls_by_schema: bool = False
    """Whether it was taught no calls of tools: they are then JSON of a schema, see calling_by_schema."""


MANNERS = {
    "smollm2": Manner(max_tokens=256, temperature=0, calls_by_schema=True),
    "qwen2.5-coder-1.5b": Manner(max_tokens=1024, temperature=0.2, calls_by_schema=True),
}
OWN_FILE = Manner(max_tokens=1024)


class LocalModel:
    """A model of the catalogue, or a .gguf file of one's own, in an engine shared with all who use it here.

    The first question fetches the weights if need be and starts the engine, ``warm`` does so before it.
    """

    def __init__(self, model: str, settings: Settings, state_dir: Path, cache: Path | None = None) -> None:
        self.name = f"{model}@local"
        self._model = model
        self._settings = settings
        self._directory = state_dir / "models" / _directory_name(model)
        self._cache = cache or default_cache()
        self._server: ModelServer | None = None
        self._speaking: tuple[Engine, OpenAIModel] | None = None
        self._ensuring = asyncio.Lock()

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> LocalModel:
        """``model`` is a name in CATALOGUE or the absolute path of a .gguf file. Raises ConfigError."""
        name = f"{model}@local"
        for module in ("openai",) if settings.local_url else ("xllamacpp", "openai"):
            if importlib.util.find_spec(module) is None:
                missing = MissingExtra("local", name)
                raise ConfigError(f"{missing}; where that cannot be installed, {WAYS_OUT}")
        if model not in CATALOGUE and not (_is_file_name(model) and Path(model).is_file()):
            known = ", ".join(f"{known}@local" for known in CATALOGUE)
            raise ConfigError(
                f"model {name!r}: {known} or /path/to/a/file.gguf@local, the file being there, is allowed"
            )
        return cls(model, settings, state_dir)

    async def warm(self, progress: Progress | None = None) -> None:
        """Fetch the weights, where they are not here yet, and load the model. Raises ModelUnavailable, and NoSuchModel
        when nothing is at LOCAL_URL."""
        await self._ready(None, progress)

    def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. An engine that is gone is started again, once and before the first event."""
        manner = MANNERS.get(self._model, OWN_FILE)
        request = _mannered(request, manner)
        return calling_by_schema(self._stream, request) if manner.calls_by_schema else self._stream(request)

    async def _stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        speaking = await self._ready(None)
        for again in (True, False):
            begun = False
            try:
                async with closing(speaking[1].stream(request)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except ModelTimeout:
                raise
            except ModelUnavailable:
                if begun or not again:
                    raise
            speaking = await self._ready(speaking[0])

    async def aclose(self) -> None:
        """Close the connections and give the engine up. Idempotent."""
        speaking, self._speaking = self._speaking, None
        if self._server:
            self._server.leave()
        if speaking:
            await speaking[1].aclose()

    async def _ready(self, failed: Engine | None, progress: Progress | None = None) -> tuple[Engine, OpenAIModel]:
        """The engine and what speaks to it, not ``failed`` if that is gone. Concurrent calls join."""
        async with self._ensuring:
            if self._speaking and self._speaking[0] != failed:
                return self._speaking
            # The one before is not closed: others may just be using it, and it keeps no idle connections.
            here = not self._settings.local_url
            engine = await (await self._joined(progress)).join() if here else await self._elsewhere()
            self._speaking = engine, OpenAIModel(self.name, _endpoint(engine, self._settings))
            return self._speaking

    async def _elsewhere(self) -> Engine:
        """The server of LOCAL_URL. As long as it was never seen, an unknown host means that nobody set it up."""
        url, key = str(self._settings.local_url).rstrip("/"), self._settings.local_key
        host = urlsplit(url).hostname or ""
        try:
            await asyncio.get_running_loop().getaddrinfo(host, None)
        except OSError:
            if self._speaking:
                raise ModelUnavailable(f"{self.name}: the host of LOCAL_URL={url} is away") from None
            raise NoSuchModel(
                f"{self.name}: no server of local models is set up at LOCAL_URL={url}; with Docker Compose "
                f"`docker compose --profile local up` starts one, else {WAYS_OUT}"
            ) from None
        return Engine(url, key.get_secret_value() if key else "none", 0)

    async def _joined(self, progress: Progress | None) -> ModelServer:
        if self._server is None:
            weights = Path(self._model)
            if self._model in CATALOGUE:
                weights = await ensure_weights(self._model, self._cache, progress)
            settings = self._settings
            shape = Shape(weights, settings.local_slots, settings.local_context, settings.local_threads)
            self._server = ModelServer(self.name, self._directory, shape)
        return self._server


def _endpoint(engine: Engine, settings: Settings) -> Endpoint:
    # No limit to the first token: a busy engine queues, and reading a long prompt is silent.
    return Endpoint(
        f"{engine.url}/v1",
        engine.api_key,
        connect=settings.connect_seconds,
        first_token=None,
        idle_token=settings.idle_token_seconds,
    )


def _mannered(request: Request, manner: Manner) -> Request:
    return msgspec.structs.replace(
        request,
        max_tokens=manner.max_tokens if request.max_tokens is None else request.max_tokens,
        temperature=manner.temperature if request.temperature is None else request.temperature,
    )


def _is_file_name(model: str) -> bool:
    return model.endswith(".gguf") and Path(model).is_absolute()


def _directory_name(model: str) -> str:
    if model in CATALOGUE:
        return model
    return f"{Path(model).stem[:40]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
