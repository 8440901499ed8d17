"""Fields that a local engine knows beyond OpenAI's: they go with free text alone."""

from __future__ import annotations

from rolecall.models import Message, Request
from rolecall.models.model import ToolSpec
from rolecall.models.providers.endpoint import Endpoint
from rolecall.models.providers.openai import OpenAIModel
from tests.contract.model_vendor import Vendor, saying
from tests.contract.model_wires import OpenAIWire

ASKED = (Message("user", "Hello"),)
TOOL = ToolSpec("now", "Tells the time.", {"type": "object", "properties": {}})


async def test_sampling_goes_with_free_text_and_not_with_calls_of_tools_or_schemas() -> None:
    vendor = Vendor(OpenAIWire())
    vendor.script = saying(vendor.wire.delta("OK"), vendor.wire.end("stop", (1, 1)))
    await vendor.start()
    model = OpenAIModel("m@local", Endpoint(f"{vendor.url}/v1", "k", sampling={"dry_multiplier": 1.0}))
    try:
        for request in (Request(ASKED), Request(ASKED, tools=(TOOL,)), Request(ASKED, schema={"type": "object"})):
            assert [event async for event in model.stream(request)]
    finally:
        await model.aclose()
        await vendor.stop()
    assert [connection.body.get("dry_multiplier") for connection in vendor.connections] == [1.0, None, None]
