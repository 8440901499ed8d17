"""`rolecall stats`: the figures of today (UTC) and of now, once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rolecall import registry
from rolecall.cli.columns import print_lines, print_table
from rolecall.cli.visit import visiting
from rolecall.transcript import visible

MOST_USERS = 20


async def stats(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """Print them as tables, or as one JSON object."""
    async with visiting(app_dir) as session:
        roles = [role.name for role in session.application.roles]
        figures = await registry.statistics(session.bus, roles, session.application.model_names)
    if as_json:
        print_lines(console, [json.dumps(figures)])
    else:
        show(figures, console)
    return 0


def show(figures: Mapping[str, Any], console: Console) -> None:
    """``figures`` of registry.statistics for a person."""
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
        f"today   {turns['today']} turns, {seconds(turns['average_ms'])} on average, {turns['errors']} errors, "
        f"{turns['cancelled']} cancelled, tokens {tokens['in']} in, {tokens['out']} out"
        + (f", cost {money(figures['cost'])}" if figures["cost"] else ""),
        f"now     {turns['in_flight']} turns in flight, {figures['users_now']} users at once, "
        f"{sum(figures['queues'].values())} envelopes in queues, {figures['deferred']} deferred",
        f"dead    {figures['dead_letters']} dead letters" + (": rolecall dead list" if figures["dead_letters"] else ""),
    ]


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
