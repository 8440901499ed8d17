"""How much the page loads at first, and how soon it is ready."""

from __future__ import annotations

import os

import pytest
from playwright.async_api import Browser, expect

from tests.browser.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST_BYTES = 150_000
READY_MS = 500
MOST_TRIES = 12
PAGES = ("/", "/#web-load", "/web/conversations", "/web/now", "/web/usage", "/web/dead")


async def test_a_first_visit_loads_little_and_is_ready_soon(browser: Browser, stage: Stage) -> None:
    """Bytes as sent, headers included, with an empty cache; ready is when all is loaded and scripts have run: the
    best of several tries, and no bar while others keep the machine busy."""
    await stage.deployment.ask("http:local:web-load", "```python\nx = 1\n```")
    for path in PAGES:
        best, sent, tries = float("inf"), 0, 0
        while tries < MOST_TRIES and (tries < 2 or best > READY_MS):
            tries += 1
            context = await browser.new_context(base_url=stage.url)
            page = await context.new_page()
            client = await context.new_cdp_session(page)
            await client.send("Network.enable")
            sizes: list[int] = []
            client.on(
                "Network.loadingFinished", lambda event, sizes=sizes: sizes.append(int(event["encodedDataLength"]))
            )
            await page.goto(path)
            await expect(page.locator("[data-health] .dot.good")).to_be_attached()
            moments = await page.evaluate("performance.getEntriesByName('ready').map((mark) => mark.startTime)")
            best, sent = min(best, moments[0]), max(sent, sum(sizes))
            await context.close()
        print(f"{path}: {sent / 1000:.1f} kB, ready after {best:.0f} ms")
        assert sent <= MOST_BYTES, path
        assert best <= READY_MS or os.getloadavg()[0] > 2 * (os.cpu_count() or 1), path
