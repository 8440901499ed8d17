"""Agents of other frameworks ask ours by the Agent2Agent protocol: a task is a turn, a context is a conversation.

The SDK speaks JSON-RPC in both versions of the protocol, 1.0 and 0.3; this says what their requests mean here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import a2a_pb2 as wire
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InternalError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from fastapi import HTTPException, Request, Response
from google.protobuf.json_format import MessageToDict
from starlette.responses import JSONResponse

from rolecall.bus.blobs import IMAGE_TYPES
from rolecall.bus.events import AnswerText, Event
from rolecall.bus.turn import FIRST_ROLE
from rolecall.errors import RolecallError
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import Principal, require
from rolecall.frontends.http.body import Upload
from rolecall.frontends.http.image_urls import fetch_images
from rolecall.frontends.http.intake import PREFIX, ChatRequest, submit
from rolecall.frontends.http.openai.request_fields import FilePart
from rolecall.frontends.http.openai.uploaded_files import placed
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.sse import open_stream, until_stopped
from rolecall.frontends.http.task import (
    NoResult,
    Task,
    TaskRef,
    TaskSnapshot,
    accepted_task,
    answer_task,
    cancel_task,
    find_task,
    note_delivered,
    question_of,
    tell_task,
    wait_for,
)
from rolecall.version import __version__

RPC_PATH = "/a2a"
ANSWER = "answer"
"""The id of the artifact that holds the answer."""
STATES = {
    "pending": wire.TASK_STATE_SUBMITTED, "running": wire.TASK_STATE_WORKING, "done": wire.TASK_STATE_COMPLETED,
    "failed": wire.TASK_STATE_FAILED, "cancelled": wire.TASK_STATE_CANCELED,
}  # fmt: skip
ASKS = wire.TASK_STATE_INPUT_REQUIRED
MOST_VALUES = 10_000
"""The values in a request: the SDK collects each mistake of each, a thousand times slower than it reads them."""
TEXT_TYPES = ("text/plain", "text/markdown")
Happened = wire.Task | wire.Message | wire.TaskStatusUpdateEvent | wire.TaskArtifactUpdateEvent


async def show_card(request: Request) -> Response:
    """The agent card. Without a valid key it says nothing of the roles; clients that have one ask for the extended
    card."""
    try:
        await require(request)
    except HTTPException:
        return JSONResponse(agent_card_to_dict(_card(request, extended=False)))
    return JSONResponse(agent_card_to_dict(_card(request, extended=True)))


async def answer(request: Request) -> Response:
    """Answer a JSON-RPC request. Raises HTTPException: 401 for a sender who is not known, 413 for too many values."""
    request.state.principal = await require(request)
    with suppress(ValueError, RecursionError):  # it is no JSON, which the SDK says
        if _values_in(await request.json()) > MOST_VALUES:
            raise Problem(413, text("body_values", count=f"{MOST_VALUES:,}"))
    return await DISPATCHER.handle_requests(request)


def _values_in(document: object) -> int:
    """How many values ``document`` has; counting ends beyond MOST_VALUES."""
    count, level = 0, [document]
    while level and count <= MOST_VALUES:
        count += len(level)
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in nested for value in values]
    return count


def _card(request: Request, *, extended: bool) -> wire.AgentCard:
    services: Services = request.app.state.services
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    url = f"{scheme}://{request.url.netloc}{RPC_PATH}"
    roles = services.application.answering_roles if extended else []
    skills = [wire.AgentSkill(id="ask", name="ask", description="Answers messages.", tags=["chat"])]
    skills += [
        wire.AgentSkill(
            id=role.name, name=role.name, tags=["role"], description=role.description or role.name
        )
        for role in roles
        if role.name != FIRST_ROLE
    ]  # fmt: skip
    bearer = wire.HTTPAuthSecurityScheme(scheme="bearer", description="an API key of this deployment")
    return wire.AgentCard(
        name=services.application.name, version=__version__,
        description="An assistant of several agents. metadata.role of a message names the skill that answers.",
        supported_interfaces=[
            wire.AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version=version)
            for version in ("1.0", "0.3")
        ],
        capabilities=wire.AgentCapabilities(streaming=True, extended_agent_card=True),
        security_schemes={"key": wire.SecurityScheme(http_auth_security_scheme=bearer)},
        security_requirements=[wire.SecurityRequirement(schemes={"key": wire.StringList()})],
        default_input_modes=[*TEXT_TYPES, *IMAGE_TYPES], default_output_modes=[*TEXT_TYPES], skills=skills,
    )  # fmt: skip


class _Contexts(DefaultServerCallContextBuilder):
    """Hands the request to the handler, with who sent it."""

    def build(self, request: Request) -> ServerCallContext:
        context = super().build(request)
        context.state["request"] = request
        return context


@dataclass(frozen=True)
class _Call:
    """Who asks for what."""

    request: Request
    services: Services
    who: Principal

    @classmethod
    def of(cls, context: ServerCallContext) -> _Call:
        request: Request = context.state["request"]
        return cls(request, request.app.state.services, request.state.principal)

    @property
    def own(self) -> str:
        """What the conversations of this key begin with."""
        return f"{PREFIX}{self.who.id}:"

    def task(self, task: Task) -> wire.Task:
        """``task`` as the protocol has it."""
        parts = [wire.Part(text=task.text)] if task.text else []
        found = wire.Task(id=task.id or "", context_id=self.context_id(task), status=self.status(task))
        if parts:
            found.artifacts.append(wire.Artifact(artifact_id=ANSWER, parts=parts))
        if task.model:
            found.metadata.update({"model": task.model, **task.usage.model_dump()})
        return found

    def context_id(self, task: Task) -> str:
        """The conversation as the client calls it."""
        return task.conversation_id.removeprefix(self.own)

    def status(self, task: Task) -> wire.TaskStatus:
        """How far ``task`` is: its question if it has one, why it failed."""
        said, state = task.error.text if task.error else "", STATES[task.state]
        if task.questions and not task.ended:
            asked = task.questions[0]
            said, state = f"{asked.text}\n{' / '.join(asked.options)}", ASKS
        status = wire.TaskStatus(state=state)
        if said:
            status.message.CopyFrom(self.message(task, said))
        status.timestamp.GetCurrentTime()
        return status

    def message(self, task: Task, said: str) -> wire.Message:
        """A message of the assistant about ``task``."""
        return wire.Message(
            message_id=f"{task.id or self.request.state.request_id}-{task.state}", role=wire.ROLE_AGENT,
            context_id=self.context_id(task), task_id=task.id or "", parts=[wire.Part(text=said)],
        )  # fmt: skip


class TurnTasks(RequestHandler):  # type: ignore[misc, unused-ignore]  # untyped where the SDK is not installed
    """The tasks of all clients. Each sees those of its key."""

    async def on_message_send(
        self, params: wire.SendMessageRequest, context: ServerCallContext
    ) -> wire.Task | wire.Message:
        """Hand the message in, and wait for the answer unless the client does not want that."""
        call = _Call.of(context)
        async with _explained():
            snapshot, received = await _sent(call, params.message)
            if snapshot.task.id is None:
                return call.message(snapshot.task, snapshot.task.text)
            if snapshot.task.ended or params.configuration.return_immediately:
                return call.task(snapshot.task)
            found: Task | NoResult = await wait_for(call.services, call.request, _told(call.services, snapshot))
            if isinstance(found, Task) and found.ended and received is not None:
                await note_delivered(call.services, received)
            return call.task(found if isinstance(found, Task) else snapshot.task)

    async def on_message_send_stream(
        self, params: wire.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Happened]:
        """Hand the message in, and follow its task until it ends or has a question."""
        call = _Call.of(context)
        async with _explained():
            snapshot, received = await _sent(call, params.message)
            if snapshot.task.id is None:
                yield call.message(snapshot.task, snapshot.task.text)
                return
            event: Happened | None = None
            async with aclosing(_streamed(call, snapshot)) as events:
                async for event in events:
                    yield event
            if received is not None and isinstance(event, wire.TaskStatusUpdateEvent) and event.status.state != ASKS:
                await note_delivered(call.services, received)

    async def on_subscribe_to_task(
        self, params: wire.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Happened]:
        """Follow a task from now on."""
        call = _Call.of(context)
        async with _explained():
            snapshot = await find_task(call.services.bus, TaskRef.parse(params.id, call.who))
            if snapshot.task.ended:
                raise UnsupportedOperationError(message=text("task_ended"))
            async with aclosing(_streamed(call, snapshot)) as events:
                async for event in events:
                    yield event

    async def on_get_task(self, params: wire.GetTaskRequest, context: ServerCallContext) -> wire.Task:
        """A task as it is now."""
        call = _Call.of(context)
        async with _explained():
            return call.task((await find_task(call.services.bus, TaskRef.parse(params.id, call.who))).task)

    async def on_cancel_task(self, params: wire.CancelTaskRequest, context: ServerCallContext) -> wire.Task:
        """Cancel a task."""
        call = _Call.of(context)
        async with _explained():
            snapshot = await find_task(call.services.bus, TaskRef.parse(params.id, call.who))
            if snapshot.task.ended:
                raise TaskNotCancelableError(message=text("task_ended"))
            await cancel_task(call.services, snapshot.ref)
            return call.task((await find_task(call.services.bus, snapshot.ref)).task)

    async def on_get_extended_agent_card(
        self, params: wire.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> wire.AgentCard:
        """The card with the roles."""
        return _card(_Call.of(context).request, extended=True)

    async def on_list_tasks(self, params: wire.ListTasksRequest, context: ServerCallContext) -> NoReturn:
        """Tasks are found by their ids only."""
        raise UnsupportedOperationError(message=text("no_task_list"))

    async def on_create_task_push_notification_config(self, params: Any, context: ServerCallContext) -> NoReturn:
        """Not supported, as the agent card says."""
        raise PushNotificationNotSupportedError

    on_get_task_push_notification_config = on_create_task_push_notification_config
    on_list_task_push_notification_configs = on_create_task_push_notification_config
    on_delete_task_push_notification_config = on_create_task_push_notification_config


DISPATCHER = JsonRpcDispatcher(TurnTasks(), _Contexts(), enable_v0_3_compat=True)


@asynccontextmanager
async def _explained() -> AsyncIterator[None]:
    """Turn our errors into the protocol's."""
    try:
        yield
    except Problem as problem:
        raise _error_of(problem) from None
    except RolecallError:
        raise InternalError(message=text("unavailable")) from None


def _error_of(problem: Problem) -> A2AError:
    detail = str(problem.detail)
    if problem.code == "unsupported_file":
        return ContentTypeNotSupportedError(message=detail)
    if problem.status_code in (404, 410):
        return TaskNotFoundError(message=detail)
    if problem.status_code == 429 or problem.status_code >= 500:
        return InternalError(message=detail)
    return InvalidParamsError(message=detail)


async def _sent(call: _Call, message: wire.Message) -> tuple[TaskSnapshot, Received | None]:
    """The task of ``message``: a new one and how that was received, or the one whose question it answers. Raises
    Problem."""
    uploads: dict[str, Upload] = {}
    try:
        said, images = await _content(call, message, uploads)
        if message.task_id:
            return await _answered(call, message.task_id, said), None
        given = MessageToDict(message.metadata)
        request = ChatRequest(
            said, f"{call.own}{message.context_id}" if message.context_id else "", str(given.get("role", "")),
            str(given.get("model", "")), images=images, commands=bool(message.context_id), asks=True,
        )  # fmt: skip
        received = await submit(call.services, call.who, request, None, uploads)
        return await accepted_task(call.services.bus, received), received
    finally:
        for upload in uploads.values():
            upload.file.close()


async def _content(call: _Call, message: wire.Message, uploads: dict[str, Upload]) -> tuple[str, list[str]]:
    """The text of ``message`` and its images. Raises Problem if it has neither, and for parts that nobody reads."""
    texts: list[str] = []
    urls: list[str] = []
    for number, part in enumerate(message.parts):
        kind = part.WhichOneof("content")
        if kind == "raw":
            data = f"data:{part.media_type or 'application/octet-stream'};base64,{base64.b64encode(part.raw).decode()}"
            file = FilePart(file_data=data, filename=part.filename or None)
            said, url = await placed(call.services, call.who, file, f"parts.{number}", uploads)
            texts, urls = [*texts, said] if said else texts, [*urls, url] if url else urls
        elif kind == "url":
            urls.append(part.url)
        elif kind == "data":
            texts.append(json.dumps(MessageToDict(part.data), ensure_ascii=False))
        else:
            texts.append(part.text)
    fetched = await fetch_images(urls, call.services.settings, uploads)
    said = "\n".join(texts)
    if not said.strip() and not urls:
        raise Problem(422, text("no_text"))
    return said, [fetched.get(url, url) for url in urls]


async def _answered(call: _Call, task_id: str, said: str) -> TaskSnapshot:
    """The task after its question is answered with ``said``, the text or the number of an option. Raises Problem."""
    snapshot = await find_task(call.services.bus, TaskRef.parse(task_id, call.who))
    if snapshot.task.ended or not snapshot.task.questions:
        raise Problem(409, text("task_asks_nothing"))
    question, given = snapshot.task.questions[0], said.strip().casefold()
    options = [option.casefold() for option in question.options]
    choice = options.index(given) if given in options else int(given) - 1 if given.isdecimal() else -1
    if not 0 <= choice < len(options):
        raise Problem(422, text("no_such_option", options=" / ".join(question.options)))
    verdict = await answer_task(call.services, snapshot.ref, question.id, choice, f"{PREFIX}{call.who.id}")
    if verdict != "OK":
        raise Problem(409, text("question_closed"))
    return await find_task(call.services.bus, snapshot.ref)


async def _told(services: Services, snapshot: TaskSnapshot) -> Task:
    """The task once it has ended or asks something."""
    if snapshot.task.questions:
        return snapshot.task
    async with aclosing(tell_task(services, snapshot.ref, snapshot.seen, None)) as events:
        async for event in events:
            if event.last:
                return snapshot.ref.ended_task(event.payload)
            if event.kind == "asked":
                break
    return (await find_task(services.bus, snapshot.ref)).task


async def _streamed(call: _Call, snapshot: TaskSnapshot) -> AsyncGenerator[Happened]:
    """``snapshot``, and what happens to its task until it ends or asks something. Raises Problem (429) for too many
    streams."""
    yield call.task(snapshot.task)
    if snapshot.task.ended or snapshot.task.questions:
        return
    counted = asynccontextmanager(open_stream)
    told = tell_task(call.services, snapshot.ref, snapshot.seen, len(snapshot.task.text))
    so_far = AnswerText(snapshot.task.text)
    async with counted(call.services, call.who, Response()), aclosing(until_stopped(call.services, told)) as events:
        async for event in events:
            for one in _updates(call, snapshot.ref, so_far, event):
                yield one
            if event.kind == "asked":
                return


def _updates(call: _Call, ref: TaskRef, so_far: AnswerText, event: Event) -> list[Happened]:
    """What ``event`` is to a client that was told the text ``so_far``."""
    task = ref.task("running")
    if event.last:
        task = ref.ended_task(event.payload)
        rest = so_far.rest(task.text) if task.text else ""
        ended = [] if rest == "" else [_piece(call, task, rest or task.text, append=bool(so_far.text and rest))]
        return [*ended, _update(call, task)]
    if event.kind == "delta":
        begins, added = not so_far.text, so_far.apply(event)
        return [_piece(call, task, added, append=not begins)] if added else []
    so_far.apply(event)
    if event.kind == "asked":
        return [_update(call, ref.task("running", questions=[question_of(event.payload)]))]
    return [_update(call, task)] if event.kind == "started" else []


def _update(call: _Call, task: Task) -> wire.TaskStatusUpdateEvent:
    return wire.TaskStatusUpdateEvent(
        task_id=task.id or "", context_id=call.context_id(task), status=call.status(task)
    )  # fmt: skip


def _piece(call: _Call, task: Task, said: str, *, append: bool) -> wire.TaskArtifactUpdateEvent:
    artifact = wire.Artifact(artifact_id=ANSWER, parts=[wire.Part(text=said)])
    return wire.TaskArtifactUpdateEvent(
        task_id=task.id or "", context_id=call.context_id(task), artifact=artifact, append=append, last_chunk=task.ended
    )
