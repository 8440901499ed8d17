"""A task: one turn as the HTTP API shows it, and what the native and the OpenAI-compatible API do with it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, PrivateAttr

from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_by_user
from rolecall.bus.envelope import short_turn_id
from rolecall.bus.events import Event, follow, progress
from rolecall.bus.steps.answers import Answered, QuestionPlace, answer
from rolecall.bus.turn import TurnState, root_of, snapshot
from rolecall.errors import ServerError
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.problems import Problem, bus_timeout, text
from rolecall.frontends.http.services import Services

TASK_ID = re.compile(r"([A-Za-z0-9_-]{1,1100})\.(c?[1-9]\d{0,15})", re.ASCII)
State = Literal["pending", "running", "done", "failed", "cancelled"]
END_STATES: Mapping[str, State] = {"final": "done", "error": "failed", "cancelled": "cancelled"}
"""The state of a task by the kind of its turn's last event."""
SIGNATURE = "~"
"""Separates the id of a tool call from what the model's provider wants back with it, in base64."""
NoResult = Literal["left", "stopping", "late"]
"""Why waiting ended without a result: the client left, the process is stopping, time was up."""
T = TypeVar("T")


class Failure(BaseModel):
    """Why there is no answer. ``text`` is the message for the user."""

    reason: str = Field(examples=["it took too long"])
    text: str


class Tokens(BaseModel):
    """Tokens of the answer, as counted by the model."""

    tokens_in: int = 0
    tokens_out: int = 0


class TaskCall(BaseModel):
    """A call of a tool that the client runs; ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class TaskQuestion(BaseModel):
    """A question that an agent asks the user. `style` is `confirm`, whose options are yes and no, or `choose`.
    `default` is the number of the option that counts when nobody answers, -1 for none."""

    id: str = Field(examples=["1-0-2"])
    text: str = Field(examples=["Send 12 €?"])
    options: list[str] = Field(examples=[["yes", "no"]])
    style: Literal["confirm", "choose"]
    default: int = -1


class Task(BaseModel):
    """One message and its answer. ``id`` is null for a command that was executed at once; ``place`` counts from 1 while
    the task waits behind others of its conversation."""

    id: str | None = Field(examples=["aHR0cDpsb2NhbDo1ZjNj.1"])
    conversation_id: str = Field(examples=["http:local:5f3c"])
    turn: str = Field("", examples=["1"])
    turn_id: str = Field("", description="the id that `rolecall logs` accepts", examples=["9c2e41-1"])
    state: State = Field(examples=["done"])
    place: int = 0
    role: str = Field("", description="the role working on it", examples=[""])
    text: str = Field("", description="the answer so far", examples=["Paris."])
    plain: bool = Field(False, description="whether the text is no Markdown but to be shown as it is")
    error: Failure | None = Field(None, examples=[None])
    model: str = Field("", description="the model that answered", examples=["smollm2@local"])
    finish: str = Field("", examples=["stop"])
    usage: Tokens = Tokens()
    calls: list[TaskCall] = Field([], description="calls of the tools that a chat completion offered")
    questions: list[TaskQuestion] = Field([], description="what it waits to be told: answer at /chat/task/{id}/answer")

    _logprobs: str = PrivateAttr("")

    @property
    def logprobs(self) -> str:
        """The id of the stored log probabilities of the answer, if there are any."""
        return self._logprobs

    @property
    def ended(self) -> bool:
        """Whether the task is done, failed or cancelled."""
        return self.state in END_STATES.values()


@dataclass(frozen=True)
class TaskRef:
    """The turn that a task shows."""

    conversation: str
    turn: str

    @property
    def id(self) -> str:
        """The task's id. It holds the turn, so that any replica finds it."""
        return f"{link_of(self.conversation)}.{self.turn}"

    @classmethod
    def parse(cls, task_id: str, who: Principal) -> TaskRef:
        """The turn of the task ``task_id``. Raises Problem (404) for an invalid id and, unless ``who`` is an operator,
        for a task of another key."""
        found = TASK_ID.fullmatch(task_id)
        conversation = conversation_in(found[1]) if found else ""
        ref = cls(conversation, found[2] if found else "")
        own = who.admin or conversation.startswith(f"http:{who.id}:")
        if not conversation or not own or ref.id != task_id or len(conversation) > 200:
            raise Problem(404, text("no_task"))
        return ref

    def task(self, state: State, **fields: Any) -> Task:
        """The task in this ``state``."""
        turn_id = short_turn_id(self.conversation, self.turn)
        return Task(
            id=self.id, conversation_id=self.conversation, turn=self.turn, turn_id=turn_id, state=state, **fields
        )

    def ended_task(self, final: Mapping[str, Any]) -> Task:
        """The task after the ``final`` event of its turn."""
        state, answer = END_STATES[str(final["kind"])], str(final.get("text", ""))
        if state == "failed":
            return self.task(state, error=Failure(reason=str(final.get("reason", "")), text=answer))
        if state == "cancelled":
            return self.task(state, text=str(final.get("answer") or ""))
        task = self.task(
            state,
            text=answer,
            plain=bool(final.get("plain")),
            model=str(final.get("model") or ""),
            finish=str(final.get("finish") or ""),
            calls=[
                TaskCall(id=signed(call), name=str(call.get("name", "")), arguments=str(call.get("arguments", "{}")))
                for call in final.get("calls") or ()
            ],
            usage=Tokens(tokens_in=_count(final, "tokens_in"), tokens_out=_count(final, "tokens_out")),
        )
        task._logprobs = str(final.get("logprobs") or "")
        return task


@dataclass(frozen=True)
class TaskSnapshot:
    """A task as it was at one moment: ``seen`` is the id of the newest event it includes, ``final_id`` the id of its
    last event once it has ended."""

    ref: TaskRef
    task: Task
    seen: str = ""
    final_id: str = ""

    @classmethod
    def of(cls, received: Received) -> TaskSnapshot:
        """A task just accepted, or a command executed at once."""
        ref = TaskRef(received.conversation, received.turn)
        if not received.turn:
            told = Task(id=None, conversation_id=received.conversation, state="done", text=received.reply, plain=True)
            return cls(ref, told)
        return cls(ref, ref.task("pending", place=received.place), received.before)


def link_of(conversation: str) -> str:
    """``conversation`` as a part of a path."""
    return base64.urlsafe_b64encode(conversation.encode()).decode().rstrip("=")


def conversation_in(link: str) -> str:
    """The conversation that ``link_of`` made ``link`` of; empty for anything else."""
    try:
        return base64.urlsafe_b64decode(link + "=" * (-len(link) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""


async def find_task(bus: Bus, ref: TaskRef) -> TaskSnapshot:
    """A task as it is now. Raises Problem: 404 if it never existed, 410 if its result is no longer stored."""
    async with bus_timeout():
        found = await snapshot(bus, ref.conversation, ref.turn)
    if found.state is TurnState.FINISHED and found.final is not None:
        return TaskSnapshot(ref, ref.ended_task(found.final), found.final_id, found.final_id)
    if found.state is TurnState.GONE:
        raise Problem(410, text("no_result"))
    if found.state is TurnState.UNKNOWN:
        raise Problem(404, text("no_task"))
    so_far = await progress(bus, ref.conversation, ref.turn)
    state: State = "pending" if so_far.kind in ("accepted", "queued") else "running"
    questions = [question_of(asked) for asked in so_far.questions.values()]
    task = ref.task(state, place=found.place, role=so_far.role, text=so_far.text, questions=questions)
    return TaskSnapshot(ref, task, so_far.seen)


async def accepted_task(bus: Bus, received: Received) -> TaskSnapshot:
    """The task of a message just received. Raises what find_task raises, for the repeat of an earlier request."""
    accepted = TaskSnapshot.of(received)
    return await find_task(bus, accepted.ref) if received.outcome == "DUP" else accepted


def follow_task(services: Services, ref: TaskRef, after: str) -> AsyncGenerator[Event]:
    """The events of a task after the event id ``after``, its last one included."""
    return follow(services.bus, services.wakeups, ref.conversation, ref.turn, after)


async def tell_task(services: Services, ref: TaskRef, after: str, length: int | None) -> AsyncGenerator[Event]:
    """Like ``follow_task``, but every piece of text once: of a delta that repeats some, as after a lost connection,
    only the rest is told. ``length`` is how many characters are known already, None if nobody knows."""
    async with aclosing(follow_task(services, ref, after)) as events:
        async for event in events:
            if event.kind == "started":
                length = 0
            elif event.kind == "delta":
                known = max(0, (length or 0) - event.position)
                if known and known >= len(event.text):
                    continue
                event = replace(event, position=event.position + known, text=event.text[known:])
                length = event.position + len(event.text)
            yield event


def event_data(ref: TaskRef, event: Event) -> tuple[str, dict[str, Any]]:
    """The name and the data of a turn's event as streams send it."""
    if event.last:
        task = ref.ended_task(event.payload)
        return task.state, task.model_dump()
    if event.kind == "delta":
        return "delta", {"position": event.position, "text": event.text}
    if event.kind == "started":
        return "started", {"role": event.role, "instance": event.instance, "attempt": event.attempt}
    if event.kind == "queued":
        return "queued", {"place": event.place, "reason": event.text}
    if event.kind == "asked":
        return "asked", question_of(event.payload).model_dump()
    if event.kind == "answered":
        return "answered", {"question": event.payload.get("id", ""), "choice": event.payload.get("choice", -1)}
    return event.kind, {}


def question_of(asked: Mapping[str, Any]) -> TaskQuestion:
    """The question that an event of the kind ``asked`` tells."""
    return TaskQuestion(**{name: asked[name] for name in TaskQuestion.model_fields if name in asked})


async def answer_task(services: Services, ref: TaskRef, question: str, choice: int, user: str) -> Answered:
    """Answer a question of a task for ``user``."""
    place = QuestionPlace.parse(question)
    if place is None or root_of(place.turn) != ref.turn:
        return "GONE"
    return await answer(
        services.bus, ref.conversation, question, choice, user=user, instance=services.front.instance
    )  # fmt: skip


async def ended_task(services: Services, ref: TaskRef, after: str) -> Task:
    """Wait until a task has ended. ``after`` is the id of an event before its end."""
    async with aclosing(follow_task(services, ref, after)) as events:
        async for event in events:
            if event.last:
                return ref.ended_task(event.payload)
    return (await find_task(services.bus, ref)).task  # it ended before `after`


async def wait_for(
    services: Services, request: Request, work: Coroutine[Any, Any, T], seconds: float | None = None
) -> T | NoResult:
    """Return what ``work`` returns, or why that is not awaited any longer."""
    working = asyncio.create_task(work, name="http answer")
    leaving = asyncio.create_task(_disconnected(request), name="http answer's client")
    stopping = asyncio.create_task(services.stopping.wait(), name="http answer's end")
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


async def cancel_task(services: Services, ref: TaskRef) -> None:
    """Cancel a task; its message and the answer so far stay in the history. Does nothing if it has ended."""
    await cancel_by_user(services.bus, ref.conversation, ref.turn, instance=services.front.instance)


async def note_delivered(services: Services, received: Received) -> None:
    """Note in the transcript that the answer was delivered, unless this repeats another request."""
    if received.turn and received.outcome != "DUP":
        with suppress(ServerError):
            await services.front.delivered(received)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def signed(call: Mapping[str, Any]) -> str:
    """The id of a call for its client, with what the model's provider wants back in it."""
    call_id, signature = str(call.get("id", "")), str(call.get("signature") or "")
    return f"{call_id}{SIGNATURE}{base64.urlsafe_b64encode(signature.encode()).decode()}" if signature else call_id


def unsigned(call_id: str) -> tuple[str, str]:
    """The id of a call and its signature, of what a client sends back."""
    own, mark, encoded = call_id.partition(SIGNATURE)
    try:
        return (own, base64.urlsafe_b64decode(encoded).decode()) if mark else (call_id, "")
    except (binascii.Error, ValueError):
        return call_id, ""


def _count(final: Mapping[str, Any], name: str) -> int:
    value = final.get(name)
    return value if isinstance(value, int) and value > 0 else 0
