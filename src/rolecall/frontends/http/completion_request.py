"""A chat completion request in OpenAI's form, and what the bus is given for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.client_request import ClientCall, ClientMessage, ClientRequest, ClientTool
from rolecall.bus.envelope import MAX_DEPTH, depth_of
from rolecall.frontends.http.intake import ChatRequest
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.task import unsigned

AUTO = "auto"
IMAGE_PLACEHOLDER = "[image]"
"""Stands for an image that is not passed on."""
MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 512 * 1024
MAX_STOPS = 4
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class ImageUrl(BaseModel):
    """An image as a data URL."""

    url: str


class ContentPart(BaseModel):
    """A part of a message: text or an image."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=40)]
    text: str = ""
    refusal: str = ""
    image_url: ImageUrl | None = None


class FunctionCall(BaseModel):
    """What a tool was called with: ``arguments`` is JSON."""

    name: str = Field(max_length=64)
    arguments: str = "{}"


class MessageCall(BaseModel):
    """A tool call of an earlier answer."""

    id: str = Field(max_length=40_000)
    type: Literal["function"] = "function"
    function: FunctionCall

    def client_call(self) -> ClientCall:
        """The call as the bus knows it."""
        call_id, signature = unsigned(self.id)
        return ClientCall(call_id, self.function.name, self.function.arguments, signature)


class ChatMessage(BaseModel):
    """One message of the conversation so far."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = Field(None, max_length=40_000)

    @property
    def parts(self) -> list[ContentPart]:
        """The content as parts. Raises Problem (400) unless each is text or an image."""
        if isinstance(self.content, str):
            return [ContentPart(type="text", text=self.content)]
        for part in self.content or ():
            if part.type not in ("text", "refusal", "image_url") or (part.type == "image_url") != bool(part.image_url):
                detail = text("unsupported_content", type=repr(part.type))
                raise Problem(400, detail, "unsupported_content", param="messages")
        return self.content or []

    @property
    def text(self) -> str:
        """The text of the content."""
        return "\n".join(part.text or part.refusal for part in self.parts if part.type != "image_url")

    @property
    def images(self) -> tuple[str, ...]:
        """The URLs of its images."""
        return tuple(part.image_url.url for part in self.parts if part.image_url is not None)

    def client_message(self) -> ClientMessage:
        """The message as the bus knows it; ``images`` are still URLs."""
        if self.role == "tool":
            return ClientMessage("tool", self.text, call=unsigned(self.tool_call_id or "")[0])
        role = "system" if self.role in ("system", "developer") else self.role
        calls = tuple(call.client_call() for call in self.tool_calls or ())
        return ClientMessage(
            role if role in ("system", "assistant") else "user", self.text, self.images, calls, name=self.name or ""
        )


class FunctionTool(BaseModel):
    """A function that the client can run."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolOffer(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=40)
    function: FunctionTool | None = None

    def client_tool(self, param: str) -> ClientTool:
        """The tool as the bus knows it. Raises Problem (400)."""
        if self.type != "function" or self.function is None:
            raise Problem(400, text("unsupported_tool", type=repr(self.type)), "unsupported_tool", param=param)
        tool, schema = self.function, {"type": "object", "properties": {}, **(self.function.parameters or {})}
        if not NAME.fullmatch(tool.name):
            raise Problem(400, text("bad_tool_name", name=repr(tool.name[:80])), "invalid_tool", param=param)
        named = schema["type"] == "object" and isinstance(schema["properties"], dict)
        if not named or depth_of(schema) > MAX_DEPTH or not is_schema(schema):
            detail = text("bad_tool_schema", name=tool.name)
            raise Problem(400, detail, "invalid_function_parameters", param=f"{param}.function.parameters")
        return ClientTool(tool.name, tool.description or "", schema)


class JsonSchema(BaseModel):
    """The JSON schema that an answer has to match."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str = Field("", max_length=64)
    body: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def client_schema(self) -> dict[str, Any] | None:
        """The schema that the answer has to match, empty for any JSON object; None for a text. Raises Problem."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {}
        schema = self.json_schema.body if self.json_schema else None
        if not schema or depth_of(schema) > MAX_DEPTH or not is_schema(schema):
            raise Problem(400, text("bad_schema"), "invalid_json_schema", param="response_format.json_schema.schema")
        return schema


class StreamOptions(BaseModel):
    """What a stream includes besides the answer."""

    include_usage: bool | None = False


class CompletionBody(BaseModel):
    """A chat completion request. Unknown fields are ignored."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "auto", "messages": [{"role": "user", "content": "Hello!"}]}]},
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=20_000)
    model: str = Field(AUTO, max_length=200, description="a role, a configured model, or auto")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="your own user; shown in the title of the transcript")
    safety_identifier: str | None = Field(None, description="the same, under its newer name")
    metadata: Metadata | None = Field(None, max_length=16)
    tools: list[ToolOffer] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000)
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None

    def chat_request(self, conversation: str, roles: frozenset[str], models: frozenset[str]) -> ChatRequest:
        """The request to submit. Raises Problem for what is not supported."""
        self._check_parameters()
        if self.model not in {AUTO, *roles, *models}:
            known = ", ".join((AUTO, *sorted(roles)))
            detail = text("model_not_found", name=repr(self.model[:100]), models=known)
            raise Problem(404, detail, "model_not_found", param="model")
        messages = [message.client_message() for message in self.messages]
        check_calls(messages)
        at = asked_at(messages)
        asked = messages[at]
        if not asked.text.strip() and not asked.images:
            raise Problem(400, text("last_message_empty"), "invalid_messages", param="messages")
        return ChatRequest(
            asked.text,
            conversation,
            self.model if self.model in roles else "",
            "" if self.model in roles or self.model == AUTO else self.model,
            metadata=self.metadata or {},
            images=asked.images,
            end_user=self.user or self.safety_identifier or "",
            client=self._client_request(messages[:at], messages[at + 1 :]),
            commands=bool(conversation),
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream should end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _client_request(self, before: Sequence[ClientMessage], after: Sequence[ClientMessage]) -> ClientRequest:
        tools = [tool.client_tool(f"tools.{number}") for number, tool in enumerate(self.tools or ())]
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ClientRequest(
            before=tuple(before),
            after=tuple(after),
            tools=tuple(tools),
            choice=self._choice(frozenset(tool.name for tool in tools)),
            parallel=self.parallel_tool_calls is not False,
            schema=self.response_format.client_schema() if self.response_format else None,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(stop for stop in stops if stop),
        )

    def _choice(self, names: frozenset[str]) -> str:
        given = self.tool_choice
        if isinstance(given, dict) and given.get("type") == "allowed_tools":
            allowed = given.get("allowed_tools")
            given = str(allowed.get("mode", "auto")) if isinstance(allowed, dict) else "auto"
        if given is None or given in ("auto", "none"):
            return given or "auto"
        function = given.get("function") if isinstance(given, dict) else None
        name = str(function.get("name", "")) if isinstance(function, dict) else ""
        if not names or (given != "required" and name not in names):
            raise Problem(400, text("bad_tool_choice"), "invalid_tool_choice", param="tool_choice")
        return name or "required"

    def _check_parameters(self) -> None:
        stops = self.stop if isinstance(self.stop, list) else []
        unsupported = {
            "n": self.n not in (None, 1),
            "logprobs": bool(self.logprobs),
            "top_logprobs": bool(self.top_logprobs),
            "modalities": bool(self.modalities) and self.modalities != ["text"],
            "stop": len(stops) > MAX_STOPS,
        }
        for name, is_unsupported in unsupported.items():
            if is_unsupported:
                detail = text("unsupported_parameter", name=name)
                raise Problem(400, detail, "unsupported_value" if name == "n" else "unsupported_parameter", param=name)
        if len(str(self.tools or "")) > MAX_SCHEMA_BYTES:
            raise Problem(
                400, text("tools_too_large", limit=MAX_SCHEMA_BYTES // 1024), "tools_too_large", param="tools"
            )


def is_schema(value: dict[str, Any]) -> bool:
    """Whether ``value`` is a JSON schema."""
    try:
        Draft202012Validator.check_schema(value)
    except (SchemaError, RecursionError):
        return False
    return True


def asked_at(messages: Sequence[ClientMessage]) -> int:
    """Which message is the one to answer: the user's last, else the last."""
    places = [number for number, message in enumerate(messages) if message.role == "user"]
    return places[-1] if places else len(messages) - 1


def check_calls(messages: Sequence[ClientMessage]) -> None:
    """Raise Problem (400) unless each result of a tool follows its call, and each call has its result."""
    open_calls: set[str] = set()
    for number, message in enumerate(messages):
        if message.role == "tool":
            if message.call not in open_calls:
                raise Problem(400, text("result_without_call"), "invalid_messages", param=f"messages.{number}.role")
            open_calls.discard(message.call)
            continue
        if open_calls:
            missing = ", ".join(sorted(open_calls))[:200]
            detail = text("call_without_result", calls=missing)
            raise Problem(400, detail, "invalid_messages", param=f"messages.{number}.role")
        open_calls = {call.id for call in message.calls}
    if open_calls:
        detail = text("call_without_result", calls=", ".join(sorted(open_calls))[:200])
        raise Problem(400, detail, "invalid_messages", param=f"messages.{len(messages)}.role")
