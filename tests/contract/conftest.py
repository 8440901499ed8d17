"""Every model adapter, against a provider that speaks the real wire format: a test that asks for ``model`` or
``adapter`` runs once for each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rolecall.models import Model
from tests.contract.model_adapters import ADAPTERS, Adapter, answer
from tests.contract.model_vendor import Vendor, saying


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: str(adapter.id))
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
    opened = adapter.opened(vendor.url)
    yield opened
    await opened.aclose()


@pytest.fixture
async def impatient(adapter: Adapter, vendor: Vendor, warm: None) -> AsyncIterator[Model]:
    """It bears 0.5 s of silence, before the first word and after it."""
    opened = adapter.opened(vendor.url, first=0.5, idle=0.5)
    yield opened
    await opened.aclose()


@pytest.fixture
async def restless(adapter: Adapter, vendor: Vendor) -> AsyncIterator[Model]:
    """It waits long for the first word, and bears 0.2 s of silence after it."""
    opened = adapter.opened(vendor.url, idle=0.2)
    yield opened
    await opened.aclose()


@pytest.fixture
async def warm(adapter: Adapter, vendor: Vendor) -> None:
    """The first question loads the provider's SDK, which takes longer than impatience bears."""
    vendor.script = saying(vendor.wire.end("stop", (1, 0)))
    first = adapter.opened(vendor.url)
    await answer(first)
    await first.aclose()
    vendor.connections.clear()
