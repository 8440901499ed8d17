"""The operators' API: conversations and their transcripts, agents, queues, statistics, dead letters."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, HTTPException, Query
from fastapi.responses import PlainTextResponse

from rolecall import stats
from rolecall.bus.admission import REFUSALS, places
from rolecall.bus.conversation import has_begun, preferences_of, running_turn
from rolecall.bus.dead_letters import dead_letters, deliver_again, drop, find_dead_letter, plain, replay
from rolecall.bus.envelope import check_conversation, short_turn_id
from rolecall.bus.process.process_log import process_lines
from rolecall.bus.process.processes import ask_for_reports, live_processes
from rolecall.errors import ConfigError, RolecallError, ServerError
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import operator
from rolecall.frontends.http.problems import text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.settings import listed
from rolecall.transcripts.reading import Filters, Summary, since
from rolecall.transcripts.record import (
    RECORD_ID,
    Order,
    Record,
    entry_order,
    find,
    format_line,
    read_records,
    session_files,
    visible,
)
from rolecall.transcripts.timeline import trees

router = api_router(tags=["operators"], dependencies=[Depends(operator)])

Page = Annotated[int, Query(ge=1, le=1_000_000, description="page number, from 1")]
PageSize = Annotated[int, Query(ge=1, le=500, description="rows per page")]
Text = Annotated[str, Query(max_length=200)]
Level = Annotated[Literal["info", "warning", "error"], Query(description="the least level")]
LineId = Annotated[str, Query(pattern=r"^(\d{1,15}-\d{1,10})?$", description="an id of this list")]


# ── conversations ───────────────────────────────────────────────────────────────────────────────


@router.get("/conversations", summary="List conversations, most recently active first")
async def list_conversations(
    services: ServicesDep, search: Text = "", user: Text = "", since: Text = "", errors: bool = False, page: Page = 1,
    size: PageSize = 50,
) -> dict[str, Any]:  # fmt: skip
    """`search` matches the id, the title and the log lines of a conversation; `user` only its id and title. `since` is
    a duration such as 90s, 30m, 2h or 7d, or a date. `errors` keeps only conversations with errors."""
    filters = Filters(user, _parse_since(since, services), errors, search=search)
    found = await asyncio.to_thread(services.summaries.find, filters)
    rows = [_row(summary) for summary in found[(page - 1) * size : page * size]]
    return {"conversations": rows, "total": len(found), "page": page, "pages": max(1, math.ceil(len(found) / size))}


@router.get("/conversations/{which:path}/log", summary="Get the log records of a conversation or a turn")
async def read_log(
    which: str,
    services: ServicesDep,
    turn: Text = "",
    after: Text = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> dict[str, Any]:
    """Oldest first: the newest `limit` records after the record `after` (an id). `which` is a conversation's id, its
    `name` in the list, or a short turn id."""
    directory, wanted = await _find(services, which)
    records = await asyncio.to_thread(_records, directory, turn or wanted, services)
    later = [record for record in records if not after or record.order > _order_of(after)]
    return {"records": [_as_json(record, services) for record in later[-limit:]], "total": len(later)}


@router.get("/conversations/{which:path}/log.txt", summary="Download the transcript of a conversation",
            response_class=PlainTextResponse)  # fmt: skip
async def download(which: str, services: ServicesDep) -> PlainTextResponse:
    """All of it, as plain text."""
    directory, wanted = await _find(services, which)
    records = await asyncio.to_thread(_records, directory, wanted, services)
    lines = "".join(f"{visible(format_line(record, services.tz))}\n" for record in records)
    return PlainTextResponse(lines, headers={"content-disposition": f'attachment; filename="{directory.name}.log"'})


@router.get("/conversations/{which:path}/timeline", summary="Get the last turns of a conversation, hop by hop")
async def read_timeline(
    which: str, services: ServicesDep, turns: Annotated[int, Query(ge=1, le=1000)] = 20
) -> dict[str, list[dict[str, Any]]]:
    """Oldest first, each turn followed by the calls that it made. Times are in ms since the turn or call began."""
    directory, wanted = await _find(services, which)
    records = await asyncio.to_thread(_records, directory, wanted, services)
    return {"turns": [msgspec.to_builtins(turn) for tree in trees(records, turns) for turn in tree]}


@router.get("/conversations/{which:path}", summary="Get a conversation")
async def show_conversation(which: str, services: ServicesDep) -> dict[str, Any]:
    """A summary of its transcript, its running turn and its waiting turns."""
    directory, _ = await _find(services, which)
    summary = await asyncio.to_thread(services.summaries.of, directory)
    if summary is None:
        raise _unknown(which)
    files = await asyncio.to_thread(session_files, directory)
    return {**_row(summary), **await _current(services, summary.conversation), "sessions": len(files)}


@router.delete("/conversations/{which:path}", summary="Delete a conversation")
async def delete_conversation(which: str, services: ServicesDep) -> dict[str, Any]:
    """Cancels its turns and deletes history, pictures, answers, preferences, dead letters and transcripts. Cannot be
    undone. A conversation whose transcripts are not on this machine is named by its id."""
    conversation = await _named(services, which)
    return {"conversation": conversation, "turns_ended": await services.erase(conversation)}


# ── agents, queues, statistics ─────────────────────────────────────────────────────────────────


@router.get("/agents", summary="List the live processes and their instances")
async def list_agents(services: ServicesDep) -> dict[str, Any]:
    """As reported by each process a moment ago. `roles` has the totals."""
    await ask_for_reports(services.bus)
    alive = await live_processes(services.bus)
    asdict = msgspec.structs.asdict  # includes the defaults, which the registry omits
    processes = [{**asdict(state), "instances": [asdict(instance) for instance in state.instances]} for state in alive]
    return {"processes": processes, "roles": stats.by_role(alive, services.application.role_names)}


@router.get("/queues", summary="Get the queue depths by role and priority")
async def list_queues(services: ServicesDep) -> dict[str, Any]:
    """Over all shards, including envelopes being handled. `deferred` turns wait for their time or for a
    model, `suspended` ones for calls, people or timers."""
    roles = services.application.role_names
    return {"roles": await stats.band_depths(services.bus, roles), **await stats.totals(services.bus)}


@router.get("/stats", summary="Get the statistics of today (UTC) and of this moment")
async def read_stats(services: ServicesDep) -> dict[str, Any]:
    """The same as `rolecall stats --json`."""
    application = services.application
    return await stats.summary(services.bus, application.role_names, application.model_names)


@router.get("/log", summary="Get the newest lines that the processes logged")
async def read_process_log(
    services: ServicesDep, process: Text = "", level: Level = "info", after: LineId = "",
    limit: Annotated[int, Query(ge=1, le=2000)] = 500,
) -> dict[str, Any]:  # fmt: skip
    """Oldest first: warnings, errors, and how processes start, scale and end, of the last 24 hours. `process` is a name
    as in `/agents`. What users wrote is left out; the transcripts have it."""
    found = await process_lines(services.bus, after, process=process, level=level, limit=limit)
    return {"lines": [{"id": line_id, **msgspec.structs.asdict(line)} for line_id, line in found]}


# ── dead letters ────────────────────────────────────────────────────────────────────────────────


@router.get("/dead", summary="List dead letters, newest first")
async def list_dead(services: ServicesDep, page: Page = 1, size: PageSize = 50) -> dict[str, Any]:
    """Each has the reason why it was given up."""
    letters = (await dead_letters(services.bus))[::-1]
    rows = [plain(letter) for letter in letters[(page - 1) * size : page * size]]
    pages = max(1, math.ceil(len(letters) / size))
    return {"dead_letters": rows, "total": len(letters), "page": page, "pages": pages}


@router.get("/dead/{letter_id}", summary="Get a dead letter")
async def show_dead(letter_id: str, services: ServicesDep) -> dict[str, Any]:
    """Includes its envelope."""
    return plain(await _letter(services, letter_id))


@router.post("/dead/{letter_id}/replay", summary="Replay a dead letter")
async def replay_dead(letter_id: str, services: ServicesDep) -> dict[str, Any]:
    """Admits an envelope as the newest turn of its conversation; if that is refused (429), the dead letter stays. A
    delivery is delivered again. An update cannot be replayed (409)."""
    letter = await _letter(services, letter_id)
    if letter.kind == "delivery":
        await deliver_again(services.bus, letter)
        turn = short_turn_id(letter.conversation, letter.turn)
        return {"conversation": letter.conversation, "turn": letter.turn, "turn_id": turn, "place": 0}
    try:
        admission = await replay(services.bus, letter, services.front.instance)
    except RolecallError as error:
        if type(error) is not RolecallError:
            raise
        raise HTTPException(409, f"{error}.") from None
    if not admission.accepted:
        status = 409 if admission.outcome == "CONFLICT" else 429
        raise HTTPException(status, REFUSALS[admission.outcome], {"Retry-After": "5"})
    turn = short_turn_id(letter.conversation, admission.turn)
    return {"conversation": letter.conversation, "turn": admission.turn, "turn_id": turn, "place": admission.place}


@router.delete("/dead/{letter_id}", status_code=204, summary="Delete a dead letter")
async def drop_dead(letter_id: str, services: ServicesDep) -> None:
    """Cannot be undone."""
    await _letter(services, letter_id)
    await drop(services.bus, letter_id)


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


def _row(summary: Summary) -> dict[str, Any]:
    return {"id": summary.conversation, **msgspec.to_builtins(summary)}


def _parse_since(given: str, services: Services) -> int | None:
    try:
        return since(given, datetime.now(UTC), services.tz) if given else None
    except ConfigError as error:
        raise HTTPException(422, text("bad_since", reason=error)) from None


async def _find(services: Services, which: str) -> tuple[Path, str]:
    try:
        return await asyncio.to_thread(find, services.log_dir, which)
    except RolecallError:
        raise _unknown(which) from None


async def _named(services: Services, which: str) -> str:
    """The id of the conversation ``which``, by its transcript or by what the bus knows; where no transcripts are in a
    directory, any id."""
    try:
        directory, _ = await _find(services, which)
    except HTTPException:
        elsewhere = "directory" not in listed(services.settings.log_targets)
        if not (elsewhere or await has_begun(services.bus, which)):
            raise
        try:
            return check_conversation(which)
        except RolecallError:
            raise _unknown(which) from None
    summary = await asyncio.to_thread(services.summaries.of, directory)
    if summary is None or summary.conversation == directory.name:
        raise _unknown(which)
    return summary.conversation


def _unknown(which: str) -> HTTPException:
    return HTTPException(404, text("no_conversation", name=repr(which[:100])))


def _records(directory: Path, turn: str, services: Services) -> list[Record]:
    return [record for record in read_records(directory, services.tz) if record.is_of(turn)]


def _as_json(record: Record, services: Services) -> dict[str, Any]:
    return {**msgspec.to_builtins(record), "line": visible(format_line(record, services.tz))}


def _order_of(record_id: str) -> Order:
    if not RECORD_ID.fullmatch(record_id):
        raise HTTPException(422, text("bad_record_id"))
    return entry_order(record_id)


async def _current(services: Services, conversation: str) -> dict[str, Any]:
    bus = services.bus
    running, waiting, preferences = await asyncio.gather(
        running_turn(bus, conversation), places(bus, conversation), preferences_of(bus, conversation)
    )
    preferences.pop("shared", None)  # anyone who knows it can read the conversation
    return {"running": running or None, "waiting": list(waiting), "preferences": preferences}


async def _letter(services: Services, letter_id: str) -> Any:
    try:
        return await find_dead_letter(services.bus, letter_id)
    except ConfigError as error:
        raise HTTPException(422, f"{error}.") from None
    except ServerError:
        raise
    except RolecallError:
        raise HTTPException(404, text("no_dead_letter", id=repr(letter_id[:60]))) from None
