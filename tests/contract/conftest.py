"""Every model adapter, against a provider that speaks the real wire format: a test that asks for ``model`` or
``adapter`` runs once for each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rolecall.models import Model
from tests.contract.model_adapters import ADAPTERS, Adapter
from tests.contract.model_vendor import Vendor


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
async def impatient(adapter: Adapter, vendor: Vendor) -> AsyncIterator[Model]:
    """It bears 0.2 s of silence."""
    opened = adapter.opened(vendor.url, 0.2)
    yield opened
    await opened.aclose()
