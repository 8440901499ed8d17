"""Answers that are data: a Python type as a JSON schema, the answer validated, one repair."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rolecall.agent.tools import explain_validation
from rolecall.errors import BadStructure, ConfigError
from rolecall.models.model import Answer, Message, Request

T = TypeVar("T")
V = TypeVar("V")
Ask = Callable[[Request], Awaitable[Answer]]
CODE_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
WRAPPER = "value"
"""Providers want an object at the top level: any other schema becomes the field of this name in one."""
REPAIR = "That does not match the JSON schema: {why}. Answer again with the corrected JSON only."


class SchemaMismatch(ValueError):
    """Raised for an answer that does not match the schema; its text tells a model what is wrong."""


@dataclass(frozen=True)
class StructuredOutput(Generic[T]):
    """The type of an answer, and the JSON ``schema`` that a model is given for it."""

    name: str
    schema: dict[str, Any]
    _adapter: TypeAdapter[T]
    _wrapped: bool

    @classmethod
    def of(cls, kind: type[T]) -> StructuredOutput[T]:
        """For ``kind``, any type that pydantic validates. Raises ConfigError for one that has no JSON schema."""
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        try:
            adapter: TypeAdapter[T] = TypeAdapter(kind)
            schema = adapter.json_schema()
        except (PydanticUserError, NameError) as error:
            first = str(error).split("\n")[0]
            raise ConfigError(f"{name} cannot be the type of an answer: {first}") from error
        wrapped = schema.get("type") != "object"
        return cls(name, _wrap(schema) if wrapped else schema, adapter, wrapped)

    def parse(self, text: str) -> T:
        """The value in ``text``; a code fence and words around the JSON are tolerated. Raises SchemaMismatch."""
        try:
            return self._adapter.validate_json(json.dumps(self._unwrapped(text)))
        except ValidationError as error:
            raise SchemaMismatch(explain_validation(error)) from None

    def _unwrapped(self, text: str) -> object:
        found = json_in(text)
        if self._wrapped and isinstance(found, dict) and found.keys() == {WRAPPER}:
            return found[WRAPPER]
        return found


async def run_structured(output: StructuredOutput[T], request: Request, ask: Ask, log: Callable[[str], None]) -> T:
    """The value that ``ask`` answers to ``request``; see ask_twice."""
    request = msgspec.structs.replace(request, schema=output.schema)
    value, _ = await ask_twice(request, ask, lambda answer: output.parse(answer.text), log, f"valid {output.name}")
    return value


async def ask_twice(
    request: Request, ask: Ask, checked: Callable[[Answer], V], log: Callable[[str], None], what: str
) -> tuple[V, Answer | None]:
    """What ``checked`` makes of the answer to ``request``. When that raises SchemaMismatch, the model is told why and
    asked once more, and the first answer comes along. ``what`` names what is expected. Raises BadStructure when the
    second does not match either, and whatever ``ask`` raises."""
    answer = await ask(request)
    try:
        return checked(answer), None
    except SchemaMismatch as mismatch:
        log(f"{answer.model} gave no {what} and is asked to correct it: {mismatch}")
        repair = Message("user", REPAIR.format(why=mismatch))
    messages = (*request.messages, Message("assistant", answer.text or "(nothing)"), repair)
    second = await ask(msgspec.structs.replace(request, messages=messages))
    try:
        return checked(second), answer
    except SchemaMismatch as mismatch:
        raise BadStructure(f"{second.model} twice gave no {what}: {mismatch}") from None


def instruction_for(schema: dict[str, Any]) -> str:
    """``schema`` in words for the model, because not every provider enforces it."""
    return f"Answer with JSON only, matching this JSON schema: {json.dumps(schema, ensure_ascii=False)}"


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    outer = {"type": "object", "properties": {WRAPPER: inner}, "required": [WRAPPER], "additionalProperties": False}
    return {**outer, "$defs": schema["$defs"]} if "$defs" in schema else outer


def json_in(text: str) -> object:
    """The JSON in ``text``: all of it, else a code fence, else from the first bracket to the last. Raises
    SchemaMismatch."""
    problem = "it is not JSON"
    for candidate in _candidates(text):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError) as error:
            problem = f"it is not JSON: {error}" if candidate is text else problem
    raise SchemaMismatch(problem)


def _candidates(text: str) -> list[str]:
    fenced = CODE_FENCE.findall(text)
    begins = [at for bracket in "{[" if (at := text.find(bracket)) >= 0]
    ends = max(text.rfind("}"), text.rfind("]"))
    return [text, *fenced, *([text[min(begins) : ends + 1]] if begins else [])]
