"""A model in an engine of this machine, which all processes that use it here share."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from rolecall.errors import ConfigError, MissingExtra, ModelTimeout, ModelUnavailable, NoSuchModel
from rolecall.models.model import ModelEvent, Request
from rolecall.models.providers.endpoint import Endpoint
from rolecall.models.providers.openai import OpenAIModel
from rolecall.models.stream import closing
from rolecall.models.tool_calls import calling_by_schema
from rolecall.models.vectors import Vectors
from rolecall.serving.footprint import is_pooled
from rolecall.serving.launcher import Launcher
from rolecall.serving.spec import WAYS_OUT, ModelCommand, ModelServer, Spec
from rolecall.serving.weights import CATALOGUE, Progress, default_cache, ensure_weights
from rolecall.settings import Settings


class HostedModel:
    """The model ``name``, whose engine ``serving`` finds or starts with the first question or by ``warm``. Without
    ``serving`` it can be named but not asked. What ``spec`` says it is, is known when it is first needed: subclasses
    may have to fetch it."""

    logprobs = True

    def __init__(self, name: str, settings: Settings, serving: Launcher | None, spec: Spec | None = None) -> None:
        self.name = name
        self._settings = settings
        self._serving = serving
        self._spec = spec
        self._sampling: Mapping[str, Any] = {}
        self._speakers: dict[str, OpenAIModel] = {}

    async def warm(self, progress: Progress | None = None) -> None:
        """Load the model. Raises ModelUnavailable."""
        await self._served().ensure(await self._wanted(progress))

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. An engine that is gone is started again, once and before the first event."""
        for again in (True, False):
            begun = False
            async with self._asked() as server:
                try:
                    async with closing(self._speaker(server).stream(request)) as events:
                        async for event in events:
                            begun = True
                            yield event
                    return
                except ModelTimeout:
                    raise
                except ModelUnavailable:
                    if begun or not again or not server.owned:
                        raise
            await self._served().suspect(server)

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> Vectors:
        """See Embedder.embed. The engine that comes with the extra ``local`` is one of its own: one that answers would
        become several times slower by it."""
        async with self._asked(embedding=True) as server:
            found = await self._speaker(server).embed(texts)
        return Vectors(tuple(_shortened(vector, dimensions) for vector in found.vectors), found.tokens)

    async def aclose(self) -> None:
        """Close the connections. Idempotent. The engine stays as long as others, or this process, may need it."""
        speakers, self._speakers = self._speakers, {}
        for speaker in speakers.values():
            await speaker.aclose()

    @asynccontextmanager
    async def _asked(self, *, embedding: bool = False) -> AsyncIterator[ModelServer]:
        """The server to ask, busy with this call as long as it lasts."""
        spec = await self._wanted()
        if embedding and not spec.command:
            spec = msgspec.structs.replace(spec, embedding="own" if is_pooled(Path(spec.weights)) else "mean")
        async with self._served().calling(spec) as server:
            yield server

    async def _wanted(self, progress: Progress | None = None) -> Spec:
        assert self._spec is not None
        return self._spec

    def _speaker(self, server: ModelServer) -> OpenAIModel:
        """What speaks to ``server``. Those before are not closed: others may just be using them, and they keep no idle
        connections."""
        if server.id not in self._speakers:
            name = f"{server.alias}@served" if server.alias else self.name
            self._speakers[server.id] = OpenAIModel(name, _endpoint(server, self._settings, self._sampling))
        return self._speakers[server.id]

    def _served(self) -> Launcher:
        if self._serving is None:
            raise ModelUnavailable(f"{self.name} is served where a deployment runs: start one with `rolecall up`")
        return self._serving


def commanded(name: str, command: ModelCommand, settings: Settings, serving: Launcher | None) -> HostedModel:
    """The model that ``command`` of config.py serves. Raises ConfigError for a missing extra."""
    needs(name, "openai", "psutil")
    return HostedModel(name, settings, serving, command.spec(name, settings.local_idle_seconds))


def needs(name: str, *modules: str) -> None:
    """Raises ConfigError, with the ways out, where a module of the extra ``local`` is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{MissingExtra('local', name)}; where that cannot be installed, {WAYS_OUT}")


def _endpoint(server: ModelServer, settings: Settings, sampling: Mapping[str, Any]) -> Endpoint:
    # No limit to the first token: a busy engine queues, and reading a long prompt is silent.
    return Endpoint(
        f"{server.url}/v1",
        server.key,
        connect=settings.connect_seconds,
        first_token=None,
        idle_token=settings.idle_token_seconds,
        sampling=sampling,
    )


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
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of llama.cpp's server for free text. Calls of tools are sampled without: they repeat their examples."""


NO_LOOPS = {
    "dry_multiplier": 1.0,
    "dry_base": 2,
    "dry_allowed_length": 4,
    "dry_penalty_last_n": 256,
    "dry_sequence_breakers": ["<|im_start|>"],
}
"""The DRY sampler: a token that would continue a repetition of more than four tokens becomes less and less likely. Of
twelve answers of smollm2 in one conversation, five repeated a sentence without it and none with it (one with eight
tokens); a fact that was asked for twice was told twice. ``python -m bench.repetition`` compares both."""
MANNERS = {
    "smollm2": Manner(max_tokens=256, temperature=0, calls_by_schema=True, sampling=NO_LOOPS),
    "qwen2.5-coder-1.5b": Manner(max_tokens=1024, temperature=0.2, calls_by_schema=True),
}


OWN_FILE = Manner(max_tokens=1024)


class LocalModel(HostedModel):
    """A model of the catalogue, or a .gguf file of one's own, in an engine shared with all who use it here, or at
    LOCAL_URL. The first question fetches the weights if need be, ``warm`` does so before it."""

    def __init__(
        self, model: str, settings: Settings, serving: Launcher | None = None, cache: Path | None = None
    ) -> None:
        super().__init__(f"{model}@local", settings, serving)
        self._model = model
        self._sampling = MANNERS.get(model, OWN_FILE).sampling
        self._cache = cache or default_cache()

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path, serving: Launcher | None = None) -> LocalModel:
        """``model`` is a name in CATALOGUE or the absolute path of a .gguf file. Raises ConfigError."""
        name = f"{model}@local"
        needs(name, *(("openai",) if settings.local_url else ("xllamacpp", "openai", "psutil")))
        if model not in CATALOGUE and not (_is_file_name(model) and Path(model).is_file()):
            known = ", ".join(f"{known}@local" for known in CATALOGUE)
            raise ConfigError(
                f"model {name!r} is invalid: expected {known} or /path/to/file.gguf@local of a file that exists"
            )
        return cls(model, settings, serving, default_cache(state_dir))

    async def warm(self, progress: Progress | None = None) -> None:
        """Fetch the weights, where they are not here yet, and load the model. Raises ModelUnavailable, and NoSuchModel
        when nothing is at LOCAL_URL."""
        if self._settings.local_url:
            await self._elsewhere()
        else:
            await super().warm(progress)

    def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See HostedModel.stream."""
        manner = MANNERS.get(self._model, OWN_FILE)
        request = _mannered(request, manner)
        return calling_by_schema(super().stream, request) if manner.calls_by_schema else super().stream(request)

    @asynccontextmanager
    async def _asked(self, *, embedding: bool = False) -> AsyncIterator[ModelServer]:
        if self._settings.local_url:
            yield await self._elsewhere()
        else:
            async with super()._asked(embedding=embedding) as server:
                yield server

    async def _elsewhere(self) -> ModelServer:
        """The server of LOCAL_URL. As long as it was never seen, an unknown host means that nobody set it up."""
        url, key = str(self._settings.local_url).rstrip("/"), self._settings.local_key
        host = urlsplit(url).hostname or ""
        try:
            await asyncio.get_running_loop().getaddrinfo(host, None)
        except OSError:
            if self._speakers:
                raise ModelUnavailable(f"{self.name}: the host of LOCAL_URL={url} is away") from None
            raise NoSuchModel(
                f"{self.name}: no server of local models is set up at LOCAL_URL={url}; with Docker Compose "
                f"`docker compose --profile local up` starts one, else {WAYS_OUT}"
            ) from None
        return ModelServer(url, self.name, "", "ready", url=url, key=key.get_secret_value() if key else "none")

    async def _wanted(self, progress: Progress | None = None) -> Spec:
        if self._spec is None:
            weights = Path(self._model)
            if self._model in CATALOGUE:
                weights = await ensure_weights(self._model, self._cache, progress)
            self._spec = _spec(self.name, weights, self._settings)
        return self._spec


def _spec(name: str, weights: Path, settings: Settings) -> Spec:
    threads = settings.local_threads or 0
    if not threads and settings.local_models > 1:
        threads = max(1, (os.cpu_count() or 1) // settings.local_models)
    return Spec(
        name,
        str(weights.resolve()),
        slots=settings.local_slots,
        context=settings.local_context,
        threads=threads,
        idle=settings.local_idle_seconds,
    )


def _shortened(vector: tuple[float, ...], dimensions: int | None) -> tuple[float, ...]:
    """The first ``dimensions`` of a vector, of length 1: what OpenAI's models do, and others allow if they were trained
    for it."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    length = math.hypot(*vector[:dimensions]) or 1.0
    return tuple(value / length for value in vector[:dimensions])


def _mannered(request: Request, manner: Manner) -> Request:
    return msgspec.structs.replace(
        request,
        max_tokens=manner.max_tokens if request.max_tokens is None else request.max_tokens,
        temperature=manner.temperature if request.temperature is None else request.temperature,
    )


def _is_file_name(model: str) -> bool:
    return model.endswith(".gguf") and Path(model).is_absolute()
