"""`rolecall logs` as asked for on the command line; what it prints stands in logs.py."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rolecall.cli import logs
from rolecall.cli.loop import stop_requested
from rolecall.cli.run import time_zone
from rolecall.config import load
from rolecall.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What was asked for: ``which`` conversation or turn, empty for the list of all; which records; how."""

    which: str
    user: str
    since: str
    errors: bool
    grep: str
    follow: bool
    timeline: bool
    as_json: bool


async def show(app_dir: Path | None, asked: Asked, console: Console) -> int:
    """Print it. Raises ConfigError for a call that makes no sense, RolecallError for what is not there."""
    application = load(app_dir)
    tz, log_dir = time_zone(application), application.log_dir
    filters = logs.make_filters(asked.user, asked.since, asked.errors, asked.grep, tz)
    if not asked.which:
        _check_listing(asked)
        logs.print_conversations(log_dir, filters, console, as_json=asked.as_json, tz=tz)
    elif asked.timeline:
        logs.print_timeline(log_dir, asked.which, console, as_json=asked.as_json, tz=tz)
    elif asked.follow:
        following = logs.follow(log_dir, asked.which, filters, console, as_json=asked.as_json, tz=tz)
        async with stop_requested() as wanted:
            await _until(wanted, asyncio.create_task(following, name="rolecall logs"))
    else:
        logs.print_records(log_dir, asked.which, filters, console, as_json=asked.as_json, tz=tz)
    return 0


def _check_listing(asked: Asked) -> None:
    for option, given in (("--follow", asked.follow), ("--timeline", asked.timeline)):
        if given:
            raise ConfigError(f"{option} needs a conversation or a turn, as `rolecall logs` lists them")


async def _until(wanted: asyncio.Event, work: asyncio.Task[None]) -> None:
    stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
    await asyncio.wait([work, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if work.done():
        work.result()
    work.cancel()
    await asyncio.wait([work])
