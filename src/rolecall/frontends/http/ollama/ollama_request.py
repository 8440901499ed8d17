"""Requests in Ollama's form, and what the bus is given for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.client_request import ClientCall, ClientMessage, ClientRequest
from rolecall.frontends.http.intake import ChatRequest
from rolecall.frontends.http.openai.completion_request import ToolOffer
from rolecall.frontends.http.openai.request_fields import (
    AUTO,
    MAX_TOOLS,
    CommonFields,
    Items,
    ModelNames,
    check_size_of_tools,
    checked_schema,
)

LATEST = ":latest"
"""What Ollama's clients add to the name of a model."""
ModelName = Annotated[str, Field(max_length=200)]


class CalledFunction(BaseModel):
    """What a tool was called with."""

    name: str = Field(max_length=64)
    arguments: dict[str, Any] = {}


class OllamaCall(BaseModel):
    """A tool call of an earlier answer."""

    id: str = Field("", max_length=40_000)
    function: CalledFunction


class OllamaMessage(BaseModel):
    """One message of the conversation so far; ``images`` are base64."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Items[str] | None = None
    tool_calls: Items[OllamaCall] | None = None
    tool_name: str = ""
    tool_call_id: str = ""


class OllamaOptions(BaseModel):
    """How to sample."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    num_predict: int | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None


class OllamaBody(BaseModel):
    """What requests for a chat and for a completion have in common. Unknown fields are ignored."""

    model_config = ConfigDict(extra="allow")

    model: ModelName = AUTO
    stream: bool | None = True
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: OllamaOptions | None = None

    @property
    def name(self) -> str:
        """The model without the tag that clients add."""
        return self.model.removesuffix(LATEST)

    def submission(
        self, names: ModelNames, conversation: str, messages: Sequence[ClientMessage], tools: Sequence[ToolOffer] = ()
    ) -> ChatRequest:
        """The request to submit. Raises Problem for what is not supported."""
        check_size_of_tools(tools)
        options = self.options or OllamaOptions()
        stops = [options.stop] if isinstance(options.stop, str) else options.stop or []
        limit = options.num_predict
        client = ClientRequest(
            tools=tuple(tool.client_tool(f"tools.{number}") for number, tool in enumerate(tools)),
            schema=self._schema(),
            max_tokens=limit if limit and limit > 0 else None,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            stop=tuple(stop for stop in stops if stop),
        )
        return CommonFields(model=self.name).chat_request(names, conversation, messages, client)

    def _schema(self) -> dict[str, Any] | None:
        if not self.format:
            return None
        return {} if self.format == "json" else checked_schema(self.format, "format")


class OllamaChat(OllamaBody):
    """A chat."""

    messages: Items[OllamaMessage] = Field([], max_length=20_000)
    tools: list[ToolOffer] | None = Field(None, max_length=MAX_TOOLS)

    def request(self, names: ModelNames, conversation: str) -> ChatRequest:
        """The request to submit. Raises Problem for what is not supported."""
        return self.submission(names, conversation, client_messages(self.messages), self.tools or ())


class OllamaPrompt(OllamaBody):
    """A completion of a prompt."""

    prompt: str = ""
    system: str = ""
    images: Items[str] | None = None

    def request(self, names: ModelNames, conversation: str) -> ChatRequest:
        """The request to submit. Raises Problem for what is not supported."""
        before = [ClientMessage("system", self.system)] if self.system else []
        asked = ClientMessage("user", self.prompt, tuple(_data_url(image) for image in self.images or ()))
        return self.submission(names, conversation, [*before, asked])


def client_messages(messages: Sequence[OllamaMessage]) -> list[ClientMessage]:
    """``messages`` as the bus knows them. Ollama's results name their tool, but rarely the call: they belong to the
    first open call of that tool."""
    found: list[ClientMessage] = []
    open_calls: list[ClientCall] = []
    for number, message in enumerate(messages):
        calls: tuple[ClientCall, ...] = ()
        call = ""
        if message.role == "tool":
            call = message.tool_call_id or _taken(open_calls, message.tool_name)
        else:
            calls = tuple(
                ClientCall(one.id or f"call_{number}_{n}", one.function.name, json.dumps(one.function.arguments))
                for n, one in enumerate(message.tool_calls or ())
            )
            open_calls = list(calls)
        images = tuple(_data_url(image) for image in message.images or ())
        found.append(ClientMessage(message.role, message.content or "", images, calls, call))
    return found


def _taken(open_calls: list[ClientCall], name: str) -> str:
    at = next((n for n, call in enumerate(open_calls) if not name or call.name == name), None)
    return open_calls.pop(at).id if at is not None else ""


def _data_url(image: str) -> str:
    """Base64 as a data URL, whose type counts for nothing; the names of uploads stay as they are."""
    return image if image.startswith(("data:", "upload:")) else f"data:image/png;base64,{image}"
