"""The OpenAI-compatible API: every client that takes a base URL works with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter, Header, Request, Response
from starlette.background import BackgroundTask

from rolecall.blocks import FIRST_ROLE
from rolecall.follow import Event, follow
from rolecall.frontends.front import Received
from rolecall.frontends.http.completion import RESTARTED, Completion, failure, why
from rolecall.frontends.http.completion_form import AUTO, CompletionQuestion
from rolecall.frontends.http.entrance import enter, headers_of
from rolecall.frontends.http.keys import User
from rolecall.frontends.http.problems import DOES_NOT_HELP, Problem, documented
from rolecall.frontends.http.services import Here, Services
from rolecall.frontends.http.sse import EventStream, check_streams
from rolecall.frontends.http.task import Standing, Task, begun, look
from rolecall.frontends.http.tasks import Key, delivered, ended, watched

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
STOPPING = "The server has to end; the answer will be there as the task that X-Task-Id names."
Conversation = Annotated[str, Header(alias="X-Conversation-Id", max_length=2000)]
ANSWERS: dict[int | str, dict[str, Any]] = {
    **documented(400, 403, 404, 409, 410, 413, 422, 429, 502),
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
}


@router.get("/models", summary="What can be asked: auto, and the roles", responses=documented())
async def list_models(here: Here, _: User) -> dict[str, Any]:
    """As OpenAI lists models."""
    return {"object": "list", "data": [_model(name) for name in (AUTO, *sorted(_roles(here)))]}


@router.get("/models/{name:path}", summary="One of them", responses=documented(404))
async def show_model(name: str, here: Here, _: User) -> dict[str, Any]:
    """404 when there is none of that name."""
    if name not in {AUTO, *_roles(here), *here.application.model_names}:
        raise Problem(404, f"There is no model {name[:100]!r}.", "model_not_found", param="model")
    return _model(name)


@router.post("/chat/completions", summary="Answer a conversation", response_model=None, responses=ANSWERS)
async def complete(
    question: CompletionQuestion, request: Request, here: Here, who: User, key: Key = None,
    conversation: Conversation = "",
) -> Response:  # fmt: skip
    """``model`` is a role, or ``auto``: the manager decides. The messages before the last stand for what is remembered
    of the conversation, unless they are all of the system's; X-Conversation-Id or ``user`` name the conversation."""
    if question.stream:
        check_streams(here, who)
    said = question.said(unquote(conversation), _roles(here), frozenset(here.application.model_names))
    received = await enter(here, who, said, key)
    standing = begun(received)
    if received.outcome == "DUP":
        standing = await look(here.bus, standing.place)
    completion = Completion(received, question.model, question.wants_usage)
    if not question.stream:
        return await _whole(here, request, completion, standing)
    pieces = _pieces(here, completion, standing)
    farewell = failure(STOPPING, 503, "server_stopping")
    return EventStream(here, who, pieces, headers=headers_of(received), farewell=farewell)


async def _whole(here: Services, request: Request, completion: Completion, standing: Standing) -> Response:
    task, received = standing.task, completion.received
    if not task.ended:
        found = await watched(here, request, ended(here, standing.place, received.before))
        if not isinstance(found, Task):
            raise Problem(503, STOPPING, "server_stopping", headers={**headers_of(received), "Retry-After": "1"})
        task = found
    if task.state != "done":
        status = 409 if task.state == "cancelled" else 502
        raise Problem(status, why(task), task.state, headers={**headers_of(received), **DOES_NOT_HELP})
    body, after = msgspec.json.encode(completion.whole(task)), BackgroundTask(delivered, here, received)
    return Response(body, headers=headers_of(received), media_type="application/json", background=after)


async def _pieces(here: Services, completion: Completion, standing: Standing) -> AsyncGenerator[bytes, None]:
    yield completion.opening()
    async with aclosing(_events(here, completion.received, standing)) as events:
        async for event in events:
            new = completion.add(event)
            if completion.restarted(event):
                yield failure(RESTARTED, 500, "answer_restarted")
                return
            if new:
                yield completion.piece({"content": new})
            if event.last:
                yield completion.closing(_ended(standing, event))
    await delivered(here, completion.received)


async def _events(here: Services, received: Received, standing: Standing) -> AsyncGenerator[Event, None]:
    """Those of a turn; a command that was carried out at once has an end alone."""
    place = standing.place
    if not place.turn:
        yield Event("final", "", "", received.reply)
        return
    async with aclosing(follow(here.bus, here.wakeups, place.conversation, place.turn, received.before)) as events:
        async for event in events:
            yield event


def _ended(standing: Standing, event: Event) -> Task:
    return standing.place.ended(event.payload) if event.payload else standing.task


def _roles(here: Services) -> frozenset[str]:
    return frozenset(role.name for role in here.application.roles if role.name != FIRST_ROLE)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rolecall"}
