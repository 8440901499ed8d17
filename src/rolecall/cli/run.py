"""`rolecall up` and `rolecall worker`: the long-running verbs."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from rolecall.background import BackgroundTasks
from rolecall.bus.process.processes import process_name
from rolecall.cli import http, talk, telegram
from rolecall.cli.runner import restart, stop_requested, until_stopped
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.client import work
from rolecall.config import NO_KEY, Application, load, misspelt
from rolecall.errors import MissingExtra, RolecallError
from rolecall.frontends import front_ends
from rolecall.frontends.terminal.terminal import OpenQuestions
from rolecall.models.model import Model
from rolecall.models.registry import TINY, warm
from rolecall.session import Session, open_session
from rolecall.settings import listed
from rolecall.transcripts.targets import STDOUT
from rolecall.version import __version__
from rolecall.worker.reload import reload_on_change
from rolecall.worker.runtime import Runtime

logger = logging.getLogger(__name__)
SCRIBE = "scribe"


async def up(app_dir: Path | None, *, chat: bool, dev: bool) -> int:
    """Run everything until SIGTERM, Ctrl-C or the end of the chat."""
    application = load(app_dir)
    interactive = chat and sys.stdin.isatty() and sys.stdout.isatty()
    quiet = interactive and "LOG_LEVEL" not in application.sources
    log_to_stderr(application.settings, quiet=quiet)
    # With that target, stdout belongs to the transcripts.
    console = Console(stderr=STDOUT in listed(application.settings.log_targets))
    async with (
        stop_requested(application.settings.drain_seconds) as wanted,
        open_session(application, process_name(), start=True) as session,
        telegram.beside(session, lambda line: telegram.say(console, line)) as bot,
        _running(session, None, dev=dev, scribe=True) as runtime,
        http.beside(session, runtime, bot.routes),
        front_ends.serving(session, runtime.wakeups),
    ):
        runtime.problems.append(lambda: bot.problem)
        unanswered = OpenQuestions(application.state_dir / "chat_unanswered.json")
        runtime.watchdog.restart = partial(_restart, unanswered)
        show_welcome(console, session, runtime)
        await _until_stopped(session, runtime, console, wanted, unanswered if interactive else None)
    return 0


async def worker(app_dir: Path | None, *, roles: Sequence[str] | None, dev: bool) -> int:
    """Run agents until SIGTERM; with all roles, or the role ``scribe`` named, also a scribe."""
    application = load(app_dir)
    log_to_stderr(application.settings)
    scribe = roles is None or SCRIBE in roles
    chosen = None if roles is None else [role for role in roles if role != SCRIBE]
    async with (
        stop_requested(application.settings.drain_seconds) as wanted,
        open_session(application, process_name(), start=True) as session,
        _running(session, chosen, dev=dev, scribe=scribe) as runtime,
    ):
        runtime.watchdog.restart = restart
        warming = asyncio.create_task(prepare_models(None, runtime), name="rolecall warm models")
        await wanted.wait()
        warming.cancel()
    return 0


def _restart(unanswered: OpenQuestions, reason: str) -> None:
    """Start this process again; a chat at its terminal goes on."""
    try:
        unanswered.keep(reason)
    finally:
        restart(reason)


async def _until_stopped(
    session: Session, runtime: Runtime, console: Console, wanted: asyncio.Event, unanswered: OpenQuestions | None
) -> None:
    """Until it is to stop, or until the chat ends whose questions ``unanswered`` keeps."""
    preparing = prepare_models(console if unanswered else None, runtime)
    warming = asyncio.create_task(BackgroundTasks().attempt(preparing, "models"), name="rolecall warm models")
    if unanswered:
        await until_stopped(warming, wanted, cancel=False)
        if not wanted.is_set():
            talking = asyncio.create_task(
                talk.prompt(session, runtime.wakeups, unanswered=unanswered), name="rolecall chat"
            )
            try:
                await until_stopped(talking, wanted)
            except MissingExtra as error:
                console.print(f"{error}\nall else is at work; Ctrl-C ends it", markup=False, highlight=False)
                await wanted.wait()
    else:
        await wanted.wait()
    warming.cancel()


@asynccontextmanager
async def _running(session: Session, roles: Sequence[str] | None, *, dev: bool, scribe: bool) -> AsyncIterator[Runtime]:
    """A worker, with a reloader in development."""
    async with work(session, roles=roles, scribe=scribe) as runtime:
        if not dev and session.application.settings.environment != "development":
            yield runtime
            return
        watching = asyncio.create_task(reload_on_change(runtime), name="rolecall reload")
        try:
            yield runtime
        finally:
            watching.cancel()


def show_welcome(console: Console, session: Session, runtime: Runtime) -> None:
    """Print what is up, where, and what is missing."""
    application, settings = session.application, session.application.settings
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()

    def row(label: str, text: str, style: str = "") -> None:
        rows.add_row(label, Text(text, style))  # not markup: it would swallow the brackets of an extra

    where = f"bundled, appendfsync {settings.appendfsync}" if session.embedded else session.server.address
    row("server", f"{session.found}, {where}")
    counts = [f"{name} {len(group)}" for name, group in runtime.roster.instances.items()]
    row("roles", " · ".join(counts))
    row("models", ", ".join(runtime.models.by_name) or "none: `rolecall setup` connects one")
    if hint := _models_hint(application, runtime):
        row("", hint)
    for name, problem in runtime.models.problems.items():
        row("", f"{name} is left out: {problem}", "yellow")
    directory = str(application.log_dir / "conversations")
    row("transcripts", settings.log_targets.replace("directory", directory, 1))
    row("web", runtime.http or "not installed: pip install 'rolecall[http]'")
    if settings.telegram_bot_token is None:
        row("telegram", "not set up: no TELEGRAM_BOT_TOKEN")
    for name, close in misspelt(application).items():
        row(".env", f"{name} is not a setting of Rolecall: did you mean {close}?", "yellow")
    row("talk", 'rolecall chat · rolecall ask "Hello" · rolecall logs · rolecall top')
    console.print(f"[bold]Rolecall {__version__}[/bold] is up in {application.directory}", highlight=False)
    console.print(rows, highlight=False)


def _models_hint(application: Application, runtime: Runtime) -> str:
    """Why these models, or what to expect of the tiny one."""
    if TINY in _first_models(runtime):
        size = "a real model, but a tiny one (135 M parameters): it chats, and is often wrong"
        return f"{TINY} is {size}. `rolecall setup` connects a better one"
    origins = (application.sources.get(f"{role.name} models", "") for role in application.roles)
    deciding = next((origin.removeprefix("auto: ") for origin in origins if origin.startswith("auto: ")), NO_KEY)
    if deciding == NO_KEY:
        return ""
    other = "" if application.settings.gen_model else "; GEN_MODEL=name@provider chooses another"
    return f"chosen because of {deciding}{other}"


def _first_models(runtime: Runtime) -> list[str]:
    """The models that roles ask first, without duplicates and without those that could not be opened."""
    usable = ([name for name in role.models if name in runtime.models.by_name] for role in runtime.application.roles)
    return list(dict.fromkeys(names[0] for names in usable if names))


async def prepare_models(console: Console | None, runtime: Runtime) -> None:
    """Fetch and load the local models that are asked first: with a progress bar on ``console``, or said in the log. A
    fallback is loaded when it is needed, or by `rolecall models load`."""
    own = runtime.application.servers
    if any(hasattr(model, "warm") or name in own for name, model in runtime.models.by_name.items()):
        runtime.models.serving.need()
    for name in _first_models(runtime):
        model = runtime.models.by_name[name]
        if hasattr(model, "warm"):
            await _prepare(console, name, model)


async def _prepare(console: Console | None, name: str, model: Model) -> None:
    began = time.monotonic()
    try:
        if console is None:
            await warm(model)
        else:
            await warm_with_bar(console, name, model)
    except RolecallError as error:
        logger.error("%s is not ready: %s", name, error)
        return
    text = f"{name} is ready after {time.monotonic() - began:.1f} s"
    if console is None:
        logger.info("%s", text)
    else:
        console.print(f"[dim]{text}[/dim]", highlight=False)


async def warm_with_bar(console: Console, name: str, model: Model) -> None:
    """Fetch and load ``model`` with its progress on ``console``. Raises ModelError."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    loading = f"{name}: loading"
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(loading, total=None)

        def progress(done: int, total: int) -> None:
            fetched = f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB fetched, once"
            bar.update(task, description=loading if done == total else fetched, completed=done, total=total)

        await warm(model, progress)
