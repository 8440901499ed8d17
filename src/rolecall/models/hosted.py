"""A model in an engine of this machine, which all processes that use it here share."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rolecall.errors import ConfigError, MissingExtra, ModelTimeout, ModelUnavailable
from rolecall.models.model import ModelEvent, Request
from rolecall.models.openai import Endpoint, OpenAIModel
from rolecall.models.reading import closing
from rolecall.models.weights import Progress
from rolecall.serving.command import ModelCommand
from rolecall.serving.server import WAYS_OUT, ModelServer, Spec
from rolecall.serving.serving import Serving
from rolecall.settings import Settings


class HostedModel:
    """The model ``name``, whose engine ``serving`` finds or starts with the first question or by ``warm``. Without
    ``serving`` it can be named but not asked. What ``spec`` says it is, is known when it is first needed: subclasses
    may have to fetch it."""

    def __init__(self, name: str, settings: Settings, serving: Serving | None, spec: Spec | None = None) -> None:
        self.name = name
        self._settings = settings
        self._serving = serving
        self._spec = spec
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

    async def aclose(self) -> None:
        """Close the connections. Idempotent. The engine stays as long as others, or this process, may need it."""
        speakers, self._speakers = self._speakers, {}
        for speaker in speakers.values():
            await speaker.aclose()

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[ModelServer]:
        """The server to ask, busy with this call as long as it lasts."""
        async with self._served().calling(await self._wanted()) as server:
            yield server

    async def _wanted(self, progress: Progress | None = None) -> Spec:
        assert self._spec is not None
        return self._spec

    def _speaker(self, server: ModelServer) -> OpenAIModel:
        """What speaks to ``server``. Those before are not closed: others may just be using them, and they keep no idle
        connections."""
        if server.id not in self._speakers:
            name = f"{server.alias}@served" if server.alias else self.name
            self._speakers[server.id] = OpenAIModel(name, _endpoint(server, self._settings))
        return self._speakers[server.id]

    def _served(self) -> Serving:
        if self._serving is None:
            raise ModelUnavailable(f"{self.name} is served where a deployment runs: start one with `rolecall up`")
        return self._serving


def commanded(name: str, command: ModelCommand, settings: Settings, serving: Serving | None) -> HostedModel:
    """The model that ``command`` of config.py serves. Raises ConfigError for a missing extra."""
    needs(name, "openai", "psutil")
    return HostedModel(name, settings, serving, command.spec(name, settings.local_idle_seconds))


def needs(name: str, *modules: str) -> None:
    """Raises ConfigError, with the ways out, where a module of the extra ``local`` is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{MissingExtra('local', name)}; where that cannot be installed, {WAYS_OUT}")


def _endpoint(server: ModelServer, settings: Settings) -> Endpoint:
    # No limit to the first token: a busy engine queues, and reading a long prompt is silent.
    return Endpoint(
        f"{server.url}/v1",
        server.key,
        connect=settings.connect_seconds,
        first_token=None,
        idle_token=settings.idle_token_seconds,
    )
