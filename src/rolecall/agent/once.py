"""``ctx.once``: a function whose result is recorded."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pydantic_core
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from rolecall.agent.recorder import StepRun
from rolecall.agent.tools import in_thread
from rolecall.errors import expect


async def run_once(step: StepRun, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The recorded result of ``function``, which is run if there is none."""
    expect(isinstance(step.name, str), "the name of once()", step.name)
    expect(callable(function), "the function of once()", function, "a function")
    result = _result_type(function)
    if step.found is not None:
        return _decoded(result, step.result())

    async def work() -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        value = await in_thread(step.name, functools.partial(function, *args, **kwargs))
        return await value if inspect.isawaitable(value) else value

    value = await step.perform(work, lambda value: _encoded(result, value))
    return _decoded(result, _encoded(result, value))


def _result_type(function: Callable[..., Any]) -> TypeAdapter[Any] | None:
    """Of the return annotation of ``function``; None if it has none that can be used."""
    try:
        annotation = typing.get_type_hints(function).get("return", Any)
        return None if annotation is Any else _adapter(annotation)
    except (PydanticUserError, NameError, TypeError, AttributeError):
        return None


@functools.lru_cache(256)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _encoded(result: TypeAdapter[Any] | None, value: Any) -> bytes:
    """Raises ValueError for what is no JSON, or not what the annotation says."""
    if isinstance(value, Iterator):
        raise ValueError("an iterator can be read only once; return a list")
    if result is None:
        return pydantic_core.to_json(value)
    raw = result.dump_json(value, warnings=False)
    result.validate_json(raw)
    return raw


def _decoded(result: TypeAdapter[Any] | None, raw: bytes) -> Any:
    return msgspec.json.decode(raw) if result is None else result.validate_json(raw)
