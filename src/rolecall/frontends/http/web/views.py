"""The data that the pages show: for their templates, and for their streams whenever it changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from rolecall import stats
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import active_conversations
from rolecall.bus.dead_letters import count_dead_letters
from rolecall.bus.process.processes import instance_counts, live_counts
from rolecall.config import Application
from rolecall.frontends.http import operators
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.intake import PREFIX
from rolecall.frontends.http.probes import missing_roles
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.web.thread import first_words, last_words
from rolecall.transcripts.record import (
    Record,
    conversation_dir,
    read_records,
    unquoted,
    visible,
)
from rolecall.transcripts.timeline import TurnTimeline, trees
from rolecall.transcripts.words import STATES, tone_of

MAX_MESSAGES = 200
ROWS = 50
TURNS = 20
SERVER_FIELDS = ("id", "model", "state", "host", "slots", "in_flight", "ram", "age", "pinned", "why")
LINES = 1000


@dataclass(frozen=True)
class Query:
    """A search in the list of conversations."""

    search: str = ""
    since: str = ""
    errors: bool = False
    page: int = 1

    def on_page(self, page: int) -> str:
        """The query string of another page of the same search."""
        given = {"search": self.search, "since": self.since, "errors": "1" if self.errors else "", "page": page}
        return urlencode({name: value for name, value in given.items() if value})


async def list_conversations(services: Services, query: Query) -> dict[str, Any]:
    """A page of conversations as in the operators' API, with ``running`` and the text of the last line as ``said``."""
    asked = operators.list_conversations(services, query.search, "", query.since, query.errors, query.page, ROWS)
    found: dict[str, Any] = await asked
    active = await active_conversations(services.bus)
    words = await asyncio.to_thread(
        lambda: [
            (first_words(services, row["name"]), last_words(services, row["name"])) for row in found["conversations"]
        ]
    )
    for row, (first, last) in zip(found["conversations"], words, strict=True):
        row["running"] = row["id"] in active
        # The title of a conversation over HTTP is the name of its key, which says less.
        row["title"] = (first or row["title"]) if row["id"].startswith(PREFIX) else row["title"]
        row["said"] = last or row["line"].split("] ", 3)[-1]
    return found


@dataclass(frozen=True)
class ConversationView:
    """One conversation: ``shown`` as in the operators' API, its last turns, and its last records of ``total``."""

    shown: dict[str, Any]
    turns: list[dict[str, Any]]
    records: list[Record]
    total: int


async def show_conversation(services: Services, which: str) -> ConversationView:
    """Find a conversation by its id, its directory or a short turn id. Raises HTTPException (404)."""
    shown = await operators.show_conversation(which, services)
    records = await asyncio.to_thread(_records, services, shown["name"])
    return ConversationView(shown, turns_of(records), records[-LINES:], len(records))


def turns_of(records: list[Record]) -> list[dict[str, Any]]:
    """The last turns among ``records``, with their hops; each is followed by the calls that it made, ``depth`` deep.
    ``now`` is the current time in ms."""
    now = time.time_ns() // 1_000_000
    return [_turn_row(turn, now) for tree in trees(records, TURNS) for turn in tree]


def _turn_row(turn: TurnTimeline, now: int) -> dict[str, Any]:
    state = "waiting" if turn.state == "running" and not turn.hops else turn.state
    return {
        **msgspec.to_builtins(turn), "now": now, "said": unquoted(turn.said), "state": state,
        "tone": STATES.get(state, ""), "depth": min(turn.depth, 6),
    }  # fmt: skip


def line_of(record: Record) -> dict[str, Any]:
    """A record as a line of the log: ``shown`` is its text with control characters escaped."""
    return {**msgspec.to_builtins(record), "shown": visible(record.text), "tone": tone_of(record.word)}


async def now(services: Services) -> dict[str, Any]:
    """Everything on the page *Now*."""
    agents, statistics, sample, servers, counts = await asyncio.gather(
        operators.list_agents(services),
        operators.read_stats(services),
        stats.newest_sample(services.bus),
        stats.model_servers(services.bus),
        role_counts(services.bus, services.application),
    )
    for process in agents["processes"]:
        for instance in process.get("instances", ()):
            if instance.get("busy"):
                instance["place"] = conversation_dir(instance["conversation"])
    shown = [{name: getattr(server, name) for name in SERVER_FIELDS} for server in servers]
    ms = time.time_ns() // 1_000_000
    return {"ms": ms, "agents": agents, "stats": statistics, "sample": sample, "servers": shown, "counts": counts}


async def role_counts(bus: Bus, application: Application) -> dict[str, dict[str, int]]:
    """For each role, how many instances a process is to have now, and by its configuration."""
    live = await live_counts(bus, application.counts)
    return {
        role.name: {"count": live.get(role.name, application.count(role)), "configured": application.count(role)}
        for role in application.roles
    }


async def pulse(services: Services, who: Principal) -> dict[str, Any]:
    """The roles without a live instance; for operators also the numbers of instances and dead letters."""
    counts = await instance_counts(services.bus)
    missing = await missing_roles(services, counts)
    if not who.admin:
        return {"missing": missing, "instances": None, "dead": None}
    return {"missing": missing, "instances": sum(counts.values()), "dead": await count_dead_letters(services.bus)}


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


def _records(services: Services, name: str) -> list[Record]:
    return list(read_records(Path(services.log_dir, "conversations", name), services.tz))
