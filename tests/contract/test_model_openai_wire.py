"""What the openai adapter puts on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rolecall.models import Message, Request
from rolecall.models.openai import OpenAIModel
from rolecall.settings import Settings
from tests.contract.model_vendor import Connection, OpenAIWire, Vendor


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor = Vendor(OpenAIWire())
    vendor.script = _hello
    await vendor.start()
    yield vendor
    await vendor.stop()


async def asked(vendor: Vendor, request: Request, **settings: Any) -> Connection:
    given = Settings(openai_base_url=f"{vendor.url}/v1/", **settings)
    model = OpenAIModel.open("org/model:8b", given, Path())
    async for _ in model.stream(request):
        pass
    await model.aclose()
    return vendor.connections[-1]


async def test_the_request_names_model_messages_and_limits(vendor: Vendor) -> None:
    request = Request((Message("system", "Be brief."), Message("user", "Hi")), max_tokens=9, temperature=0.5, timeout=5)
    connection = await asked(vendor, request, openai_api_key="sk-1")
    assert connection.body == {
        "model": "org/model:8b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0.5,
    }
    assert connection.headers["authorization"] == "Bearer sk-1"


async def test_what_the_request_leaves_open_is_left_to_the_server(vendor: Vendor) -> None:
    connection = await asked(vendor, Request((Message("user", "Hi"),)))
    assert "max_tokens" not in connection.body
    assert "temperature" not in connection.body


async def test_images_travel_as_data_urls(vendor: Vendor) -> None:
    connection = await asked(vendor, Request((Message("user", "What is it?", (b"\x89PNG...",)),)))
    text, image = connection.body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")


async def test_a_server_on_this_machine_is_reached_past_any_proxy(vendor: Vendor) -> None:
    connection = await asked(vendor, Request((Message("user", "Hi"),)), proxy="127.0.0.1:9")
    assert connection.body["messages"]


async def _hello(connection: Connection) -> None:
    wire = connection.wire
    await connection.begin()
    await connection.say(wire.delta("Hi"), wire.finish("stop"), wire.end())
    await connection.close()
