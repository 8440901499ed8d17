"""Tells how the system is doing."""

from collections.abc import Mapping
from typing import Any

from rolecall import Agent, Context, Envelope


class StatsAgent(Agent):
    """Tells how the system is doing."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Replies with the figures as short lines; what is not known is left out or 0."""
        return envelope.reply(report(await ctx.stats()), remember=False)


def report(figures: Mapping[str, Any]) -> str:
    """``figures`` (see Context.stats) for a person."""
    turns, tokens = figures.get("turns") or {}, figures.get("tokens") or {}
    lines = [
        f"Turns today: {turns.get('today', 0)}, of these failed: {turns.get('errors', 0)}",
        f"In flight now: {turns.get('in_flight', 0)}, of {figures.get('users_now', 0)} users",
        f"Time per turn: {turns.get('average_ms', 0) / 1000:.1f} s on average",
        f"Tokens: {tokens.get('in', 0)} read, {tokens.get('out', 0)} written",
    ]
    return "\n".join([*lines, *role_lines(figures), *model_lines(figures)])


def role_lines(figures: Mapping[str, Any]) -> list[str]:
    """A line per role that runs or has something waiting."""
    instances, queues = figures.get("instances") or {}, figures.get("queues") or {}
    lines = []
    for role in sorted({*instances, *queues}):
        of = instances.get(role) or {}
        lines.append(
            f"{role}: {of.get('busy', 0)} of {of.get('instances', 0)} busy, {queues.get(role, 0)} waiting, "
            f"{of.get('handled', 0)} handled, {of.get('errors', 0)} failed"
        )
    return lines


def model_lines(figures: Mapping[str, Any]) -> list[str]:
    """A line per model that was asked today or cannot be asked now."""
    lines = []
    for name, of in (figures.get("models") or {}).items():
        state = of.get("state", "ready")
        if of.get("calls") or state != "ready":
            cost = f", cost {of['cost']:.4f}" if of.get("cost") else ""
            lines.append(
                f"{name}: {of.get('calls', 0)} calls, {of.get('failed', 0)} failed, "
                f"{of.get('in', 0) + of.get('out', 0)} tokens{cost}, {state}"
            )
    return lines
