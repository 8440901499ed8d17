"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Browser

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
WATCH = """
    window.executed = [];
    window.violations = [];
    window.shifts = 0;
    window.shifted = [];
    window.alert = window.confirm = window.prompt = window.xss = (...given) => { window.executed.push(String(given)); };
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries().filter((one) => !one.hadRecentInput)) {
        window.shifts += entry.value;
        window.shifted.push(entry.sources.map(({ node }) => (node?.outerHTML ?? node?.data ?? "").slice(0, 80)));
      }
    }).observe({ type: "layout-shift", buffered: true });
"""
"""Run before a page's own scripts: counts what injected scripts would call, what the policy stopped, and jumps."""


def chromium() -> str | None:
    """Where the browser is: CHROMIUM, or what the system has."""
    wanted = os.environ.get("CHROMIUM")
    names = (wanted,) if wanted else ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()
