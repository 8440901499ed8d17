"""What every model adapter makes of a provider that refuses, breaks off, stalls or talks nonsense."""

from __future__ import annotations

import asyncio
import os
from email.utils import formatdate
from time import time

import pytest

from rolecall.errors import (
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    RateLimited,
    Truncated,
)
from rolecall.models import Delta, Done, Model, ModelEvent, Request
from rolecall.models.failures import Refusal
from tests.contract.model_adapters import HELLO, KEY, Adapter, answer
from tests.contract.model_vendor import Connection, Script, Vendor, refusing, saying, silence, stalling
from tests.contract.model_wires import GeminiWire, OllamaWire

STEP = int(os.environ.get("ROLECALL_CUT_STEP", "4"))
"""Bytes from one cut to the next; `make proof` cuts at every byte."""
STATUSES = {
    400: ModelRefused,
    401: ModelUnauthorised,
    402: ModelUnauthorised,
    403: ModelUnauthorised,
    404: NoSuchModel,
    405: ModelRefused,
    408: ModelTimeout,
    409: ModelUnavailable,
    413: ModelRefused,
    422: ModelRefused,
    425: ModelUnavailable,
    429: RateLimited,
    500: ModelUnavailable,
    501: ModelRefused,
    502: ModelUnavailable,
    503: ModelUnavailable,
    529: ModelUnavailable,
}


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status_becomes_an_error_that_hides_the_key(model: Model, vendor: Vendor, status: int) -> None:
    vendor.script = refusing(status, vendor.wire.refusal(status, f"no, {KEY}"))
    with pytest.raises(ModelError) as caught:
        await answer(model)
    assert type(caught.value) is STATUSES[status]
    assert KEY not in str(caught.value)
    assert model.name in str(caught.value)
    assert len(vendor.connections) == 1, "an adapter never repeats by itself"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("7s", 7), ("a date", 300), ("a timestamp", 300), ("inf", None), ("soon", None), (None, None)],
)
async def test_a_rate_limit_carries_the_wait_asked_for(
    model: Model, vendor: Vendor, header: str | None, seconds: float | None
) -> None:
    moments = {"a date": formatdate(time() + 300, usegmt=True), "a timestamp": f"{time() + 300:.0f}"}
    said = moments.get(header or "", header)
    vendor.script = refusing(429, vendor.wire.refusal(429, "slow down"), **({"Retry_After": said} if said else {}))
    with pytest.raises(RateLimited) as caught:
        await answer(model)
    assert caught.value.retry_after == (seconds if seconds is None else pytest.approx(seconds, abs=seconds / 5))


async def test_a_wait_is_also_read_where_the_provider_alone_says_it(model: Model, vendor: Vendor) -> None:
    for headers, body, seconds in vendor.wire.waits():
        vendor.script = refusing(429, body, **headers)
        with pytest.raises(RateLimited) as caught:
            await answer(model)
        assert caught.value.retry_after == seconds


async def test_an_account_without_credit_is_not_a_wait(model: Model, vendor: Vendor) -> None:
    vendor.script = refusing(*vendor.wire.no_credit())
    with pytest.raises(ModelUnauthorised, match="no credit"):
        await answer(model)


async def test_a_conversation_too_long_is_named(model: Model, vendor: Vendor) -> None:
    vendor.script = refusing(*vendor.wire.too_long())
    with pytest.raises(ContextTooLong, match="too long") as caught:
        await answer(model)
    assert (caught.value.tokens, caught.value.limit) == (9000, 4096 if isinstance(vendor.wire, OllamaWire) else 8192)


@pytest.mark.parametrize(
    ("words", "counted"),
    [
        ("maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the "
         "completion).", (5000, 4096)),
        ("Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
         (40000, 32768)),
        ("it is too long", (0, 0)),
        ("maximum context length is 99999999999999999999 tokens", (0, 999999999999999)),
    ],
)  # fmt: skip
def test_how_many_tokens_are_too_many_is_read_where_the_provider_says_it(words: str, counted: tuple[int, int]) -> None:
    error = Refusal("m@test", "host", 400, words).too_long()
    assert (error.tokens, error.limit) == counted


async def test_a_content_filter_is_a_refusal(model: Model, vendor: Vendor) -> None:
    if isinstance(vendor.wire, OllamaWire):
        pytest.skip("Ollama filters nothing")
    vendor.script = saying(vendor.wire.delta("Hel"), vendor.wire.end("filter", (7, 1)))
    with pytest.raises(ContentRefused, match="content filter"):
        await answer(model)


async def test_a_redirect_that_would_lose_the_question_names_the_right_address(model: Model, vendor: Vendor) -> None:
    if isinstance(vendor.wire, GeminiWire):
        pytest.skip("its SDK follows no redirect")
    vendor.script = refusing(301, b"", Location="https://models.example/v1/chat/completions?key=1")
    with pytest.raises(ModelUnavailable, match=r"it redirects to https://models\.example/v1/chat/completions; use"):
        await answer(model)
    assert len(vendor.connections) == 1
    vendor.script = refusing(302, b"", Location="/other/v1")
    with pytest.raises(ModelUnavailable, match=rf"redirects to {vendor.url}/other/v1; use"):
        await answer(model)


async def test_an_error_page_is_no_answer(model: Model, vendor: Vendor) -> None:
    vendor.script = refusing(502, b"<html>Bad gateway</html>")
    with pytest.raises(ModelUnavailable):
        await answer(model)


async def test_what_is_not_the_protocol_is_unavailable(model: Model, vendor: Vendor) -> None:
    for raw in vendor.wire.nonsense:
        vendor.script = saying(raw)
        with pytest.raises(ModelUnavailable, match="protocol"):
            await answer(model)


async def test_a_stream_that_ends_without_finish_is_truncated(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hel"), vendor.wire.delta("lo"))
    with pytest.raises(Truncated, match="without its finish marker") as caught:
        await answer(model)
    assert caught.value.text == "Hello"


@pytest.mark.parametrize("how", ["proper end", "broken off"])
async def test_an_answer_cut_at_any_byte_is_never_taken_for_whole(
    model: Model, vendor: Vendor, adapter: Adapter, how: str
) -> None:
    deltas = vendor.wire.delta("Zo\u00eb") + vendor.wire.delta("\U0001f642")
    whole = deltas + vendor.wire.end("stop", (7, 2))
    # What breaks off is told by HTTP already, and local is openai over again: samples will do.
    step = STEP if how == "proper end" and adapter.id != "local" else 11
    for cut in range(0, len(whole), step):
        events, error = await heard(model, vendor, cutting(whole[:cut], how))
        text = "".join(event.text for event in events if isinstance(event, Delta))
        if error is None:
            assert (text, events[-1]) == ("Zo\u00eb\U0001f642", Done("stop")), whole[:cut]
            # The finish marker itself has come.
            assert cut > len(deltas)
        else:
            assert isinstance(error, Truncated | ModelUnavailable), whole[:cut]
            assert text == (error.text if isinstance(error, Truncated) else ""), whole[:cut]


async def heard(model: Model, vendor: Vendor, script: Script) -> tuple[list[ModelEvent], ModelError | None]:
    """What came of an answer, and what ended it."""
    vendor.script = script
    events: list[ModelEvent] = []
    try:
        async for event in model.stream(HELLO):
            events.append(event)
    except ModelError as error:
        return events, error
    return events, None


def cutting(part: bytes, how: str) -> Script:
    async def script(connection: Connection) -> None:
        await connection.begin()
        if part:
            await connection.say(part)
        # Closed without the last chunk, or with it.
        if how == "proper end":
            await connection.close()

    return script


async def test_a_connection_broken_amid_the_answer_keeps_its_text(model: Model, vendor: Vendor) -> None:
    first = asyncio.Event()

    async def breaking(connection: Connection) -> None:
        await connection.begin()
        await connection.say(connection.wire.delta("Hel"))
        await first.wait()
        await connection.cut()

    vendor.script = breaking
    with pytest.raises(Truncated) as caught:
        async for _ in model.stream(HELLO):
            first.set()
    assert caught.value.text == "Hel"


async def test_a_connection_broken_before_the_first_delta_is_unavailable(model: Model, vendor: Vendor) -> None:
    vendor.script = Connection.cut
    with pytest.raises(ModelUnavailable):
        await answer(model)


async def test_nobody_listening_is_unavailable(adapter: Adapter, vendor: Vendor) -> None:
    await vendor.stop()
    model = adapter.opened(vendor.url)
    with pytest.raises(ModelUnavailable, match=r"no connection to 127\.0\.0\.1"):
        await answer(model)
    await model.aclose()


async def test_an_error_within_the_stream_before_text_is_unavailable(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.failure("overloaded"))
    with pytest.raises(ModelUnavailable, match="overloaded"):
        await answer(model)


async def test_an_error_within_the_stream_after_text_keeps_the_text(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hel"), vendor.wire.failure("overloaded"))
    with pytest.raises(Truncated, match="overloaded") as caught:
        await answer(model)
    assert caught.value.text == "Hel"


@pytest.mark.parametrize("head", [False, True], ids=["before the head", "after the head"])
async def test_silence_before_the_first_delta_is_a_timeout(
    impatient: Model, vendor: Vendor, adapter: Adapter, head: bool
) -> None:
    if adapter.id == "local":
        pytest.skip("a local engine reads a long question in silence")
    vendor.script = stalling() if head else silence
    with pytest.raises(ModelTimeout, match=r"no first word within 0\.5 s"):
        await answer(impatient)
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 5)


async def test_silence_between_deltas_keeps_the_text(restless: Model, vendor: Vendor) -> None:
    vendor.script = stalling(vendor.wire.delta("Hel"))
    with pytest.raises(Truncated, match=r"silent for 0\.2 s") as caught:
        await answer(restless)
    assert caught.value.text == "Hel"
    await asyncio.wait_for(vendor.connections[0].gone.wait(), 5)


async def test_the_time_for_the_whole_answer_is_kept(model: Model, vendor: Vendor) -> None:
    async def dripping(connection: Connection) -> None:
        await connection.begin()
        while True:
            await connection.say(connection.wire.delta("."))
            await asyncio.sleep(0.02)

    vendor.script = dripping
    with pytest.raises((Truncated, ModelTimeout), match="no whole answer within"):
        await answer(model, Request(HELLO.messages, timeout=0.2))
