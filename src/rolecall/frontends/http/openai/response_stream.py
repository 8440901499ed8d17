"""The events of a response that is streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi.sse import ServerSentEvent

from rolecall.bus.events import Event
from rolecall.frontends.http.openai.pending_answer import SentText, reason_of
from rolecall.frontends.http.openai.response_object import call_item, message_item, response_object, text_part
from rolecall.frontends.http.problems import text
from rolecall.frontends.http.sse import event
from rolecall.frontends.http.task import Task

Change = tuple[str, dict[str, Any]]
LAST = ("response.completed", "response.incomplete", "response.failed")


@dataclass
class ResponseEvents:
    """Turns the events of a turn into those of a response, numbered from 0. ``task`` is as it was at the beginning, and
    ``shown`` repeats the request. Those up to the number ``after`` are left out."""

    task: Task
    created: float
    shown: dict[str, Any]
    after: int = -1
    number: int = 0
    sent: SentText = field(default_factory=SentText)
    open: bool = False
    """Whether the message has begun."""

    def begin(self) -> Iterator[ServerSentEvent]:
        """How a stream begins."""
        waiting = "queued" if self.shown.get("background") else "in_progress"
        for name, status in {"created": waiting, waiting: waiting, "in_progress": "in_progress"}.items():
            yield from self._numbered((f"response.{name}", {"response": self._response(self.task, status)}))

    def add(self, happened: Event, task: Task | None) -> Iterator[ServerSentEvent]:
        """What an event of the turn changes; ``task`` is the ended one after the last event."""
        new = self.sent.add(happened)
        if self.sent.restarted(happened):
            yield from self.fail(text("answer_restarted"))
            return
        if new:
            yield from self._numbered(*self._text(new))
        if task is not None:
            yield from self._numbered(*self._end(task))

    def fail(self, reason: str, code: str = "server_error") -> Iterator[ServerSentEvent]:
        """End the stream, whatever becomes of the turn."""
        yield from self._numbered(("error", {"code": code, "message": reason, "param": None}))

    def _text(self, new: str) -> Iterator[Change]:
        item = {"output_index": 0, "item_id": f"msg_{self.task.id}", "content_index": 0}
        if not self.open:
            self.open = True
            yield "response.output_item.added", {"output_index": 0, "item": message_item(self.task, "in_progress")}
            yield "response.content_part.added", {**item, "part": text_part("")}
        if new:
            yield "response.output_text.delta", {**item, "delta": new, "logprobs": []}

    def _end(self, task: Task) -> Iterator[Change]:
        if task.state != "done":
            ended = {**self._response(task), "status": "failed" if task.state == "failed" else "cancelled"}
            ended["error"] = {"code": "server_error", "message": reason_of(task)}
            yield "response.failed", {"response": ended}
            return
        if self.open or not task.calls:
            yield from self._text("")
            item = {"output_index": 0, "item_id": f"msg_{task.id}", "content_index": 0}
            yield "response.output_text.done", {**item, "text": task.text, "logprobs": []}
            yield "response.content_part.done", {**item, "part": text_part(task.text)}
            yield "response.output_item.done", {"output_index": 0, "item": message_item(task)}
        for number in range(len(task.calls)):
            yield from self._call(task, number, number + self.open)
        whole = self._response(task)
        yield f"response.{whole['status']}", {"response": whole}

    def _call(self, task: Task, number: int, index: int) -> Iterator[Change]:
        whole = call_item(task, number)
        item = {"output_index": index, "item_id": whole["id"]}
        yield "response.output_item.added", {"output_index": index, "item": call_item(task, number, "in_progress")}
        yield "response.function_call_arguments.delta", {**item, "delta": whole["arguments"]}
        told = {"name": whole["name"], "arguments": whole["arguments"]}
        yield "response.function_call_arguments.done", {**item, **told}
        yield "response.output_item.done", {"output_index": index, "item": whole}

    def _response(self, task: Task, status: str = "") -> dict[str, Any]:
        whole = response_object(task, self.created, self.shown)
        return {**whole, "status": status, "output": [], "usage": None} if status else whole

    def _numbered(self, *changes: Change) -> Iterator[ServerSentEvent]:
        for name, data in changes:
            if name in LAST:  # a client that comes back gets the end, however the text was divided before
                self.number = max(self.number, self.after + 1)
            if self.number > self.after:
                yield event(name, {"type": name, "sequence_number": self.number, **data})
            self.number += 1
