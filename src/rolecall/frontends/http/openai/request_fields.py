"""What chat completions and responses have in common: fields, tools, schemas, and the order of messages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.client_request import ClientMessage, ClientRequest, ClientTool, is_schema
from rolecall.bus.envelope import MAX_DEPTH, depth_of
from rolecall.frontends.http.intake import ChatRequest
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.services import Services

AUTO = "auto"
MAX_TOOLS = 128
MAX_SCHEMA_BYTES = 512 * 1024
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which only the first mistake is told: to collect those of a hundred thousand items takes seconds."""
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class FilePart(BaseModel):
    """A file in a message: the id of one that was uploaded, or a data URL."""

    model_config = ConfigDict(extra="allow")

    file_id: str | None = Field(None, max_length=100)
    file_data: str | None = None
    filename: str | None = Field(None, max_length=1000)


class CommonFields(BaseModel):
    """The fields that mean the same in both."""

    model: str = Field(AUTO, max_length=200, description="a role, a configured model, or auto")
    stream: bool | None = False
    user: str | None = Field(None, description="your own user; shown in the title of the transcript")
    safety_identifier: str | None = Field(None, description="the same, under its newer name")
    metadata: Metadata | None = Field(None, max_length=16)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)

    def chat_request(
        self, names: ModelNames, conversation: str, messages: Sequence[ClientMessage], client: ClientRequest,
        param: str = "messages",
    ) -> ChatRequest:  # fmt: skip
        """The request to submit: ``messages``, and what ``client`` says besides them. ``param`` is the field that they
        came in. Raises Problem."""
        names.check(self.model)
        check_calls(messages, param)
        at = asked_at(messages)
        asked = messages[at] if messages else ClientMessage("user")
        if not asked.text.strip() and not asked.images:
            raise Problem(400, text("last_message_empty"), "invalid_messages", param=param)
        is_role = self.model in names.roles
        return ChatRequest(
            asked.text,
            conversation,
            self.model if is_role else "",
            "" if is_role or self.model == AUTO else self.model,
            metadata=self.metadata or {},
            images=asked.images,
            end_user=self.user or self.safety_identifier or "",
            client=replace(client, before=tuple(messages[:at]), after=tuple(messages[at + 1 :])),
            commands=bool(conversation),
        )

    def common(self, tools: Sequence[ClientTool]) -> ClientRequest:
        """What these fields say to the model, with ``tools``. Raises Problem for a ``tool_choice`` that is none."""
        return ClientRequest(
            tools=tuple(tools),
            choice=chosen(self.tool_choice, frozenset(tool.name for tool in tools)),
            parallel=self.parallel_tool_calls is not False,
            temperature=self.temperature,
            top_p=self.top_p,
        )


@dataclass(frozen=True)
class ModelNames:
    """What the field ``model`` may name besides ``auto``."""

    roles: frozenset[str]
    models: frozenset[str]
    with_logprobs: frozenset[str] = frozenset()
    """The roles and models that may give log probabilities."""

    def gives_logprobs(self, name: str) -> bool:
        """Whether who answers for ``name`` may give log probabilities; for ``auto``, whether anybody may."""
        return bool(self.with_logprobs) if name == AUTO else name in self.with_logprobs

    def check(self, name: str) -> None:
        """Raise Problem (404) unless there is such a model."""
        if name not in {AUTO, *self.roles, *self.models}:
            known = ", ".join((AUTO, *sorted(self.roles), *sorted(self.models)))
            detail = text("model_not_found", name=repr(name[:100]), models=known)
            raise Problem(404, detail, "model_not_found", param="model")


def client_tool(
    name: str, description: str | None, parameters: dict[str, Any] | None, param: str, at: str
) -> ClientTool:
    """A function as the bus knows it. ``param`` is where the request has it, ``at`` where its schema is. Raises Problem
    (400)."""
    schema = {"type": "object", "properties": {}, **(parameters or {})}
    if not NAME.fullmatch(name):
        raise Problem(400, text("bad_tool_name", name=repr(name[:80])), "invalid_tool", param=param)
    named = schema["type"] == "object" and isinstance(schema["properties"], dict)
    if not named or depth_of(schema) > MAX_DEPTH or not is_schema(schema):
        raise Problem(400, text("bad_tool_schema", name=name), "invalid_function_parameters", param=at)
    return ClientTool(name, description or "", schema)


async def request_from(services: Services, build: Callable[[], ChatRequest], *, schemas: bool) -> ChatRequest:
    """What ``build`` makes of a body: in a thread if that has ``schemas``, since checking large ones takes seconds."""
    if not schemas:
        return build()
    async with services.checkers:
        return await asyncio.to_thread(build)


def check_size_of_tools(tools: object) -> None:
    """Raise Problem (400) if the tools are too large to be passed on."""
    if len(str(tools or "")) > MAX_SCHEMA_BYTES:
        raise Problem(400, text("tools_too_large", limit=MAX_SCHEMA_BYTES // 1024), "tools_too_large", param="tools")


def checked_schema(schema: dict[str, Any] | None, param: str) -> dict[str, Any]:
    """The schema that an answer has to match. Raises Problem (400) unless it is one."""
    if not schema or depth_of(schema) > MAX_DEPTH or not is_schema(schema):
        raise Problem(400, text("bad_schema", param=param), "invalid_json_schema", param=param)
    return schema


def chosen(given: str | dict[str, Any] | None, names: frozenset[str]) -> str:
    """``tool_choice`` as the bus knows it: auto, none, required, or one of ``names``. Raises Problem (400)."""
    if isinstance(given, dict) and given.get("type") == "allowed_tools":
        allowed = given.get("allowed_tools", given)
        given = str(allowed.get("mode", "auto")) if isinstance(allowed, dict) else "auto"
    if given is None or given in ("auto", "none"):
        return str(given or "auto")
    function = given.get("function", given) if isinstance(given, dict) else None
    name = str(function.get("name", "")) if isinstance(function, dict) else ""
    if not names or (given != "required" and name not in names):
        raise Problem(400, text("bad_tool_choice"), "invalid_tool_choice", param="tool_choice")
    return name or "required"


def asked_at(messages: Sequence[ClientMessage]) -> int:
    """Which message is the one to answer: the user's last, else the last."""
    places = [number for number, message in enumerate(messages) if message.role == "user"]
    return places[-1] if places else len(messages) - 1


def check_calls(messages: Sequence[ClientMessage], param: str) -> None:
    """Raise Problem (400) unless each result of a tool follows its call, and each call has its result."""
    open_calls: set[str] = set()

    def at(number: int) -> str:
        return f"{param}.{number}.role" if param == "messages" else param

    for number, message in enumerate(messages):
        if message.role == "tool":
            if message.call not in open_calls:
                raise Problem(400, text("result_without_call"), "invalid_messages", param=at(number))
            open_calls.discard(message.call)
            continue
        if open_calls:
            raise _without_result(open_calls, at(number))
        open_calls = {call.id for call in message.calls}
    if open_calls:
        raise _without_result(open_calls, at(len(messages)))


def _without_result(open_calls: set[str], param: str) -> Problem:
    missing = ", ".join(sorted(open_calls))[:200]
    return Problem(400, text("call_without_result", calls=missing), "invalid_messages", param=param)
