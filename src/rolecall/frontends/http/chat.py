"""The native chat API: ask and wait, stream the answer, or come back for it later."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.events import ADMISSIONS, keeps, newest_event, told_length
from rolecall.bus.steps.answers import MOST_OPTIONS, Answered
from rolecall.frontends.front import Received
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import Principal, User
from rolecall.frontends.http.body import Upload, Uploads
from rolecall.frontends.http.intake import (
    MAX_FILES,
    MAX_IMAGES,
    PREFIX,
    AcceptLanguage,
    ChatRequest,
    IdempotencyKey,
    MessageFile,
    conversation_of,
    headers_of,
    submit,
)
from rolecall.frontends.http.problems import NO_RETRY, Problem, bus_timeout, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import RETRY, Events, Streaming, event, streams
from rolecall.frontends.http.task import (
    NoResult,
    Task,
    TaskRef,
    TaskSnapshot,
    accepted_task,
    answer_task,
    cancel_task,
    ended_task,
    event_data,
    find_task,
    note_delivered,
    tell_task,
    wait_for,
)

router = api_router(tags=["chat"])
MAX_WAIT_SECONDS = 60.0
EVENT_ID = re.compile(r"(\d{1,19})(?:-(\d{1,20}))?", re.ASCII)
MAX_NUMBER = 2**64 - 1
TaskId = Annotated[str, Path(max_length=1200, description="the `id` of a task")]
ConversationName = Annotated[str, Path(max_length=200, description="as in `conversation_id` of a request")]
TASK_HEADERS = {name: {"schema": {"type": "string"}} for name in ("Location", "X-Task-Id", "X-Conversation-Id")}
SUBMITTED = problem_responses(400, 403, 410, 413, 422, 429)
FOUND = problem_responses(404, 410, 422)


class ChatBody(BaseModel):
    """A message and how to answer it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "What is 6 × 7?"}]})

    text: str = Field("", max_length=4_194_304, description="at most 64 kB of UTF-8; may be empty with images or files")
    conversation_id: str = Field("", max_length=200, description="the conversation to continue; empty starts a new one")
    role: str = Field("", max_length=40, description="the role that answers; empty lets the manager decide")
    model: str = Field("", max_length=200, description="name@provider; empty uses the role's model")
    priority: int | None = Field(None, ge=0, le=100, description="higher runs first; 50 by default")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        {}, max_length=16, description="passed on to the agents"
    )
    images: list[str] = Field([], max_length=MAX_IMAGES, description="data URLs: data:image/png;base64,…")
    files: list[MessageFile] = Field([], max_length=MAX_FILES, description="documents and recordings")
    cancel_on_disconnect: bool = Field(False, description="cancel the task if this connection closes before its end")

    def chat_request(self, asks: bool, language: str) -> ChatRequest:
        """The request to submit; ``asks`` says whether its client can be asked meanwhile. Raises Problem for an empty
        message."""
        if not (self.text.strip() or self.images or self.files):
            raise Problem(422, text("no_text"), param="text")
        return ChatRequest(
            self.text, self.conversation_id, self.role, self.model, self.priority, self.metadata, tuple(self.images),
            tuple(self.files), asks=asks, language=language,
        )  # fmt: skip


@dataclass(frozen=True)
class Submitted:
    """A message that was admitted, and its task at that moment."""

    received: Received
    snapshot: TaskSnapshot


@router.post("/chat", summary="Ask and wait for the answer",
             responses={**SUBMITTED, **problem_responses(502), 200: {"headers": TASK_HEADERS}, 202: {"model": Task,
             "description": "The server is shutting down; the answer will be at Location"}})  # fmt: skip
async def chat(
    body: ChatBody, request: Request, response: Response, after: BackgroundTasks, services: ServicesDep, who: User,
    uploads: Uploads, key: IdempotencyKey = None, language: AcceptLanguage = "",
) -> Task:  # fmt: skip
    """Returns the task once it is done or cancelled. If it failed, the status is 502 and the task is in `task`."""
    submitted = await _submit(body, response, services, who, key, uploads, language, asks=False)
    received, snapshot = submitted.received, submitted.snapshot
    task: Task | NoResult = snapshot.task
    if not snapshot.task.ended:
        task = await wait_for(services, request, ended_task(services, snapshot.ref, received.before))
    if task == "left" and body.cancel_on_disconnect:
        await cancel_task(services, snapshot.ref)
    if not isinstance(task, Task):
        response.status_code = 202
        return snapshot.task
    if task.state == "failed":
        detail = task.error.text if task.error else ""
        raise Problem(502, detail, "failed", headers={**headers_of(received), **NO_RETRY}, task=task.model_dump())
    after.add_task(note_delivered, services, received)
    return task


async def _streamed(
    body: ChatBody, response: Response, services: ServicesDep, who: User, uploads: Uploads, key: IdempotencyKey = None,
    language: AcceptLanguage = "",
) -> AsyncIterator[Submitted]:  # fmt: skip
    submitted = await _submit(body, response, services, who, key, uploads, language)
    try:
        yield submitted
    finally:  # the stream has ended: with its turn, or because the client left
        if body.cancel_on_disconnect and not services.stopping.is_set():
            await cancel_task(services, submitted.snapshot.ref)


@router.post("/chat/stream", summary="Ask and stream the answer", response_class=EventSourceResponse,
             responses=SUBMITTED, dependencies=[Streaming])  # fmt: skip
@streams()
def stream(submitted: Annotated[Submitted, Depends(_streamed)], services: ServicesDep) -> Events:
    """Server-sent events: `snapshot`, then `accepted`, `queued`, `started` and `delta` as they happen, and finally
    `done`, `failed` or `cancelled`."""
    return _events_of(services, submitted.snapshot, submitted.received)


@router.post("/chat/async", status_code=202, summary="Ask and fetch the answer later",
             responses={**SUBMITTED, 202: {"headers": TASK_HEADERS}})  # fmt: skip
async def ask_later(
    body: ChatBody, response: Response, services: ServicesDep, who: User, uploads: Uploads, key: IdempotencyKey = None,
    language: AcceptLanguage = "",
) -> Task:  # fmt: skip
    """Returns the task, which can be fetched at `Location`. A command that was executed at once has the status 200 and
    no task."""
    submitted = await _submit(body, response, services, who, key, uploads, language)
    response.status_code = 202 if submitted.received.turn else 200
    return submitted.snapshot.task


@router.get("/chat/task/{task_id}", summary="Get a task", responses=FOUND)
async def show(
    task_id: TaskId, request: Request, services: ServicesDep, who: User,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for its end")] = 0,
) -> Task:  # fmt: skip
    """With `wait`, returns as soon as the task has ended, or after that time as it is then."""
    snapshot = await find_task(services.bus, TaskRef.parse(task_id, who))
    if wait and not snapshot.task.ended:
        task = await wait_for(services, request, ended_task(services, snapshot.ref, snapshot.seen), wait)
        return task if isinstance(task, Task) else (await find_task(services.bus, snapshot.ref)).task
    return snapshot.task


async def _resumed(
    task_id: TaskId, services: ServicesDep, who: User,
    last_event_id: Annotated[str, Header(alias="Last-Event-ID", description="resume after this event")] = "",
    after: Annotated[str, Query(description="the same, for clients that cannot set that header")] = "",
) -> Events:  # fmt: skip
    after = last_event_id or after
    order = _order_of(after) if after else (0, 0)
    snapshot = await find_task(services.bus, TaskRef.parse(task_id, who))
    if after and snapshot.final_id and order >= _order_of(snapshot.final_id):
        raise HTTPException(204)
    ref = snapshot.ref
    if after and await keeps(services.bus, ref.conversation, after):
        length = await told_length(services.bus, ref.conversation, ref.turn, after)
        return _events_after(services, ref, after, length)
    return _events_of(services, snapshot)


@router.get("/chat/task/{task_id}/events", summary="Stream a task's events", response_class=EventSourceResponse,
            dependencies=[Streaming], responses={**FOUND, **problem_responses(429),
            204: {"description": "There is nothing after that event"}})  # fmt: skip
@streams()
def events(resumed: Annotated[Events, Depends(_resumed)], services: ServicesDep) -> Events:
    """Starts with a `snapshot`; or, given the id of an event that is still stored, with the event after it. No event is
    missed or repeated."""
    return resumed


async def _notices_after(
    conversation_id: ConversationName, services: ServicesDep, who: User,
    last_event_id: Annotated[str, Header(alias="Last-Event-ID", description="resume after this event")] = "",
    after: Annotated[str, Query(description="the same, for clients that cannot set that header")] = "",
    messages: Annotated[bool, Query(description="whether to tell of messages, too")] = False,
) -> Events:  # fmt: skip
    conversation = conversation_of(who, conversation_id)
    if after := last_event_id or after:
        _order_of(after)
        return _notices(services, conversation, after, (), messages)
    async with bus_timeout():
        newest = await newest_event(services.bus, conversation)
    return _notices(services, conversation, newest, (event("listening", {}, newest),), messages)


@router.get("/chat/notices/{conversation_id:path}", summary="Stream a conversation's notices",
            response_class=EventSourceResponse, dependencies=[Streaming],
            responses=problem_responses(403, 422, 429))  # fmt: skip
@streams()
def notices(found: Annotated[Events, Depends(_notices_after)], services: ServicesDep) -> Events:
    """A `notice` for each text that was sent to the conversation without a question; from now on, or after the id of
    one. Without an id it starts with `listening`, whose id is where it begins. With `messages`, an `accepted` with its
    `turn` for each message that comes, from any client, and `cleared` when the turns up to `turn` are forgotten. Does
    not end by itself."""
    return found


@router.post("/chat/task/{task_id}/cancel", summary="Cancel a task", responses=FOUND)
async def cancel(task_id: TaskId, services: ServicesDep, who: User) -> Task:
    """Returns the task as it ended, now or before."""
    snapshot = await find_task(services.bus, TaskRef.parse(task_id, who))
    if snapshot.task.ended:
        return snapshot.task
    await cancel_task(services, snapshot.ref)
    return (await find_task(services.bus, snapshot.ref)).task


class AnswerBody(BaseModel):
    """The answer to a question of a task."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"question": "1-0-2", "choice": 0}]})

    question: str = Field(max_length=300, description="the `id` of the question")
    # Strict, as true would be 1, which is "no".
    choice: int = Field(ge=0, lt=MOST_OPTIONS, strict=True, description="the number of the option, from 0")


ANSWERS: Mapping[Answered, tuple[int, str]] = {
    "GONE": (404, "no_question"), "LATE": (409, "question_closed"), "FORBIDDEN": (403, "not_asked"),
    "INVALID": (422, "bad_choice"),
}  # fmt: skip
"""Status and text by what became of an answer that was not taken."""


@router.post("/chat/task/{task_id}/answer", summary="Answer a task's question",
             responses={**FOUND, **problem_responses(403, 409)})  # fmt: skip
async def answer_question(task_id: TaskId, body: AnswerBody, services: ServicesDep, who: User) -> Task:
    """An agent asks with an `asked` event; the task goes on with the first answer."""
    ref = TaskRef.parse(task_id, who)
    verdict = await answer_task(services, ref, body.question, body.choice, f"{PREFIX}{who.id}")
    if verdict != "OK":
        status, name = ANSWERS[verdict]
        raise Problem(status, text(name), param="choice" if verdict == "INVALID" else "question")
    return (await find_task(services.bus, ref)).task


async def _submit(
    body: ChatBody,
    response: Response,
    services: Services,
    who: Principal,
    key: str | None,
    uploads: Mapping[str, Upload],
    language: str,
    *,
    asks: bool = True,
) -> Submitted:
    received = await submit(services, who, body.chat_request(asks, language), key, uploads)
    response.headers.update(headers_of(received))
    return Submitted(received, await accepted_task(services.bus, received))


async def _events_of(services: Services, snapshot: TaskSnapshot, received: Received | None = None) -> Events:
    task = snapshot.task
    yield RETRY
    yield event("snapshot", task.model_dump(), snapshot.seen if not task.ended else "")
    if task.ended:
        yield event(task.state, task.model_dump(), snapshot.final_id)
    else:
        async with aclosing(_events_after(services, snapshot.ref, snapshot.seen, len(task.text))) as following:
            async for one in following:
                yield one
    if received is not None:
        await note_delivered(services, received)


async def _events_after(services: Services, ref: TaskRef, after: str, length: int | None) -> Events:
    async with aclosing(tell_task(services, ref, after, length)) as following:
        async for one in following:
            yield event(*event_data(ref, one), one.id)


async def _notices(
    services: Services, conversation: str, after: str, first: tuple[ServerSentEvent, ...], messages: bool
) -> Events:
    for opening in (RETRY, *first):
        yield opening
    async with aclosing(services.front.notices(conversation, after, messages=messages)) as following:
        async for one in following:
            if one.kind in ADMISSIONS:
                yield event("accepted", {"turn": one.turn}, one.id)
                continue
            if one.kind == "cleared":
                yield event("cleared", {"turn": one.text}, one.id)
                continue
            told = {"text": one.text, "plain": bool(one.payload.get("plain")), "turn": one.turn}
            yield event("notice", told, one.id)


def _order_of(event_id: str) -> tuple[int, int]:
    found = EVENT_ID.fullmatch(event_id)
    if found is None or int(found[2] or 0) > MAX_NUMBER:
        raise Problem(422, text("bad_event_id"), param="after")
    return int(found[1]), int(found[2] or 0)
