"""Answers that are data: the form asked for as a JSON schema, and the answer read back as a value of it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rolecall.errors import BadStructure, ConfigError
from rolecall.models.model import Answer, Message, Request
from rolecall.tools import told

T = TypeVar("T")
FENCED = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
WRAP = "value"
"""Providers want an object on the outside: what is none lies in a field of this name."""
REPAIR = "That is not of the form asked for: {why}. Answer again, with the corrected JSON alone."


class WrongForm(ValueError):
    """Raised for an answer that is not of the form; its text tells a model what is wrong."""


@dataclass(frozen=True)
class Form(Generic[T]):
    """What an answer has to be: any type that pydantic checks."""

    name: str
    schema: dict[str, Any]
    _adapter: TypeAdapter[T]
    _wrapped: bool

    @classmethod
    def of(cls, kind: type[T]) -> Form[T]:
        """The form of ``kind``. Raises ConfigError for one that has no JSON schema."""
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        try:
            adapter: TypeAdapter[T] = TypeAdapter(kind)
            schema = adapter.json_schema()
        except (PydanticUserError, NameError) as error:
            first = str(error).split("\n")[0]
            raise ConfigError(f"{name} cannot be the form of an answer: {first}") from error
        wrapped = schema.get("type") != "object"
        return cls(name, _wrap(schema) if wrapped else schema, adapter, wrapped)

    @property
    def instruction(self) -> str:
        """For the model, since not every provider holds it to the schema."""
        return f"Answer with JSON alone, of this JSON schema: {json.dumps(self.schema, ensure_ascii=False)}"

    def read(self, text: str) -> T:
        """``text`` as a value; a code fence and words around the JSON are borne. Raises WrongForm."""
        try:
            return self._adapter.validate_json(json.dumps(self._unwrapped(text)))
        except ValidationError as error:
            raise WrongForm(told(error)) from None

    def _unwrapped(self, text: str) -> object:
        found = _json_in(text)
        if self._wrapped and isinstance(found, dict) and found.keys() == {WRAP}:
            return found[WRAP]
        return found


async def extracted(
    form: Form[T], request: Request, ask: Callable[[Request], Awaitable[Answer]], log: Callable[[str], None]
) -> T:
    """What ``ask`` answers to ``request``, as a value. An answer of another form is told what is wrong with it, once.
    Raises BadStructure when that did not help either, and whatever ``ask`` raises."""
    request = msgspec.structs.replace(request, schema=form.schema)
    answer = await ask(request)
    try:
        return form.read(answer.text)
    except WrongForm as wrong:
        log(f"{answer.model} gave no {form.name}, and is asked to correct it: {wrong}")
        repair = Message("user", REPAIR.format(why=wrong))
    messages = (*request.messages, Message("assistant", answer.text or "(nothing)"), repair)
    answer = await ask(msgspec.structs.replace(request, messages=messages))
    try:
        return form.read(answer.text)
    except WrongForm as wrong:
        raise BadStructure(f"{answer.model} twice gave no answer of the form {form.name}: {wrong}") from None


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    outer = {"type": "object", "properties": {WRAP: inner}, "required": [WRAP], "additionalProperties": False}
    return {**outer, "$defs": schema["$defs"]} if "$defs" in schema else outer


def _json_in(text: str) -> object:
    """The JSON in ``text``: all of it, else what is fenced, else from the first bracket to the last."""
    problem = "it is no JSON"
    for candidate in _candidates(text):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError) as error:
            problem = f"it is no JSON: {error}" if candidate is text else problem
    raise WrongForm(problem)


def _candidates(text: str) -> list[str]:
    fenced = FENCED.findall(text)
    begins = [at for bracket in "{[" if (at := text.find(bracket)) >= 0]
    ends = max(text.rfind("}"), text.rfind("]"))
    return [text, *fenced, *([text[min(begins) : ends + 1]] if begins else [])]
