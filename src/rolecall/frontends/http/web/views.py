"""What the pages show, gathered: for their templates, and again whenever it changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from rolecall import stats
from rolecall.agent.memory import Memory
from rolecall.bus.admission import places
from rolecall.bus.envelope import decode
from rolecall.errors import DecodeError
from rolecall.frontends.http import metrics, operators
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.intake import PREFIX
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.task import Place
from rolecall.redis import keys
from rolecall.transcripts.reading import Filters
from rolecall.transcripts.record import (
    STATES,
    Record,
    conversation_dir,
    parse_line,
    read_lines,
    read_records,
    session_files,
    tone_of,
    visible,
)
from rolecall.transcripts.timeline import timelines

KEPT_CONVERSATIONS = 50
MESSAGES = 200
ROWS = 50
TURNS = 20
SERVER_FIELDS = ("id", "model", "state", "host", "slots", "in_flight", "ram", "age", "pinned", "why")
LINES = 1000


@dataclass(frozen=True)
class Query:
    """What is looked for in the list of conversations."""

    search: str = ""
    since: str = ""
    errors: bool = False
    page: int = 1

    def on(self, page: int) -> str:
        """The same on another page, for an address."""
        given = {"search": self.search, "since": self.since, "errors": "1" if self.errors else "", "page": page}
        return urlencode({name: value for name, value in given.items() if value})


async def listed(here: Services, query: Query) -> dict[str, Any]:
    """A page of conversations as the operators' API has it, also with ``running``, and ``said`` for the last line."""
    asked = operators.list_conversations(here, query.search, "", query.since, query.errors, query.page, ROWS)
    found: dict[str, Any] = await asked
    active = await _active(here)
    for row in found["conversations"]:
        row["running"] = row["id"] in active
        row["said"] = row["line"].split("] ", 3)[-1]
    return found


@dataclass(frozen=True)
class Shown:
    """One conversation: ``shown`` as the operators' API has it, its last ``turns`` and ``records``, of ``total``."""

    shown: dict[str, Any]
    turns: list[dict[str, Any]]
    records: list[Record]
    total: int


async def conversation(here: Services, which: str) -> Shown:
    """The one that ``which`` names: an id, a directory, a short turn id. Raises HTTPException (404)."""
    shown = await operators.show_conversation(which, here)
    records = await asyncio.to_thread(_records, here, shown["name"])
    return Shown(shown, turns_of(records), records[-LINES:], len(records))


def turns_of(records: list[Record]) -> list[dict[str, Any]]:
    """The last turns among ``records`` with their hops; ``now`` is this moment."""
    now = time.time_ns() // 1_000_000
    shown = [{**msgspec.to_builtins(turn), "now": now} for turn in timelines(records)[-TURNS:]]
    return [{**turn, "said": _unquoted(turn["said"]), "tone": STATES.get(turn["state"], "")} for turn in shown]


def line_of(record: Record) -> dict[str, Any]:
    """A record for the log: ``shown`` is its text with nothing hidden in it, ``tone`` the tone of its word."""
    return {**msgspec.to_builtins(record), "shown": visible(record.text), "tone": tone_of(record.word)}


async def now(here: Services) -> dict[str, Any]:
    """Everything the page *Now* draws."""
    agents, stats, sample, servers = await asyncio.gather(
        operators.list_agents(here), operators.figures(here), metrics.newest(here), _model_servers(here)
    )
    for process in agents["processes"]:
        for instance in process.get("instances", ()):
            if instance.get("busy"):
                instance["place"] = conversation_dir(instance["conversation"])
    return {"ms": time.time_ns() // 1_000_000, "agents": agents, "stats": stats, "sample": sample, "servers": servers}


async def pulse(here: Services, who: Principal) -> dict[str, Any]:
    """Whether all is well: roles without an instance; for operators how many instances and dead letters there are."""
    counts = await stats.instance_counts(here.bus)
    needed = [role.name for role in here.application.roles if here.application.count(role)]
    missing = [name for name in needed if not counts.get(name)]
    if not who.admin:
        return {"missing": missing, "instances": None, "dead": None}
    letters = await asyncio.gather(*(here.bus.server.fetch("XLEN", shard.dead) for shard in here.bus.shards))
    return {"missing": missing, "instances": sum(counts.values()), "dead": sum(letters)}


# ── chat ────────────────────────────────────────────────────────────────────────────────────────


async def kept(here: Services, who: Principal) -> list[dict[str, Any]]:
    """The conversations of this key, the one last active first: name, what was said first, when it was last active."""
    return await asyncio.to_thread(_kept, here, f"{PREFIX}{who.id}:")


async def talk(here: Services, conversation: str) -> dict[str, Any]:
    """What is remembered of a conversation, and the tasks in it that have not ended, with what was said."""
    memory = Memory(here.bus.server, here.bus.shard(conversation), conversation, MESSAGES)
    entries, tasks = await asyncio.gather(memory.entries(), _unfinished(here, conversation))
    return {"messages": [msgspec.to_builtins(entry) for entry in entries], "tasks": tasks}


async def _unfinished(here: Services, conversation: str) -> list[dict[str, str]]:
    bus, shard = here.bus, here.bus.shard(conversation)
    running, waiting = await asyncio.gather(
        bus.server.fetch("HGET", shard.conversation(conversation), "cur"), places(bus, conversation)
    )
    turns = [*([running.decode()] if running else []), *waiting]
    if not turns:
        return []
    found = await bus.server.fetch("HMGET", shard.journal(conversation), *(f"{turn}:e" for turn in turns))
    return [
        {"id": Place(conversation, turn).id, "said": _text(raw)} for turn, raw in zip(turns, found, strict=True) if raw
    ]


def _text(raw: bytes) -> str:
    try:
        return decode(raw).text
    except DecodeError:
        return ""


def _kept(here: Services, own: str) -> list[dict[str, Any]]:
    found = [summary for summary in here.summaries.find(Filters(own)) if summary.conversation.startswith(own)]
    return [
        {"name": row.conversation.removeprefix(own), "said": _first_said(here, row.name), "last": row.last}
        for row in found[:KEPT_CONVERSATIONS]
    ]


def _first_said(here: Services, name: str) -> str:
    """What a conversation began with, as far as its transcript tells."""
    for path in session_files(here.log_dir / "conversations" / name)[:1]:
        for line in read_lines(path):
            record = parse_line(line, here.tz)
            if record is not None and record.word == "RECEIVED":
                return _unquoted(record.text.partition(f"/{record.turn} ")[2])[:100]
    return ""


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


def _unquoted(said: str) -> str:
    return said[1:-1] if len(said) > 1 and said[0] == said[-1] == '"' else said


async def _model_servers(here: Services) -> list[dict[str, Any]]:
    """The servers of models that run, by model; of what is kept of them, never the key."""
    names = (keys.SERVED, keys.SERVED_CALLS, keys.SERVED_USERS, keys.SERVED_FAILED)
    found = [msgspec.json.decode(raw) for raw in await here.bus.server.run("served_list", names, ())]
    shown = [{name: server.get(name) for name in SERVER_FIELDS} for server in found]
    return sorted(shown, key=lambda server: (server["model"], server["id"]))


async def _active(here: Services) -> set[str]:
    """The conversations in which something runs."""
    found = await asyncio.gather(*(here.bus.server.fetch("ZRANGE", shard.active, 0, -1) for shard in here.bus.shards))
    return {name.decode("utf-8", "replace").partition("\x1f")[0] for names in found for name in names}


def _records(here: Services, name: str) -> list[Record]:
    return list(read_records(Path(here.log_dir, "conversations", name), here.tz))
