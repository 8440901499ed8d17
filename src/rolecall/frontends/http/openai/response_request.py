"""A request of the Responses API, and what the bus is given for it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.client_request import ClientCall, ClientMessage, ClientRequest, ClientTool
from rolecall.frontends.http.openai.request_fields import (
    MAX_TOOLS,
    CommonFields,
    FilePart,
    Items,
    check_size_of_tools,
    checked_schema,
    client_tool,
)
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.task import unsigned

MAX_ITEMS = 20_000
SYSTEM = ("system", "developer")
SHOWN = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "previous_response_id", "reasoning",
    "safety_identifier", "temperature", "top_p", "user",
)  # fmt: skip
"""The fields that a response repeats from its request."""


class InputPart(FilePart):
    """A part of an item: text, an earlier answer, an image or a file."""

    type: str = Field(max_length=40)
    text: str = ""
    refusal: str = ""
    image_url: str | None = None


class InputItem(BaseModel):
    """A message, a function call of an earlier answer, the result of one, or a reference to an earlier item."""

    model_config = ConfigDict(extra="allow")

    type: str = Field("message", max_length=40)
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | Items[InputPart] | None = None
    id: str | None = Field(None, max_length=2000)
    call_id: str = Field("", max_length=40_000)
    name: str = Field("", max_length=64)
    arguments: str = "{}"
    output: str | Items[InputPart] = ""

    def client_message(self, param: str) -> ClientMessage:
        """The item as the bus knows it; ``images`` are still URLs. Raises Problem for other kinds of items."""
        if self.type == "function_call":
            call_id, signature = unsigned(self.call_id)
            return ClientMessage("assistant", calls=(ClientCall(call_id, self.name, self.arguments, signature),))
        if self.type == "function_call_output":
            said, images = _content(self.output, param)
            return ClientMessage("tool", said, images, call=unsigned(self.call_id)[0])
        if self.type != "message":
            raise Problem(400, text("unsupported_item", type=repr(self.type)), "unsupported_item", param=param)
        said, images = _content(self.content or "", param)
        return ClientMessage("system" if self.role in SYSTEM else self.role, said, images)  # type: ignore[arg-type]


class ResponseTool(BaseModel):
    """A function that the client can run."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=40)
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def client_tool(self, param: str) -> ClientTool:
        """The tool as the bus knows it. Raises Problem (400)."""
        if self.type != "function":
            raise Problem(400, text("unsupported_tool", type=repr(self.type)), "unsupported_tool", param=param)
        return client_tool(self.name, self.description, self.parameters, param, f"{param}.parameters")


class TextFormat(BaseModel):
    """The form of the answer's text."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    body: dict[str, Any] | None = Field(None, alias="schema")

    def client_schema(self) -> dict[str, Any] | None:
        """The schema that the answer has to match, empty for any JSON object; None for a text. Raises Problem."""
        if self.type == "text":
            return None
        return {} if self.type == "json_object" else checked_schema(self.body, "text.format.schema")


class TextOptions(BaseModel):
    """How the answer's text should be."""

    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None


class ConversationName(BaseModel):
    """A conversation by its name."""

    id: str = Field(max_length=200)


class ResponseBody(CommonFields):
    """A request of the Responses API. Unknown fields are ignored."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"model": "auto", "input": "Hello!"}]})

    input: str | Items[InputItem] = ""
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=2000)
    conversation: str | ConversationName | None = None
    store: bool | None = True
    background: bool | None = False
    tools: list[ResponseTool] | None = Field(None, max_length=MAX_TOOLS)
    text: TextOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=10_000_000)
    prompt: dict[str, Any] | None = None
    top_logprobs: int | None = None

    def check(self) -> None:
        """Raise Problem (400) for what is not supported."""
        unsupported = {
            "prompt": self.prompt is not None,
            "top_logprobs": bool(self.top_logprobs),
            "background": bool(self.background) and self.store is False,
            "conversation": self.conversation is not None and self.previous_response_id is not None,
            "input": isinstance(self.input, list) and len(self.input) > MAX_ITEMS,
        }
        for name, is_unsupported in unsupported.items():
            if is_unsupported:
                raise Problem(400, text("unsupported_parameter", name=name), "unsupported_parameter", param=name)
        check_size_of_tools(self.tools)

    @property
    def items(self) -> list[InputItem]:
        """The input without what the model thought."""
        if isinstance(self.input, str):
            return [InputItem(content=self.input)] if self.input else []
        return [item for item in self.input if item.type != "reasoning"]

    @property
    def conversation_name(self) -> str:
        """The conversation that the request names, if any."""
        given = self.conversation
        return given.id if isinstance(given, ConversationName) else given or ""

    def client_request(self) -> ClientRequest:
        """What the request says besides its messages. Raises Problem."""
        form = self.text.format if self.text else None
        tools = [tool.client_tool(f"tools.{number}") for number, tool in enumerate(self.tools or ())]
        return replace(
            self.common(tools), schema=form.client_schema() if form else None, max_tokens=self.max_output_tokens
        )

    def shown(self, conversation: str) -> dict[str, Any]:
        """What a response repeats of its request; ``conversation`` is the name of the one it belongs to, if any."""
        given = self.model_dump(mode="json", by_alias=True)
        return {
            **{name: given.get(name) for name in SHOWN},
            "model": self.model,
            "conversation": {"id": conversation} if conversation else None,
            "background": bool(self.background),
            "store": self.store is not False,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "tool_choice": self.tool_choice or "auto",
            "tools": given["tools"] or [],
            "text": {"format": {"type": "text"}, **{k: v for k, v in (given["text"] or {}).items() if v}},
            "truncation": "auto",
        }


def joined(messages: list[ClientMessage]) -> list[ClientMessage]:
    """``messages`` with the calls that follow each other, and the text before them, as one message, which is how models
    know them."""
    found: list[ClientMessage] = []
    for message in messages:
        last = found[-1] if found else None
        if message.calls and last is not None and last.role == "assistant":
            found[-1] = replace(last, calls=(*last.calls, *message.calls))
        else:
            found.append(message)
    return found


def _content(content: str | list[InputPart], param: str) -> tuple[str, tuple[str, ...]]:
    """The text and the URLs of the images. Raises Problem (400) for other parts."""
    if isinstance(content, str):
        return content, ()
    texts, images = [], []
    for part in content:
        if part.type in ("input_text", "output_text", "text", "summary_text", "refusal"):
            texts.append(part.text or part.refusal)
        elif part.type == "input_image" and part.image_url:
            images.append(part.image_url)
        else:
            raise Problem(400, text("unsupported_part", type=repr(part.type)), "unsupported_content", param=param)
    return "\n".join(texts), tuple(images)
