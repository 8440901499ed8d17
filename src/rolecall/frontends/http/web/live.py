"""What open pages request: streams of what changes, and the few actions that the API does not have."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from fastapi import Query as Parameter
from fastapi.sse import EventSourceResponse

from rolecall import stats
from rolecall.frontends.http import operators
from rolecall.frontends.http.auth import Operator, User
from rolecall.frontends.http.services import ServicesDep
from rolecall.frontends.http.sse import RETRY, Events, Streaming, event, streams
from rolecall.frontends.http.task import TaskRef, event_data, find_task, tell_task
from rolecall.frontends.http.web import views
from rolecall.frontends.http.web.views import Query
from rolecall.transcripts.record import RECORD_ID, Record, entry_order, read_records, session_files, visible

router = APIRouter(include_in_schema=False)
LIST_SECONDS = 1.0
LOG_SECONDS = 0.4
PROCESS_LOG_SECONDS = 1.0
NOW_SECONDS = 2.0
"""How often each of them polls."""
EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
START = (-1, -1, 0)
Text = Annotated[str, Parameter(max_length=200)]


def _query(
    search: Text = "", since: Text = "", errors: bool = False,
    page: Annotated[int, Parameter(ge=1, le=1_000_000)] = 1,
) -> Query:  # fmt: skip
    return Query(search, since, errors, page)


QueryDep = Annotated[Query, Depends(_query)]


@router.get("/web/pulse")
async def pulse(services: ServicesDep, who: User) -> dict[str, Any]:
    """Whether everything is well."""
    return await views.pulse(services, who)


# ── chat ────────────────────────────────────────────────────────────────────────────────────────


async def _found_task(services: ServicesDep, who: User, task_id: str) -> TaskRef:
    ref = TaskRef.parse(task_id, who)
    await find_task(services.bus, ref)
    return ref


@router.get("/web/chat/tasks/{task_id}/events", response_class=EventSourceResponse, dependencies=[Streaming])
@streams()
async def follow_chat(
    services: ServicesDep, ref: Annotated[TaskRef, Depends(_found_task)], last_event_id: Annotated[str, Header()] = ""
) -> Events:
    """A task's events from the first that is stored, so that it shows every role that worked on it."""
    after = last_event_id if EVENT_ID.fullmatch(last_event_id) else "0-0"
    yield RETRY
    async with aclosing(tell_task(services, ref, after, None)) as found:
        async for one in found:
            yield event(*event_data(ref, one), one.id)


# ── conversations ───────────────────────────────────────────────────────────────────────────────


async def _first_page(services: ServicesDep, query: QueryDep) -> dict[str, Any]:
    return await views.list_conversations(services, query)


@router.get("/web/conversations/events", response_class=EventSourceResponse, dependencies=[Streaming])
@streams()
async def follow_list(
    services: ServicesDep, _: Operator, query: QueryDep, page: Annotated[dict[str, Any], Depends(_first_page)]
) -> Events:
    """A page of conversations, whenever it changes."""
    yield RETRY
    yield event("conversations", page)
    took = 0.0
    while True:
        # Polling takes at most a tenth of the time, however many conversations there are.
        await asyncio.sleep(max(LIST_SECONDS, 10 * took))
        started, before = time.monotonic(), page
        page = await views.list_conversations(services, query)
        took = time.monotonic() - started
        if page != before:
            yield event("conversations", page)


async def _shown(services: ServicesDep, _: Operator, which: str) -> dict[str, Any]:
    return await operators.show_conversation(which, services)


Shown = Annotated[dict[str, Any], Depends(_shown)]


@router.get("/web/conversations/{which}/events", response_class=EventSourceResponse, dependencies=[Streaming])
@streams()
async def follow_conversation(
    services: ServicesDep, shown: Shown, after: Text = "", last_event_id: Annotated[str, Header()] = ""
) -> Events:
    """A conversation's records after one of them, and its turns whenever they change."""
    name, known = shown["name"], last_event_id or after
    order = entry_order(known) if RECORD_ID.fullmatch(known) else START
    yield RETRY
    directory = services.log_dir / "conversations" / name
    stamp: object = None
    records: list[Record] = []
    ran = False
    while session_files(directory):
        started, before = time.monotonic(), stamp
        stamp = [(path, path.stat().st_size) for path in session_files(directory)]
        if stamp != before:
            records = await asyncio.to_thread(lambda: list(read_records(directory, services.tz)))
        shown = await operators.show_conversation(name, services)
        if stamp != before or shown["running"] or ran:
            new = [record for record in records if record.order > order][-views.LINES :]
            order = max([order, *(record.order for record in new)])
            data = {"records": list(map(views.line_of, new)), "turns": views.turns_of(records), "shown": shown}
            yield event("grown", data, f"{order[0]}-{order[1]}" if order[0] >= 0 else "")
        ran = bool(shown["running"])
        await asyncio.sleep(max(LOG_SECONDS, 10 * (time.monotonic() - started)))
    yield event("gone", {})


@router.post("/web/conversations/{which}/stop")
async def stop(services: ServicesDep, shown: Shown) -> dict[str, int]:
    """Cancel every turn of a conversation."""
    return {"turns": await services.front.stop(shown["id"])}


@router.get("/web/now/events", response_class=EventSourceResponse, dependencies=[Streaming])
@streams()
async def follow_now(services: ServicesDep, _: Operator) -> Events:
    """The samples of the last minutes, then the current state every two seconds."""
    yield RETRY
    yield event("series", {"samples": await stats.samples(services.bus)})
    newest = -1
    while True:
        found = await views.now(services)
        minute = found["ms"] // stats.MINUTE_MS
        if minute > newest:
            newest = minute
            yield event("minutes", {"samples": await stats.minute_samples(services.bus), "bounds": stats.BUCKETS})
        yield event("now", found)
        await asyncio.sleep(NOW_SECONDS)


@router.get("/web/log/events", response_class=EventSourceResponse, dependencies=[Streaming])
@streams()
async def follow_process_log(
    services: ServicesDep, _: Operator, process: Text = "", level: operators.Level = "info",
    last_event_id: Annotated[str, Header()] = "",
) -> Events:  # fmt: skip
    """The newest lines that the processes logged, then each that they log."""
    after = last_event_id if EVENT_ID.fullmatch(last_event_id) else ""
    yield RETRY
    told = False
    while True:
        lines = (await operators.read_process_log(services, process, level, after, views.LINES))["lines"]
        if lines or not told:
            told, after = True, lines[-1]["id"] if lines else after
            yield event("lines", {"lines": [{**line, "text": visible(line["text"])} for line in lines]}, after)
        await asyncio.sleep(PROCESS_LOG_SECONDS)
