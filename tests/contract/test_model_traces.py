"""Providers are told the span that a call belongs to, and nothing while nothing is traced."""

from __future__ import annotations

from rolecall.models import Model
from rolecall.tracing.traceparent import TRACEPARENT
from tests.contract.model_adapters import answer
from tests.contract.model_vendor import Vendor, saying

SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_call_carries_the_span_it_belongs_to(model: Model, vendor: Vendor) -> None:
    vendor.script = saying(vendor.wire.delta("Hi"), vendor.wire.end("stop", (3, 2)))
    await answer(model)
    token = TRACEPARENT.set(SPAN)
    await answer(model)
    TRACEPARENT.reset(token)
    assert [connection.headers.get("traceparent") for connection in vendor.connections] == [None, SPAN]
