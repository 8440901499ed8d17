"""OpenAI's two protocols: what a request becomes, and what is read of the answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rolecall.errors import ContentRefused
from rolecall.models.failures import words_in
from rolecall.models.model import Delta, Done, Logprobs, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.stream import Source, image_type
from rolecall.models.thinking import Habit
from rolecall.models.tool_calls import is_object, new_call_id, written
from rolecall.models.wire import (
    Documents,
    NotTheProtocol,
    count_of,
    member,
    object_of,
    objects_in,
    objects_of,
    text_of,
    whole_text,
    word_of,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI


RESPONSES = "responses:"
"""Before a model's name: it is asked by the Responses API, whatever the tables below say."""
NEED_RESPONSES = (
    "*-pro", "*-pro-[0-9]*",            # o1-pro, o3-pro, gpt-5-pro, gpt-5.5-pro-2026-04-23
    "*codex*",                          # gpt-5-codex, gpt-5.1-codex-max, codex-mini-latest
    "*-deep-research", "*-deep-research-*",
    "computer-use-*",
    "gpt-daybreak-*", "gpt-*-cyber", "gpt-rosalind-*", "gpt-*-rosalind", "gpt-*-law",
)  # fmt: skip
"""OpenAI only serves these by the Responses API."""
SEARCH = ("*-deep-research", "*-deep-research-*")
"""These refuse every request that gives them nowhere to search."""
REASON = ("o[1-9]", "o[1-9]-*", "gpt-[5-9]", "gpt-[5-9][.-]*", "codex-*")
"""These think before they speak: no temperature, another name for the limit, ``developer`` for ``system``."""
DO_NOT_REASON = ("gpt-*-chat", "gpt-*-chat-*")
NOT_FOR_TEXT = (
    "*embedding*", "*moderation*", "*whisper*", "*tts*", "*transcribe*", "*translate*", "*realtime*", "*audio*",
    "*-live-*", "dall-e*", "*image*", "sora*", "babbage*", "davinci*", "*-instruct", "*-instruct-*",
)  # fmt: skip
"""What OpenAI offers besides chat models."""
SCHEMA_NAME = "answer"
FINISHES = {
    "length": "length", "max_tokens": "length", "max_output_tokens": "length", "model_length": "length",
    "content_filter": "content_filter", "safety": "content_filter",
}  # fmt: skip
"""What finish reasons mean where it is no end by the model itself; servers write them as they like."""
BROKEN_OFF = ("error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource")
"""Finish reasons of answers that the server did not finish."""
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
PARAGRAPH = "\n\n"
ALONG = "openai:"
"""Before what came along with a call and some servers want back with its result, as JSON: its ``extra_content``
(Gemini), and what the model thought before it, ``reasoning_content`` (DeepSeek, Kimi) or ``reasoning_details``
(OpenRouter)."""
THOUGHT_CHARS = 8_000
"""So much of ``reasoning_content`` is kept: a call is recorded with it."""
DETAIL_TEXTS = {"reasoning.text": "text", "reasoning.summary": "summary"}
"""Of the ``reasoning_details`` that come in pieces, the field that does."""
DETAIL_CHARS = 28_000
"""Longer ``reasoning_details``, which may not be cut, are left out: clients of the API get them in the id of a call."""


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
        "logprobs": True if request.logprobs is not None else None,
        "top_logprobs": request.logprobs or None,
    }
    return {
        "model": model,
        "messages": [_message(message, "developer" if thinks else "system") for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in given.items() if value is not None},
    }


async def chat_events(sdk: AsyncOpenAI, name: str, body: dict[str, Any], habit: Habit) -> Source:
    """The answer to ``body``; ends without Done where the stream breaks off. Raises ContentRefused, StreamError,
    NotTheProtocol, and what the SDK and its HTTP client raise."""
    documents, answer = Documents(), _Answer(name, habit)
    async with sdk.chat.completions.with_streaming_response.create(**body) as response:
        async for document in objects_in(response.iter_bytes(), documents):
            text = answer.take(_no_chat_error(document)) if document else ""
            yield Delta(text) if text else None
    for event in answer.end(documents.ended):
        yield event


class StreamError(Exception):
    """Raised for an error object within a stream: ``body`` as the server sent it."""

    def __init__(self, body: object) -> None:
        self.body = body
        super().__init__(words_in(body) or "the answer failed")


def _no_error(document: dict[str, Any]) -> dict[str, Any]:
    error = document.get("error")
    if error and document.get("object") != "response":
        raise StreamError(error)
    if "error" in (document.get("object"), document.get("type")):
        raise StreamError(document)
    return document


def _no_chat_error(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` of chat completions. Raises StreamError for an error also in the choice, or with the status 200 in
    place of an answer."""
    if error := object_of(_no_error(document).get("choices")).get("error"):
        raise StreamError(error)
    if "choices" not in document and "usage" not in document and words_in(document):
        raise StreamError(document)
    return document


def data_url(image: bytes) -> str:
    """``image``, a whole encoded file, as a URL."""
    return f"data:{image_type(image)};base64,{base64.b64encode(image).decode()}"


class _Answer:
    """What is gathered of an answer and comes at its end."""

    def __init__(self, name: str, habit: Habit) -> None:
        self._name = name
        self._habit = habit
        self._usage: Usage | None = None
        self._finish = ""
        self._whole = False
        self._refusal = ""
        self._thoughts = ""
        self._details: list[dict[str, Any]] = []
        self._calls: list[_Call] = []
        self._logprobs: list[dict[str, Any]] = []

    def take(self, chunk: Mapping[str, Any]) -> str:
        """Keep what ``chunk`` brings, and return the text in it: what a model thinks aloud is none."""
        if usage := object_of(chunk.get("usage")):
            self._usage = usage_of(usage)
        choice = object_of(chunk.get("choices"))
        self._finish = word_of(choice.get("finish_reason")) or self._finish
        self._logprobs += [dict(one) for one in objects_of(member(choice.get("logprobs"), "content"))]
        if isinstance(choice.get("message"), Mapping):  # one document instead of a stream
            self._whole = True
        said = object_of(choice.get("delta") or choice.get("message"))
        if any(said.get(name) for name in THOUGHT_FIELDS):
            self._habit.begins_thinking = False
        if len(self._thoughts) < THOUGHT_CHARS:
            self._thoughts += text_of(said.get("reasoning_content"))
        for detail in objects_of(said.get("reasoning_details")):
            self._keep_detail(detail)
        return self._said(said) + text_of(choice.get("text"))

    def end(self, marked: bool) -> Iterator[ModelEvent]:
        """Tool calls, usage, finish marker; ``marked`` if the stream ended with [DONE]. An answer cut at its limit
        loses its calls: the last one is a part."""
        finish = FINISHES.get(self._finish.lower(), "stop") if self._finish else ""
        if finish == "content_filter":
            raise ContentRefused(f"{self._name}: the provider's content filter stopped this answer")
        if self._refusal:
            raise ContentRefused(f"{self._name}: the model refuses: {whole_text(self._refusal)}")
        ended = (finish or self._whole or (marked and self._usage)) and self._finish.lower() not in BROKEN_OFF
        calls = self._calls if ended and finish != "length" else []
        if calls:
            calls[0].thoughts = {"reasoning_content": self._thoughts, "reasoning_details": self._details}
        yield from (call.whole() for call in calls)
        if self._usage:
            yield self._usage
        if self._logprobs:
            yield Logprobs(tuple(self._logprobs))
        if ended:
            # By the calls themselves: some servers end them with "stop".
            yield Done("length" if finish == "length" else "tool_calls" if calls else "stop")

    def _keep_detail(self, detail: Mapping[str, Any]) -> None:
        """Keep a piece of the thoughts. Those of one text, whose signature comes last, are one."""
        last = self._details[-1] if self._details else {}
        text = DETAIL_TEXTS.get(word_of(detail.get("type")), "")
        if not text or any(detail.get(key) != last.get(key) for key in ("type", "index")):
            self._details.append(dict(detail))
            return
        more = {name: value for name, value in detail.items() if value}
        last |= {**more, text: text_of(last.get(text)) + text_of(detail.get(text))}

    def _said(self, delta: Mapping[str, Any]) -> str:
        self._refusal += text_of(delta.get("refusal"))
        for part in objects_of(delta.get("tool_calls")):
            self._call_of(part).add(part)
        content = delta.get("content")
        if content is not None and not isinstance(content, str | list | Mapping):
            raise NotTheProtocol(f"{type(content).__name__} where text belongs")
        return text_of(content)

    def _call_of(self, part: Mapping[str, Any]) -> _Call:
        """The call that ``part`` goes on with: by its index, which some servers leave out or always give as 0. Where it
        has no id either, a name after a whole call begins another one."""
        index, made = part.get("index"), word_of(part.get("id"))
        for call in reversed(self._calls):
            if index in (None, call.index) and (not made or call.id in ("", made)):
                if not made and call.ends_before(part):
                    break
                return call
        self._calls.append(_Call(index))
        return self._calls[-1]


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """The tokens of a request as chat completions or the Responses API count them. Some servers leave those of thoughts
    out of the completion; the total tells."""
    tokens_in = count_of(usage.get("prompt_tokens")) or count_of(usage.get("input_tokens"))
    tokens_out = count_of(usage.get("completion_tokens")) or count_of(usage.get("output_tokens"))
    thoughts = count_of(member(usage, "completion_tokens_details", "reasoning_tokens"))
    return Usage(tokens_in, max(tokens_out, thoughts, count_of(usage.get("total_tokens")) - tokens_in))


@dataclass
class _Call:
    """A tool call of which pieces come; id and name may be in the first one only."""

    index: object
    id: str = ""
    name: str = ""
    arguments: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    thoughts: Mapping[str, Any] = field(default_factory=dict)

    def add(self, part: Mapping[str, Any]) -> None:
        self.id = self.id or word_of(part.get("id"))
        if isinstance(part.get("extra_content"), Mapping):
            self.extra = part["extra_content"]
        function = part.get("function")
        self.name = self.name or word_of(member(function, "name"))
        more = member(function, "arguments")
        self.arguments += more if isinstance(more, str) else written(more) if more else ""

    def ends_before(self, part: Mapping[str, Any]) -> bool:
        """Whether ``part``, which has no id, is of another call."""
        name, more = (member(part.get("function"), field) for field in ("name", "arguments"))
        return bool(name and self.name) and (name != self.name or (bool(more) and is_object(self.arguments)))

    def whole(self) -> ToolCall:
        along = {key: value for key, value in {"extra_content": self.extra, **self.thoughts}.items() if value}
        if len(json.dumps(along.get("reasoning_details"))) > DETAIL_CHARS:
            del along["reasoning_details"]
        signature = f"{ALONG}{json.dumps(along)}" if along else ""
        name, arguments = whole_text(self.name), whole_text(self.arguments) or "{}"
        return ToolCall(self.id or new_call_id(), name, arguments, signature)


def _message(message: Message, system: str) -> dict[str, Any]:
    made: dict[str, Any] = {"role": system if message.role == "system" else message.role, "content": message.text}
    if message.images:
        images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in message.images]
        made["content"] = [{"type": "text", "text": message.text}, *images]
    if message.calls:
        made["content"] = message.text or None
        made["tool_calls"] = [_call(call) for call in message.calls]
        along = _along(message.calls[0])
        made |= {name: along[name] for name in ("reasoning_content", "reasoning_details") if name in along}
    if message.role == "tool":
        made["tool_call_id"] = message.call
    if message.name:
        made["name"] = message.name
    return made


def _call(call: ToolCall) -> dict[str, Any]:
    # Servers that render calls for the model parse them, and refuse the whole conversation for one that is no JSON.
    given = call.arguments if is_object(call.arguments) else "{}"
    made = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": given}}
    if extra := _along(call).get("extra_content"):
        made["extra_content"] = extra
    return made


def _along(call: ToolCall) -> dict[str, Any]:
    return json.loads(call.signature.removeprefix(ALONG)) if call.signature.startswith(ALONG) else {}


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
    """The answer to ``body``; ends without Done where the closing event is missing. Raises what chat_events raises."""
    documents, answer = Documents(), _Response(name)
    async with sdk.responses.with_streaming_response.create(**body) as response:
        async for event in objects_in(response.iter_bytes(), documents):
            text = answer.take(_no_error(event)) if event else ""
            yield Delta(text) if text else None
    for last in answer.end():
        yield last


class _Response:
    """What is gathered of an answer and comes at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._refusal = ""
        self._calls: list[ToolCall] = []
        self._response: Mapping[str, Any] | None = None
        self._item: object = None
        self._any_text = False

    def take(self, event: Mapping[str, Any]) -> str:
        """Keep what ``event`` brings, and return the text in it: what a model thinks aloud is none."""
        kind = word_of(event.get("type"))
        if kind == "response.output_text.delta":
            return self._apart(event.get("output_index")) + text_of(event.get("delta"))
        if kind == "response.refusal.delta":
            self._refusal += text_of(event.get("delta"))
        elif kind == "response.output_item.done":
            self._keep_call(object_of(event.get("item")))
        elif kind == "response.failed":
            if not isinstance(event.get("response"), Mapping):
                raise NotTheProtocol("an event without its response")
            raise StreamError(member(event, "response", "error"))
        elif kind in ("response.completed", "response.incomplete"):
            self._response = object_of(event.get("response"))
            if not self._any_text and not self._calls:  # all at once
                return self._document(self._response)
        elif event.get("object") == "response":  # one document instead of a stream
            return self._document(event)
        return ""

    def end(self) -> Iterator[ModelEvent]:
        """Tool calls, usage, finish marker. An answer cut at its limit loses its calls, as in chat completions."""
        if self._response is None:
            return
        cut = self._response.get("status") == "incomplete"
        if member(self._response, "incomplete_details", "reason") == "content_filter":
            raise ContentRefused(f"{self._name}: the provider's content filter stopped this answer")
        if self._refusal:
            raise ContentRefused(f"{self._name}: the model refuses: {whole_text(self._refusal)}")
        calls = [] if cut else self._calls
        yield from calls
        if usage := object_of(self._response.get("usage")):
            yield usage_of(usage)
        yield Done("length" if cut else "tool_calls" if calls else "stop")

    def _keep_call(self, item: Mapping[str, Any]) -> None:
        if item.get("type") == "function_call":
            arguments = item.get("arguments")
            given = arguments if isinstance(arguments, str) else written(arguments)
            call_id = word_of(item.get("call_id")) or new_call_id()
            self._calls.append(ToolCall(call_id, whole_text(word_of(item.get("name"))), whole_text(given) or "{}"))

    def _document(self, response: Mapping[str, Any]) -> str:
        if response.get("error"):
            raise StreamError(response["error"])
        self._response, text = response, ""
        for item in objects_of(response.get("output")):
            self._keep_call(item)
            parts = [part for part in objects_of(item.get("content")) if part.get("type") == "output_text"]
            if item.get("type") == "message" and parts:
                text += (PARAGRAPH if text else "") + text_of(parts)
        return text

    def _apart(self, item: object) -> str:
        """What keeps the text of an answer's next part off the one before."""
        before, self._item = self._item, item
        apart = self._any_text and before != item
        self._any_text = True
        return PARAGRAPH if apart else ""


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
