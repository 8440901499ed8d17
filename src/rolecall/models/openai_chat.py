"""OpenAI's chat completions: what a request and an answer look like on this wire."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolecall.errors import ContentRefused
from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.openai_names import reasons
from rolecall.models.reading import Source
from rolecall.models.tool_calls import new_call_id, written
from rolecall.models.transport import image_type

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall

SCHEMA_NAME = "answer"


def chat_body(model: str, request: Request, official: bool) -> dict[str, Any]:
    """``request`` for ``model``; ``official`` is OpenAI's own server, others know only the older name of the limit."""
    thinks = reasons(model)
    given = {
        "max_completion_tokens" if official or thinks else "max_tokens": request.max_tokens,
        "temperature": None if thinks else request.temperature,
        "tools": [_tool(tool) for tool in request.tools] or None,
        "tool_choice": "required" if request.must_call and request.tools else None,
        "response_format": _response_format(request.schema) if request.schema else None,
    }
    return {
        "model": model,
        "messages": [_message(message, "developer" if thinks else "system") for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in given.items() if value is not None},
    }


async def chat_events(sdk: AsyncOpenAI, name: str, body: dict[str, Any]) -> Source:
    """The answer to ``body``; ends without Done where the server's finish marker is missing. Raises ContentRefused,
    and what the SDK raises."""
    answer = _Answer(name)
    async with await sdk.chat.completions.create(**body) as chunks:
        async for chunk in chunks:
            text = answer.take(chunk)
            yield Delta(text) if text else None
    for event in answer.end():
        yield event


def data_url(image: bytes) -> str:
    """``image``, a whole encoded file, as a URL."""
    return f"data:{image_type(image)};base64,{base64.b64encode(image).decode()}"


class _Answer:
    """What is gathered of an answer and comes at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._usage: Usage | None = None
        self._finish: str | None = None
        self._refusal = ""
        self._calls: list[_Call] = []

    def take(self, chunk: ChatCompletionChunk) -> str:
        """Keep what ``chunk`` brings, and return the text in it: what a model thinks aloud is none."""
        if chunk.usage:
            self._usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._finish = choice.finish_reason or self._finish
        return self._said(choice.delta) if choice.delta else ""

    def end(self) -> Iterator[ModelEvent]:
        """Tool calls, usage, finish marker. An answer cut at its limit loses its calls: the last one is a part."""
        if self._finish == "content_filter":
            raise ContentRefused(f"{self._name}: the provider's content filter stopped this answer")
        if self._refusal:
            raise ContentRefused(f"{self._name}: the model refuses: {self._refusal}")
        calls = self._calls if self._finish not in (None, "length") else []
        yield from (call.whole() for call in calls)
        if self._usage:
            yield self._usage
        if self._finish == "length":
            yield Done("length")
        elif self._finish:
            # By the calls themselves: some servers end them with "stop".
            yield Done("tool_calls" if calls else "stop")

    def _said(self, delta: ChoiceDelta) -> str:
        self._refusal += delta.refusal or ""
        for part in delta.tool_calls or ():
            call = self._call_of(part)
            call.add(part)
        return delta.content or ""

    def _call_of(self, part: ChoiceDeltaToolCall) -> _Call:
        """The call that ``part`` goes on with: by its index, which some servers leave out or always give as 0."""
        index = getattr(part, "index", None)
        for call in reversed(self._calls):
            if index in (None, call.index) and (not part.id or call.id in ("", part.id)):
                return call
        self._calls.append(_Call(index))
        return self._calls[-1]


@dataclass
class _Call:
    """A tool call of which pieces come; id and name may be in the first one only."""

    index: int | None
    id: str = ""
    name: str = ""
    arguments: str = ""

    def add(self, part: ChoiceDeltaToolCall) -> None:
        self.id = self.id or part.id or ""
        if part.function:
            self.name = self.name or part.function.name or ""
            more: object = part.function.arguments
            self.arguments += more if isinstance(more, str) else written(more) if more else ""

    def whole(self) -> ToolCall:
        return ToolCall(self.id or new_call_id(), self.name, self.arguments or "{}")


def _message(message: Message, system: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": system if message.role == "system" else message.role, "content": message.text}
    if message.images:
        images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in message.images]
        made["content"] = [{"type": "text", "text": message.text}, *images]
    if message.calls:
        made["content"] = message.text or None
        made["tool_calls"] = [_call(call) for call in message.calls]
    if message.role == "tool":
        made["tool_call_id"] = message.call
    return made


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": SCHEMA_NAME, "schema": schema}}
