"""What every model adapter promises of an answer that comes."""

from __future__ import annotations

import asyncio
import importlib
import json

import msgspec
import pytest

from rolecall.errors import ModelUnauthorised
from rolecall.models import Delta, Done, Message, Model, Request, ToolCall, ToolSpec, Usage
from rolecall.models.registry import PROVIDERS, probe
from tests.contract.model_adapters import HELLO, KEY, Adapter, answer
from tests.contract.model_vendor import Vendor, refusing, saying, silence, stalling

WEATHER = ToolSpec("weather", "Tells the weather.", {"type": "object", "properties": {"at": {"type": "string"}}})
PNG = b"\x89PNG\r\n\x1a\nrest"


async def test_an_answer_comes_as_deltas_then_usage_then_done(model: Model, vendor: Vendor) -> None:
    wire = vendor.wire
    vendor.script = saying(wire.delta("Hel"), wire.delta("lo"), wire.end("stop", (7, 2)))
    assert await answer(model) == [Delta("Hel"), Delta("lo"), Usage(7, 2), Done("stop")]


async def test_an_answer_at_its_limit_says_so(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hel"), vendor.wire.end("length", (7, 1)))
    assert await answer(model) == [Delta("Hel"), Usage(7, 1), Done("length")]


async def test_an_empty_answer_is_whole(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.end("stop", (7, 0)))
    assert await answer(model) == [Usage(7, 0), Done("stop")]


async def test_letters_split_anywhere_come_whole(model: Model, vendor: Vendor) -> None:
    raw = vendor.wire.delta("Zoë 语 🙂\u2028 ") + vendor.wire.delta("fin") + vendor.wire.end("stop", (7, 2))
    vendor.script = saying(*(raw[at : at + 1] for at in range(len(raw))))
    assert await answer(model) == [Delta("Zoë 语 🙂\u2028 "), Delta("fin"), Usage(7, 2), Done("stop")]


async def test_what_a_model_thinks_is_not_its_answer(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.thought("Hm."), vendor.wire.delta("Hi"), vendor.wire.end("stop", (7, 2)))
    assert await answer(model) == [Delta("Hi"), Usage(7, 2), Done("stop")]


async def test_a_model_that_thinks_is_not_silent(impatient: Model, vendor: Vendor) -> None:
    thoughts = [vendor.wire.thought(".")] * 8

    async def thinking(connection: object) -> None:
        last = vendor.connections[-1]
        await last.begin()
        for thought in thoughts:
            await last.say(thought)
            await asyncio.sleep(0.1)
        await last.say(vendor.wire.delta("Hi"), vendor.wire.end("stop", (7, 2)))
        await last.close()

    vendor.script = thinking
    assert await answer(impatient) == [Delta("Hi"), Usage(7, 2), Done("stop")]


async def test_a_tool_is_called_and_its_result_goes_back(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.call("weather", {"at": "Bern"}), vendor.wire.end("tool_calls", (7, 2)))
    question = Request((Message("user", "What is the weather?"),), tools=(WEATHER,))
    call, *rest = await answer(model, question)
    assert isinstance(call, ToolCall) and call.id
    assert (call.name, json.loads(call.arguments)) == ("weather", {"at": "Bern"})
    assert rest == [Usage(7, 2), Done("tool_calls")]
    assert "Tells the weather." in json.dumps(vendor.connections[0].body)

    vendor.script = saying(vendor.wire.delta("Sunny."), vendor.wire.end("stop", (9, 2)))
    known = (*question.messages, Message("assistant", "", calls=(call,)), Message("tool", "sun, 21 C", call=call.id))
    assert await answer(model, Request(known, tools=(WEATHER,))) == [Delta("Sunny."), Usage(9, 2), Done("stop")]
    sent = json.dumps(vendor.connections[1].body)
    assert "sun, 21 C" in sent and "Bern" in sent and "weather" in sent


async def test_an_answer_cut_at_its_limit_calls_nothing(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.call("weather", {"at": "Bern"}), vendor.wire.end("length", (7, 2)))
    assert await answer(model) == [Usage(7, 2), Done("length")]


async def test_images_schema_and_limits_are_sent(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("{}"), vendor.wire.end("stop", (7, 2)))
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
    await answer(model, Request((Message("user", "?", (PNG,)),), max_tokens=77, temperature=0.25, schema=schema))
    sent = json.dumps(vendor.connections[0].body)
    assert '"colour"' in sent and "77" in sent and "0.25" in sent
    assert "iVBORw0KGgpyZXN0" in sent


async def test_the_key_goes_to_the_server(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.end("stop", (7, 0)))
    await answer(model)
    headers = vendor.connections[0].headers
    assert KEY in (headers.get("x-goog-api-key"), headers.get("authorization", "").removeprefix("Bearer "))


async def test_a_slow_reader_loses_nothing(model: Model, vendor: Vendor) -> None:
    words = [f"{number} " for number in range(200)]
    vendor.script = saying(*map(vendor.wire.delta, words), vendor.wire.end("stop", (7, 2)))
    heard = []
    async for event in model.stream(HELLO):
        await asyncio.sleep(0)
        heard.append(event)
    assert heard == [*map(Delta, words), Usage(7, 2), Done("stop")]


async def test_many_questions_share_one_model_object(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hi"), vendor.wire.end("stop", (7, 1)))
    answers = await asyncio.gather(*(answer(model) for _ in range(20)))
    assert answers == [[Delta("Hi"), Usage(7, 1), Done("stop")]] * 20


async def test_a_closed_model_answers_again(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hi"), vendor.wire.end("stop", (7, 1)))
    await answer(model)
    await model.aclose()
    await model.aclose()
    assert await answer(model) == [Delta("Hi"), Usage(7, 1), Done("stop")]


@pytest.mark.parametrize("begun", [False, True], ids=["before text", "amid text"])
async def test_cancelling_closes_the_connection(model: Model, vendor: Vendor, begun: bool) -> None:
    vendor.script = stalling(vendor.wire.delta("Hel")) if begun else silence
    first = asyncio.Event()

    async def ask() -> None:
        async for _ in model.stream(HELLO):
            first.set()

    asking = asyncio.create_task(ask())
    await asyncio.wait_for((first if begun else vendor.arrived).wait(), 10)
    asking.cancel()
    # A tenth of this at most where nothing else runs.
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("ahead", [1, 60], ids=["at its word", "with more read ahead"])
async def test_leaving_the_stream_closes_the_connection(model: Model, vendor: Vendor, ahead: int) -> None:
    vendor.script = stalling(*[vendor.wire.delta("Hel")] * ahead)
    async for _ in model.stream(HELLO):
        break
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 5)


async def test_probe_tells_how_fast_a_model_answers(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("OK"), vendor.wire.end("stop", (7, 1)))
    assert (await probe(model)).startswith(f"{model.name}: first word after ")


async def test_the_models_of_a_server_are_listed(adapter: Adapter, vendor: Vendor) -> None:
    provider = adapter.name.rpartition("@")[2]
    if provider == "local":
        pytest.skip("it has those of its catalogue")
    list_models = importlib.import_module(PROVIDERS[provider].module).list_models
    vendor.script = refusing(200, vendor.wire.listing("some-model"))
    assert await list_models(adapter.configured(vendor.url)) == [f"some-model@{provider}"]
    vendor.script = refusing(401, vendor.wire.refusal(401, f"no, {KEY}"))
    with pytest.raises(ModelUnauthorised) as caught:
        await list_models(adapter.configured(vendor.url))
    assert KEY not in str(caught.value)


def test_a_call_survives_the_way_through_the_bus() -> None:
    call = ToolCall("1", "weather", '{"at": "Bern"}', "c2ln")
    assert msgspec.convert(msgspec.to_builtins(call), ToolCall) == call
