"""uvicorn inside a process that handles its signals itself. The extras http, telegram and tools install uvicorn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from uvicorn import Config, Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class UvicornServer(Server):
    """uvicorn's server, except that it leaves signals to the process."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a context manager as well
        return nullcontext()


def uvicorn_server(app: ASGIApp, **options: Any) -> UvicornServer:
    """A server for ``app`` with these ``options`` of uvicorn. ``app`` has nothing to start or end."""
    return UvicornServer(quiet_config(app, lifespan="off", **options))


def quiet_config(app: ASGIApp | Callable[..., ASGIApp], **options: Any) -> Config:
    """These ``options`` of uvicorn for ``app``: logging is left to the process, and headers that proxies set to the
    application."""
    return Config(app, log_config=None, access_log=False, server_header=False, proxy_headers=False, **options)
