"""`rolecall http`: the HTTP server and its processes; and the same as a part of `rolecall up`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rolecall.bus import access_keys
from rolecall.bus.bus import Bus
from rolecall.bus.process.processes import process_name
from rolecall.cli.output import print_lines, print_table
from rolecall.cli.runner import load_quietly, stop_requested, until_stopped
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.config import Application, load
from rolecall.errors import ConfigError, MissingExtra
from rolecall.frontends.front import registered
from rolecall.frontends.sockets import address_of, is_local, listen
from rolecall.session import Session, open_session
from rolecall.transcripts.record import visible
from rolecall.worker.runtime import Runtime

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from rolecall.frontends.http.services import Services


logger = logging.getLogger(__name__)
UNNEEDED = "There are no API keys: the server only accepts connections from localhost."
NEEDED = (
    "There are no API keys, but requests need one, as there was one before: create one with `rolecall key new NAME`."
)
START = "from rolecall.cli import main; main()"


async def http(
    app_dir: Path | None, console: Console, *, host: str | None, port: int | None, workers: int | None, fd: int | None
) -> int:
    """Serve until Ctrl-C or SIGTERM; with several ``workers`` in as many processes, each of which gets the listening
    socket as ``fd``. Raises ConfigError, also for a host that others reach while there is no API key."""
    check_installed()
    application = load(app_dir)
    log_to_stderr(application.settings)
    settings = application.settings
    host = host or settings.http_host
    if fd is not None:
        return await _serve_as_one_of_several(application, host, fd)
    async with (
        stop_requested(application.settings.drain_seconds) as wanted,
        open_session(application, process_name(), start=True) as session,
    ):
        await check_keys(session, host)
        listener = listen(host, settings.http_port if port is None else port)
        with listener:
            _say(console, f"Rolecall's web page and HTTP API are at {address_of(listener)}")
            if (workers or settings.server_workers) == 1:
                await _serve_here(session, host, listener, wanted)
            else:
                await _serve_by_processes(session, host, listener, workers or settings.server_workers, wanted)
    return 0


@asynccontextmanager
async def beside(session: Session, runtime: Runtime, routes: Sequence[BaseRoute] = ()) -> AsyncIterator[None]:
    """The HTTP server at work in this process, next to the ``runtime``, whose ``http`` is then its address; where it is
    not installed that stays empty. Raises ConfigError."""
    try:
        check_installed()
    except MissingExtra as missing:
        logger.info("%s", missing)
        yield
        return
    from rolecall.frontends.http.services import services_for

    host, port = session.application.settings.http_host, session.application.settings.http_port
    await check_keys(session, host)
    with listen(host, port) as listener:
        runtime.http = address_of(listener)
        async with _serving(services_for(session, runtime.wakeups, host), host, listener, routes):
            yield


def check_installed() -> None:
    """Raise MissingExtra where the HTTP server's libraries are not there."""
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        if find_spec(name) is None:
            raise MissingExtra("http", "the HTTP server")


async def check_keys(session: Session, host: str) -> None:
    """Raise ConfigError when others can reach ``host`` and there is no API key."""
    given = session.application.settings.http_key
    if not is_local(host) and given is None and not await access_keys.list_keys(session.bus):
        raise ConfigError(
            f"listening on {host} lets other machines in, and there is no API key yet: create one with "
            "`rolecall key new NAME`, set HTTP_KEY, or listen on 127.0.0.1"
        )


async def _serve_as_one_of_several(application: Application, host: str, fd: int) -> int:
    """Serve on an inherited socket until SIGTERM, or until the parent is gone: its end of our stdin closes then."""
    async with (
        stop_requested(application.settings.drain_seconds) as wanted,
        open_session(application, process_name(), start=True) as session,
    ):
        orphaned = asyncio.create_task(_stdin_ended(), name="rolecall http parent")
        orphaned.add_done_callback(lambda _: wanted.set())
        with socket.socket(fileno=fd) as listener:
            await _serve_here(session, host, listener, wanted)
        orphaned.cancel()
    return 0


async def _serve_here(session: Session, host: str, listener: socket.socket, wanted: asyncio.Event) -> None:
    from rolecall.frontends.http.services import services_for

    async with (
        session.listening() as wakeups,
        registered(session, "http"),
        _serving(services_for(session, wakeups, host), host, listener) as serving,
    ):
        logger.info("http: pid %d serves", os.getpid())
        await until_stopped(serving, wanted, cancel=False)


async def _serve_by_processes(
    session: Session, host: str, listener: socket.socket, count: int, wanted: asyncio.Event
) -> None:
    from rolecall.frontends.http.hosting import HttpProcesses

    directory = str(session.application.directory)
    workers = HttpProcesses((sys.executable, "-c", START, "http", "--app", directory, "--host", host), count, listener)
    running = asyncio.create_task(workers.run(), name="rolecall http processes")
    await until_stopped(running, wanted, cancel=False)
    workers.stop()
    await running


@asynccontextmanager
async def _serving(
    services: Services, host: str, listener: socket.socket, routes: Sequence[BaseRoute] = ()
) -> AsyncIterator[asyncio.Task[None]]:
    from rolecall.frontends.http.app import build
    from rolecall.frontends.http.hosting import HttpFrontEnd

    settings = services.settings
    app = build(lambda: nullcontext(services), settings, host=host, routes=routes)
    front = HttpFrontEnd(app, listener, head_seconds=settings.http_read_seconds)
    serving = asyncio.create_task(front.run(), name="rolecall http")
    try:
        await front.ready()
        yield serving
    finally:
        await front.drain()
        await serving


async def _stdin_ended() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()


async def new_key(app_dir: Path | None, name: str, console: Console, *, admin: bool) -> int:
    """Make a key and print it: it is never shown again."""
    async with _bus(app_dir) as bus:
        key, secret = await access_keys.create_key(bus, name, admin=admin)
    print_lines(console, [secret])
    what = "an operator's key" if admin else "a key"
    print_lines(Console(stderr=True), [f"This is {what}, {key.id}; it is shown just this once. Keep it safe."])
    return 0


async def list_keys(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """List them, without what makes them good."""
    async with _bus(app_dir) as bus:
        rule = await access_keys.access_rule(bus)
    found, needed = rule.keys, rule.required
    if as_json:
        rows = ({"id": key.id, "name": key.name, "admin": key.admin, "made": key.made} for key in found)
        print_lines(console, (json.dumps(row) for row in rows))
    elif found:
        lines = [(key.id, visible(key.name), "operator" if key.admin else "user", _day(key.made)) for key in found]
        print_table(console, ("id", "name", "for", "made"), lines)
    else:
        print_lines(console, [NEEDED if needed else UNNEEDED])
    return 0


async def revoke_key(app_dir: Path | None, key_id: str, console: Console) -> int:
    """Refuse it from now on, and the logins made with it, and remove its reminders; other processes do within two
    seconds."""
    async with _bus(app_dir) as bus:
        await access_keys.revoke_key(bus, key_id)
    print_lines(console, [f"{key_id}  revoked"])
    return 0


async def reset_keys(app_dir: Path | None, console: Console) -> int:
    """Revoke every key, and let requests of this machine in without one, as before the first."""
    async with _bus(app_dir) as bus:
        await access_keys.revoke_all_keys(bus)
    print_lines(console, ["All API keys are revoked. Until you create another, requests from this machine need none."])
    return 0


@asynccontextmanager
async def _bus(app_dir: Path | None) -> AsyncIterator[Bus]:
    check_installed()

    async with open_session(load_quietly(app_dir), process_name(), start=True) as session:
        yield session.bus


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M")
