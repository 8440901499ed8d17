"""A task: one turn as the HTTP API shows it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from rolecall.bus.bus import Bus
from rolecall.bus.envelope import short_turn_id
from rolecall.bus.events import Event, Progress, progress
from rolecall.bus.turn import snapshot
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.problems import Problem, promptly

ID = re.compile(r"([A-Za-z0-9_-]{1,1100})\.(c?[1-9]\d{0,15})", re.ASCII)
State = Literal["pending", "running", "done", "failed", "cancelled"]
ENDS: Mapping[str, State] = {"final": "done", "error": "failed", "cancelled": "cancelled"}


class Failure(BaseModel):
    """Why there is no answer; ``text`` is what the user is told."""

    reason: str = Field(examples=["it took too long"])
    text: str


class Tokens(BaseModel):
    """What the answer cost, as the model counts it."""

    tokens_in: int = 0
    tokens_out: int = 0


class Task(BaseModel):
    """A turn of a conversation: where it stands, and its answer. ``id`` is null for a command that was carried out at
    once. ``place`` counts from 1 while it waits behind others."""

    id: str | None = Field(examples=["aHR0cDpsb2NhbDo1ZjNj.1"])
    conversation_id: str = Field(examples=["http:local:5f3c"])
    turn: str = Field("", examples=["1"])
    turn_id: str = Field("", description="what `rolecall logs` opens", examples=["9c2e41-1"])
    state: State = Field(examples=["done"])
    place: int = 0
    role: str = Field("", description="the role that is at it", examples=[""])
    text: str = Field("", description="the answer, or as much of it as there is", examples=["Paris."])
    error: Failure | None = Field(None, examples=[None])
    model: str = Field("", description="who spoke", examples=["smollm2@local"])
    finish: str = Field("", examples=["stop"])
    usage: Tokens = Tokens()

    @property
    def ended(self) -> bool:
        """Whether it stays as it is."""
        return self.state in ENDS.values()


@dataclass(frozen=True)
class Place:
    """Which turn of which conversation."""

    conversation: str
    turn: str

    @property
    def id(self) -> str:
        """The task's id: any replica reads the place from it."""
        return f"{base64.urlsafe_b64encode(self.conversation.encode()).decode().rstrip('=')}.{self.turn}"

    @classmethod
    def read(cls, task_id: str, who: Principal) -> Place:
        """Where the task of that id is. Raises Problem (404), also for a task of another key, unless ``who`` is an
        operator."""
        found = ID.fullmatch(task_id)
        try:
            conversation = base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4)).decode() if found else ""
        except (binascii.Error, ValueError):
            conversation = ""
        place = cls(conversation, found[2] if found else "")
        own = who.admin or conversation.startswith(f"http:{who.id}:")
        if not conversation or not own or place.id != task_id or len(conversation) > 200:
            raise Problem(404, "There is no such task.")
        return place

    def task(self, state: State, **more: Any) -> Task:
        """The task that is here."""
        turn_id = short_turn_id(self.conversation, self.turn)
        return Task(id=self.id, conversation_id=self.conversation, turn=self.turn, turn_id=turn_id, state=state, **more)

    def ended(self, final: Mapping[str, Any]) -> Task:
        """The task after its ``final`` event."""
        state, text = ENDS[str(final["kind"])], str(final.get("text", ""))
        if state == "failed":
            return self.task(state, error=Failure(reason=str(final.get("reason", "")), text=text))
        return self.task(
            state,
            text=text,
            model=str(final.get("model") or ""),
            finish=str(final.get("finish") or ""),
            usage=Tokens(tokens_in=_count(final, "tokens_in"), tokens_out=_count(final, "tokens_out")),
        )


@dataclass(frozen=True)
class Standing:
    """A task as it was found. ``seen`` is the id of the newest event in it; ``final_id`` that of its last event, once
    it has ended."""

    place: Place
    task: Task
    seen: str = ""
    final_id: str = ""


async def look(bus: Bus, place: Place) -> Standing:
    """Where a task stands now. Raises Problem: 404 for one that never was, 410 for one whose result is gone."""
    async with promptly():
        stand = await snapshot(bus, place.conversation, place.turn)
    if stand.state == "finished" and stand.final is not None:
        return Standing(place, place.ended(stand.final), stand.final_id, stand.final_id)
    if stand.state == "gone":
        raise Problem(410, "The result of this task is not kept any more.")
    if stand.state == "unknown":
        raise Problem(404, "There is no such task.")
    found = await progress(bus, place.conversation, place.turn)
    return Standing(place, place.task(_state(found), place=stand.place, role=found.role, text=found.text), found.seen)


def begun(received: Received) -> Standing:
    """A task that was taken just now, or a command that was carried out at once."""
    place = Place(received.conversation, received.turn)
    if not received.turn:
        return Standing(place, Task(id=None, conversation_id=received.conversation, state="done", text=received.reply))
    return Standing(place, place.task("pending", place=received.place), received.before)


def told(place: Place, event: Event) -> tuple[str, dict[str, Any]]:
    """The name and the data that ``event`` has in a stream."""
    if event.last:
        task = place.ended(event.payload)
        return task.state, task.model_dump()
    if event.kind == "delta":
        return "delta", {"position": event.position, "text": event.text}
    if event.kind == "started":
        return "started", {"role": event.role, "instance": event.instance, "attempt": event.attempt}
    if event.kind == "queued":
        return "queued", {"place": event.place, "reason": event.text}
    return event.kind, {}


def _state(found: Progress) -> State:
    return "pending" if found.kind in ("accepted", "queued") else "running"


def _count(final: Mapping[str, Any], name: str) -> int:
    value = final.get(name)
    return value if isinstance(value, int) and value > 0 else 0
