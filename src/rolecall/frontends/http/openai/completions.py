"""Chat completions, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import ServerSentEvent
from starlette.background import BackgroundTask

from rolecall.frontends.http.auth import User
from rolecall.frontends.http.body import Uploads
from rolecall.frontends.http.intake import IdempotencyKey
from rolecall.frontends.http.openai.completion_request import CompletionBody
from rolecall.frontends.http.openai.model_list import model_names
from rolecall.frontends.http.openai.pending_answer import PendingAnswer, SentText, admitted, either, reason_of
from rolecall.frontends.http.openai.uploaded_files import place_in_chat
from rolecall.frontends.http.problems import openai_error, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import Events, until_stopped
from rolecall.frontends.http.task import Task, TaskCall, note_delivered

DONE = ServerSentEvent(raw_data="[DONE]")
ConversationId = Annotated[str, Header(alias="X-Conversation-Id", max_length=2000)]
RESPONSES: dict[int | str, dict[str, Any]] = {
    **problem_responses(400, 403, 404, 409, 410, 413, 422, 429, 502),
    200: {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}},
}


# ── responses ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class ChatCompletion:
    """A chat completion in the making, answered as ``model``."""

    pending: PendingAnswer
    model: str
    usage: bool = False
    speaker: str | None = None
    """The model that answered, once it is known."""
    command_id: str = field(default_factory=lambda: secrets.token_hex(12))

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
            return [_failure(reason_of(task), 502, task.state), DONE]
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
        created = self.pending.received.at // 1000 or int(time.time())
        name = f"chatcmpl-{self.pending.snapshot.task.id or self.command_id}"
        known = {"id": name, "object": kind, "created": created, "model": self.model}
        return {**known, "system_fingerprint": self.speaker}


def _data(value: Any) -> ServerSentEvent:
    return ServerSentEvent(raw_data=msgspec.json.encode(value).decode())


def _failure(message: str, status: int, code: str) -> ServerSentEvent:
    return _data(openai_error(message, status, code))


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


async def _submit(
    body: CompletionBody, response: Response, services: ServicesDep, who: User, uploads: Uploads,
    key: IdempotencyKey = None, conversation: ConversationId = "",
) -> AsyncIterator[ChatCompletion]:  # fmt: skip
    await place_in_chat(services, who, body.messages, uploads)
    request = body.request(model_names(services), unquote(conversation))
    async with admitted(services, who, request, key, uploads, kept=bool(conversation or key)) as pending:
        response.headers.update(pending.headers)
        yield ChatCompletion(pending, body.model, body.wants_usage)


Submission = Annotated[ChatCompletion, Depends(_submit)]


async def stream_completion(completion: Submission, services: ServicesDep) -> Events:
    """Streams a completion as server-sent events."""
    farewell = _failure(text("server_stopping"), 503, "server_stopping")
    async with aclosing(until_stopped(services, _chunks(services, completion), farewell)) as events:
        async for event in events:
            yield event


router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=either(stream_completion))


@router.post("/chat/completions", summary="Create a chat completion", response_model=None, responses=RESPONSES)
async def complete(request: Request, services: ServicesDep, completion: Submission) -> Response:
    """`model` is a role, a configured model, or `auto`: the manager decides. The messages replace the stored history,
    unless all but the last are system messages. `X-Conversation-Id` names the conversation."""
    pending = completion.pending
    task = await pending.answer(services, request)
    body, after = (
        msgspec.json.encode(completion.whole(task)),
        BackgroundTask(note_delivered, services, pending.received),
    )
    return Response(body, headers=pending.headers, media_type="application/json", background=after)


async def _chunks(services: Services, completion: ChatCompletion) -> Events:
    sent = SentText()
    yield completion.first_chunk()
    async with aclosing(completion.pending.events(services)) as events:
        async for event in events:
            new = sent.add(event)
            if sent.restarted(event):
                yield _failure(text("answer_restarted"), 500, "answer_restarted")
                yield DONE
                return
            if new:
                yield completion.chunk({"content": new})
            if event.last:
                for chunk in completion.last_chunks(completion.pending.task_after(event)):
                    yield chunk
    await note_delivered(services, completion.pending.received)
