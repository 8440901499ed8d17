"""What the names of OpenAI's models tell about how to ask them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rolecall.errors import ContentRefused
from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.stream import Source, image_type
from rolecall.models.tool_calls import new_call_id, written

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI
    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall
    from openai.types.responses import Response, ResponseStreamEvent


RESPONSES = "responses:"
"""Before a model's name: it is asked by the Responses API, whatever the tables below say."""
NEED_RESPONSES = (
    "*-pro", "*-pro-[0-9]*",            # o1-pro, o3-pro, gpt-5-pro, gpt-5.5-pro-2026-04-23
    "*codex*",                          # gpt-5-codex, gpt-5.1-codex-max, codex-mini-latest
    "*-deep-research", "*-deep-research-*",
    "computer-use-*",
    "gpt-daybreak-*", "gpt-*-cyber", "gpt-rosalind-*", "gpt-*-rosalind", "gpt-*-law",
)  # fmt: skip
"""OpenAI answers for these by the Responses API alone."""
SEARCH = ("*-deep-research", "*-deep-research-*")
"""These refuse every request that gives them nowhere to search."""
REASON = ("o[1-9]", "o[1-9]-*", "gpt-[5-9]", "gpt-[5-9][.-]*", "codex-*")
"""These think before they speak: no temperature, another name for the limit, ``developer`` for ``system``."""
DO_NOT_REASON = ("gpt-*-chat", "gpt-*-chat-*")
NOT_FOR_TEXT = (
    "*embedding*", "*moderation*", "*whisper*", "*tts*", "*transcribe*", "*translate*", "*realtime*", "*audio*",
    "*-live-*", "dall-e*", "*image*", "sora*", "babbage*", "davinci*", "*-instruct", "*-instruct-*",
)  # fmt: skip
"""What OpenAI offers beside models one can chat with."""
SCHEMA_NAME = "answer"
PARAGRAPH = "\n\n"


def wire_name(model: str) -> str:
    """``model`` as its server knows it."""
    return model.removeprefix(RESPONSES)


def needs_responses(model: str) -> bool:
    """True if OpenAI's own server answers for ``model`` by the Responses API only."""
    return _one_of(model, NEED_RESPONSES)


def must_search(model: str) -> bool:
    """True if ``model`` needs a tool to search the web."""
    return _one_of(model, SEARCH)


def reasons(model: str) -> bool:
    """True for a reasoning model, also behind another's server, which may write ``openai/gpt-5``."""
    return _one_of(model, REASON) and not _one_of(model, DO_NOT_REASON)


def chats(model: str) -> bool:
    """True if ``model`` of OpenAI's answers in text."""
    return not _one_of(model, NOT_FOR_TEXT)


def _one_of(model: str, patterns: tuple[str, ...]) -> bool:
    plain = wire_name(model).rpartition("/")[2]
    return any(fnmatchcase(plain, pattern) for pattern in patterns)


def chat_body(model: str, request: Request, official: bool) -> dict[str, Any]:
    """``request`` for ``model``; ``official`` is OpenAI's own server, others know only the older name of the limit."""
    thinks = reasons(model)
    given = {
        "max_completion_tokens" if official or thinks else "max_tokens": request.max_tokens,
        "temperature": None if thinks else request.temperature,
        "top_p": None if thinks else request.top_p,
        "seed": request.seed,
        "stop": None if thinks else list(request.stop) or None,
        "tools": [_tool(tool) for tool in request.tools] or None,
        "tool_choice": "required" if request.must_call and request.tools else None,
        "parallel_tool_calls": False if request.tools and not request.parallel else None,
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
    if message.name:
        made["name"] = message.name
    return made


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": SCHEMA_NAME, "schema": schema}}


def responses_body(model: str, request: Request) -> dict[str, Any]:
    """``request`` for ``model``."""
    thinks = reasons(model)
    given = {
        "max_output_tokens": request.max_tokens,
        "temperature": None if thinks else request.temperature,
        "top_p": None if thinks else request.top_p,
        "parallel_tool_calls": False if request.tools and not request.parallel else None,
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
    answer = _Response(name)
    async with await sdk.responses.create(**body) as events:
        async for event in events:
            if event.type in ("error", "response.failed"):
                raise _failure(event, events.response.request)
            text = answer.take(event)
            yield Delta(text) if text else None
    for last in answer.end():
        yield last


class _Response:
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
