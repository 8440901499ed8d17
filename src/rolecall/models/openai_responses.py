"""OpenAI's Responses API, as far as one answer goes: stateless, nothing is stored there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rolecall.errors import ContentRefused
from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.openai_chat import SCHEMA_NAME, data_url
from rolecall.models.openai_names import must_search, reasons
from rolecall.models.reading import Source

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI
    from openai.types.responses import Response, ResponseStreamEvent

PARAGRAPH = "\n\n"


def responses_body(model: str, request: Request) -> dict[str, Any]:
    """``request`` for ``model``."""
    thinks = reasons(model)
    given = {
        "max_output_tokens": request.max_tokens,
        "temperature": None if thinks else request.temperature,
        "tools": _tools(model, request.tools) or None,
        "tool_choice": "required" if request.must_call and request.tools else None,
        "text": {"format": _format(request.schema)} if request.schema else None,
    }
    system = "developer" if thinks else "system"
    return {
        "model": model,
        "input": [item for message in request.messages for item in _items(message, system)],
        "stream": True,
        "store": False,
        **{name: value for name, value in given.items() if value is not None},
    }


async def responses_events(sdk: AsyncOpenAI, name: str, body: dict[str, Any]) -> Source:
    """The answer to ``body``; ends without Done where the closing event is missing. Raises ContentRefused, and what
    the SDK raises."""
    answer = _Answer(name)
    async with await sdk.responses.create(**body) as events:
        async for event in events:
            if event.type in ("error", "response.failed"):
                raise _failure(event, events.response.request)
            text = answer.take(event)
            yield Delta(text) if text else None
    for last in answer.end():
        yield last


class _Answer:
    """What is gathered of an answer and comes at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._refusal = ""
        self._calls: list[ToolCall] = []
        self._response: Response | None = None
        self._item: int | None = None

    def take(self, event: ResponseStreamEvent) -> str:
        """Keep what ``event`` brings, and return the text in it: what a model thinks aloud is none."""
        if event.type == "response.output_text.delta":
            return self._apart(event.output_index) + event.delta
        if event.type == "response.refusal.delta":
            self._refusal += event.delta
        elif event.type == "response.output_item.done" and event.item.type == "function_call":
            self._calls.append(ToolCall(event.item.call_id, event.item.name, event.item.arguments or "{}"))
        elif event.type in ("response.completed", "response.incomplete"):
            self._response = event.response
        return ""

    def end(self) -> Iterator[ModelEvent]:
        """Tool calls, usage, finish marker. An answer cut at its limit loses its calls, as in chat completions."""
        if self._response is None:
            return
        cut = self._response.status == "incomplete"
        why = self._response.incomplete_details.reason if self._response.incomplete_details else None
        if why == "content_filter":
            raise ContentRefused(f"{self._name}: the provider's content filter stopped this answer")
        if self._refusal:
            raise ContentRefused(f"{self._name}: the model refuses: {self._refusal}")
        calls = [] if cut else self._calls
        yield from calls
        if usage := self._response.usage:
            yield Usage(usage.input_tokens, usage.output_tokens)
        yield Done("length" if cut else "tool_calls" if calls else "stop")

    def _apart(self, item: int) -> str:
        """What keeps the text of an answer's next part off the one before."""
        before, self._item = self._item, item
        return "" if before in (None, item) else PARAGRAPH


def _failure(event: Any, request: Any) -> APIError:
    """What the event says, as the SDK raises it elsewhere."""
    from openai import APIError

    said = event.response.error if event.type == "response.failed" else event
    code, message = (said.code, said.message) if said else (None, "the answer failed")
    return APIError(message, request, body={"code": code, "message": message})


def _items(message: Message, system: str) -> Iterator[dict[str, Any]]:
    """A message and the calls in it are items of their own here."""
    if message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.call, "output": _content(message)}
        return
    if message.text or message.images or not message.calls:
        yield {"role": system if message.role == "system" else message.role, "content": _content(message)}
    for call in message.calls:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    images = [{"type": "input_image", "image_url": data_url(image), "detail": "auto"} for image in message.images]
    return [{"type": "input_text", "text": message.text}, *images]


def _tools(model: str, tools: tuple[ToolSpec, ...]) -> list[dict[str, Any]]:
    # Off in chat completions, strictness is on here if nothing is said.
    made: list[dict[str, Any]] = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": False,
        }
        for tool in tools
    ]
    return [*made, {"type": "web_search_preview"}] if must_search(model) else made


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "name": SCHEMA_NAME, "schema": schema, "strict": False}
