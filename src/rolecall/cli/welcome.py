"""The one calm screen that `rolecall up` shows, and the local models' way to being ready."""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from rolecall import __version__
from rolecall.errors import RolecallError
from rolecall.models.model import Model
from rolecall.models.registry import warm
from rolecall.runtime import Runtime
from rolecall.session import Session

logger = logging.getLogger(__name__)


def show_welcome(console: Console, session: Session, runtime: Runtime) -> None:
    """Print what is up, where, and what is missing."""
    application, settings = session.application, session.application.settings
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    where = f"bundled, appendfsync {settings.appendfsync}" if session.embedded else session.server.address
    rows.add_row("server", f"{session.found}, {where}")
    counts = [f"{name} {len(group)}" for name, group in runtime.roster.instances.items()]
    rows.add_row("roles", " · ".join(counts))
    rows.add_row("models", ", ".join(runtime.models.by_name) or "none: set GEN_MODEL or models=(…) in config.py")
    for name, problem in runtime.models.problems.items():
        rows.add_row("", f"[yellow]{name} is left out: {problem}[/yellow]")
    rows.add_row("transcripts", str(application.log_dir / "conversations"))
    rows.add_row("web", runtime.http or "not installed: pip install 'rolecall[http]'")
    if settings.telegram_bot_token is None:
        rows.add_row("telegram", "not set up: no TELEGRAM_BOT_TOKEN")
    rows.add_row("talk", 'rolecall chat · rolecall ask "Hello" · rolecall logs · rolecall top')
    console.print(f"[bold]Rolecall {__version__}[/bold] is up in {application.directory}", highlight=False)
    console.print(rows, highlight=False)


async def prepare_models(console: Console | None, runtime: Runtime) -> None:
    """Fetch and load the local models: with a progress bar on ``console``, or said in the log."""
    for name, model in runtime.models.by_name.items():
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
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{name}: loading", total=None)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, description=f"{name}: fetching, once", completed=done, total=total)

        await warm(model, progress)
