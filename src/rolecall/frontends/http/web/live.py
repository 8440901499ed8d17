"""What the pages ask for once they are open: rows, streams of what changes, and the few things they do."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from fastapi import Query as Parameter

from rolecall.bus.events import follow
from rolecall.errors import ServerError
from rolecall.frontends.http import metrics, operators
from rolecall.frontends.http.auth import Operator, User
from rolecall.frontends.http.intake import conversation_of
from rolecall.frontends.http.services import Here, Services
from rolecall.frontends.http.sse import RETRY, EventStream, Pieces, event
from rolecall.frontends.http.task import Place, look, told
from rolecall.frontends.http.web import views
from rolecall.frontends.http.web.views import Query
from rolecall.transcripts.record import Record, entry_order, read_records, session_files

router = APIRouter(include_in_schema=False)
LIST_SECONDS = 1.0
LOG_SECONDS = 0.4
NOW_SECONDS = 2.0
"""How often each looks."""
RECORD_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
BEFORE_ALL = (-1, -1)
Text = Annotated[str, Parameter(max_length=200)]


def _asked(
    search: Text = "", since: Text = "", errors: bool = False,
    page: Annotated[int, Parameter(ge=1, le=1_000_000)] = 1,
) -> Query:  # fmt: skip
    return Query(search, since, errors, page)


Asked = Annotated[Query, Depends(_asked)]


@router.get("/web/pulse")
async def pulse(here: Here, who: User) -> dict[str, Any]:
    """Whether all is well."""
    return await views.pulse(here, who)


# ── chat ────────────────────────────────────────────────────────────────────────────────────────


@router.get("/web/chat")
async def kept(here: Here, who: User) -> dict[str, Any]:
    """The conversations of this key."""
    return {"conversations": await views.kept(here, who)}


@router.get("/web/chat/tasks/{task_id}/events")
async def follow_task(
    here: Here, who: User, task_id: str, last_event_id: Annotated[str, Header()] = ""
) -> EventStream:  # fmt: skip
    """A task's events from its first one that is kept: so it is seen who was at it, however late one comes."""
    place = Place.read(task_id, who)
    await look(here.bus, place)  # one that is not there is refused before the stream begins
    after = last_event_id if RECORD_ID.fullmatch(last_event_id) else "0-0"
    return EventStream(here, who, _quiet(_answering(here, place, after)))


@router.get("/web/chat/{name:path}")
async def talk(here: Here, who: User, name: str) -> dict[str, Any]:
    """What was said in one of them, and what is being answered."""
    return await views.talk(here, conversation_of(who, name))


# ── conversations ───────────────────────────────────────────────────────────────────────────────


@router.get("/web/conversations/events")
async def follow_list(here: Here, who: Operator, query: Asked) -> EventStream:
    """The rows whenever they change."""
    found = await views.listed(here, query)  # what is asked wrongly is refused before the stream begins
    return EventStream(here, who, _quiet(_lists(here, query, found)))


@router.get("/web/conversations/{which}/events")
async def follow_conversation(
    here: Here, who: Operator, which: str, after: Text = "", last_event_id: Annotated[str, Header()] = ""
) -> EventStream:
    """A conversation's records after one of them, and its turns whenever they change."""
    shown = await operators.show_conversation(which, here)
    known = last_event_id or after
    order = entry_order(known) if RECORD_ID.fullmatch(known) else BEFORE_ALL
    return EventStream(here, who, _quiet(_growth(here, shown["name"], order)))


@router.post("/web/conversations/{which}/stop")
async def stop(here: Here, _: Operator, which: str) -> dict[str, int]:
    """End what runs and waits in a conversation."""
    shown = await operators.show_conversation(which, here)
    return {"turns": await here.front.stop(shown["id"])}


@router.get("/web/now/events")
async def follow_now(here: Here, who: Operator) -> EventStream:
    """The samples of the last minutes, then how things are, again and again."""
    return EventStream(here, who, _quiet(_present(here)))


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


async def _answering(here: Services, place: Place, after: str) -> Pieces:
    yield RETRY
    async with aclosing(follow(here.bus, here.wakeups, place.conversation, place.turn, after)) as found:
        async for one in found:
            yield event(*told(place, one), one.id)


async def _lists(here: Services, query: Query, found: dict[str, Any]) -> Pieces:
    yield RETRY
    yield event("conversations", found)
    took = 0.0
    while True:
        # Where there are very many, looking may take a tenth of the time.
        await asyncio.sleep(max(LIST_SECONDS, 10 * took))
        began, before = time.monotonic(), found
        found = await views.listed(here, query)
        took = time.monotonic() - began
        if found != before:
            yield event("conversations", found)


async def _growth(here: Services, name: str, order: tuple[int, int]) -> Pieces:
    yield RETRY
    directory = here.log_dir / "conversations" / name
    stamp: object = None
    records: list[Record] = []
    ran = False
    while session_files(directory):
        began, before = time.monotonic(), stamp
        stamp = [(path, path.stat().st_size) for path in session_files(directory)]
        if stamp != before:
            records = await asyncio.to_thread(lambda: list(read_records(directory, here.tz)))
        shown = await operators.show_conversation(name, here)
        if stamp != before or shown["running"] or ran:
            new = [record for record in records if record.order > order][-views.LINES :]
            order = max([order, *(record.order for record in new)])
            told = {"records": list(map(views.line_of, new)), "turns": views.turns_of(records), "shown": shown}
            yield event("grown", told, f"{order[0]}-{order[1]}" if order[0] >= 0 else "")
        ran = bool(shown["running"])
        await asyncio.sleep(max(LOG_SECONDS, 10 * (time.monotonic() - began)))
    yield event("gone", {})


async def _present(here: Services) -> Pieces:
    yield RETRY
    yield event("series", {"samples": await metrics.read(here)})
    while True:
        yield event("now", await views.now(here))
        await asyncio.sleep(NOW_SECONDS)


async def _quiet(pieces: Pieces) -> Pieces:
    """``pieces`` until the bus is away: the page comes back by itself."""
    try:
        async for piece in pieces:
            yield piece
    except ServerError:
        return
    finally:
        await pieces.aclose()
