"""Pictures of every page, full and empty, light and dark, wide, middle and narrow.

``python -m tests.browser.screenshots DIRECTORY [PAGE …]``
"""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from playwright.async_api import Browser, Page

from rolecall import stats
from rolecall.redis import keys
from tests.browser.browser import browsing
from tests.browser.stage import Stage, staged
from tests.waiting import wait_until

SIZES = {"wide": (1280, 800), "middle": (820, 900), "narrow": (360, 740)}
ADDRESSES = {
    "chat": "/#web-guide",
    "new": "/",
    "conversations": "/web/conversations",
    "conversation": "/web/conversations/{which}",
    "now": "/web/now",
    "dead": "/web/dead",
    "login": "/web/login",
    "missing": "/web/conversations/nobody",
    "usage": "/web/usage?what=tokens",
    "people": "/web/people",
    "log": "/web/log",
    "day": "/web/now?span=24h",
}


async def fill(stage: Stage) -> str:
    """Give the deployment something to show; returns a conversation that runs."""
    front = stage.deployment
    await asyncio.gather(
        stage.ask_all("http:local:web-guide", ["Hello!", "How does a message travel here?"]),
        stage.ask_all("http:local:web-trip", ["Where would you go in spring, and why there?"]),
        stage.ask_all("telegram:42", ["¿Qué tiempo hace en Sevilla?", "Gracias"], title="María José"),
        stage.ask_all(
            "telegram:7:3",
            ["bury me because the model refused the request: it is longer than its context"],
            title="Ops group, alerts",
        ),
        stage.ask_all("terminal:ann", [f"Question {n}" for n in range(1, 8)]),
        stage.ask_all("terminal:ben", ["bury me"]),
        *(stage.ask_all(f"http:4be1c9d2:batch-{n}", ["Summarise this page"]) for n in range(24)),
    )
    for n in range(5):
        await front.say(f"telegram:{90 + n}", "slowly: " + "a long answer, word after word, " * 12)
    await front.say("http:local:web-guide", "slowly: this one is still being answered, as you can see from the mark.")
    return "telegram-90"


async def remember(stage: Stage) -> None:
    """As if it had worked for a quarter of an hour."""
    server, roles = stage.deployment.session.server, ("manager", "lang", "samplellm", "translation")
    now, turns = time.time_ns() // 1_000_000, 0
    orders: list[tuple[str | bytes, ...]] = [("DEL", keys.SERIES)]
    for number in range(180):
        swell = max(0.0, math.sin(number / 21) + math.sin(number / 7.3) / 3)
        waiting, busy = round(9 * swell * swell), min(6, round(6 * swell))
        turns += round(1.4 * swell + (number % 7 == 0))
        queues = dict(zip(roles, (number % 2, 0, waiting + busy, round(swell)), strict=True))
        ms = (now - (181 - number) * 5000) // 5000 * 5000
        sample = stats.Sample(ms, queues, busy, 6, busy, turns, 0)
        orders.append(("XADD", keys.SERIES, f"{ms}-1", "s", msgspec.json.encode(sample)))
    await asyncio.gather(*(server.call(*order) for order in orders))  # in one go: nothing comes between


async def shoot(browser: Browser, url: str, which: str, pages: Sequence[str], into: Path, kind: str) -> None:
    """All of ``pages`` in both themes and sizes."""
    for theme in ("light", "dark"):
        for size, (width, height) in SIZES.items():
            context = await browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=1
            )
            page = await context.new_page()
            page.on("console", lambda message: print(f"  {message.type}: {message.text}"))
            page.on("pageerror", lambda error: print(f"  {error}"))
            for name in pages:
                await page.goto(url + ADDRESSES[name].format(which=which))
                await _settled(page)
                await page.screenshot(path=into / f"{kind}-{name}-{size}-{theme}.png", full_page=name != "chat")
            await context.close()


async def _settled(page: Page) -> None:
    await page.wait_for_load_state("load")
    await page.wait_for_timeout(900)


async def take(into: Path, pages: Sequence[str]) -> None:
    """Both a full and an empty deployment."""
    into.mkdir(parents=True, exist_ok=True)
    async with browsing() as browser:
        for kind in ("full", "empty"):
            with tempfile.TemporaryDirectory(prefix="rolecall-pictures-") as directory:
                async with staged(Path(directory), echo_delay=0.3) as stage:
                    which = "nobody"
                    if kind == "full":
                        await remember(stage)
                        await fill(stage)
                        root = stage.deployment.log_dir / "conversations"
                        await wait_until(lambda root=root: len(list(root.glob("*"))) > 30, what="transcripts")
                        which = next(root.glob("telegram_90-*")).name
                    wanted = [name for name in pages if kind == "full" or name not in ("login", "conversation")]
                    await shoot(browser, stage.url, which, wanted, into, kind)
                    if kind == "full":
                        for n in range(5):
                            await stage.deployment.front.stop(f"telegram:{90 + n}")


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1]), sys.argv[2:] or list(ADDRESSES)))
