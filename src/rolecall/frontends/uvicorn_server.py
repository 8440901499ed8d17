"""uvicorn inside a process that handles its signals itself. The extras http, telegram and tools install uvicorn."""

from __future__ import annotations

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
    """A quiet server for ``app`` with these ``options`` of uvicorn."""
    settings = {"lifespan": "off", "log_config": None, "access_log": False, "server_header": False, **options}
    return UvicornServer(Config(app, **settings))
