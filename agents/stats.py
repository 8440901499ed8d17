"""Shows how the system is doing."""

from collections.abc import Mapping
from typing import Any

from agents.texts import Speaker, speaker
from rolecall import Agent, Context, Envelope


class StatsAgent(Agent):
    """Shows how the system is doing."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Reply with the statistics as short lines; unknown values are omitted or 0."""
        return envelope.reply(report(await ctx.stats(), await speaker(envelope, ctx)), remember=False)


def report(figures: Mapping[str, Any], speaker: Speaker) -> str:
    """``figures`` (see Context.stats) as text."""
    turns, tokens, say = figures.get("turns") or {}, figures.get("tokens") or {}, speaker.say
    lines = [
        say("stats_turns", count=turns.get("today", 0), failed=turns.get("errors", 0)),
        say("stats_running", count=turns.get("in_flight", 0), users=figures.get("users_now", 0)),
        say("stats_average", seconds=f"{turns.get('average_ms', 0) / 1000:.1f}"),
        say("stats_tokens", given=tokens.get("in", 0), made=tokens.get("out", 0)),
    ]
    return "\n".join([*lines, *role_lines(figures, speaker), *model_lines(figures, speaker)])


def role_lines(figures: Mapping[str, Any], speaker: Speaker) -> list[str]:
    """One line per role that has instances or waiting envelopes."""
    instances, queues = figures.get("instances") or {}, figures.get("queues") or {}
    lines = []
    for role in sorted({*instances, *queues}):
        of = {"busy": 0, "instances": 0, "handled": 0, "errors": 0, **(instances.get(role) or {})}
        line = speaker.say(
            "stats_role", role=role, busy=of["busy"], instances=of["instances"], waiting=queues.get(role, 0),
            handled=of["handled"], failed=of["errors"],
        )  # fmt: skip
        lines.append(line)
    return lines


def model_lines(figures: Mapping[str, Any], speaker: Speaker) -> list[str]:
    """One line per model that was called today or is not ready."""
    lines = []
    for name, of in (figures.get("models") or {}).items():
        state = str(of.get("state", "ready"))
        if of.get("calls") or state != "ready":
            line = speaker.say(
                "stats_model", model=name, calls=of.get("calls", 0), failed=of.get("failed", 0),
                tokens=of.get("in", 0) + of.get("out", 0), state=state_words(state, speaker),
            )  # fmt: skip
            cost = [speaker.say("stats_cost", cost=f"{of['cost']:.4f}")] if of.get("cost") else []
            lines.append(", ".join([line, *cost]))
    return lines


def state_words(state: str, speaker: Speaker) -> str:
    """``state`` (see Context.stats) in words, with the reason that it names."""
    word, _, why = state.partition(": ")
    key = "model_ready" if word == "ready" else "model_away" if word == "away" else "model_limited"
    return speaker.say(key) + (f" ({why})" if why else "")
