"""The OpenAI-compatible API: models and chat completions, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ValidationError
from starlette.background import BackgroundTask

from rolecall.bus.events import AnswerText, Event
from rolecall.bus.turn import FIRST_ROLE
from rolecall.errors import ServerError
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.body import Uploads
from rolecall.frontends.http.completion_request import AUTO, CompletionBody
from rolecall.frontends.http.intake import IdempotencyKey, fitted, headers_of, submit
from rolecall.frontends.http.problems import NO_RETRY, Problem, openai_error, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import Events, Streaming, until_stopped
from rolecall.frontends.http.task import (
    Task,
    TaskCall,
    TaskSnapshot,
    accepted_task,
    cancel_task,
    ended_task,
    follow_task,
    note_delivered,
    wait_for,
)

DONE = ServerSentEvent(raw_data="[DONE]")
ConversationId = Annotated[str, Header(alias="X-Conversation-Id", max_length=2000)]
RESPONSES: dict[int | str, dict[str, Any]] = {
    **problem_responses(400, 403, 404, 409, 410, 413, 422, 429, 502),
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
}


# ── responses ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class ChatCompletion:
    """A chat completion in the making: the task in ``snapshot``, answered as ``model``. ``sent`` is the text that the
    client has. It can only grow, so an answer that is restarted with different text ends the stream. ``ended`` says
    whether its task has."""

    received: Received
    snapshot: TaskSnapshot
    model: str
    usage: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False
    speaker: str | None = None
    """The model that answered, once it is known."""
    command_id: str = field(default_factory=lambda: secrets.token_hex(12))
    answer: AnswerText = field(default_factory=AnswerText)
    sent: str = ""

    def add(self, event: Event) -> str:
        """Apply ``event`` and return the text to send."""
        self.answer.apply(event)
        new = AnswerText(self.sent).rest(self.answer.text) or ""
        self.sent += new
        return new

    def restarted(self, event: Event) -> bool:
        """Whether the answer, as far as it is known after ``event``, differs from what was sent."""
        known = self.sent if event.kind == "final" else self.sent[: len(self.answer.text)]
        return not self.answer.text.startswith(known)

    def task_after(self, event: Event) -> Task:
        """The task after the last ``event``; a command executed at once has no payload."""
        return self.snapshot.ref.ended_task(event.payload) if event.payload else self.snapshot.task

    def first_chunk(self) -> ServerSentEvent:
        """The chunk that opens a stream."""
        return self.chunk({"role": "assistant", "content": "", "refusal": None})

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> ServerSentEvent:
        """One chunk of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        more = {"usage": None} if self.usage else {}
        return _data({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def last_chunks(self, task: Task) -> list[ServerSentEvent]:
        """How a stream ends: finish reason, usage if asked for, and [DONE]; or an error."""
        if task.state != "done":
            return [_failure(_reason(task), 502, task.state), DONE]
        self.speaker = task.model or None
        usage = {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(task)}
        calls = [self.chunk({"tool_calls": [part]}) for part in _call_parts(task)]
        return [*calls, self.chunk({}, _finish_reason(task)), *([_data(usage)] if self.usage else []), DONE]

    def whole(self, task: Task) -> dict[str, Any]:
        """The completion as one object. ``system_fingerprint`` is the model that answered."""
        message: dict[str, Any] = {"role": "assistant", "content": task.text, "refusal": None}
        if task.calls:
            message |= {"content": task.text or None, "tool_calls": [_call(call) for call in task.calls]}
        self.speaker = task.model or None
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(task)}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(task)}

    def _head(self, kind: str) -> dict[str, Any]:
        created = self.received.at // 1000 or int(time.time())
        name = f"chatcmpl-{self.snapshot.task.id or self.command_id}"
        known = {"id": name, "object": kind, "created": created, "model": self.model}
        return {**known, "system_fingerprint": self.speaker}


def _data(value: Any) -> ServerSentEvent:
    return ServerSentEvent(raw_data=msgspec.json.encode(value).decode())


def _failure(message: str, status: int, code: str) -> ServerSentEvent:
    return _data(openai_error(message, status, code))


def _reason(task: Task) -> str:
    return task.error.text if task.error else text("answer_stopped")


def _usage(task: Task) -> dict[str, int]:
    tokens_in, tokens_out = task.usage.tokens_in, task.usage.tokens_out
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _finish_reason(task: Task) -> str:
    return "tool_calls" if task.calls else "length" if task.finish == "length" else "stop"


def _call(call: TaskCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_parts(task: Task) -> Iterator[dict[str, Any]]:
    """The calls as a stream tells them: each with its name first, then its arguments."""
    for index, call in enumerate(task.calls):
        function = {"name": call.name, "arguments": ""}
        yield {"index": index, "id": call.id, "type": "function", "function": function}
        yield {"index": index, "function": {"arguments": call.arguments}}


# ── routes ──────────────────────────────────────────────────────────────────────────────────────


class _CompletionRoute(APIRoute):
    """Streams a completion when the body asks for it, and otherwise returns it whole: FastAPI streams only from a route
    of its own, so this one has two handlers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        whole = super().get_route_handler()
        if self.methods != {"POST"}:
            return whole
        streaming = APIRoute(
            self.path, stream_completion, methods=["POST"], response_class=EventSourceResponse, dependencies=[Streaming]
        ).get_route_handler()

        async def handle(request: Request) -> Response:
            return await (streaming if _asks_for_stream(await request.body()) else whole)(request)

        return handle


class _StreamFlag(BaseModel):
    stream: bool | None = False


def _asks_for_stream(body: bytes) -> bool:
    try:
        return bool(_StreamFlag.model_validate_json(body).stream)
    except ValidationError:  # refused by the handler, which says what is wrong
        return False


router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=_CompletionRoute)


@router.get("/models", summary="List the models", responses=problem_responses())
async def list_models(services: ServicesDep, _: User) -> dict[str, Any]:
    """`auto`, the roles that answer (those with a model or a prefix of their own), and the configured models."""
    roles = sorted(role.name for role in services.application.roles if role.models or role.match)
    names = (AUTO, *roles, *services.application.model_names)
    return {"object": "list", "data": [_model(name) for name in names if name != FIRST_ROLE]}


@router.get("/models/{name:path}", summary="Get a model", responses=problem_responses(404))
async def show_model(name: str, services: ServicesDep, _: User) -> dict[str, Any]:
    """Also accepts the names of roles that are not listed."""
    if name not in {AUTO, *_roles(services), *services.application.model_names}:
        known = ", ".join((AUTO, *sorted(_roles(services))))
        detail = text("model_not_found", name=repr(name[:100]), models=known)
        raise Problem(404, detail, "model_not_found", param="model")
    return _model(name)


async def _submit(
    body: CompletionBody, response: Response, services: ServicesDep, who: User, uploads: Uploads,
    key: IdempotencyKey = None, conversation: ConversationId = "",
) -> AsyncIterator[ChatCompletion]:  # fmt: skip
    models = frozenset(services.application.model_names)
    request, cut = fitted(services, body.chat_request(unquote(conversation), _roles(services), models))
    received = await submit(services, who, request, key, uploads)
    headers = {**headers_of(received), **({"X-History-Cut": str(cut)} if cut else {})}
    response.headers.update(headers)
    snapshot = await accepted_task(services.bus, received)
    completion = ChatCompletion(received, snapshot, body.model, body.wants_usage, headers)
    try:
        yield completion
    finally:
        # Nobody can come back for an answer without a name, so its model is better used for others.
        left = not completion.ended and not services.stopping.is_set()
        if left and received.turn and not conversation and not key:
            with suppress(ServerError):
                await cancel_task(services, snapshot.ref)


Submission = Annotated[ChatCompletion, Depends(_submit)]


async def stream_completion(completion: Submission, services: ServicesDep) -> Events:
    """Streams a completion as server-sent events."""
    farewell = _failure(text("server_stopping"), 503, "server_stopping")
    async with aclosing(until_stopped(services, _chunks(services, completion), farewell)) as events:
        async for event in events:
            yield event


@router.post("/chat/completions", summary="Create a chat completion", response_model=None, responses=RESPONSES)
async def complete(request: Request, services: ServicesDep, completion: Submission) -> Response:
    """`model` is a role, a configured model, or `auto`: the manager decides. The messages replace the stored history,
    unless all but the last are system messages. `X-Conversation-Id` names the conversation."""
    received, snapshot = completion.received, completion.snapshot
    task, headers = snapshot.task, completion.headers
    if not task.ended:
        found = await wait_for(services, request, ended_task(services, snapshot.ref, received.before))
        if not isinstance(found, Task):
            raise Problem(503, text("server_stopping"), "server_stopping", headers={**headers, "Retry-After": "1"})
        task = found
    completion.ended = True
    if task.state != "done":
        status = 409 if task.state == "cancelled" else 502
        raise Problem(status, _reason(task), task.state, headers={**headers, **NO_RETRY})
    body, after = msgspec.json.encode(completion.whole(task)), BackgroundTask(note_delivered, services, received)
    return Response(body, headers=headers, media_type="application/json", background=after)


async def _chunks(services: Services, completion: ChatCompletion) -> Events:
    yield completion.first_chunk()
    async with aclosing(_turn_events(services, completion)) as events:
        async for event in events:
            new = completion.add(event)
            if completion.restarted(event):
                yield _failure(text("answer_restarted"), 500, "answer_restarted")
                yield DONE
                return
            if new:
                yield completion.chunk({"content": new})
            if event.last:
                completion.ended = True
                for chunk in completion.last_chunks(completion.task_after(event)):
                    yield chunk
    await note_delivered(services, completion.received)


async def _turn_events(services: Services, completion: ChatCompletion) -> AsyncGenerator[Event]:
    """The events of the turn; a command executed at once has only a final one."""
    if not completion.received.turn:
        yield Event("final", "", "", completion.received.reply)
        return
    async with aclosing(follow_task(services, completion.snapshot.ref, completion.received.before)) as events:
        async for event in events:
            yield event


def _roles(services: Services) -> frozenset[str]:
    return frozenset(role.name for role in services.application.roles if role.name != FIRST_ROLE)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rolecall"}
