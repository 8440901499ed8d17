"""The ASGI application: its routes, what guards them, and the services they work with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

from fastapi import FastAPI

from rolecall import __version__
from rolecall.frontends.http.services import Here as Here
from rolecall.frontends.http.services import Opened
from rolecall.frontends.http.services import Services as Services
from rolecall.frontends.http.services import services as services
from rolecall.settings import Settings

PARTS = ("health", "tasks", "completions", "operators", "metrics", "pages")


def build(opened: Opened, settings: Settings, *, host: str = "127.0.0.1") -> FastAPI:
    """The application that a server at ``host`` runs; ``opened`` makes its services when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened() as found:
            app.state.services = found
            yield

    app = FastAPI(title="Rolecall", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for part in PARTS:
        if find_spec(f"rolecall.frontends.http.{part}"):
            app.include_router(import_module(f"rolecall.frontends.http.{part}").router)
    return app
