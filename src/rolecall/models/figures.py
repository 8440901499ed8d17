"""How the models do: what was asked of them and spent on them today, and whether they may be asked now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from rolecall import keys
from rolecall.models.gate import MICRO
from rolecall.redis_client import Server


async def model_figures(server: Server, names: Iterable[str]) -> dict[str, Any]:
    """``models``: per name calls, failures, tokens, money, average ms, calls in flight, turns that wait, and ``state``:
    ``ready``, or what keeps it from being asked; ``cost``: money spent today (UTC) on all; ``spenders``: tokens and
    money per user."""
    names = list(names)
    spent = _whole(await server.fetch("HGETALL", keys.spent(time.strftime("%Y%m%d", time.gmtime()))))
    seconds, micros = await server.fetch("TIME")
    now = int(seconds) * 1000 + int(micros) / 1000
    states = await asyncio.gather(*(_state(server, name, now) for name in names))
    return {
        "models": {name: {**_used(spent, name), **state} for name, state in zip(names, states, strict=True)},
        "cost": spent.get("cost", 0) / MICRO,
        "spenders": _spenders(spent),
    }


async def _state(server: Server, name: str, now: float) -> dict[str, Any]:
    flat, busy, waiting = await asyncio.gather(
        server.fetch("HGETALL", keys.model(name, "state")),
        server.fetch("ZCOUNT", keys.model(name, "busy"), now, "+inf"),
        server.fetch("ZCARD", keys.model(name, "waiting")),
    )
    state = {field.decode(): value.decode() for field, value in zip(flat[::2], flat[1::2], strict=True)}
    return {"in_flight": busy, "waiting": waiting, "state": _word(state, now)}


def _word(state: dict[str, str], now: float) -> str:
    if state.get("open") == "1":
        return f"away: {state.get('why', '')}"
    left = (float(state.get("until", 0)) - now) / 1000
    return f"asks to wait {left:.0f} s: {state.get('why', '')}" if left > 0 else "ready"


def _used(spent: dict[str, int], name: str) -> dict[str, Any]:
    figures = {part: spent.get(f"m:{name}:{part}", 0) for part in ("calls", "failed", "in", "out", "cost", "ms")}
    average = round(figures.pop("ms") / figures["calls"]) if figures["calls"] else 0
    return {**figures, "cost": figures["cost"] / MICRO, "average_ms": average}


def _spenders(spent: dict[str, int]) -> dict[str, dict[str, float]]:
    users: dict[str, dict[str, float]] = {}
    for field, value in spent.items():
        if field.startswith("u:"):
            user, _, what = field[2:].rpartition(":")
            users.setdefault(user, {})[what] = value / MICRO if what == "cost" else value
    return users


def _whole(flat: list[bytes]) -> dict[str, int]:
    return {field.decode(): int(value) for field, value in zip(flat[::2], flat[1::2], strict=True)}
