"""The Responses API: create a response, whole, streamed or in the background, and come back to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Path, Query, Request, Response
from starlette.background import BackgroundTask

from rolecall.bus.blobs import Blobs
from rolecall.bus.client_request import (
    ClientMessage,
    ClientRequest,
    StoredResponse,
    delete_response,
    fitting,
    load_responses,
    store_response,
)
from rolecall.bus.events import Event
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import Principal, User
from rolecall.frontends.http.body import Uploads
from rolecall.frontends.http.intake import IdempotencyKey, conversation_of, store_pictures
from rolecall.frontends.http.openai.completions import RESPONSES, ConversationId
from rolecall.frontends.http.openai.model_list import model_names
from rolecall.frontends.http.openai.pending_answer import PendingAnswer, admitted, either
from rolecall.frontends.http.openai.request_fields import request_from
from rolecall.frontends.http.openai.response_chain import (
    KeptResponse,
    as_urls,
    chain_after,
    find_response,
    history_before,
    keep_answer,
    resolved,
)
from rolecall.frontends.http.openai.response_object import input_items, response_object
from rolecall.frontends.http.openai.response_request import ResponseBody
from rolecall.frontends.http.openai.response_stream import ResponseEvents
from rolecall.frontends.http.openai.uploaded_files import place_in_items
from rolecall.frontends.http.problems import Problem, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import Events, streams, until_stopped
from rolecall.frontends.http.task import Task, cancel_task, ended_task, follow_task, note_delivered

ResponseId = Annotated[str, Path(max_length=1300, description="the `id` of a response")]


@dataclass
class NewResponse:
    """A response in the making. ``shown`` repeats the request."""

    pending: PendingAnswer
    created: float
    shown: dict[str, Any]

    def object(self, task: Task) -> dict[str, Any]:
        """The response as its client knows it."""
        return response_object(task, self.created, self.shown)


async def _create(
    body: ResponseBody, response: Response, services: ServicesDep, who: User, uploads: Uploads,
    key: IdempotencyKey = None, conversation: ConversationId = "",
) -> AsyncIterator[NewResponse]:  # fmt: skip
    body.check()
    model_names(services).check(body.model)
    bus, named = services.bus, conversation or body.conversation_name
    previous = await _previous(services, body, who)
    at = previous.ref.conversation if previous else conversation_of(who, named, key)
    items = body.items
    await place_in_items(services, who, items, uploads)
    messages = await resolved(bus, who, items)
    async with services.storing_of(who.id, uploads):
        own = await store_pictures(Blobs(bus), at, messages, uploads)
    before = [ClientMessage("system", body.instructions)] if body.instructions else []
    before += await history_before(bus, previous) if previous else []
    messages = [*before, *as_urls(own)]
    if not messages:
        raise Problem(400, text("no_input"), "invalid_request", param="input")
    names, schemas = model_names(services), bool(body.tools or body.text)
    request = await request_from(
        services, lambda: body.chat_request(names, at, messages, body.client_request(), "input"), schemas=schemas
    )
    request = dataclasses.replace(request, commands=bool(named))
    kept = bool(named or key or body.background)
    async with admitted(services, who, request, key, uploads, kept=kept) as pending:
        response.headers.update(pending.headers)
        new = NewResponse(pending, pending.received.at / 1000 or time.time(), body.shown("" if previous else named))
        if body.store is not False and pending.received.turn:
            await _keep(services, new, own, previous)
        yield new


New = Annotated[NewResponse, Depends(_create)]


async def stream_response(new: New, services: ServicesDep) -> Events:
    """Streams a response as server-sent events."""
    events = ResponseEvents(new.pending.snapshot.task, new.created, new.shown)
    async with aclosing(until_stopped(services, _streamed(services, new, events))) as streamed:
        async for event in streamed:
            yield event
    if services.stopping.is_set() and not new.pending.ended:
        for event in events.fail(text("server_stopping"), "server_stopping"):
            yield event


create_router = api_router(prefix="/v1", tags=["OpenAI-compatible"], route_class=either(stream_response))


@create_router.post("/responses", summary="Create a response", response_model=None, responses=RESPONSES)
async def create(request: Request, services: ServicesDep, new: New) -> Response:
    """`model` is a role, a configured model, or `auto`. `previous_response_id` continues the conversation of a response
    that was stored, `conversation` or X-Conversation-Id one by its name. With `background` the answer is fetched
    later."""
    pending = new.pending
    if new.shown["background"]:
        task = pending.snapshot.task
        if not task.ended:
            services.tasks.start(_keep_when_ended(services, pending), "response in the background")
        return _json(new.object(task), pending)
    task = await pending.answer(services, request)
    await keep_answer(services.bus, pending.snapshot.ref, task)
    return _json(new.object(task), pending, BackgroundTask(note_delivered, services, pending.received))


# ── come back to a response ─────────────────────────────────────────────────────────────────────


async def _kept(response_id: ResponseId, services: ServicesDep, who: User) -> KeptResponse:
    return await find_response(services.bus, response_id, who)


Kept = Annotated[KeptResponse, Depends(_kept)]


@streams()
async def stream_again(kept: Kept, services: ServicesDep, starting_after: Annotated[int, Query(ge=-1)] = -1) -> Events:
    """Streams a response from the beginning, or after the event of a number."""
    shown = dict(kept.stored.shown)
    events = ResponseEvents(kept.task, shown.pop("created_at", 0.0), shown, starting_after)
    for one in events.begin():
        yield one
    if kept.task.ended:
        for one in events.add(Event("final", "", kept.ref.turn, kept.task.text), kept.task):
            yield one
        return
    async with aclosing(follow_task(services, kept.ref, "0-0")) as happened:
        async for event in happened:
            for one in events.add(event, kept.ref.ended_task(event.payload) if event.last else None):
                yield one


show_router = api_router(prefix="/v1", tags=["OpenAI-compatible"], route_class=either(stream_again))
router = api_router(prefix="/v1", tags=["OpenAI-compatible"])


@router.get("/responses/{response_id}/input_items", summary="List the input of a response",
            responses=problem_responses(404))  # fmt: skip
async def list_input(
    kept: Kept, limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc", after: Annotated[str, Query(max_length=2000)] = "",
) -> dict[str, Any]:  # fmt: skip
    """Newest first, unless `order` is `asc`; after the item `after`."""
    items = input_items(kept.stored.messages, kept.ref.id)
    items = items if order == "asc" else items[::-1]
    at = next((number + 1 for number, item in enumerate(items) if item["id"] == after), 0)
    page = items[at : at + limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": len(items) > at + limit, **ends}


@router.post("/responses/{response_id}/cancel", summary="Cancel a response", responses=problem_responses(404))
async def cancel(response_id: ResponseId, kept: Kept, services: ServicesDep, who: User) -> dict[str, Any]:
    """Returns the response as it ended, now or before."""
    if not kept.task.ended:
        await cancel_task(services, kept.ref)
        kept = await find_response(services.bus, response_id, who)
    return kept.object()


@show_router.get("/responses/{response_id}", summary="Get a response", responses=problem_responses(404))
async def show(kept: Kept) -> dict[str, Any]:
    """As it stands. `stream=true` streams its events, after the number `starting_after`."""
    return kept.object()


@router.delete("/responses/{response_id}", summary="Delete a response", responses=problem_responses(404))
async def delete(response_id: ResponseId, kept: Kept, services: ServicesDep) -> dict[str, Any]:
    """It can no longer be fetched or continued. Responses that continue it keep the rest of their conversation."""
    await delete_response(services.bus, kept.ref.conversation, kept.ref.turn)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/responses/input_tokens", include_in_schema=False)
@router.post("/responses/compact", include_in_schema=False)
async def not_offered() -> None:
    """Raise Problem. Without this route the answer would be that of a response by that name: a wrong method."""
    raise Problem(404, HTTPStatus.NOT_FOUND.phrase)


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


async def _previous(services: Services, body: ResponseBody, who: Principal) -> KeptResponse | None:
    if not body.previous_response_id:
        return None
    try:
        return await find_response(services.bus, body.previous_response_id, who)
    except Problem as problem:
        detail, param = str(problem.detail), "previous_response_id"
        raise Problem(400, detail, "previous_response_not_found", param=param) from None


async def _keep(
    services: Services, new: NewResponse, own: tuple[ClientMessage, ...], previous: KeptResponse | None
) -> None:
    received, bus = new.pending.received, services.bus
    if received.outcome == "DUP" and await load_responses(bus, received.conversation, [received.turn]):
        return
    kept = fitting(ClientRequest(before=own))[0].before
    shown = {**new.shown, "created_at": new.created}
    stored = StoredResponse(received.turn, kept, chain_after(previous), shown)
    await store_response(bus, received.conversation, stored)


async def _keep_when_ended(services: Services, pending: PendingAnswer) -> None:
    task = await ended_task(services, pending.snapshot.ref, pending.received.before)
    await keep_answer(services.bus, pending.snapshot.ref, task)


async def _streamed(services: Services, new: NewResponse, events: ResponseEvents) -> Events:
    for one in events.begin():
        yield one
    async with aclosing(new.pending.events(services)) as happened:
        async for event in happened:
            task = new.pending.task_after(event) if event.last else None
            if task is not None:
                await keep_answer(services.bus, new.pending.snapshot.ref, task)
            for one in events.add(event, task):
                yield one
    await note_delivered(services, new.pending.received)


def _json(value: dict[str, Any], pending: PendingAnswer, after: BackgroundTask | None = None) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, headers=dict(pending.headers), media_type="application/json", background=after)
