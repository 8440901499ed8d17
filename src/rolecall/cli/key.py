"""`rolecall key`: who may use the HTTP server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rolecall.cli.columns import print_lines, print_table
from rolecall.cli.http import check_installed
from rolecall.cli.visit import load_quietly
from rolecall.runtime import process_name
from rolecall.session import open_session
from rolecall.transcript import visible

if TYPE_CHECKING:
    from rolecall.frontends.http.keys import Keys


async def new_key(app_dir: Path | None, name: str, console: Console, *, admin: bool) -> int:
    """Make a key and print it: it is never shown again."""
    async with _keys(app_dir) as keys:
        key, secret = await keys.new(name, admin=admin)
    print_lines(console, [secret])
    what = "an operator's key" if admin else "a key"
    print_lines(Console(stderr=True), [f"This is {what}, {key.id}; it is shown just this once. Keep it safe."])
    return 0


async def list_keys(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """List them, without what makes them good."""
    async with _keys(app_dir) as keys:
        found = await keys.everyone()
    if as_json:
        rows = ({"id": key.id, "name": key.name, "admin": key.admin, "made": key.made} for key in found)
        print_lines(console, (json.dumps(row) for row in rows))
    elif found:
        lines = [(key.id, visible(key.name), "operator" if key.admin else "user", _day(key.made)) for key in found]
        print_table(console, ("id", "name", "for", "made"), lines)
    else:
        print_lines(console, ["There is no key: this machine alone is let in, without one."])
    return 0


async def revoke_key(app_dir: Path | None, key_id: str, console: Console) -> int:
    """Refuse it from now on, and the logins made with it; other processes do within two seconds."""
    async with _keys(app_dir) as keys:
        await keys.revoke(key_id)
    print_lines(console, [f"{key_id}  revoked"])
    return 0


@asynccontextmanager
async def _keys(app_dir: Path | None) -> AsyncIterator[Keys]:
    check_installed()
    from rolecall.frontends.http.keys import Keys

    async with open_session(load_quietly(app_dir), process_name(), start=True) as session:
        yield Keys(session.server)


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M")
