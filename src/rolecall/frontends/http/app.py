"""The ASGI application: its routes, and the guard around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from rolecall.frontends.http import api_document, auth, chat, metrics, operators, probes, problems, reminder_api
from rolecall.frontends.http.boundary import RequestBoundary
from rolecall.frontends.http.guard import RequestGuard
from rolecall.frontends.http.ollama import ollama_api
from rolecall.frontends.http.openai import (
    completions,
    embeddings,
    model_list,
    responses,
    text_completions,
    transcriptions,
    uploaded_files,
)
from rolecall.frontends.http.services import OpenServices
from rolecall.frontends.http.web import pages
from rolecall.settings import Settings, listed
from rolecall.stats import Metrics
from rolecall.version import __version__

EXPOSED_HEADERS = ("Location", "Retry-After", "X-Conversation-Id", "X-History-Cut", "X-Request-Id", "X-Task-Id")
COMPATIBLE = (
    model_list,
    completions,
    text_completions,
    responses,
    embeddings,
    transcriptions,
    uploaded_files,
    ollama_api,
)
PARTS = (probes, auth, chat, reminder_api, *COMPATIBLE, operators, metrics, pages)
ROUTERS = (*(part.router for part in PARTS), responses.create_router, responses.show_router)
ROUTES = [route for router in ROUTERS for route in router.routes]
"""FastAPI's include_router would make them all a second time, with the first request."""

AGENT_TO_AGENT = (("GET", "/.well-known/agent-card.json", "show_card"), ("POST", "/a2a", "answer"))
"""The routes of the Agent2Agent protocol: method, path, and the function of a2a_api."""


class _GuardedApp(FastAPI):
    """FastAPI with layers of our own outside everything else, so that every answer passes through them. Starlette's
    layer for unexpected errors goes: it would answer before ours."""

    layers: Callable[[ASGIApp], ASGIApp]

    def openapi(self) -> dict[str, Any]:
        return api_document.describe(self)

    def build_middleware_stack(self) -> ASGIApp:
        stack = super().build_middleware_stack()
        return self.layers(stack.app if isinstance(stack, ServerErrorMiddleware) else stack)


def build(
    open_services: OpenServices, settings: Settings, *, host: str = "127.0.0.1", routes: Sequence[BaseRoute] = ()
) -> FastAPI:
    """Build the application for a server that listens on ``host``. ``open_services`` is entered when it starts.

    ``routes`` are served as well, such as the webhook of another front end.
    """

    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services() as services, services.counting(metrics):
            app.state.services = services
            async with pages.sampling(services):
                yield

    def layers(app: ASGIApp) -> ASGIApp:
        guarded = RequestGuard(app, settings, host)
        bounded = RequestBoundary(guarded, lambda status: metrics.count("http", str(status)), settings.redacted)
        # Around the boundary, so that pages of other origins can read every answer.
        origins = listed(settings.http_origins)
        return CORSMiddleware(
            bounded, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS,
        ) if origins else bounded  # fmt: skip

    app = _GuardedApp(title="Rolecall", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    problems.add_handlers(app)
    app.add_exception_handler(404, pages.not_found)
    app.layers = layers
    app.router.routes.extend(ROUTES)
    if find_spec("a2a") is not None:
        app.router.routes.extend(_agent_to_agent(*route) for route in AGENT_TO_AGENT)
    app.router.routes.extend(routes)
    return app


def _agent_to_agent(method: str, path: str, name: str) -> Route:
    """A route of a2a_api, whose SDK is imported with the first request: that takes half a second."""

    async def handle(request: Request) -> Response:
        module = await asyncio.to_thread(import_module, "rolecall.frontends.http.a2a_api")
        response: Response = await getattr(module, name)(request)
        return response

    return Route(path, handle, methods=[method], include_in_schema=False)
