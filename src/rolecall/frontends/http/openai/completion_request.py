"""A chat completion request in OpenAI's form, and what the bus is given for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.client_request import ClientCall, ClientMessage, ClientRequest, ClientTool
from rolecall.frontends.http.intake import ChatRequest
from rolecall.frontends.http.openai.request_fields import (
    MAX_TOOLS,
    CommonFields,
    FilePart,
    Items,
    ModelNames,
    check_size_of_tools,
    checked_schema,
    client_tool,
)
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.task import unsigned

"""Stands for an image that is not passed on."""
MAX_STOPS = 4


class ImageUrl(BaseModel):
    """An image as a data URL."""

    url: str


class ContentPart(BaseModel):
    """A part of a message: text, an image or a file."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(max_length=40)]
    text: str = ""
    refusal: str = ""
    image_url: ImageUrl | None = None
    file: FilePart | None = None


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
    content: str | Items[ContentPart] | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: Items[MessageCall] | None = None
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
        tool = self.function
        return client_tool(tool.name, tool.description, tool.parameters, param, f"{param}.function.parameters")


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
        given = self.json_schema.body if self.json_schema else None
        return checked_schema(given, "response_format.json_schema.schema")


class StreamOptions(BaseModel):
    """What a stream includes besides the answer."""

    include_usage: bool | None = False


class CompletionFields(CommonFields):
    """The fields that completions have, those of chats and those of texts."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = None

    def choices(self, most: int, *, named: bool = False) -> int:
        """How many answers are wanted. Raises Problem for more than ``most``, and for several in a conversation that
        has a name: it has one answer to a message."""
        count = 1 if self.n is None else self.n
        if not 1 <= count <= most:
            raise Problem(400, text("bad_n", count=count, most=most), "invalid_value", param="n")
        if named and count > 1:
            raise Problem(400, text("n_in_conversation"), "unsupported_value", param="n")
        return count

    @property
    def wants_usage(self) -> bool:
        """Whether a stream should end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampled(self, tools: Sequence[ClientTool] = ()) -> ClientRequest:
        """What these fields say to the model, with ``tools``. Raises Problem."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS:
            raise unsupported("stop")
        return replace(
            self.common(tools), max_tokens=self.max_tokens, seed=self.seed, stop=tuple(stop for stop in stops if stop)
        )


def unsupported(name: str) -> Problem:
    """The error for a field whose value is not supported."""
    return Problem(400, text("unsupported_parameter", name=name), "unsupported_parameter", param=name)


class CompletionBody(CompletionFields):
    """A chat completion request. Unknown fields are ignored."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"model": "auto", "messages": [{"role": "user", "content": "Hello!"}]}]},
    )

    messages: Items[ChatMessage] = Field(min_length=1, max_length=20_000)
    tools: list[ToolOffer] | None = Field(None, max_length=MAX_TOOLS)
    response_format: ResponseFormat | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    modalities: list[str] | None = None

    def request(self, names: ModelNames, conversation: str) -> ChatRequest:
        """The request to submit. Raises Problem for what is not supported."""
        self._check_parameters(names)
        messages = [message.client_message() for message in self.messages]
        return self.chat_request(names, conversation, messages, self._client_request())

    def _client_request(self) -> ClientRequest:
        tools = [tool.client_tool(f"tools.{number}") for number, tool in enumerate(self.tools or ())]
        return replace(
            self.sampled(tools),
            schema=self.response_format.client_schema() if self.response_format else None,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def _check_parameters(self, names: ModelNames) -> None:
        wrong = {
            "logprobs": bool(self.logprobs) and not names.gives_logprobs(self.model),
            "top_logprobs": bool(self.top_logprobs) and not self.logprobs,
            "modalities": bool(self.modalities) and self.modalities != ["text"],
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise unsupported(name)
        check_size_of_tools(self.tools)
