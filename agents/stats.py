"""Shows how the system is doing."""

from collections.abc import Mapping
from typing import Any

from rolecall import Agent, Context, Envelope


class StatsAgent(Agent):
    """Shows how the system is doing."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Reply with the statistics as short lines; unknown values are omitted or 0."""
        return envelope.reply(report(await ctx.stats()), remember=False)


def report(figures: Mapping[str, Any]) -> str:
    """``figures`` (see Context.stats) as text."""
    turns, tokens = figures.get("turns") or {}, figures.get("tokens") or {}
    lines = [
        f"Turns today: {turns.get('today', 0)} ({turns.get('errors', 0)} failed)",
        f"In flight now: {turns.get('in_flight', 0)} from {figures.get('users_now', 0)} users",
        f"Average turn: {turns.get('average_ms', 0) / 1000:.1f} s",
        f"Tokens: {tokens.get('in', 0)} in, {tokens.get('out', 0)} out",
    ]
    return "\n".join([*lines, *role_lines(figures), *model_lines(figures)])


def role_lines(figures: Mapping[str, Any]) -> list[str]:
    """One line per role that has instances or waiting envelopes."""
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
    """One line per model that was called today or is not ready."""
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
