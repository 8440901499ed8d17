"""Functions as tools: what a model is told of them, what they are given, and what becomes of their failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rolecall import Tool, ToolError
from rolecall.agent.completion import INTERRUPTED, ModelCompletion
from rolecall.agent.tools import MAX_CALLS, Toolbox, ToolLimits
from rolecall.errors import ConfigError, RateLimited, Truncated
from rolecall.models.model import Message, Request, ToolCall
from rolecall.testing import FakeModel, tool_call

REQUEST = Request((Message("user", "What is the weather?"),))


class Place(BaseModel):
    """Where."""

    city: str
    country: str = "Italy"


async def weather(city: Annotated[str, Field(description="its name")], unit: Literal["C", "F"] = "C") -> str:
    """Tell the weather of a city."""
    return f"{city} 21 {unit}"


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def where(place: Place, day: date) -> str:
    """Tell where and when."""
    return f"{place.city}, {place.country}, {day:%A}"


def thread() -> str:
    """Name the thread it runs in."""
    return threading.current_thread().name


async def ran(tool: Any, arguments: str, **limits: Any) -> str:
    """The result of one call, as the model sees it."""
    toolbox = Toolbox([tool], ToolLimits(**limits))
    return (await toolbox.run(next(iter(toolbox.tools)), arguments)).text


# ── what a model is told, and what a function is given ──────────────────────────────────────────


def test_the_model_is_told_the_name_the_docstring_and_the_types() -> None:
    spec = Tool.of(weather).spec
    assert (spec.name, spec.description) == ("weather", "Tell the weather of a city.")
    assert spec.parameters["required"] == ["city"]
    assert spec.parameters["properties"]["city"]["description"] == "its name"
    assert spec.parameters["properties"]["unit"]["enum"] == ["C", "F"]
    assert spec.parameters["additionalProperties"] is False


def test_a_tool_without_arguments_takes_an_empty_object() -> None:
    assert Tool.of(thread).spec.parameters == {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("tool", "arguments", "result"),
    [
        (weather, '{"city": "Rome"}', "Rome 21 C"),
        (add, '{"a": 2, "b": "3"}', "5"),
        (add, '{"a": 2}', "3"),
        (where, '{"place": {"city": "Rome"}, "day": "2026-11-21"}', "Rome, Italy, Saturday"),
        (thread, "", "rolecall tool thread"),
        (weather, '{"city": "R\\ud83dme", "unit": "F"}', "R?me 21 F"),
        (weather, '{"city": "\\ud83d\\ude00 \\\\ud83d"}', "😀 \\ud83d 21 C"),
        (Tool.of(partial(add, b=5), name="plus_five", description="Add five."), '{"a": 1}', "6"),
    ],
)
async def test_a_call_gets_what_its_types_ask_for(tool: Any, arguments: str, result: str) -> None:
    assert await ran(tool, arguments) == result


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"a": "two"}', "a: Input should be a valid integer"),
        ('{"b": 2}', "a: Missing required argument"),
        ('{"a": 2, "c": 3}', "c: Unexpected keyword argument"),
        ('{"a": 2', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ("\ud800", "not JSON"),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(arguments: str, why: str) -> None:
    text = await ran(add, arguments)
    assert text.startswith("error: ")
    assert why in text
    assert "pydantic.dev" not in text


# ── results and failures ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "done"),
        ({"a": [1, 2.5, None]}, '{"a":[1,2.5,null]}'),
        (Place(city="Rome"), '{"city":"Rome","country":"Italy"}'),
        (Decimal("1.50"), '"1.50"'),
        (float("nan"), "NaN"),
        ("\ud800", "?"),
        (object(), "error: it returned a object, which is not JSON"),
        (b"\xff", "error: it returned a bytes, which is not JSON"),
        (iter([1]), "error: it returned a list_iterator, not a value"),
    ],
)
async def test_a_result_is_text_or_json(value: object, text: str) -> None:
    def tool() -> object:
        """Return something."""
        return value

    assert await ran(tool, "{}") == text


async def test_a_result_that_holds_itself_is_no_json() -> None:
    def tool() -> object:
        """Return a loop."""
        loop: list[object] = []
        loop.append(loop)
        return loop

    assert "not JSON" in await ran(tool, "{}")


async def test_a_long_result_is_cut_with_a_mark() -> None:
    def tool() -> str:
        """Talk."""
        return "x" * 5000

    assert await ran(tool, "{}", chars=100) == f"{'x' * 100} … [cut: 5000 characters in all]"


class Speechless(Exception):
    """Cannot say what it is, as exceptions of careless libraries."""

    def __str__(self) -> str:
        raise AttributeError("message")


def raising(error: BaseException, *, blocking: bool) -> Callable[[], Any]:
    def tool() -> str:
        """Fail."""
        raise error

    async def patient_tool() -> str:
        """Fail."""
        raise error

    return tool if blocking else patient_tool


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ToolError("no such city"), "error: no such city"),
        (ValueError("x"), "failed: ValueError: x"),
        (TimeoutError("its own"), "failed: TimeoutError: its own"),
        (SystemExit(3), "failed: SystemExit: 3"),
        (KeyboardInterrupt(), "failed: KeyboardInterrupt"),
        (asyncio.CancelledError(), "was cancelled"),
        (StopAsyncIteration(), "failed"),
        (Speechless(), "failed: Speechless"),
    ],
)
async def test_a_tool_that_raises_says_so_to_the_model(error: BaseException, text: str, blocking: bool) -> None:
    assert text in await ran(raising(error, blocking=blocking), "{}")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a tool that hangs waits for; opened at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_tool_that_hangs_is_given_up_in_its_time(gate: threading.Event) -> None:
    def blocking() -> None:
        """Hang."""
        gate.wait()

    async def patient() -> None:
        """Hang."""
        await asyncio.Event().wait()

    for tool in (blocking, patient):
        assert "took more than 0.05 s and was cancelled" in await ran(tool, "{}", seconds=0.05)


async def test_tools_that_hang_take_no_thread_from_others(gate: threading.Event) -> None:
    def blocking(number: int) -> None:
        """Hang."""
        gate.wait()

    toolbox = Toolbox([blocking], ToolLimits(seconds=0.05))
    await asyncio.gather(*(toolbox.run("blocking", f'{{"number": {n}}}') for n in range(40)))
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"


async def test_a_handler_that_is_cancelled_cancels_its_tools() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def patient() -> None:
        """Wait."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(Toolbox([patient]).answer([tool_call("patient")], lambda text: None))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


# ── what cannot be a tool ───────────────────────────────────────────────────────────────────────


def undocumented(a: int) -> None: ...


def untyped(a) -> None:  # type: ignore[no-untyped-def]
    """Take something."""


def many(*words: str) -> None:
    """Take many."""


def unresolved(what: "Unknown") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    """Take something unknown."""


def unsendable(lock: threading.Event) -> None:
    """Take a lock."""


@pytest.mark.parametrize(
    ("offers", "why"),
    [
        ([add, weather, add], "the tool add is offered twice"),
        ([[add], Tool.of(add)], "the tool add is offered twice"),
        ([undocumented], "tool undocumented has no docstring"),
        ([untyped], "tool untyped: the argument a has no type"),
        ([many], r"tool many: a model cannot pass \*words"),
        ([unresolved], "tool unresolved: its types cannot be used: name 'Unknown' is not defined"),
        ([unsendable], "tool unsendable: its types cannot be used"),
        ([lambda: 1], "letters, digits"),
        ([3], "3 is not a tool"),
        (["add"], "'add' is not a tool"),
    ],
)
def test_what_a_model_could_not_call_is_refused(offers: list[Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Toolbox(offers)


# ── rounds ──────────────────────────────────────────────────────────────────────────────────────


class Asked:
    """One question to a FakeModel, and what was shown and noted meanwhile."""

    def __init__(self, *answers: Any) -> None:
        self.model = FakeModel(*answers)
        self.shown: list[str] = []
        self.notes: list[str] = []
        self.completion = ModelCompletion(self.model, self.notes.append, self._show)

    async def answer(self, *tools: Any, request: Request = REQUEST, **limits: Any) -> Any:
        return await self.completion.run(request, Toolbox(tools, ToolLimits(**limits)))

    async def _show(self, text: str) -> None:
        self.shown.append(text)


async def test_a_call_its_result_and_the_answer_follow_one_another() -> None:
    asked = Asked(("Let me look.", tool_call("weather", city="Rome")), "It is sunny.")
    answer = await asked.answer(weather)
    assert answer.text == "".join(asked.shown) == "Let me look.\n\nIt is sunny."
    assert [spec.name for spec in asked.model.requests[0].tools] == ["weather"]
    question, call, result = asked.model.requests[1].messages
    assert (question.role, call.role, result.role) == ("user", "assistant", "tool")
    assert (call.text, call.calls[0].name) == ("Let me look.", "weather")
    assert (result.text, result.call) == ("Rome 21 C", call.calls[0].id)
    assert asked.notes[0].startswith('tool weather({"city":"Rome"}) → Rome 21 C (0.0')


async def test_the_tokens_of_all_rounds_add_up() -> None:
    asked = Asked(tool_call("add", a=1), tool_call("add", a=2), "three words here")
    answer = await asked.answer(add)
    assert answer.tokens_out == 3
    assert answer.tokens_in == 4 + 5 + 6


async def test_calls_of_one_answer_run_side_by_side_and_keep_their_order() -> None:
    arrived = asyncio.Barrier(3)

    async def meet(name: str) -> str:
        """Wait for the others."""
        await arrived.wait()
        return name

    asked = Asked(tuple(tool_call("meet", name=name) for name in "abc"), "met")
    await asked.answer(meet, seconds=5)
    assert [message.text for message in asked.model.requests[1].messages[2:]] == ["a", "b", "c"]


async def test_when_the_rounds_are_used_up_the_model_is_asked_a_last_time_without_tools() -> None:
    asked = Asked(tool_call("add", a=1), tool_call("add", a=1), "enough")
    answer = await asked.answer(add, rounds=2)
    assert answer.text == "enough"
    assert [len(request.tools) for request in asked.model.requests] == [1, 1, 0]
    assert "2 rounds of tool calls are used up" in asked.notes[-1]


async def test_a_model_that_calls_on_and_on_comes_to_an_end() -> None:
    answer = await Asked(tool_call("add", a=1)).answer(add, rounds=3)
    assert answer.text == ""


async def test_a_model_has_to_call_only_in_the_first_round() -> None:
    asked = Asked(tool_call("add", a=1), "2")
    await asked.answer(add, request=Request(REQUEST.messages, must_call=True))
    assert [request.must_call for request in asked.model.requests] == [True, False]


async def test_an_unknown_tool_is_told_with_those_there_are() -> None:
    asked = Asked(tool_call("rain"), "sorry")
    await asked.answer(add, weather)
    assert asked.model.requests[1].messages[2].text == "error: there is no tool 'rain'; there are add, weather"
    assert "error: there is no tool" in asked.notes[0]


async def test_more_calls_than_can_be_meant_are_not_all_run() -> None:
    asked = Asked(tuple(tool_call("add", a=n) for n in range(MAX_CALLS + 5)), "done")
    await asked.answer(add)
    results = [message.text for message in asked.model.requests[1].messages[2:]]
    assert len(results) == MAX_CALLS + 5
    assert sum(text.startswith("error: not run") for text in results) == 5


async def test_calls_that_nobody_offered_are_left_alone() -> None:
    assert (await Asked(("So be it.", ToolCall("1", "add", "{}"))).answer()).text == "So be it."


async def test_what_was_said_before_a_break_is_kept_and_marked() -> None:
    asked = Asked(("Let me look.", tool_call("add", a=1)), Truncated("cut"))
    answer = await asked.answer(add)
    assert (answer.text, answer.finish) == (f"Let me look.{INTERRUPTED}", "interrupted")


async def test_a_failure_of_the_model_in_a_later_round_is_raised() -> None:
    with pytest.raises(RateLimited):
        await Asked(tool_call("add", a=1), RateLimited("wait")).answer(add)


async def test_who_is_asked_about_a_call_sees_each_argument_as_it_will_be_read() -> None:
    asked: list[str] = []

    async def decline(question: str) -> bool:
        asked.append(question)
        return False

    def send(note: str, to: str) -> str:
        """Send a note."""
        raise AssertionError

    box = Toolbox([Tool.of(send, confirm=True)])
    long = '{"to": "ann", "note": "' + "x" * 5000 + '",\n\n\n "to": "eve"}'
    await box.answer([ToolCall("1", "send", long)], log=lambda _: None, confirm=decline)
    assert asked[0].startswith('send({"to": "eve", "note": ') and "ann" not in asked[0] and len(asked[0]) < 1900
    await box.answer([ToolCall("2", "send", '{"note": "Hi", "to":')], log=lambda _: None, confirm=decline)
    assert asked[1] == 'send({"note": "Hi", "to":)'
