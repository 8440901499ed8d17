"""A browser and a deployment for each module; run by ``make test-browser``, skipped otherwise."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.browser.browser import WATCH, browsing
from tests.browser.stage import Stage, staged

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]
SECONDS = 15
"""For whatever a page is waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("ROLECALL_BROWSER"):
        for item in items:
            if "tests/browser/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="needs a browser: make test-browser"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("browser"), echo_delay=0.05) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    from playwright.async_api import expect

    expect.set_options(timeout=SECONDS * 1000)
    async with browsing() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def page(stage: Stage, browser: Browser) -> AsyncIterator[Page]:
    """A page of a new visitor; at its end nothing went wrong on it and no policy was violated."""
    context = await browser.new_context(base_url=stage.url, viewport={"width": 1280, "height": 800})
    context.set_default_timeout(SECONDS * 1000)
    await context.add_init_script(WATCH)
    page = await context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
    page.on(
        "console", lambda said: wrong.append(said.text) if said.type == "error" and "Content" in said.text else None
    )
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    yield page
    assert not wrong
    assert await page.evaluate("window.executed") == []
    await context.close()
