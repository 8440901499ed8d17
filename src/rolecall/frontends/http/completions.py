"""A chat completion in the making, in the pieces that OpenAI's clients read."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from rolecall.bus.events import AnswerText, Event, follow
from rolecall.bus.turn import FIRST_ROLE
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.intake import Said, enter, headers_of
from rolecall.frontends.http.problems import DOES_NOT_HELP, Problem, documented, openai_error
from rolecall.frontends.http.services import Here, Services
from rolecall.frontends.http.sse import EventStream, check_streams
from rolecall.frontends.http.task import Standing, Task, begun, look
from rolecall.frontends.http.tasks import Key, delivered, ended, watched

DONE = b"data: [DONE]\n\n"
RESTARTED = "The answer had to begin again and says something else now; ask once more, or fetch it as a task."
STOPPED = "The answer was stopped."
AUTO = "auto"
SYSTEM = ("system", "developer")
PICTURE = "[a picture]"
"""What stands for a picture in the messages before the last."""
router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
STOPPING = "The server has to end; the answer will be there as the task that X-Task-Id names."
Conversation = Annotated[str, Header(alias="X-Conversation-Id", max_length=2000)]
ANSWERS: dict[int | str, dict[str, Any]] = {
    **documented(400, 403, 404, 409, 410, 413, 422, 429, 502),
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
}


@dataclass
class Completion:
    """The answer to what was ``received``, asked of ``model``. ``sent`` is what the client has of it. That can only
    grow: an answer that begins anew with other words cannot be told any more."""

    received: Received
    model: str
    usage: bool = False
    answer: AnswerText = field(default_factory=AnswerText)
    sent: str = ""

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.answer.text

    def add(self, event: Event) -> str:
        """Take ``event`` in and return what it adds to what was sent."""
        self.answer.apply(event)
        new = self.text[len(self.sent) :] if self.text.startswith(self.sent) else ""
        self.sent += new
        return new

    def restarted(self, event: Event) -> bool:
        """Whether the answer, as far as it is known after ``event``, is not the one that was sent."""
        known = self.sent if event.kind == "final" else self.sent[: len(self.text)]
        return not self.text.startswith(known)

    def opening(self) -> bytes:
        """The first piece."""
        return self.piece({"role": "assistant", "content": "", "refusal": None})

    def piece(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """One piece of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        more = {"usage": None} if self.usage else {}
        return data({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def closing(self, task: Task) -> bytes:
        """The last pieces: how it finished, and the tokens where they are asked for; or an error."""
        if task.state != "done":
            return failure(why(task), 502, task.state)
        tokens = {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(task)}
        return self.piece({}, _finish(task)) + (data(tokens) if self.usage else b"") + DONE

    def whole(self, task: Task) -> dict[str, Any]:
        """The answer at once. ``system_fingerprint`` names the model that spoke."""
        message = {"role": "assistant", "content": task.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(task)}
        head = {**self._head("chat.completion"), "system_fingerprint": task.model or None}
        return {**head, "choices": [choice], "usage": _usage(task)}

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{begun(self.received).task.id or 'command'}"
        created = self.received.at // 1000 or int(time.time())
        return {"id": name, "object": kind, "created": created, "model": self.model}


def data(value: Any) -> bytes:
    """One unnamed event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def failure(message: str, status: int, code: str) -> bytes:
    """What ends a stream that cannot go on."""
    return data(openai_error(message, status, code))


def why(task: Task) -> str:
    """What is told when there is no answer."""
    return task.error.text if task.error else STOPPED


def _usage(task: Task) -> dict[str, int]:
    tokens_in, tokens_out = task.usage.tokens_in, task.usage.tokens_out
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _finish(task: Task) -> str:
    return "length" if task.finish == "length" else "stop"


class Picture(BaseModel):
    """A picture as a data URL."""

    url: str


class ContentPart(BaseModel):
    """A piece of a message: text, or a picture."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=40)]
    text: str = ""
    image_url: Picture | None = None


class ChatMessage(BaseModel):
    """One message of the conversation so far."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @property
    def parts(self) -> list[ContentPart]:
        """Its content, piece by piece."""
        if isinstance(self.content, str):
            return [ContentPart(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """Its words."""
        return "\n".join(PICTURE if part.type == "image_url" else part.text for part in self.parts)


class StreamOptions(BaseModel):
    """What else a stream has to tell."""

    include_usage: bool | None = False


class CompletionQuestion(BaseModel):
    """A chat completion asked for. Fields that are not named here are ignored, sampling parameters among them: the
    deployment sets those."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "auto", "messages": [{"role": "user", "content": "Hello!"}]}]},
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=2048)
    model: str = Field(AUTO, max_length=200, description="a role, a model that the deployment names, or auto")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=150, description="the conversation, unless X-Conversation-Id names it")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    n: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None

    def said(self, conversation: str, roles: frozenset[str], models: frozenset[str]) -> Said:
        """As the way in takes it. Raises Problem for what cannot be done here."""
        self._check()
        *before, last = self.messages
        if last.role != "user":
            raise Problem(400, "The last message has to be the user's.", "invalid_messages", param="messages")
        if self.model not in {AUTO, *roles, *models}:
            known = ", ".join((AUTO, *sorted(roles)))
            raise Problem(404, f"There is no model {self.model[:100]!r}; there are {known}.", "model_not_found",
                          param="model")  # fmt: skip
        text = "\n".join(part.text for part in _known(last) if part.type == "text")
        pictures = [part.image_url.url for part in _known(last) if part.image_url]
        if not text.strip() and not pictures:
            raise Problem(400, "The last message says nothing.", "invalid_messages", param="messages")
        return Said(
            text,
            conversation or self.user or "",
            self.model if self.model in roles else "",
            "" if self.model in roles or self.model == AUTO else self.model,
            metadata=self.metadata or {},
            images=pictures,
            history=[_remembered(message) for message in before if message.text],
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _check(self) -> None:
        refused = {
            "n": self.n not in (None, 1),
            "tool_choice": self.tool_choice not in (None, "auto", "none"),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
            "logprobs": bool(self.logprobs),
            "modalities": bool(self.modalities) and self.modalities != ["text"],
        }
        for name, is_refused in refused.items():
            if is_refused:
                raise Problem(400, f"{name}: this is not supported here; leave it out.", "unsupported_parameter",
                              param=name)  # fmt: skip


def _known(message: ChatMessage) -> list[ContentPart]:
    for part in message.parts:
        if part.type not in ("text", "image_url") or (part.type == "image_url" and part.image_url is None):
            raise Problem(400, f"A message here consists of text and image_url, not {part.type!r}.",
                          "unsupported_content", param="messages")  # fmt: skip
    return message.parts


def _remembered(message: ChatMessage) -> dict[str, str]:
    role = "system" if message.role in SYSTEM else "assistant" if message.role == "assistant" else "user"
    return {"role": role, "text": message.text}


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
