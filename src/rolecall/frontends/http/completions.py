"""The OpenAI-compatible API: models and chat completions, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.background import BackgroundTask

from rolecall.bus.events import AnswerText, Event
from rolecall.bus.turn import FIRST_ROLE
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.intake import ChatRequest, IdempotencyKey, headers_of, submit
from rolecall.frontends.http.problems import NO_RETRY, Problem, openai_error, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import Events, Streaming, until_stopped
from rolecall.frontends.http.task import (
    Task,
    TaskSnapshot,
    accepted_task,
    ended_task,
    follow_task,
    note_delivered,
    wait_for,
)

AUTO = "auto"
IMAGE_PLACEHOLDER = "[image]"
"""Stands for an image in the messages before the last."""
DONE = ServerSentEvent(raw_data="[DONE]")
ConversationId = Annotated[str, Header(alias="X-Conversation-Id", max_length=2000)]
RESPONSES: dict[int | str, dict[str, Any]] = {
    **problem_responses(400, 403, 404, 409, 410, 413, 422, 429, 502),
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
}


# ── requests ────────────────────────────────────────────────────────────────────────────────────


class ImageUrl(BaseModel):
    """An image as a data URL."""

    url: str


class ContentPart(BaseModel):
    """A part of a message: text or an image."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=40)]
    text: str = ""
    image_url: ImageUrl | None = None


class ChatMessage(BaseModel):
    """One message of the conversation so far."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @property
    def parts(self) -> list[ContentPart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [ContentPart(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """The content as text, with a placeholder for each image."""
        return "\n".join(IMAGE_PLACEHOLDER if part.type == "image_url" else part.text for part in self.parts)

    def supported_parts(self) -> list[ContentPart]:
        """The content as parts. Raises Problem (400) unless each is text or an image."""
        for part in self.parts:
            if part.type not in ("text", "image_url") or (part.type == "image_url" and part.image_url is None):
                detail = text("unsupported_content", type=repr(part.type))
                raise Problem(400, detail, "unsupported_content", param="messages")
        return self.parts


class StreamOptions(BaseModel):
    """What a stream includes besides the answer."""

    include_usage: bool | None = False


class CompletionBody(BaseModel):
    """A chat completion request. Other fields are ignored, including sampling parameters: the deployment sets those."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "auto", "messages": [{"role": "user", "content": "Hello!"}]}]},
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    model: str = Field(AUTO, max_length=200, description="a role, a configured model, or auto")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=150, description="the conversation, unless X-Conversation-Id names one")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    n: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None

    def chat_request(self, conversation: str, roles: frozenset[str], models: frozenset[str]) -> ChatRequest:
        """The request to submit. Raises Problem for what is not supported."""
        self._check_parameters()
        *before, last = self.messages
        if last.role != "user":
            raise Problem(400, text("last_message_not_user"), "invalid_messages", param="messages")
        if self.model not in {AUTO, *roles, *models}:
            known = ", ".join((AUTO, *sorted(roles)))
            detail = text("model_not_found", name=repr(self.model[:100]), models=known)
            raise Problem(404, detail, "model_not_found", param="model")
        message = "\n".join(part.text for part in last.supported_parts() if part.type == "text")
        images = [part.image_url.url for part in last.supported_parts() if part.image_url]
        if not message.strip() and not images:
            raise Problem(400, text("last_message_empty"), "invalid_messages", param="messages")
        return ChatRequest(
            message,
            conversation or self.user or "",
            self.model if self.model in roles else "",
            "" if self.model in roles or self.model == AUTO else self.model,
            metadata=self.metadata or {},
            images=images,
            history=[_history_entry(message) for message in before if message.text],
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream should end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _check_parameters(self) -> None:
        unsupported = {
            "n": self.n not in (None, 1),
            "tool_choice": self.tool_choice not in (None, "auto", "none"),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
            "logprobs": bool(self.logprobs),
            "modalities": bool(self.modalities) and self.modalities != ["text"],
        }
        for name, is_unsupported in unsupported.items():
            if is_unsupported:
                raise Problem(400, text("unsupported_parameter", name=name), "unsupported_parameter", param=name)


def _history_entry(message: ChatMessage) -> dict[str, str]:
    role = "system" if message.role in ("system", "developer") else message.role
    return {"role": role if role in ("system", "assistant") else "user", "text": message.text}


# ── responses ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class ChatCompletion:
    """A chat completion in the making: the task in ``snapshot``, answered as ``model``. ``sent`` is the text that the
    client has. It can only grow, so an answer that is restarted with different text ends the stream."""

    received: Received
    snapshot: TaskSnapshot
    model: str
    usage: bool = False
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

    def ended(self, event: Event) -> Task:
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
        usage = {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(task)}
        return [self.chunk({}, _finish_reason(task)), *([_data(usage)] if self.usage else []), DONE]

    def whole(self, task: Task) -> dict[str, Any]:
        """The completion as one object. ``system_fingerprint`` is the model that answered."""
        message = {"role": "assistant", "content": task.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(task)}
        head = {**self._head("chat.completion"), "system_fingerprint": task.model or None}
        return {**head, "choices": [choice], "usage": _usage(task)}

    def _head(self, kind: str) -> dict[str, Any]:
        created = self.received.at // 1000 or int(time.time())
        name = f"chatcmpl-{self.snapshot.task.id or 'command'}"
        return {"id": name, "object": kind, "created": created, "model": self.model}


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
    return "length" if task.finish == "length" else "stop"


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


@router.get("/models", summary="List the models: auto and the roles", responses=problem_responses())
async def list_models(services: ServicesDep, _: User) -> dict[str, Any]:
    """Lists them as OpenAI does."""
    return {"object": "list", "data": [_model(name) for name in (AUTO, *sorted(_roles(services)))]}


@router.get("/models/{name:path}", summary="Get a model", responses=problem_responses(404))
async def show_model(name: str, services: ServicesDep, _: User) -> dict[str, Any]:
    """Also accepts the names of configured models."""
    if name not in {AUTO, *_roles(services), *services.application.model_names}:
        known = ", ".join((AUTO, *sorted(_roles(services))))
        detail = text("model_not_found", name=repr(name[:100]), models=known)
        raise Problem(404, detail, "model_not_found", param="model")
    return _model(name)


async def _submit(
    body: CompletionBody, response: Response, services: ServicesDep, who: User, key: IdempotencyKey = None,
    conversation: ConversationId = "",
) -> ChatCompletion:  # fmt: skip
    models = frozenset(services.application.model_names)
    received = await submit(services, who, body.chat_request(unquote(conversation), _roles(services), models), key)
    response.headers.update(headers_of(received))
    return ChatCompletion(received, await accepted_task(services.bus, received), body.model, body.wants_usage)


Submission = Annotated[ChatCompletion, Depends(_submit)]


async def stream_completion(completion: Submission, services: ServicesDep) -> Events:
    """Streams a completion as server-sent events."""
    farewell = _failure(text("server_stopping"), 503, "server_stopping")
    async with aclosing(until_stopped(services, _chunks(services, completion), farewell)) as events:
        async for event in events:
            yield event


@router.post("/chat/completions", summary="Create a chat completion", response_model=None, responses=RESPONSES)
async def complete(request: Request, services: ServicesDep, completion: Submission) -> Response:
    """`model` is a role, a configured model, or `auto`: the manager decides. The messages before the last replace the
    stored history, unless all of them are system messages. `X-Conversation-Id` or `user` names the conversation."""
    received, snapshot = completion.received, completion.snapshot
    task, headers = snapshot.task, headers_of(received)
    if not task.ended:
        found = await wait_for(services, request, ended_task(services, snapshot.ref, received.before))
        if not isinstance(found, Task):
            raise Problem(503, text("server_stopping"), "server_stopping", headers={**headers, "Retry-After": "1"})
        task = found
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
                for chunk in completion.last_chunks(completion.ended(event)):
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
