"""The ASGI application: its routes, what guards them, and the services they work with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from rolecall.frontends.http import problems
from rolecall.frontends.http.guard import Guard, listed
from rolecall.frontends.http.services import Here as Here
from rolecall.frontends.http.services import Opened
from rolecall.frontends.http.services import Services as Services
from rolecall.frontends.http.services import services as services
from rolecall.settings import Settings
from rolecall.version import __version__

EXPOSED = ("Location", "Retry-After", "X-Conversation-Id", "X-Task-Id")
PARTS = ("probes", "web.login", "tasks", "completions", "operators", "metrics", "web.pages")


class _Guarded(FastAPI):
    """With the guard around all else, the answers to unforeseen errors included."""

    guard: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        return self.guard(super().build_middleware_stack())


def build(
    opened: Opened, settings: Settings, *, host: str = "127.0.0.1", routes: Sequence[BaseRoute] = ()
) -> FastAPI:  # fmt: skip
    """Build the application that a server at ``host`` runs. ``opened`` makes its services when it starts; ``routes``
    are served as well, such as the webhook of another front end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened() as found:
            app.state.services = found
            yield

    app = _Guarded(title="Rolecall", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    problems.install(app)
    app.guard = lambda inner: Guard(inner, settings, host)
    if origins := listed(settings.http_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
        )
    for part in PARTS:
        if find_spec(f"rolecall.frontends.http.{part}"):
            app.include_router(import_module(f"rolecall.frontends.http.{part}").router)
    app.router.routes.extend(routes)
    return app
