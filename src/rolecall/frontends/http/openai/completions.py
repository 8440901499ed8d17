"""Chat completions, whole or streamed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote

import msgspec
from fastapi import Depends, Header, Request, Response
from fastapi.sse import ServerSentEvent
from pydantic import AfterValidator
from starlette.background import BackgroundTask, BackgroundTasks

from rolecall.bus.client_request import TokenLogprobs, load_value
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import Principal, User
from rolecall.frontends.http.body import Upload, Uploads
from rolecall.frontends.http.intake import ChatRequest, IdempotencyKey
from rolecall.frontends.http.openai.completion_request import CompletionBody
from rolecall.frontends.http.openai.model_list import model_names
from rolecall.frontends.http.openai.pending_answer import (
    PendingAnswer,
    SentText,
    admitted,
    answers,
    either,
    merged,
    reason_of,
)
from rolecall.frontends.http.openai.request_fields import request_from
from rolecall.frontends.http.openai.uploaded_files import place_in_chat
from rolecall.frontends.http.problems import openai_error, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import Events, streams
from rolecall.frontends.http.task import Task, TaskCall, note_delivered

DONE = ServerSentEvent(raw_data="[DONE]")


def _from_header(value: str) -> str:
    """The text of a header that is percent-encoded or UTF-8, which the protocol takes for Latin-1."""
    with suppress(UnicodeError):
        value = value.encode("latin-1").decode()
    return unquote(value)


ConversationId = Annotated[str, Header(alias="X-Conversation-Id", max_length=2000), AfterValidator(_from_header)]
RESPONSES: dict[int | str, dict[str, Any]] = {
    **problem_responses(400, 403, 404, 409, 410, 413, 422, 429, 502),
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
}


# ── responses ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class ChatCompletion:
    """A chat completion in the making, answered as ``model``: each of its choices is a turn."""

    choices: list[PendingAnswer]
    model: str
    usage: bool = False
    speaker: str | None = None
    """The model that answered, once it is known."""
    tasks: dict[int, Task] = field(default_factory=dict)
    """The tasks of the choices that have ended, by index."""
    logprobs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By index, as soon as the answer is whole."""
    prefix: ClassVar[str] = "chatcmpl"
    kinds: ClassVar[tuple[str, str]] = ("chat.completion", "chat.completion.chunk")
    """What the whole is called, and what a chunk of a stream."""

    def first_chunk(self, index: int = 0) -> ServerSentEvent:
        """The chunk that opens a choice."""
        return self.chunk({"role": "assistant", "content": "", "refusal": None}, index=index)

    def chunk(self, delta: dict[str, Any], finish: str | None = None, index: int = 0) -> ServerSentEvent:
        """One chunk of a stream."""
        more = {"usage": None} if self.usage else {}
        return _data({**self._head(self.kinds[1]), "choices": [self.shown(delta, finish, index)], **more})

    def shown(self, delta: dict[str, Any], finish: str | None, index: int) -> dict[str, Any]:
        """A choice of a chunk."""
        return {"index": index, "delta": delta, "logprobs": self.logprobs.get(index), "finish_reason": finish}

    def choice(self, task: Task, index: int) -> dict[str, Any]:
        """A whole choice."""
        logprobs = self.logprobs.get(index)
        return {"index": index, "message": _message(task), "logprobs": logprobs, "finish_reason": finish_reason(task)}

    async def load(self, services: Services, task: Task, index: int) -> None:
        """Load the log probabilities of ``task``, if it has any, for its choice."""
        if task.logprobs:
            stored = await load_value(services.bus, task.conversation_id, task.logprobs, TokenLogprobs)
            self.logprobs[index] = {"content": stored.content if stored else (), "refusal": None}

    def last_chunks(self, task: Task, index: int = 0) -> list[ServerSentEvent]:
        """How a choice ends: with its finish reason. The last one ends the stream: usage if asked for, and [DONE]. A
        failed choice ends it with an error."""
        self.tasks[index] = task
        if task.state != "done":
            return [_failure(reason_of(task), 502, task.state), DONE]
        self.speaker = task.model or None
        calls = [self.chunk({"tool_calls": [part]}, index=index) for part in _call_parts(task)]
        calls += [self.chunk({}, index=index)] if index in self.logprobs else []
        self.logprobs.pop(index, None)
        ending = [*calls, self.chunk({}, finish_reason(task), index)]
        if len(self.tasks) < len(self.choices):
            return ending
        usage = {**self._head(self.kinds[1]), "choices": [], "usage": _usage(self.tasks.values())}
        return [*ending, *([_data(usage)] if self.usage else []), DONE]

    def whole(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """The completion as one object. ``system_fingerprint`` is the model that answered."""
        self.speaker = tasks[0].model or None
        choices = [self.choice(task, index) for index, task in enumerate(tasks)]
        return {**self._head(self.kinds[0]), "choices": choices, "usage": _usage(tasks)}

    def _head(self, kind: str) -> dict[str, Any]:
        pending = self.choices[0]
        created = pending.received.at // 1000 or int(time.time())
        name = f"{self.prefix}-{pending.snapshot.task.id}"
        known = {"id": name, "object": kind, "created": created, "model": self.model}
        return {**known, "system_fingerprint": self.speaker}


def _data(value: Any) -> ServerSentEvent:
    return ServerSentEvent(raw_data=msgspec.json.encode(value).decode())


def _failure(message: str, status: int, code: str) -> ServerSentEvent:
    return _data(openai_error(message, status, code))


def _usage(tasks: Collection[Task]) -> dict[str, int]:
    """The tokens of all choices together."""
    tokens_in, tokens_out = sum(task.usage.tokens_in for task in tasks), sum(task.usage.tokens_out for task in tasks)
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _message(task: Task) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": task.text, "refusal": None}
    if task.calls:
        message |= {"content": task.text or None, "tool_calls": [_call(call) for call in task.calls]}
    return message


def finish_reason(task: Task) -> str:
    """Why an answer ended, in OpenAI's words."""
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


async def _submit(
    body: CompletionBody, response: Response, services: ServicesDep, who: User, uploads: Uploads,
    key: IdempotencyKey = None, conversation: ConversationId = "",
) -> AsyncIterator[ChatCompletion]:  # fmt: skip
    await place_in_chat(services, who, body.messages, uploads)
    count = body.choices(services.settings.http_choices, named=bool(conversation))
    names, schemas = model_names(services), bool(body.tools or body.response_format)
    request = await request_from(services, lambda: body.request(names, conversation), schemas=schemas)
    async with admitted_choices(
        services, who, [request] * count, key, uploads, kept=bool(conversation or key)
    ) as choices:  # fmt: skip
        response.headers.update(choices[0].headers)
        yield ChatCompletion(choices, body.model, body.wants_usage)


@asynccontextmanager
async def admitted_choices(
    services: Services, who: Principal, requests: Sequence[ChatRequest], key: str | None,
    uploads: Mapping[str, Upload], *, kept: bool,
) -> AsyncIterator[list[PendingAnswer]]:  # fmt: skip
    """Submit ``requests``, each for a choice, as ``admitted`` does."""
    async with AsyncExitStack() as stack:
        # One after the other: they share the uploads.
        yield [
            await stack.enter_async_context(
                admitted(services, who, request, _choice_key(key, index), uploads, kept=kept)
            )
            for index, request in enumerate(requests)
        ]


def _choice_key(key: str | None, index: int) -> str | None:
    """The idempotency key of a choice: each is a turn, and the first has the request's own key."""
    return key and (key if index == 0 else hashlib.sha256(f"{key}\0{index}".encode()).hexdigest())


Submission = Annotated[ChatCompletion, Depends(_submit)]


def stopping() -> ServerSentEvent:
    """The last event of a stream when the process stops."""
    return _failure(text("server_stopping"), 503, "server_stopping")


@streams(stopping)
def stream_completion(completion: Submission, services: ServicesDep) -> Events:
    """Streams a completion as server-sent events."""
    return chunks(services, completion)


router = api_router(prefix="/v1", tags=["OpenAI-compatible"], route_class=either(stream_completion))


@router.post("/chat/completions", summary="Create a chat completion", response_model=None, responses=RESPONSES)
async def complete(request: Request, services: ServicesDep, completion: Submission) -> Response:
    """`model` is a role, a configured model, or `auto`: the manager decides. The messages replace the stored history,
    unless all but the last are system messages. `X-Conversation-Id` names the conversation."""
    return await completed(services, request, completion)


async def completed(services: Services, request: Request, completion: ChatCompletion) -> Response:
    """Wait for all choices, and answer with them. Raises Problem."""
    choices = completion.choices
    tasks = await answers(services, request, choices)
    after = BackgroundTasks([BackgroundTask(note_delivered, services, pending.received) for pending in choices])
    for index, task in enumerate(tasks):
        await completion.load(services, task, index)
    body = msgspec.json.encode(completion.whole(tasks))
    return Response(body, headers=choices[0].headers, media_type="application/json", background=after)


async def chunks(services: Services, completion: ChatCompletion) -> Events:
    """The events of a stream."""
    sent = [SentText() for _ in completion.choices]
    for index in range(len(sent)):
        yield completion.first_chunk(index)
    async with aclosing(merged([pending.events(services) for pending in completion.choices])) as events:
        async for index, event in events:
            new = sent[index].add(event)
            if sent[index].restarted(event):
                yield _failure(text("answer_restarted"), 500, "answer_restarted")
                yield DONE
                return
            if new:
                yield completion.chunk({"content": new}, index=index)
            if event.last:
                task = completion.choices[index].task_after(event)
                await completion.load(services, task, index)
                for chunk in completion.last_chunks(task, index):
                    yield chunk
                if task.state != "done":
                    return
    for pending in completion.choices:
        await note_delivered(services, pending.received)
