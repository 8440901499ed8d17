"""`rolecall tools`: the application's tools for others, over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rolecall.agent.mcp import PATH, tools_app
from rolecall.cli.runner import log_to_stderr, run_loop, stop_requested
from rolecall.config import Application, load
from rolecall.errors import ConfigError, MissingExtra, RolecallError
from rolecall.frontends.sockets import LocalOnly, address_of, is_local, listen

if TYPE_CHECKING:
    from uvicorn import Config


DRAIN_SECONDS = 5


def serve(app_dir: Path | None, console: Console, *, host: str, port: int | None) -> int:
    """Offer the tools of config.py until Ctrl-C or SIGTERM, with TOOLS_SERVER_WORKERS processes."""
    application = load(app_dir)
    _check(application)
    log_to_stderr(application.settings)
    settings, wanted = application.settings, port or application.settings.tools_port
    if settings.tools_key is None and not is_local(host):
        raise ConfigError(f"--host {host} lets others in: set TOOLS_KEY in the environment or in .env, which they show")
    with listen(host, wanted, names=("--host", "TOOLS_PORT")) as listener:
        _show(console, application, listener, wanted)
        config = _configured(application.directory, host, settings.tools_server_workers)
        if settings.tools_server_workers > 1:
            return _serve_by_processes(config, listener)
        return run_loop(_serve_here(config, listener)) or 0


def offered(directory: Path, host: str) -> Any:
    """The ASGI application of one process."""
    _end_with_the_parent()
    application = load(directory)
    log_to_stderr(application.settings)
    app, key = tools_app(application.tools, host, _key(application)), _key(application)
    return app if key else LocalOnly(app, "Only this machine may call tools without a key: set TOOLS_KEY.")


def _check(application: Application) -> None:
    if not application.tools.tools:
        raise ConfigError("config.py offers no tools: Config(tools=(function, …)) names those that others may call")
    if importlib.util.find_spec("mcp") is None:
        raise MissingExtra("tools", "rolecall tools")


def _show(console: Console, application: Application, listener: socket.socket, wanted: int) -> None:
    settings, port = application.settings, listener.getsockname()[1]
    why = "" if port == wanted else f" (port {wanted} is taken)"
    console.print(f"tools at {address_of(listener)}{PATH}{why}: {', '.join(application.tools.tools)}", highlight=False)
    if settings.tools_key is not None:
        console.print("who calls them shows TOOLS_KEY: Authorization: Bearer …", highlight=False)
    # Whoever started this through a pipe waits for the address.
    console.file.flush()


def _configured(directory: Path, host: str, workers: int) -> Config:
    from uvicorn import Config

    return Config(
        partial(offered, directory, host),
        factory=True,
        workers=workers,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


async def _serve_here(config: Config, listener: socket.socket) -> int:
    from uvicorn import Server

    class Quiet(Server):
        """uvicorn's, which leaves the signals to us."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    server = Quiet(config)
    async with stop_requested() as wanted:
        serving = asyncio.create_task(server.serve([listener]), name="rolecall tools")
        stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()
        await serving
    return 0


def _serve_by_processes(config: Config, listener: socket.socket) -> int:
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise RolecallError("a process of the tools server could not start; its log says why")
    return 0


def _end_with_the_parent() -> None:
    """In a process of several: end when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="rolecall parent", daemon=True).start()


def _key(application: Application) -> str:
    key = application.settings.tools_key
    return key.get_secret_value() if key else ""
