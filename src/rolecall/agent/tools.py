"""The tools a model may call: typed functions, and the tools of tool servers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pydantic_core
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from rolecall.agent.recorder import Recorder, StepRun
from rolecall.bus.envelope import encodable
from rolecall.bus.foreign_text import defused
from rolecall.errors import ConfigError, ToolError, expect, text_of
from rolecall.models.model import Message, ToolCall, ToolSpec
from rolecall.settings import Settings
from rolecall.tracing import conventions
from rolecall.tracing.span import span

logger = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""What every provider accepts as the name of a tool."""
MAX_CALLS = 16
"""At most this many calls of one answer run; a model that asks for more at once is confused."""
CHOICES = ("anyOf", "oneOf", "allOf", "enum", "not")
SCHEMA_CHARS, SCHEMA_LEVELS = 100_000, 200
NOTED = 300
CONFIRMED = 1500
"""Characters of a call that the user is asked about: its arguments share them, so that none hides another one."""
Confirm = Callable[[str], Awaitable[bool]]
"""Asks the user whether a call of a tool may run; gets the call as text."""
FAILED = "error: "
"""The prefix of a failed call's result, for the model."""


@dataclass(frozen=True)
class ToolLimits:
    """The limits of tools in one answer: rounds of calls, seconds per call, characters per result."""

    rounds: int = 8
    seconds: float = 30
    chars: int = 8000

    @classmethod
    def of(cls, settings: Settings) -> ToolLimits:
        """The limits of a deployment."""
        return cls(settings.tool_rounds, settings.tool_seconds, settings.tool_chars)


@dataclass(frozen=True)
class Tool:
    """Something a model may call. ``run`` receives the arguments as the model wrote them; the model is told every
    failure, a ToolError in its own words."""

    spec: ToolSpec
    run: Callable[[str], Awaitable[object]] = field(repr=False)
    confirm: bool = False
    """Whether the user is asked before it runs."""

    @property
    def name(self) -> str:
        """The name the model calls it by."""
        return self.spec.name

    @classmethod
    def of(cls, function: Callable[..., Any], *, name: str = "", description: str = "", confirm: bool = False) -> Tool:
        """A tool from ``function``: its docstring tells the model its purpose, its types tell the arguments. With
        ``confirm``, each call waits until the user has agreed to it.

        A function that is not async runs in a thread. Raises ConfigError for one that a model could not call.
        """
        name = name or getattr(function, "__name__", type(function).__name__)
        description = description or inspect.getdoc(function) or ""
        _check_function(name, function, description)
        taken = _arguments_of(name, function)

        async def run(arguments: str) -> object:
            given = _validated(taken, arguments)
            if inspect.iscoroutinefunction(function):
                return await function(**given)
            value = await in_thread(name, functools.partial(function, **given))
            return await value if inspect.isawaitable(value) else value

        return cls(ToolSpec(name, description, _schema_of(name, taken)), run, confirm)


Offer = Tool | Callable[..., Any] | Iterable[Tool | Callable[..., Any]]
"""What can be offered to a model: a tool, a function, or several of these."""


@dataclass(frozen=True)
class ToolResult:
    """The result of a call: the text for the model, and how long it took in seconds."""

    text: str
    failed: bool
    seconds: float


class Toolbox:
    """The tools of one answer, by name. Raises ConfigError for two with the same name, and for an invalid tool."""

    def __init__(self, offers: Iterable[Offer] = (), limits: ToolLimits | None = None) -> None:
        self.limits = limits or ToolLimits()
        self.tools: dict[str, Tool] = {}
        expect(isinstance(offers, Iterable), "tools", offers, "a list of functions and tools")
        for tool in _flat(offers):
            if tool.name in self.tools:
                raise ConfigError(f"the tool {tool.name} is offered twice: tools need distinct names")
            self.tools[tool.name] = tool

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools as a model sees them."""
        return tuple(tool.spec for tool in self.tools.values())

    async def answer(
        self,
        calls: Sequence[ToolCall],
        log: Callable[[str], None],
        recorder: Recorder | None = None,
        confirm: Confirm | None = None,
    ) -> list[Message]:
        """Run all ``calls`` at once; return their results as messages for the model, in order. Each is logged once, and
        with a ``recorder`` each is a step. ``confirm`` asks the user about the calls of tools that want it."""
        steps = [recorder.next("tool", call.name) if recorder else None for call in calls[:MAX_CALLS]]

        async def answered(call: ToolCall, number: int) -> Message:
            step = steps[number] if number < MAX_CALLS else None
            if step is not None:  # logged with its record
                result = await self._step(call, step, confirm)
            else:
                result = TOO_MANY if number >= MAX_CALLS else await self._confirmed(call, confirm)
                log(_note(call, result))
            return Message("tool", result.text, call=call.id)

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(answered(call, n), name=f"tool {call.name}") for n, call in enumerate(calls)]
        return [task.result() for task in running]

    async def _step(self, call: ToolCall, step: StepRun, confirm: Confirm | None) -> ToolResult:
        """The result of ``call``, recorded before the model sees it."""
        if step.found is not None:
            return msgspec.json.decode(step.result(), type=ToolResult)
        result: ToolResult = await step.perform(
            lambda: self._confirmed(call, confirm), msgspec.json.encode, note=lambda result: _note(call, result)
        )
        return result

    async def _confirmed(self, call: ToolCall, confirm: Confirm | None) -> ToolResult:
        tool = self.tools.get(call.name)
        if tool is not None and tool.confirm:
            if confirm is None:
                raise ConfigError(f"tool {tool.name} asks the user first: offer it in ctx.ask or ctx.stream")
            if not await confirm(_to_confirm(call)):
                return DECLINED
        with span(f"execute_tool {call.name}", conventions.tool(call.name, call.id)) as traced:
            result = await self.run(call.name, call.arguments)
            if result.failed:
                traced.fail("ToolError", result.text)
            return result

    async def run(self, name: str, arguments: str) -> ToolResult:
        """Call one tool. A failure becomes a result that says so."""
        began = time.monotonic()
        try:
            text, failed = await self._text(name, arguments), False
        except ToolError as error:
            text, failed = defused(_cut(f"{FAILED}{text_of(error)}", self.limits.chars)), True
        return ToolResult(text, failed, time.monotonic() - began)

    async def _text(self, name: str, arguments: str) -> str:
        tool = self.tools.get(name)
        if tool is None:
            raise ToolError(no_tool(name, self.tools))
        try:
            async with asyncio.timeout(self.limits.seconds) as limit:
                return defused(_cut(_as_text(await tool.run(arguments)), self.limits.chars))
        except ToolError:
            raise
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise ToolError(f"{name} was cancelled") from None
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the boundary: a tool is anybody's code
            if limit.expired():
                raise ToolError(f"{name} took more than {self.limits.seconds:g} s and was cancelled") from None
            logger.warning("tool %s failed", name, exc_info=True)
            raise ToolError(f"{name} failed: {type(error).__name__}: {text_of(error)}") from error


DECLINED = ToolResult(f"{FAILED}the user declined; do not try this again", True, 0.0)
TOO_MANY = ToolResult(f"{FAILED}not run: at most {MAX_CALLS} calls at once", True, 0.0)


def no_tool(name: str, known: Iterable[str]) -> str:
    """What one is told who asks for the tool ``name``, which is none of ``known``."""
    return f"there is no tool {name!r}; there are {', '.join(known)}"


def parameters_of(schema: object) -> dict[str, Any]:
    """``schema`` as every provider accepts the parameters of a tool: an object with ``properties``, and no choice of
    schemas at the top, which some refuse. What cannot be sent becomes an object of anything."""
    found = dict(schema) if isinstance(schema, dict) else {}
    try:
        if len(json.dumps(found)) > SCHEMA_CHARS or _deeper_than(found, SCHEMA_LEVELS):
            found = {}
    except (TypeError, ValueError, RecursionError):
        found = {}
    properties = found.get("properties")
    properties = dict(properties) if isinstance(properties, dict) else {}
    for choice in CHOICES:
        options = found.pop(choice, None)
        for option in options if isinstance(options, list) else ():
            more = option.get("properties") if isinstance(option, dict) else None
            properties = {**(more if isinstance(more, dict) else {}), **properties}
    properties = {name: one if isinstance(one, dict | bool) else {} for name, one in properties.items()}
    required = found.pop("required", None)
    if isinstance(required, list):
        found["required"] = [name for name in required if name in properties]
    return {**found, "type": "object", "properties": properties}


def _deeper_than(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        children = (one.values() if isinstance(one, dict) else one if isinstance(one, list) else () for one in layer)
        layer = [child for some in children for child in some]
    return bool(layer)


def _flat(offers: Iterable[Offer]) -> Iterator[Tool]:
    for offer in offers:
        if isinstance(offer, Tool):
            yield offer
        elif callable(offer):
            yield Tool.of(offer)
        elif isinstance(offer, Iterable) and not isinstance(offer, str):
            yield from _flat(offer)
        else:
            raise ConfigError(f"{offer!r} is not a tool: expected a typed function with a docstring, or a Tool")


def _check_function(name: str, function: Callable[..., Any], description: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"tool {name!r}: the name is invalid: expected up to 64 letters, digits, _ and -")
    if not description:
        raise ConfigError(f"tool {name} has no docstring: it tells the model what the tool is for")
    for parameter in _parameters(name, function):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {name}: a model cannot pass {parameter}; expected named arguments only")
        if parameter.annotation is parameter.empty:
            raise ConfigError(f"tool {name}: the argument {parameter.name} has no type")


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters a model passes, without those that a partial has already bound."""
    settled = function.keywords if isinstance(function, functools.partial) else {}
    try:
        found = inspect.signature(function, eval_str=True).parameters
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"tool {name}: its types cannot be used: {_first_line(error)}") from error
    return [parameter for key, parameter in found.items() if key not in settled]


def _arguments_of(name: str, function: Callable[..., Any]) -> TypeAdapter[dict[str, Any]]:
    """Validates the arguments of ``function`` and returns them by name."""

    def given(**arguments: Any) -> dict[str, Any]:
        return arguments

    parameters = _parameters(name, function)
    given.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    given.__dict__["__signature__"] = inspect.Signature(parameters)
    try:
        return TypeAdapter[dict[str, Any]](cast(Any, given))
    except (PydanticUserError, NameError, TypeError) as error:
        raise ConfigError(f"tool {name}: its types cannot be used: {_first_line(error)}") from error


def _schema_of(name: str, taken: TypeAdapter[dict[str, Any]]) -> dict[str, Any]:
    try:
        return taken.json_schema()
    except PydanticUserError as error:
        raise ConfigError(f"tool {name}: its arguments have no JSON schema: {_first_line(error)}") from error


def _validated(taken: TypeAdapter[dict[str, Any]], arguments: str) -> dict[str, Any]:
    try:
        return taken.validate_json(json_object(arguments))
    except ValidationError as error:
        raise ToolError(f"wrong arguments: {explain_validation(error)}") from None


def json_object(arguments: str) -> str:
    """The JSON of the object that a model wrote, without halves of surrogate pairs, which cannot be encoded. Raises
    ToolError."""
    arguments = encodable(arguments).strip() or "{}"
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the arguments are not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ToolError("the arguments are not a JSON object")
    unescaped = json.dumps(found, ensure_ascii=False)
    return arguments if (whole := encodable(unescaped)) == unescaped else whole


def explain_validation(error: ValidationError) -> str:
    """A validation error for a model: where and what is expected, without links to documentation."""
    parts = []
    for found in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(str(part) for part in found["loc"])
        parts.append(f"{where}: {found['msg']}" if where else found["msg"])
    return "; ".join(parts)


async def in_thread(name: str, work: Callable[[], object]) -> object:
    """The result of ``work``, run in a thread of its own: one that hangs occupies no shared thread and does not keep
    the process from exiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[object, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(value: object, error: BaseException | None) -> None:
        if not done.done():
            done.set_result((value, error))

    def run() -> None:
        outcome: tuple[object, BaseException | None]
        try:
            outcome = context.run(work), None
        except BaseException as error:  # the boundary: it is raised where it is waited for
            outcome = None, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, *outcome)

    threading.Thread(target=run, name=f"rolecall tool {name}", daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "done"
    if isinstance(value, Iterator):
        raise ToolError(f"it returned a {type(value).__name__}, not a value")
    try:
        return pydantic_core.to_json(value, inf_nan_mode="constants").decode()
    except ValueError:
        raise ToolError(f"it returned a {type(value).__name__}, which is not JSON") from None


def _cut(text: str, chars: int) -> str:
    text = encodable(text)
    return text if len(text) <= chars else f"{text[:chars]} … [cut: {len(text)} characters in all]"


def _to_confirm(call: ToolCall) -> str:
    """``call`` as the user is asked about it: the arguments as they will be read, long ones cut."""
    try:
        given: dict[str, Any] = json.loads(json_object(call.arguments))
    except ToolError:  # which the model is told once it runs
        return f"{call.name}({_cut(call.arguments.strip(), NOTED)})"
    room = CONFIRMED // max(1, len(given))
    shown = {
        _cut(name, 64): value if len(text := _json(value)) <= room else _cut(text, room)
        for name, value in given.items()
    }  # fmt: skip
    return f"{call.name}({_cut(_json(shown), CONFIRMED + NOTED)})"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _note(call: ToolCall, result: ToolResult) -> str:
    asked, said = _cut(call.arguments.strip(), NOTED), _cut(result.text, NOTED)
    return f"tool {call.name}({asked}) → {said} ({result.seconds:.2f} s)"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
