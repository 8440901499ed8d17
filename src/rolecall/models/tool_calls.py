"""Calls of tools between providers that write them differently."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec

from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, Retracted, ToolCall, ToolSpec, Usage
from rolecall.models.stream import closing

Stream = Callable[[Request], AsyncIterator[ModelEvent]]


def new_call_id() -> str:
    """An id for a call whose provider gave it none."""
    return f"call_{secrets.token_hex(8)}"


def written(arguments: object) -> str:
    """The arguments of a call that the SDK has decoded, as the JSON they were."""
    return msgspec.json.encode(arguments or {}).decode()


def is_object(arguments: str) -> bool:
    """Whether ``arguments`` are the JSON of an object."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments for a provider that wants an object; empty when the model wrote something else."""
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}


def names_of_calls(messages: Iterable[Message]) -> dict[str, str]:
    """The tool's name by the call's id, for providers that want it with the result."""
    return {call.id: call.name for message in messages for call in message.calls}


async def calling_by_schema(stream: Stream, request: Request) -> AsyncIterator[ModelEvent]:
    """``request`` put to a model without tools. It calls one when it must, and only then: left to itself it would
    call for ever, or never. Calls and results of before are shown to it as talk."""
    must = bool(request.must_call and request.tools)
    asked = msgspec.structs.replace(
        request,
        messages=(*_told(request.tools if must else ()), *map(_plain, request.messages)),
        tools=(),
        must_call=False,
        schema=_schema(request.tools) if must else request.schema,
    )
    if not must:
        async with closing(stream(asked)) as events:
            async for event in events:
                yield event
        return
    text, usage, finish = "", list[Usage](), "stop"
    async with closing(stream(asked)) as events:
        async for event in events:
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Retracted):
                text = ""
            elif isinstance(event, Usage):
                usage.append(event)
            elif isinstance(event, Done):
                finish = event.reason
    for event in (*_calls(text), *usage):
        yield event
    yield Done("length" if finish == "length" else "tool_calls")


def _told(tools: Iterable[ToolSpec]) -> list[Message]:
    """What there is to call; if there is only one tool, its schema tells enough, and a small model does better with
    less."""
    lines = [f"{tool.name}({', '.join(tool.parameters.get('properties', ()))}): {tool.description}" for tool in tools]
    return [Message("system", "\n".join(["Functions:", *lines]))] if len(lines) > 1 else []


def _plain(message: Message) -> Message:
    if message.role == "tool":
        # In these words smollm2 gives the result it was told; asked in others it thinks of one.
        return Message("user", f"The result is {message.text}. Answer my question with it.")
    calls = [f"{call.name}({_values(call)})" for call in message.calls]
    return Message(message.role, "\n".join(filter(None, [message.text, *calls])), message.images)


def _values(call: ToolCall) -> str:
    return ", ".join(json.dumps(value, ensure_ascii=False) for value in arguments_of(call).values())


def _schema(tools: Iterable[ToolSpec]) -> dict[str, Any]:
    """The form of a call of one of ``tools``. Definitions that schemas refer to are found at the root."""
    calls: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    for tool in tools:
        arguments = {key: value for key, value in tool.parameters.items() if key != "$defs"}
        shared |= tool.parameters.get("$defs", {})
        properties = {"name": {"const": tool.name}, "arguments": arguments}
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), **({"$defs": shared} if shared else {})}


def _calls(text: str) -> list[ModelEvent]:
    """The call that ``text`` is; text as it is where it was cut before its end."""
    try:
        call = json.loads(text)
        return [ToolCall(new_call_id(), call["name"], json.dumps(call["arguments"], ensure_ascii=False))]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [Delta(text)] if text else []
