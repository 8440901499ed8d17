"""A task: a turn as HTTP shows it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, BackgroundTasks, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.cancel import cancel_turn
from rolecall.bus.conversation import remembered
from rolecall.bus.envelope import decode
from rolecall.bus.events import follow, keeps, so_far
from rolecall.errors import ServerError
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.intake import IMAGES, Said, enter, headers_of
from rolecall.frontends.http.problems import DOES_NOT_HELP, Problem, documented
from rolecall.frontends.http.services import Here, Services
from rolecall.frontends.http.sse import RETRY, EventStream, check_streams, disconnected, event
from rolecall.frontends.http.task import Place, Standing, Task, begun, look, told

router = APIRouter(tags=["chat"])
LONGEST_WAIT = 60.0
EVENT_ID = re.compile(r"(\d{1,19})(?:-(\d{1,20}))?", re.ASCII)
LAST_NUMBER = 2**64 - 1
Outcome = Literal["left", "stopping", "late"]
T = TypeVar("T")
Name = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class Question(BaseModel):
    """What is said, and how it is to be answered."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "What is 6 × 7?"}]})

    text: str = Field("", max_length=65_536, description="what is said; needed unless there are images")
    conversation_id: str = Field("", max_length=200, description="goes on with that one; empty begins a new one")
    role: str = Field("", max_length=40, description="who answers; empty lets the manager decide")
    model: str = Field("", max_length=200, description="name@provider; empty is the role's own")
    priority: int | None = Field(None, ge=0, le=100, description="higher goes first; 50 by default")
    metadata: dict[Name, Value] = Field({}, max_length=16, description="for the agents")
    images: list[str] = Field([], max_length=IMAGES, description="data URLs: data:image/png;base64,…")
    cancel_on_disconnect: bool = Field(False, description="true ends the turn when this connection ends early")

    def said(self) -> Said:
        """As the way in takes it. Raises Problem when nothing is said."""
        if not self.text.strip() and not self.images:
            raise Problem(422, "text: something has to be said.", param="text")
        return Said(
            self.text, self.conversation_id, self.role, self.model, self.priority, self.metadata, tuple(self.images)
        )


Key = Annotated[str | None, Header(alias="Idempotency-Key", description="repeats within 24 h are the same task")]


TaskId = Annotated[str, Path(max_length=1200, description="as an answer named it")]


NAMED = {name: {"schema": {"type": "string"}} for name in ("Location", "X-Task-Id", "X-Conversation-Id")}


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


REFUSED = documented(400, 403, 413, 422, 429)


FOUND = documented(404, 410, 422)


@router.post("/chat", summary="Ask, and wait for the answer",
             responses={**REFUSED, **documented(410, 502), 200: {"headers": NAMED}, 202: {"model": Task, "description":
             "The server has to end before the answer is there: it will be at Location"}})  # fmt: skip
async def chat(
    question: Question, request: Request, response: Response, after: BackgroundTasks, here: Here, who: User,
    key: Key = None,
) -> Task:  # fmt: skip
    """200 with the task done or cancelled; 502 when it failed, with the task as ``task``."""
    received = await enter(here, who, question.said(), key)
    response.headers.update(headers_of(received))
    standing = await _found(here, received)
    task: Task | Outcome = standing.task
    if not standing.task.ended:
        task = await watched(here, request, ended(here, standing.place, received.before))
    if task == "left" and question.cancel_on_disconnect:
        await end(here, standing.place)
    if not isinstance(task, Task):
        response.status_code = 202
        return standing.task
    if task.state == "failed":
        raise _failed(task, received)
    after.add_task(delivered, here, received)
    return task


@router.post("/chat/stream", summary="Ask, and have the answer as it is made", response_class=EventStream,
             responses={**REFUSED, **documented(410), **EVENTS})  # fmt: skip
async def stream(question: Question, here: Here, who: User, key: Key = None) -> EventStream:
    """Events: snapshot, then accepted, queued, started and delta as they come, at last done, failed or cancelled."""
    check_streams(here, who)
    received = await enter(here, who, question.said(), key)
    standing = await _found(here, received)

    async def left() -> None:
        if question.cancel_on_disconnect:
            await end(here, standing.place)

    pieces = _pieces(here, standing, received)
    return EventStream(here, who, pieces, headers=headers_of(received), left=left)


@router.post("/chat/async", status_code=202, summary="Ask, and come back for the answer",
             responses={**REFUSED, **documented(410), 202: {"headers": NAMED}})  # fmt: skip
async def later(question: Question, response: Response, here: Here, who: User, key: Key = None) -> Task:
    """The task, which is at Location from now on. A command that is carried out at once is 200 without one."""
    received = await enter(here, who, question.said(), key)
    response.headers.update(headers_of(received))
    response.status_code = 202 if received.turn else 200
    return (await _found(here, received)).task


@router.get("/chat/task/{task_id}", summary="A task as it stands", responses=FOUND)
async def show(
    task_id: TaskId, request: Request, here: Here, who: User,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="seconds to wait for its end")] = 0,
) -> Task:  # fmt: skip
    """With ``wait`` as soon as it has ended, or as it stands then."""
    standing = await look(here.bus, Place.read(task_id, who))
    if wait and not standing.task.ended:
        task = await watched(here, request, ended(here, standing.place, standing.seen), wait)
        return task if isinstance(task, Task) else (await look(here.bus, standing.place)).task
    return standing.task


@router.get("/chat/task/{task_id}/events", summary="A task's events, from the beginning or on from one of them",
            response_class=EventStream, responses={**FOUND, **documented(429), **EVENTS,
            204: {"description": "Nothing comes after that event"}})  # fmt: skip
async def events(
    task_id: TaskId, here: Here, who: User,
    last_event_id: Annotated[str, Header(alias="Last-Event-ID", description="goes on after it")] = "",
    after: Annotated[str, Query(description="the same, for who cannot send that header")] = "",
) -> Response:  # fmt: skip
    """A snapshot first; or, with the id of an event that is still kept, what came after it, each event once."""
    check_streams(here, who)
    after = last_event_id or after
    order = _order(after) if after else (0, 0)
    standing = await look(here.bus, Place.read(task_id, who))
    if after and standing.final_id and order >= _order(standing.final_id):
        return Response(status_code=204)
    resumes = after and await keeps(here.bus, standing.place.conversation, after)
    pieces = _following(here, standing.place, after) if resumes else _pieces(here, standing)
    return EventStream(here, who, pieces)


@router.post("/chat/task/{task_id}/cancel", summary="End a task", responses=FOUND)
async def cancel(task_id: TaskId, here: Here, who: User) -> Task:
    """The task as it ended, by this or before."""
    standing = await look(here.bus, Place.read(task_id, who))
    if standing.task.ended:
        return standing.task
    await end(here, standing.place)
    return (await look(here.bus, standing.place)).task


# ── what both APIs do ───────────────────────────────────────────────────────────────────────────


async def watched(
    here: Services, request: Request, work: Coroutine[Any, Any, T], seconds: float | None = None
) -> T | Outcome:
    """What ``work`` returns, unless before that the client leaves, the process is to end, or time is up."""
    working = asyncio.create_task(work, name="http answer")
    leaving = asyncio.create_task(disconnected(request.receive), name="http answer's client")
    stopping = asyncio.create_task(here.stopping.wait(), name="http answer's end")
    tasks = (working, leaving, stopping)
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if working in done:
        return working.result()
    return "left" if leaving in done else "stopping" if stopping in done else "late"


async def ended(here: Services, place: Place, after: str) -> Task:
    """The task once it has ended; ``after`` is an event before its end."""
    async with aclosing(follow(here.bus, here.wakeups, place.conversation, place.turn, after)) as found:
        async for one in found:
            if one.last:
                return place.ended(one.payload)
    return (await look(here.bus, place)).task  # its end had been told before


async def end(here: Services, place: Place) -> None:
    """Cancel a turn wherever it is; the words of its user and what was said of the answer are remembered."""
    bus, conversation, turn = here.bus, place.conversation, place.turn
    journal = bus.shard(conversation).journal(conversation)
    raw, parts = await bus.server.fetch("HMGET", journal, f"{turn}:e", f"{turn}:x")
    if raw is None:
        return
    words = decode(raw, parts=parts or b"").text
    history = remembered(words, await so_far(bus, conversation, turn), turn, "stopped") if words else []
    await cancel_turn(bus, conversation, turn, instance=here.front.instance, history=history)


async def delivered(here: Services, received: Received) -> None:
    """Note in the transcript that the answer was handed over, unless another request may have."""
    if received.turn and received.outcome != "DUP":
        with suppress(ServerError):
            await here.front.delivered(received)


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


async def _found(here: Services, received: Received) -> Standing:
    standing = begun(received)
    return await look(here.bus, standing.place) if received.outcome == "DUP" else standing


async def _pieces(here: Services, standing: Standing, received: Received | None = None) -> AsyncGenerator[bytes, None]:
    task = standing.task
    yield RETRY + event("snapshot", task.model_dump(), standing.seen if not task.ended else "")
    if task.ended:
        yield event(task.state, task.model_dump(), standing.final_id)
    else:
        async with aclosing(_following(here, standing.place, standing.seen)) as following:
            async for piece in following:
                yield piece
    if received is not None:
        await delivered(here, received)


async def _following(here: Services, place: Place, after: str) -> AsyncGenerator[bytes, None]:
    async with aclosing(follow(here.bus, here.wakeups, place.conversation, place.turn, after)) as found:
        async for one in found:
            yield event(*told(place, one), one.id)


def _failed(task: Task, received: Received) -> Problem:
    headers = {**headers_of(received), **DOES_NOT_HELP}
    detail = task.error.text if task.error else ""
    return Problem(502, detail, "failed", headers=headers, task=task.model_dump())


def _order(event_id: str) -> tuple[int, int]:
    found = EVENT_ID.fullmatch(event_id)
    if found is None or int(found[2] or 0) > LAST_NUMBER:
        raise Problem(422, "after: the id of an event is allowed, such as 1795246462181-0.", param="after")
    return int(found[1]), int(found[2] or 0)
