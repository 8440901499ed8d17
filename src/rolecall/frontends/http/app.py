"""The ASGI application: its routes, and the guard around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from rolecall.frontends.http import auth, chat, completions, metrics, operators, probes, problems
from rolecall.frontends.http.guard import RequestGuard, split_list
from rolecall.frontends.http.services import OpenServices
from rolecall.frontends.http.web import pages
from rolecall.settings import Settings
from rolecall.version import __version__

EXPOSED_HEADERS = ("Location", "Retry-After", "X-Conversation-Id", "X-Task-Id")
ROUTERS = tuple(part.router for part in (probes, auth, chat, completions, operators, metrics, pages))


class _GuardedApp(FastAPI):
    """FastAPI with a guard outside everything else, so that even answers to unexpected errors pass through it."""

    guard: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        return self.guard(super().build_middleware_stack())


def build(
    open_services: OpenServices, settings: Settings, *, host: str = "127.0.0.1", routes: Sequence[BaseRoute] = ()
) -> FastAPI:
    """Build the application for a server that listens on ``host``. ``open_services`` is entered when it starts.

    ``routes`` are served as well, such as the webhook of another front end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services() as services:
            app.state.services = services
            yield

    app = _GuardedApp(title="Rolecall", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    problems.add_handlers(app)
    app.guard = lambda inner: RequestGuard(inner, settings, host)
    if origins := split_list(settings.http_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )  # fmt: skip
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.extend(routes)
    return app
