"""One question put to a model: rounds of calls and results, until it answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rolecall.agent.tools import Toolbox, told
from rolecall.errors import BadStructure, ConfigError, Truncated
from rolecall.models.model import Answer, Delta, Done, Message, Model, Request, Spoke, ToolCall, Usage
from rolecall.models.stream import closing

INTERRUPTED = " … [the model broke off here]"
BETWEEN = "\n\n"
"""Between what a model says before its calls and after them."""
Show = Callable[[str], Awaitable[None]]
T = TypeVar("T")
FENCED = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
WRAP = "value"
"""Providers want an object on the outside: what is none lies in a field of this name."""
REPAIR = "That is not of the form asked for: {why}. Answer again, with the corrected JSON alone."


async def unseen(text: str) -> None:
    """Pieces of an answer that nobody follows."""


@dataclass
class Heard:
    """What came in one round."""

    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: str = "stop"

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self.pieces)


@dataclass
class Asking:
    """Puts one request to ``model``. ``show`` gets the text piece by piece, ``log`` what is to be noted; ``seconds``
    is how long the model spoke, tools not counted."""

    model: Model
    log: Callable[[str], None]
    show: Show = unseen
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    tokens: Usage = field(default_factory=lambda: Usage(0, 0))
    spoke: Spoke = field(default_factory=lambda: Spoke(""))

    async def answer(self, request: Request, toolbox: Toolbox) -> Answer:
        """The whole answer. The model may call tools for as many rounds as there are; then it is asked a last time
        without. An answer that breaks off after it began ends as far as it came, marked. Raises ModelError."""
        rounds = toolbox.limits.rounds if toolbox.tools else 0
        for _ in range(rounds):
            heard = await self._hear(msgspec.structs.replace(request, tools=toolbox.specs))
            if not heard.calls:
                return self._whole(heard)
            results = await toolbox.answer(heard.calls, self.log)
            asked = Message("assistant", heard.text, calls=tuple(heard.calls))
            request = msgspec.structs.replace(request, messages=(*request.messages, asked, *results), must_call=False)
        if rounds:
            self.log(f"{rounds} rounds of tool calls are used up: asked a last time, without tools")
        return self._whole(await self._hear(msgspec.structs.replace(request, must_call=False)))

    async def _hear(self, request: Request) -> Heard:
        heard, began = Heard(), time.monotonic()
        try:
            await self._listen(request, heard)
        except Truncated as broken:
            if not self.said:
                raise
            self.log(f"{self.speaker} broke off: {broken}")
            self.said.append(INTERRUPTED)
            heard.calls, heard.finish = [], "interrupted"
        finally:
            self.seconds += time.monotonic() - began
        return heard

    async def _listen(self, request: Request, heard: Heard) -> None:
        async with closing(self.model.stream(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    await self._take(event.text, heard)
                elif isinstance(event, ToolCall):
                    heard.calls.append(event)
                elif isinstance(event, Usage):
                    self.tokens = Usage(
                        self.tokens.tokens_in + event.tokens_in, self.tokens.tokens_out + event.tokens_out
                    )
                elif isinstance(event, Done):
                    heard.finish = event.reason
                elif event != self.spoke:
                    self._begins(event)

    async def _take(self, text: str, heard: Heard) -> None:
        shown = text if heard.pieces or not self.said else BETWEEN + text
        heard.pieces.append(text)
        self.said.append(shown)
        await self.show(shown)

    def _begins(self, spoke: Spoke) -> None:
        self.spoke = spoke
        if spoke.why:
            self.log(f"{spoke.model} answers: {spoke.why}")

    def _whole(self, heard: Heard) -> Answer:
        tokens, spoke = self.tokens, self.spoke
        return Answer("".join(self.said), self.speaker, tokens.tokens_in, tokens.tokens_out, heard.finish, spoke.why)

    @property
    def speaker(self) -> str:
        """The model that answers, as far as it is known."""
        return self.spoke.model or self.model.name


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
