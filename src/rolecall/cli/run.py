"""`rolecall up` and `rolecall worker`: the long-running verbs."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console

from rolecall.cli import http, talk, telegram
from rolecall.cli.loop import stop_requested
from rolecall.cli.process_log import log_to_stderr
from rolecall.cli.welcome import prepare_models, show_welcome
from rolecall.cli.zone import time_zone as time_zone
from rolecall.config import load
from rolecall.errors import MissingExtra
from rolecall.reload import reload_on_change
from rolecall.runtime import Runtime, process_name
from rolecall.scribe import Scribe
from rolecall.session import Session, open_session

logger = logging.getLogger(__name__)
SCRIBE = "scribe"


async def up(app_dir: Path | None, *, chat: bool, dev: bool) -> int:
    """Run everything until SIGTERM, Ctrl-C or the end of the chat."""
    application = load(app_dir)
    interactive = chat and sys.stdin.isatty() and sys.stdout.isatty()
    quiet = interactive and "LOG_LEVEL" not in application.sources
    log_to_stderr(application.settings.model_copy(update={"log_level": "WARNING"}) if quiet else application.settings)
    console = Console()
    async with (
        stop_requested() as wanted,
        open_session(application, process_name(), start=True) as session,
        telegram.beside(session, lambda line: telegram.say(console, line)),
        _running(session, None, dev=dev, scribe=True) as runtime,
        http.beside(session, runtime, time_zone(application)),
    ):
        show_welcome(console, session, runtime)
        await _until_stopped(session, runtime, console, wanted, interactive)
    return 0


async def worker(app_dir: Path | None, *, roles: Sequence[str] | None, dev: bool) -> int:
    """Run agents until SIGTERM; with all roles, or the role ``scribe`` named, also a scribe."""
    application = load(app_dir)
    log_to_stderr(application.settings)
    scribe = roles is None or SCRIBE in roles
    chosen = None if roles is None else [role for role in roles if role != SCRIBE]
    async with (
        stop_requested() as wanted,
        open_session(application, process_name(), start=True) as session,
        _running(session, chosen, dev=dev, scribe=scribe) as runtime,
    ):
        warming = asyncio.create_task(prepare_models(None, runtime), name="rolecall warm models")
        await wanted.wait()
        warming.cancel()
    return 0


async def _until_stopped(
    session: Session, runtime: Runtime, console: Console, wanted: asyncio.Event, interactive: bool
) -> None:
    warming = asyncio.create_task(
        prepare_models(console if interactive else None, runtime), name="rolecall warm models"
    )
    stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
    if interactive:
        await asyncio.wait([warming, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not wanted.is_set():
            talking = asyncio.create_task(talk.prompt(session, runtime.wakeups), name="rolecall chat")
            try:
                await talk.until_stopped(talking, wanted)
            except MissingExtra as error:
                console.print(f"{error}\nall else is at work; Ctrl-C ends it", markup=False, highlight=False)
                await stopping
    else:
        await stopping
    warming.cancel()
    stopping.cancel()


@asynccontextmanager
async def _running(session: Session, roles: Sequence[str] | None, *, dev: bool, scribe: bool) -> AsyncIterator[Runtime]:
    """The runtime, the scribe and the reloader at work; on leaving they drain."""
    application = session.application
    runtime = Runtime(application, session.server, session.bus.process, roles=roles)
    writer = Scribe(
        session.server,
        application.settings.shards,
        application.log_dir,
        process=session.bus.process,
        tz=time_zone(application),
        lease_seconds=application.settings.lease_seconds,
    )
    runtime.scribe = scribe
    async with asyncio.TaskGroup() as group:
        working = group.create_task(runtime.run(), name="rolecall runtime")
        writing = group.create_task(writer.run(), name="rolecall scribe") if scribe else None
        watching = None
        if dev or application.settings.environment == "development":
            watching = group.create_task(reload_on_change(runtime), name="rolecall reload")
        await runtime.ready()
        try:
            yield runtime
        finally:
            if watching is not None:
                watching.cancel()
            await runtime.stop()
            await working
            if writing is not None:
                await writer.stop()
                await writing
