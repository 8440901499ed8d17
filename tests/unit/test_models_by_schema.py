"""A model that knows no tools, but writes JSON of a schema, calls them."""

from __future__ import annotations

import msgspec
import pytest

from rolecall.models.model import Delta, Done, Message, ModelEvent, Request, ToolCall, ToolSpec, Usage
from rolecall.models.tool_calls import calling_by_schema
from rolecall.testing import FakeModel

ADD = ToolSpec("add", "Add.", {"type": "object", "properties": {"a": {"$ref": "#/$defs/N"}}, "$defs": {"N": {}}})
NOW = ToolSpec("now", "Tell the time.", {"type": "object", "properties": {}})
ASKED = Request((Message("user", "1 and 2?"),), tools=(ADD,), must_call=True)


async def events(model: FakeModel, request: Request) -> list[ModelEvent]:
    return [event async for event in calling_by_schema(model.stream, request)]


async def test_a_call_it_must_make_is_an_answer_of_its_form() -> None:
    model = FakeModel('{"name": "add", "arguments": {"a": 1}}')
    call, usage, done = await events(model, ASKED)
    assert isinstance(call, ToolCall) and isinstance(usage, Usage)
    assert (call.name, call.arguments, done) == ("add", '{"a": 1}', Done("tool_calls"))
    sent = model.requests[0]
    assert (sent.tools, sent.must_call, len(sent.messages)) == ((), False, 1)
    assert sent.schema is not None
    assert sent.schema["properties"]["name"] == {"const": "add"}
    assert sent.schema["$defs"] == {"N": {}}


async def test_of_several_tools_it_is_told_which_there_are() -> None:
    model = FakeModel('{"name": "now", "arguments": {}}')
    call, *_ = await events(model, msgspec.structs.replace(ASKED, tools=(ADD, NOW)))
    assert isinstance(call, ToolCall) and call.name == "now"
    assert model.requests[0].messages[0] == Message("system", "Functions:\nadd(a): Add.\nnow(): Tell the time.")
    assert len((model.requests[0].schema or {})["anyOf"]) == 2


async def test_what_is_no_call_remains_text() -> None:
    text, _, done = await events(FakeModel('{"name": "add", "argu'), ASKED)
    assert text == Delta('{"name": "add", "argu')
    assert done == Done("tool_calls")


@pytest.mark.parametrize("request_", [msgspec.structs.replace(ASKED, must_call=False), Request(ASKED.messages)])
async def test_left_to_itself_it_talks(request_: Request) -> None:
    model = FakeModel("Three I think")
    heard = await events(model, request_)
    assert [event.text for event in heard if isinstance(event, Delta)] == ["Three", " I", " think"]
    assert model.requests[0].schema is None


async def test_calls_and_results_of_before_are_talk() -> None:
    model = FakeModel("3.")
    call = ToolCall("c1", "add", '{"a": 1, "b": "2"}')
    history = (*ASKED.messages, Message("assistant", "", calls=(call,)), Message("tool", "3", call="c1"))
    await events(model, Request(history))
    assert [message.text for message in model.requests[0].messages] == [
        "1 and 2?",
        'add(1, "2")',
        "The result is 3. Answer my question with it.",
    ]
