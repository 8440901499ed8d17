"""`rolecall health`: whether a process of this host gave a sign of life lately; for health checks of containers."""

from __future__ import annotations

import socket
from pathlib import Path

from rich.console import Console

from rolecall.bus.processes import ProcessState, live_processes
from rolecall.cli.output import load_quietly, print_lines, visiting


async def health(app_dir: Path | None, kind: str, console: Console) -> int:
    """Exit status 0 when a process of that ``kind`` on this host renewed its entry within three heartbeats, else 1;
    a Telegram front end without a token has nothing to do and is well."""
    host = socket.gethostname()
    if kind == "telegram" and load_quietly(app_dir).settings.telegram_bot_token is None:
        print_lines(console, ["idle: no TELEGRAM_BOT_TOKEN is set"])
        return 0
    async with visiting(app_dir) as session:
        alive = [state for state in await live_processes(session.bus) if _is(state, kind, host)]
    names = ", ".join(state.process.partition("~")[0] for state in alive)
    print_lines(console, [f"alive: {names}" if alive else f"no process of kind {kind} on {host} is alive"])
    return 0 if alive else 1


def _is(state: ProcessState, kind: str, host: str) -> bool:
    serves = state.kind == kind or (kind == "http" and bool(state.http))
    return serves and state.process.partition("~")[0].rpartition(":")[0] == host
