"""Responses as OpenAI's clients know them, made from tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rolecall.bus.client_request import ClientCall, ClientMessage
from rolecall.frontends.http.openai.pending_answer import reason_of
from rolecall.frontends.http.task import Task, TaskCall, unsigned

PREFIX = "resp_"
ITEM_ID = re.compile(r"(?:msg|fc_(\d{1,4}))_([A-Za-z0-9_-]{1,1100}\.[1-9]\d{0,15})", re.ASCII)
STATUS = {"pending": "queued", "running": "in_progress", "done": "completed", "failed": "failed",
          "cancelled": "cancelled"}  # fmt: skip


def response_object(task: Task, created: float, shown: dict[str, Any]) -> dict[str, Any]:
    """The response of ``task``. ``shown`` repeats the request."""
    failed = task.state in ("failed", "cancelled") and task.error is not None
    cut = task.state == "done" and task.finish == "length"
    return {
        "id": f"{PREFIX}{task.id}",
        "object": "response",
        "created_at": created,
        "status": "incomplete" if cut else STATUS[task.state],
        "error": {"code": "server_error", "message": reason_of(task)} if failed else None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output_items(task) if task.ended else [],
        "usage": _usage(task) if task.state == "done" else None,
        "service_tier": "default",
        **shown,
    }


def output_items(task: Task) -> list[dict[str, Any]]:
    """The answer as output items: a message unless it is empty, then the calls. Of a cancelled one what there was."""
    if task.state == "failed":
        return []
    if task.state == "cancelled":
        return [{**message_item(task), "status": "incomplete"}] if task.text else []
    said = [message_item(task)] if task.text or not task.calls else []
    return [*said, *(call_item(task, number) for number in range(len(task.calls)))]


def message_item(task: Task, status: str = "completed") -> dict[str, Any]:
    """The answer's text as an item; without content while it is in progress."""
    content = [text_part(task.text)] if status == "completed" else []
    return {"id": f"msg_{task.id}", "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(task: Task, number: int, status: str = "completed") -> dict[str, Any]:
    """A call of a tool as an item; without arguments while it is in progress."""
    call = task.calls[number]
    return {
        "id": f"fc_{number}_{task.id}", "type": "function_call", "call_id": call.id, "name": call.name,
        "arguments": call.arguments if status == "completed" else "", "status": status,
    }  # fmt: skip


def answer_message(task: Task) -> ClientMessage:
    """The answer as a message of the history."""
    return ClientMessage("assistant", task.text, calls=tuple(_client_call(call) for call in task.calls))


def referenced(item_id: str) -> tuple[str, int | None] | None:
    """The task of an output item, and the number of its call unless it is the message; None for no such id."""
    found = ITEM_ID.fullmatch(item_id)
    return (found[2], int(found[1]) if found[1] else None) if found else None


def part_of(answer: ClientMessage, number: int | None) -> ClientMessage | None:
    """One item of an answer; None if it has no such call."""
    if number is None:
        return ClientMessage("assistant", answer.text)
    return ClientMessage("assistant", calls=(answer.calls[number],)) if number < len(answer.calls) else None


def input_items(messages: Sequence[ClientMessage], task_id: str) -> list[dict[str, Any]]:
    """The messages of a request as items."""
    items: list[dict[str, Any]] = []
    for message in messages:
        item_id = f"in_{len(items)}_{task_id}"
        if message.role == "tool":
            result = {"type": "function_call_output", "call_id": message.call, "output": message.text}
            items.append({"id": item_id, **result, "status": "completed"})
            continue
        kind = "output_text" if message.role == "assistant" else "input_text"
        parts = [{"type": kind, "text": message.text, **({"annotations": []} if kind == "output_text" else {})}]
        parts += [{"type": "input_image", "file_id": image, "detail": "auto"} for image in message.images]
        if message.text or message.images:
            said = {"type": "message", "role": message.role, "content": parts, "status": "completed"}
            items.append({"id": item_id, **said})
        for call in message.calls:
            made = {"call_id": call.id, "name": call.name, "arguments": call.arguments, "status": "completed"}
            items.append({"id": f"in_{len(items)}_{task_id}", "type": "function_call", **made})
    return items


def _client_call(call: TaskCall) -> ClientCall:
    call_id, signature = unsigned(call.id)
    return ClientCall(call_id, call.name, call.arguments, signature)


def _usage(task: Task) -> dict[str, Any]:
    tokens_in, tokens_out = task.usage.tokens_in, task.usage.tokens_out
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens_in + tokens_out,
    }
