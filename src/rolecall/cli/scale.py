"""`rolecall scale`: how many instances of a role, at once and in every process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rolecall.agent.role import MAX_INSTANCES, Role
from rolecall.bus.bus import Bus
from rolecall.bus.process.processes import live_counts, live_processes
from rolecall.bus.process.processes import scale as scale_role
from rolecall.cli.output import columns, print_lines, print_table, visiting
from rolecall.config import Application
from rolecall.errors import ConfigError

EFFECT_SECONDS = 2.0
LOOK_SECONDS = 0.05
Wanted = dict[Role, int]


async def scale(app_dir: Path | None, orders: Sequence[str], console: Console) -> int:
    """Carry out ``role=count`` orders, all or none, and say what came of them; without any, list the counts."""
    async with visiting(app_dir) as session:
        application, bus = session.application, session.bus
        if not orders:
            await _show(bus, application, console)
            return 0
        wanted = _wanted(orders, application)
        await _check_total(bus, application, wanted)
        before = await _seen(bus)
        for role, count in wanted.items():
            await scale_role(bus, role.name, application.count(role), count)
        seen = await _wait_for(bus, wanted)
        print_lines(console, columns(_row(role, count, before, seen) for role, count in wanted.items()))
    return 0


def source_of_count(application: Application, role: Role, live: bool) -> str:
    """Where the count in force comes from."""
    source = application.sources.get(role.variable, "config.py")
    return f"live, by rolecall scale; {source} says {role.instances}" if live else source


def _wanted(orders: Sequence[str], application: Application) -> Wanted:
    wanted: Wanted = {}
    for order in orders:
        name, equals, count = order.partition("=")
        role = application.role(name.strip().lower())
        if role is None or not equals:
            known = ", ".join(role.name for role in application.roles)
            raise ConfigError(f"{order!r} is invalid: expected role=count with a role of {known}")
        if not (count.isascii() and count.isdigit() and int(count[:9]) <= MAX_INSTANCES):
            raise ConfigError(f"{name}={count} is invalid: expected an integer from 0 to {MAX_INSTANCES}")
        if role in wanted:
            raise ConfigError(f"{role.name} is named twice: expected one count for a role")
        wanted[role] = int(count)
    return wanted


async def _check_total(bus: Bus, application: Application, wanted: Wanted) -> None:
    live, limit = await live_counts(bus, application.counts), application.settings.total_instances
    total = sum(wanted.get(role, live.get(role.name, application.count(role))) for role in application.roles)
    if total > limit:
        raise ConfigError(f"that makes {total} instances in one process, more than TOTAL_INSTANCES={limit}")


async def _show(bus: Bus, application: Application, console: Console) -> None:
    live, seen = await live_counts(bus, application.counts), await _seen(bus)
    rows = []
    for role in application.roles:
        running = seen.get(role.name, [])
        count = live.get(role.name, role.instances)
        source = source_of_count(application, role, role.name in live)
        rows.append((role.name, count, sum(running), len(running), source))
    print_table(console, ("role", "wanted", "running", "processes", "from"), rows, right=(1, 2, 3))


async def _seen(bus: Bus) -> dict[str, list[int]]:
    """Per role, how many instances each process that has any has."""
    seen: dict[str, list[int]] = {}
    for state in await live_processes(bus):
        roles = [instance.role for instance in state.instances]
        for role in dict.fromkeys(roles):
            seen.setdefault(role, []).append(roles.count(role))
    return seen


async def _wait_for(bus: Bus, wanted: Wanted) -> dict[str, list[int]]:
    """What runs once that is what was wanted, or after the time in which it takes effect."""
    give_up = time.monotonic() + EFFECT_SECONDS
    while True:
        seen = await _seen(bus)
        if time.monotonic() > give_up or all(_reached(seen.get(role.name, []), n) for role, n in wanted.items()):
            return seen
        await asyncio.sleep(LOOK_SECONDS)


def _reached(running: list[int], count: int) -> bool:
    return set(running) == ({count} if count else set())


def _row(role: Role, count: int, before: dict[str, list[int]], seen: dict[str, list[int]]) -> tuple[str, str, str]:
    was, now = before.get(role.name, []), seen.get(role.name, [])
    per_process = max(was, default=0)
    change = f"{per_process} → {count}"
    if _reached(now, count):
        places = max(len(was), len(now))
        return role.name, change, f"in each of {places} processes" if places > 1 else ""
    if not was and not now:
        return role.name, change, "told, but no process runs this role"
    if sum(now) > count * len(now):
        return role.name, change, "told; those too many end after what they handle now"
    return role.name, change, "told; not every process has shown it yet"
