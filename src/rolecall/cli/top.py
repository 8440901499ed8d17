"""The figures of today (UTC) and of now: once (`rolecall stats`), or on a screen that refreshes (`rolecall top`)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rolecall import stats
from rolecall.bus.process.processes import InstanceState, ProcessState, ask_for_reports, live_processes
from rolecall.cli.output import counted, print_lines, print_table, visiting
from rolecall.cli.runner import stop_requested
from rolecall.errors import ServerError, duration
from rolecall.session import Session
from rolecall.transcripts.record import visible

MOST_USERS = 20
REFRESH_SECONDS = 1.0
OTHER_LINES = 14
"""What the screen needs besides the rows of roles, processes and instances."""


async def show_stats(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """Print them as tables, or as one JSON object."""
    async with visiting(app_dir) as session:
        figures = await _figures(session)
    if as_json:
        print_lines(console, [json.dumps(figures)])
    else:
        show(figures, console)
    return 0


def show(figures: Mapping[str, Any], console: Console) -> None:
    """``figures`` of stats.summary for a person."""
    print_lines(console, summary(figures))
    print_lines(console, [""])
    print_table(console, ("role", "instances", "busy", "used", "queue", "handled", "errors"), role_rows(figures),
                right=range(1, 7))  # fmt: skip
    if figures["models"]:
        print_lines(console, [""])
        print_table(console, ("model", "calls", "failed", "tokens", "cost", "average", "now", "wait", ""),
                    model_rows(figures), right=range(1, 8))  # fmt: skip
    if figures["users"]:
        print_lines(console, [""])
        _show_users(figures["users"], figures["spenders"], console)
    if figures["connections"]:
        print_lines(console, [""])
        rows = [(name, pool["open"], pool["allowed"]) for name, pool in figures["connections"].items()]
        print_table(console, ("process", "connections", "allowed"), rows, right=(1, 2))


def summary(figures: Mapping[str, Any]) -> list[str]:
    """The figures of the whole, in three lines."""
    turns, tokens = figures["turns"], figures["tokens"]
    return [
        f"today   {counted(turns['today'], 'turn')}, {seconds(turns['average_ms'])} on average, "
        f"{counted(turns['errors'], 'error')}, {turns['cancelled']} cancelled, "
        f"tokens {tokens['in']} in, {tokens['out']} out"
        + (f", cost {money(figures['cost'])}" if figures["cost"] else "")
        + (f", saved {_saved(figures['saved'])}" if figures["saved"]["tokens"] else ""),
        f"now     {counted(turns['in_flight'], 'turn')} in flight, {counted(figures['users_now'], 'user')} at once, "
        f"{counted(sum(figures['queues'].values()), 'envelope')} in queues, {figures['deferred']} deferred"
        + (f", {_suspended(figures['suspended'])}" if figures["suspended"]["turns"] else ""),
        f"dead    {counted(figures['dead_letters'], 'dead letter')}"
        + (": rolecall dead list" if figures["dead_letters"] else ""),
    ]


def _saved(saved: Mapping[str, float]) -> str:
    """What recorded steps saved today."""
    cost = f" ({money(saved['cost'])})" if saved["cost"] else ""
    return f"{counted(round(saved['tokens']), 'token')}{cost} by replayed steps"


def _suspended(suspended: Mapping[str, float]) -> str:
    return f"{suspended['turns']} suspended, the oldest for {duration(suspended['oldest_seconds'])}"


def role_rows(figures: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Per role: instances, busy now, share of their time they were, queue depth, handled, errors."""
    return [
        (role, row["instances"], row["busy"], f"{row['utilisation']:.0%}", figures["queues"].get(role, 0),
         row["handled"], row["errors"])
        for role, row in figures["instances"].items()
    ]  # fmt: skip


def model_rows(figures: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """Per model: calls and failures of today, tokens, money, time of a call, calls now, turns that wait, state."""
    return [
        (visible(name), row["calls"], row["failed"], row["in"] + row["out"], money(row["cost"]),
         seconds(row["average_ms"]), row["in_flight"], row["waiting"], visible(row["state"]))
        if row["counted"] else (visible(name), *"–––––––", visible(row["state"]))
        for name, row in figures["models"].items()
    ]  # fmt: skip


def money(amount: float) -> str:
    """``amount`` in the money of the price table."""
    return f"{amount:.4f}" if amount < 1 else f"{amount:.2f}"


def seconds(ms: float) -> str:
    """``ms`` as seconds."""
    return f"{ms / 1000:.2f} s"


def _show_users(
    users: Mapping[str, Mapping[str, int]], spenders: Mapping[str, Mapping[str, float]], console: Console
) -> None:
    busiest = sorted(users.items(), key=lambda item: -item[1].get("turns", 0))
    rows = [
        (visible(user), row.get("turns", 0), seconds(row["average_ms"]), row.get("error", 0),
         round(spenders.get(user, {}).get("tokens", 0)), money(spenders.get(user, {}).get("cost", 0)))
        for user, row in busiest[:MOST_USERS]
    ]  # fmt: skip
    print_table(console, ("user", "turns", "average", "errors", "tokens", "cost"), rows, right=range(1, 6))
    if len(busiest) > MOST_USERS:
        print_lines(console, [f"and {len(busiest) - MOST_USERS} more; --json has all"], style="dim")


async def top(app_dir: Path | None, console: Console) -> int:
    """Refresh every second until q or Ctrl-C; without a terminal, print once."""
    async with stop_requested() as wanted, visiting(app_dir) as session:
        if not console.is_terminal:
            console.print(*await _look(session, None))
            return 0
        with _q_sets(wanted), Live(console=console, screen=True, auto_refresh=False) as live:
            while not wanted.is_set():
                await _refresh(session, live, console.height)
                with suppress(TimeoutError):
                    await asyncio.wait_for(wanted.wait(), REFRESH_SECONDS)
    return 0


def screen(
    alive: Sequence[ProcessState], figures: Mapping[str, Any], height: int | None, troubles: Sequence[str] = ()
) -> list[RenderableType]:
    """What is shown of the processes, of stats.summary and of the server's troubles, in ``height`` lines if given."""
    instances = [instance for state in alive for instance in state.instances]
    rows = [*summary(figures), ""]
    taken = OTHER_LINES + len(figures["instances"]) + len(alive) + len(troubles)
    room = None if height is None else max(3, height - taken)
    shown: list[RenderableType] = [Text(f"server  {trouble}", style="bold yellow") for trouble in troubles]
    shown += [Text("\n".join(rows)), _roles(figures), Text(""), _instances(instances, room), Text("")]
    return [*shown, _processes(alive)]


async def _refresh(session: Session, live: Live, height: int) -> None:
    try:
        live.update(Group(*await _look(session, height)), refresh=True)
    except ServerError as error:
        live.update(Text(str(error)), refresh=True)


async def _figures(session: Session) -> dict[str, Any]:
    return await stats.summary(session.bus, session.application.role_names, session.application.model_names)


async def _look(session: Session, height: int | None) -> list[RenderableType]:
    await ask_for_reports(session.bus)
    figures = await _figures(session)
    condition = await session.server.condition()
    refuses = session.server.outage.reason or condition.refuses
    troubles = [*([f"new messages wait: {refuses}"] if refuses else []), *condition.warnings]
    return screen(await live_processes(session.bus), figures, height, troubles)


def _roles(figures: Mapping[str, Any]) -> Table:
    table = _table("role", "instances", "busy", "used", "queue", "handled", "errors", numbers=range(1, 7))
    for row in role_rows(figures):
        table.add_row(*map(str, row))
    return table


def _instances(instances: Sequence[InstanceState], room: int | None) -> Table:
    """The busy ones first, the longest first; as many as there is room for."""
    table = _table("instance", "does", "for", "handled", "errors", numbers=(2, 3, 4))
    ordered = sorted(instances, key=lambda instance: (not instance.busy, -instance.seconds, instance.id))
    for instance in ordered[:room]:
        does = Text(visible(f"{instance.conversation}/{instance.turn}") if instance.busy else "waits")
        does.stylize("bold green" if instance.busy else "dim")
        lasting = f"{instance.seconds:.1f} s" if instance.busy else ""
        table.add_row(Text(instance.id), does, lasting, str(instance.handled), str(instance.errors))
    if room is not None and len(ordered) > room:
        table.add_row(Text(f"and {len(ordered) - room} more", style="dim"))
    return table


def _processes(alive: Sequence[ProcessState]) -> Table:
    table = _table("process", "kind", "up", "instances", "connections", "", numbers=(2, 3, 4))
    for state in alive:
        pool = f"{state.connections}/{state.max_connections}"
        scribe = "scribe" if state.scribe else ""
        table.add_row(Text(state.process), state.kind, f"{state.uptime:.0f} s", str(len(state.instances)), pool, scribe)
    if not alive:
        table.add_row(Text("none: start one with `rolecall up`", style="yellow"))
    return table


def _table(*names: str, numbers: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number in numbers else "left", no_wrap=True)
    return table


@contextmanager
def _q_sets(wanted: asyncio.Event) -> Iterator[None]:
    """Let the key q set ``wanted``, where there is a keyboard and a terminal that can be asked for single keys."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, lambda: wanted.set() if b"q" in os.read(descriptor, 64).lower() else None)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
