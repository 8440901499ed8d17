"""What operators see and do: conversations with their transcripts, agents, queues, figures, dead letters."""

from __future__ import annotations

import asyncio
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.responses import PlainTextResponse

from rolecall import stats
from rolecall.bus.admission import places
from rolecall.bus.cancel import erase_conversation
from rolecall.bus.dead_letters import ID, dead_letters, drop, find_dead_letter, plain, replay
from rolecall.bus.envelope import short_turn_id
from rolecall.errors import ConfigError, RolecallError, ServerError
from rolecall.frontends.front import REFUSALS
from rolecall.frontends.http.auth import operator
from rolecall.frontends.http.services import Here, Services
from rolecall.transcripts.reading import Filters, Summary, since
from rolecall.transcripts.record import Record, find, format_line, read_records, session_files, visible
from rolecall.transcripts.timeline import timelines

router = APIRouter(tags=["operators"], dependencies=[Depends(operator)])

Page = Annotated[int, Query(ge=1, le=1_000_000, description="page, counted from 1")]
Size = Annotated[int, Query(ge=1, le=500, description="rows of a page")]
Text = Annotated[str, Query(max_length=200)]


# ── conversations ───────────────────────────────────────────────────────────────────────────────


@router.get("/conversations", summary="Conversations, the one last active first")
async def list_conversations(
    here: Here, search: Text = "", user: Text = "", since: Text = "", errors: bool = False, page: Page = 1,
    size: Size = 50,
) -> dict[str, Any]:  # fmt: skip
    """``search`` is in a conversation's id, title or any of its log lines, ``user`` in its id or title; ``since`` is
    90s, 30m, 2h, 7d or a day; ``errors`` leaves those without any out."""
    begin = _moment(since, here)
    found = await asyncio.to_thread(_found, here, search, Filters(user, begin, errors))
    rows = [_row(summary) for summary in found[(page - 1) * size : page * size]]
    return {"conversations": rows, "total": len(found), "page": page, "pages": max(1, math.ceil(len(found) / size))}


@router.get("/conversations/{which:path}/log", summary="A conversation's records, or one turn's")
async def read_log(
    which: str, here: Here, turn: Text = "", after: Text = "", limit: Annotated[int, Query(ge=1, le=10_000)] = 1000
) -> dict[str, Any]:
    """The newest ``limit`` of those after the record ``after`` (an id), oldest first. ``which`` is a conversation's id,
    its name in the list, or a short turn id."""
    directory, wanted = await _place(here, which)
    records = await asyncio.to_thread(_records, directory, turn or wanted, here)
    later = [record for record in records if not after or record.order > _order(after)]
    return {"records": [_plain(record, here) for record in later[-limit:]], "total": len(later)}


@router.get("/conversations/{which:path}/log.txt", summary="A conversation's transcript to download",
            response_class=PlainTextResponse)  # fmt: skip
async def download(which: str, here: Here) -> PlainTextResponse:
    """All of it, as its lines are shown to people."""
    directory, wanted = await _place(here, which)
    records = await asyncio.to_thread(_records, directory, wanted, here)
    text = "".join(f"{visible(format_line(record, here.tz))}\n" for record in records)
    return PlainTextResponse(text, headers={"content-disposition": f'attachment; filename="{directory.name}.log"'})


@router.get("/conversations/{which:path}/timeline", summary="A conversation's last turns, hop by hop")
async def read_timeline(
    which: str, here: Here, turns: Annotated[int, Query(ge=1, le=1000)] = 20
) -> dict[str, list[dict[str, Any]]]:
    """Oldest first; times in ms after the turn was received."""
    directory, wanted = await _place(here, which)
    records = await asyncio.to_thread(_records, directory, wanted, here)
    return {"turns": [msgspec.to_builtins(turn) for turn in timelines(records)[-turns:]]}


@router.get("/conversations/{which:path}", summary="One conversation")
async def show_conversation(which: str, here: Here) -> dict[str, Any]:
    """What its transcripts tell, what runs, and what waits."""
    directory, _ = await _place(here, which)
    summary = await asyncio.to_thread(here.summaries.of, directory)
    if summary is None:
        raise _unknown(which)
    files = await asyncio.to_thread(session_files, directory)
    return {**_row(summary), **await _live(here, summary.conversation), "sessions": len(files)}


@router.delete("/conversations/{which:path}", summary="Remove a conversation for good")
async def delete_conversation(which: str, here: Here) -> dict[str, Any]:
    """Ends what runs and waits; history, answers, preferences, dead letters and transcripts go."""
    directory, _ = await _place(here, which)
    summary = await asyncio.to_thread(here.summaries.of, directory)
    if summary is None or summary.conversation == directory.name:
        raise _unknown(which)
    ended = await erase_conversation(here.bus, summary.conversation, instance=here.front.instance)
    return {"conversation": summary.conversation, "turns_ended": ended}


# ── what works, and how it does ─────────────────────────────────────────────────────────────────


@router.get("/agents", summary="The live processes and what each of their instances does now")
async def list_agents(here: Here) -> dict[str, Any]:
    """As each process said a moment ago; ``roles`` sums it up."""
    await stats.ask_for_reports(here.bus)
    alive = await stats.processes(here.bus)
    roles = [role.name for role in here.application.roles]
    asdict = msgspec.structs.asdict  # with what is as usual, which the registry leaves out
    processes = [{**asdict(state), "instances": [asdict(instance) for instance in state.instances]} for state in alive]
    return {"processes": processes, "roles": stats.by_role(alive, roles)}


@router.get("/queues", summary="How much waits or is being handled, by role and priority")
async def list_queues(here: Here) -> dict[str, Any]:
    """Over all shards; ``deferred`` turns sleep until their time or a model comes back."""
    roles = [role.name for role in here.application.roles]
    return {"roles": await stats.band_depths(here.bus, roles), **await _beside(here)}


@router.get("/stats", summary="Figures of today (UTC) and of now")
async def figures(here: Here) -> dict[str, Any]:
    """As ``rolecall stats --json`` prints them."""
    return await stats.statistics(
        here.bus, [role.name for role in here.application.roles], here.application.model_names
    )


# ── dead letters ────────────────────────────────────────────────────────────────────────────────


@router.get("/dead", summary="Envelopes given up on, the newest first")
async def list_dead(here: Here, page: Page = 1, size: Size = 50) -> dict[str, Any]:
    """Each with its reason."""
    letters = (await dead_letters(here.bus))[::-1]
    rows = [plain(letter) for letter in letters[(page - 1) * size : page * size]]
    pages = max(1, math.ceil(len(letters) / size))
    return {"dead_letters": rows, "total": len(letters), "page": page, "pages": pages}


@router.get("/dead/{letter_id}", summary="One dead letter")
async def show_dead(letter_id: str, here: Here) -> dict[str, Any]:
    """All there is about it."""
    return plain(await _letter(here, letter_id))


@router.post("/dead/{letter_id}/replay", summary="Send a dead letter again")
async def replay_dead(letter_id: str, here: Here) -> dict[str, Any]:
    """As the newest turn of its conversation; 429 when that or the deployment takes no more, the letter stays."""
    letter = await _letter(here, letter_id)
    try:
        admission = await replay(here.bus, letter, here.front.instance)
    except RolecallError as error:
        if type(error) is not RolecallError:
            raise
        raise HTTPException(409, f"{error}.") from None
    if not admission.accepted:
        status = 409 if admission.outcome == "CONFLICT" else 429
        raise HTTPException(status, REFUSALS[admission.outcome], {"Retry-After": "5"})
    turn = short_turn_id(letter.conversation, admission.turn)
    return {"conversation": letter.conversation, "turn": admission.turn, "turn_id": turn, "place": admission.place}


@router.delete("/dead/{letter_id}", status_code=204, summary="Drop a dead letter for good")
async def drop_dead(letter_id: str, here: Here) -> None:
    """404 when there is none."""
    await _letter(here, letter_id)
    await drop(here.bus, letter_id)


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


def _found(here: Services, search: str, filters: Filters) -> list[Summary]:
    summaries = here.summaries.find(filters)
    if not search:
        return summaries
    named = {row.name for row in here.summaries.find(Filters(search))}
    said = {row.name for row in here.summaries.find(Filters(grep=f"(?i){re.escape(search)}"))}
    return [summary for summary in summaries if summary.name in named | said]


def _row(summary: Summary) -> dict[str, Any]:
    return {"id": summary.conversation, **msgspec.to_builtins(summary)}


def _moment(text: str, here: Services) -> int | None:
    try:
        return since(text, datetime.now(UTC), here.tz) if text else None
    except ConfigError as error:
        raise HTTPException(422, f"since={error}.") from None


async def _place(here: Services, which: str) -> tuple[Path, str]:
    try:
        return await asyncio.to_thread(find, here.log_dir, which)
    except RolecallError:
        raise _unknown(which) from None


def _unknown(which: str) -> HTTPException:
    return HTTPException(404, f"There is no conversation {which[:100]!r} with a transcript.")


def _records(directory: Path, turn: str, here: Services) -> list[Record]:
    return [record for record in read_records(directory, here.tz) if not turn or record.turn == turn]


def _plain(record: Record, here: Services) -> dict[str, Any]:
    return {**msgspec.to_builtins(record), "line": visible(format_line(record, here.tz))}


def _order(record_id: str) -> tuple[int, int]:
    if not ID.fullmatch(record_id) or "@" in record_id:
        raise HTTPException(422, "after: the id of a record is allowed, such as 1795246462181-0.")
    ms, _, number = record_id.partition("-")
    return int(ms), int(number)


async def _live(here: Services, conversation: str) -> dict[str, Any]:
    shard = here.bus.shard(conversation)
    running, preferences = await asyncio.gather(
        here.bus.server.fetch("HGET", shard.conversation(conversation), "cur"),
        here.bus.server.fetch("HGETALL", shard.preferences(conversation)),
    )
    texts = [text.decode("utf-8", "replace") for text in preferences]
    return {
        "running": running.decode() if running else None,
        "waiting": list(await places(here.bus, conversation)),
        "preferences": dict(zip(texts[::2], texts[1::2], strict=True)),
    }


async def _beside(here: Services) -> dict[str, int]:
    shards, fetch = here.bus.shards, here.bus.server.fetch
    asked = [fetch(*ask) for s in shards for ask in (("ZCARD", s.deferred), ("ZCARD", s.active), ("XLEN", s.dead))]
    counts = await asyncio.gather(*asked)
    return {name: sum(counts[n::3]) for n, name in enumerate(("deferred", "in_flight", "dead_letters"))}


async def _letter(here: Services, letter_id: str) -> Any:
    try:
        return await find_dead_letter(here.bus, letter_id)
    except ConfigError as error:
        raise HTTPException(422, f"{error}.") from None
    except ServerError:
        raise
    except RolecallError:
        raise HTTPException(404, f"There is no dead letter {letter_id[:60]}.") from None
