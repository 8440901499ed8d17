"""What every model adapter promises, against a provider that speaks the real wire format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest

from rolecall.errors import (
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    RateLimited,
    Truncated,
)
from rolecall.models import Delta, Done, Message, Model, ModelEvent, Request, Usage
from rolecall.models.registry import open_model, probe
from rolecall.settings import Settings
from tests.contract.model_vendor import Connection, OpenAIWire, Script, Vendor, Wire

KEY = "sk-very-secret-key"
HELLO = Request((Message("system", "Be brief."), Message("user", "Hello")))


@dataclass(frozen=True)
class Adapter:
    """One adapter under test: how it is opened against an address, and the wire of its provider."""

    name: str
    wire: Callable[[], Wire]
    settings: Callable[[str], dict[str, Any]]


ADAPTERS = (Adapter("m@openai", OpenAIWire, lambda url: {"openai_api_key": KEY, "openai_base_url": f"{url}/v1"}),)


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: str(adapter.name))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    assert isinstance(request.param, Adapter)
    return request.param


@pytest.fixture
async def vendor(adapter: Adapter) -> AsyncIterator[Vendor]:
    vendor = Vendor(adapter.wire())
    await vendor.start()
    yield vendor
    await vendor.stop()


@pytest.fixture
async def model(adapter: Adapter, vendor: Vendor) -> AsyncIterator[Model]:
    opened = opened_at(adapter, vendor.url)
    yield opened
    await opened.aclose()


@pytest.fixture
async def impatient(adapter: Adapter, vendor: Vendor) -> AsyncIterator[Model]:
    opened = opened_at(adapter, vendor.url, patience=0.3)
    yield opened
    await opened.aclose()


def opened_at(adapter: Adapter, url: str, patience: float = 30) -> Model:
    settings = Settings(
        connect_seconds=2, first_token_seconds=patience, idle_token_seconds=patience, **adapter.settings(url)
    )
    return open_model(adapter.name, settings, Path())


async def answer(model: Model, request: Request = HELLO) -> list[ModelEvent]:
    return [event async for event in model.stream(request)]


def streaming(*parts: str | tuple[str, Any]) -> Script:
    """A script that says parts: a plain text is a delta, a pair names another method of the wire."""

    async def script(connection: Connection) -> None:
        await connection.begin()
        for part in parts:
            wire = connection.wire
            raw = wire.delta(part) if isinstance(part, str) else getattr(wire, part[0])(*part[1])
            await connection.say(raw)
        await connection.close()

    return script


def refusing(status: int, code: str = "some_code", **headers: str) -> Script:
    async def script(connection: Connection) -> None:
        await connection.refuse(status, connection.wire.refusal(f"no, {KEY}", code), **headers)

    return script


async def test_an_answer_comes_as_deltas_then_usage_then_done(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hel", "lo", ("finish", ["stop"]), ("usage", [7, 2]), ("end", []))
    assert await answer(model) == [Delta("Hel"), Delta("lo"), Usage(7, 2), Done("stop")]


async def test_an_answer_at_its_limit_says_so(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hel", ("finish", ["length"]), ("end", []))
    assert await answer(model) == [Delta("Hel"), Done("length")]


async def test_an_empty_answer_is_whole(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming(("finish", ["stop"]), ("usage", [7, 0]), ("end", []))
    assert await answer(model) == [Usage(7, 0), Done("stop")]


async def test_a_content_filter_is_a_refusal(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hel", ("finish", ["content_filter"]), ("end", []))
    with pytest.raises(ModelRefused, match="content filter"):
        await answer(model)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ModelRefused),
        (401, ModelUnauthorised),
        (403, ModelUnauthorised),
        (404, ModelUnauthorised),
        (408, ModelTimeout),
        (409, ModelUnavailable),
        (413, ModelRefused),
        (422, ModelRefused),
        (429, RateLimited),
        (500, ModelUnavailable),
        (502, ModelUnavailable),
        (503, ModelUnavailable),
    ],
)
async def test_a_status_becomes_an_error_that_hides_the_key(
    model: Model, vendor: Vendor, status: int, expected: type[ModelError]
) -> None:
    vendor.script = refusing(status)
    with pytest.raises(ModelError) as caught:
        await answer(model)
    assert type(caught.value) is expected
    assert KEY not in str(caught.value)
    assert model.name in str(caught.value)
    assert len(vendor.connections) == 1, "an adapter never repeats by itself"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7),
        ({"Retry_After_Ms": "250"}, 0.25),
        ({"Retry_After": "a date"}, 30),
        ({"Retry_After": "soon"}, None),
        ({}, None),
    ],
)
async def test_a_rate_limit_carries_the_wait_asked_for(
    model: Model, vendor: Vendor, headers: dict[str, str], seconds: float | None
) -> None:
    in_thirty_seconds = formatdate(time() + 30, usegmt=True)
    vendor.script = refusing(429, **{k: v.replace("a date", in_thirty_seconds) for k, v in headers.items()})
    with pytest.raises(RateLimited) as caught:
        await answer(model)
    assert caught.value.retry_after == (seconds if seconds is None else pytest.approx(seconds, abs=5))


async def test_an_account_without_credit_is_not_a_wait(model: Model, vendor: Vendor) -> None:
    vendor.script = refusing(429, code="insufficient_quota")
    with pytest.raises(ModelUnauthorised, match="no credit"):
        await answer(model)


async def test_a_conversation_too_long_is_named(model: Model, vendor: Vendor) -> None:
    vendor.script = refusing(400, code="context_length_exceeded")
    with pytest.raises(ModelRefused, match="too long"):
        await answer(model)


async def test_an_error_page_is_no_answer(model: Model, vendor: Vendor) -> None:
    async def page(connection: Connection) -> None:
        await connection.refuse(502, b"<html>Bad gateway</html>")

    vendor.script = page
    with pytest.raises(ModelUnavailable):
        await answer(model)


@pytest.mark.parametrize("raw", [b"data: {nonsense\n\n", b'data: {"choices": "odd"}\n\n', b"data: 3\n\n"])
async def test_what_is_not_the_protocol_is_unavailable(model: Model, vendor: Vendor, raw: bytes) -> None:
    async def nonsense(connection: Connection) -> None:
        await connection.begin()
        await connection.say(raw)
        await connection.close()

    vendor.script = nonsense
    with pytest.raises(ModelUnavailable, match="protocol"):
        await answer(model)


async def test_a_stream_that_ends_without_finish_is_truncated(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hel", "lo")
    with pytest.raises(Truncated, match="without its finish marker") as caught:
        await answer(model)
    assert caught.value.text == "Hello"


async def test_a_connection_broken_amid_the_answer_keeps_its_text(model: Model, vendor: Vendor) -> None:
    heard = asyncio.Event()

    async def breaking(connection: Connection) -> None:
        await connection.begin()
        await connection.say(connection.wire.delta("Hel"))
        await heard.wait()
        await connection.cut()

    vendor.script = breaking
    with pytest.raises(Truncated) as caught:
        async for _ in model.stream(HELLO):
            heard.set()
    assert caught.value.text == "Hel"


async def test_a_connection_broken_before_the_first_delta_is_unavailable(model: Model, vendor: Vendor) -> None:
    vendor.script = Connection.cut
    with pytest.raises(ModelUnavailable):
        await answer(model)


async def test_nobody_listening_is_unavailable(adapter: Adapter, vendor: Vendor) -> None:
    await vendor.stop()
    model = opened_at(adapter, vendor.url)
    with pytest.raises(ModelUnavailable, match=r"no connection to 127\.0\.0\.1"):
        await answer(model)
    await model.aclose()


async def test_an_error_within_the_stream_before_text_is_unavailable(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming(("failure", ["overloaded"]))
    with pytest.raises(ModelUnavailable, match="overloaded"):
        await answer(model)


async def test_an_error_within_the_stream_after_text_keeps_the_text(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hel", ("failure", ["overloaded"]))
    with pytest.raises(Truncated, match="overloaded") as caught:
        await answer(model)
    assert caught.value.text == "Hel"


@pytest.mark.parametrize("head", [False, True], ids=["before the head", "after the head"])
async def test_silence_before_the_first_delta_is_a_timeout(impatient: Model, vendor: Vendor, head: bool) -> None:
    async def silent(connection: Connection) -> None:
        if head:
            await connection.begin()
        await connection.gone.wait()

    vendor.script = silent
    with pytest.raises(ModelTimeout, match=r"no first word within 0\.3 s"):
        await answer(impatient)
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 1)


async def test_silence_between_deltas_keeps_the_text(impatient: Model, vendor: Vendor) -> None:
    vendor.script = stalling
    with pytest.raises(Truncated, match=r"silent for 0\.3 s") as caught:
        await answer(impatient)
    assert caught.value.text == "Hel"
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 1)


async def test_the_time_for_the_whole_answer_is_kept(model: Model, vendor: Vendor) -> None:
    async def dripping(connection: Connection) -> None:
        await connection.begin()
        while True:
            await connection.say(connection.wire.delta("."))
            await asyncio.sleep(0.02)

    vendor.script = dripping
    with pytest.raises(Truncated, match=r"no whole answer within 0\.2 s"):
        await answer(model, Request(HELLO.messages, timeout=0.2))


@pytest.mark.parametrize("begun", [False, True], ids=["before text", "amid text"])
async def test_cancelling_closes_the_connection(model: Model, vendor: Vendor, begun: bool) -> None:
    vendor.script = stalling if begun else Vendor(vendor.wire).script
    first = asyncio.Event()

    async def ask() -> None:
        async for _ in model.stream(HELLO):
            first.set()

    asking = asyncio.create_task(ask())
    await asyncio.wait_for((first if begun else vendor.arrived).wait(), 10)
    asking.cancel()
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 1)
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_leaving_the_stream_closes_the_connection(model: Model, vendor: Vendor) -> None:
    vendor.script = stalling
    async for _ in model.stream(HELLO):
        break
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 1)


async def test_a_slow_reader_loses_nothing(model: Model, vendor: Vendor) -> None:
    words = [f"{number} " for number in range(200)]
    vendor.script = streaming(*words, ("finish", ["stop"]), ("end", []))
    heard = []
    async for event in model.stream(HELLO):
        await asyncio.sleep(0)
        heard.append(event)
    assert heard == [*map(Delta, words), Done("stop")]


async def test_many_questions_share_one_model_object(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hi", ("finish", ["stop"]), ("end", []))
    answers = await asyncio.gather(*(answer(model) for _ in range(20)))
    assert answers == [[Delta("Hi"), Done("stop")]] * 20


async def test_a_closed_model_answers_again(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("Hi", ("finish", ["stop"]), ("end", []))
    await answer(model)
    await model.aclose()
    await model.aclose()
    assert await answer(model) == [Delta("Hi"), Done("stop")]


async def test_probe_tells_how_fast_a_model_answers(model: Model, vendor: Vendor) -> None:
    vendor.script = streaming("OK", ("finish", ["stop"]), ("end", []))
    assert (await probe(model)).startswith(f"{model.name}: first word after ")


async def stalling(connection: Connection) -> None:
    await connection.begin()
    await connection.say(connection.wire.delta("Hel"))
    await connection.gone.wait()
