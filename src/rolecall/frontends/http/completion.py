"""A chat completion in the making, in the pieces that OpenAI's clients read."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from rolecall.follow import Event
from rolecall.frontends.front import Received
from rolecall.frontends.http.problems import openai_error
from rolecall.frontends.http.task import Task, begun

DONE = b"data: [DONE]\n\n"
RESTARTED = "The answer had to begin again and says something else now; ask once more, or fetch it as a task."
STOPPED = "The answer was stopped."


@dataclass
class Completion:
    """The answer to what was ``received``, asked of ``model``. ``sent`` is what the client has of it. That can only
    grow: an answer that begins anew with other words cannot be told any more."""

    received: Received
    model: str
    usage: bool = False
    text: str = ""
    sent: str = ""

    def add(self, event: Event) -> str:
        """Take ``event`` in and return what it adds to what was sent."""
        if event.kind == "started":
            self.text = ""
        elif event.kind == "delta" and event.position <= len(self.text):
            self.text = self.text[: event.position] + event.text
        elif event.kind == "final":
            self.text = event.text
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
