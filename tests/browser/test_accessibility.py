"""axe-core finds nothing on any page and state, and everything is reached by keyboard."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from rolecall.bus.access_keys import create_key
from rolecall.bus.members import enrol
from tests.browser.stage import Stage, staged
from tests.browser.test_chat import say

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
AXE = Path(os.environ.get("AXE") or ROOT / "deploy/page/node_modules/axe-core/axe.min.js")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm ci in deploy/page")
LONG = "How does a message travel here?"
STATES = [(theme, size) for theme in ("light", "dark") for size in ((1280, 800), (360, 740))]


async def check(page: Page, where: str, found: list[str]) -> None:
    """Add what axe finds on the page to ``found``."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(await asyncio.to_thread(AXE.read_text, encoding="utf-8"))
    result = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    for violation in result["violations"]:
        nodes = "; ".join(str(node["target"]) for node in violation["nodes"][:4])
        found.append(f"{where}: {violation['id']} ({violation['impact']}): {nodes}")


async def chat_states(page: Page, where: str, found: list[str]) -> None:
    """The chat: new, with messages of all kinds, a menu, the dialogs, and while it runs."""
    await page.goto("/")
    await check(page, f"{where} new", found)
    for text in (LONG, "bury me because I say so", "$x^2$\n\n- [x] a\n- [ ] b\n\nsee[^1]\n\n[^1]: there"):
        await say(page, text)
        await expect(page.locator(".answer.runs")).to_have_count(0)
    await say(page, "ask me")
    await expect(page.get_by_role("group", name="Shall I?")).to_be_visible()
    await check(page, f"{where} chat", found)
    await page.keyboard.press("Escape")
    await expect(page.locator(".answer.runs")).to_have_count(0)
    toggle = page.locator("[data-kept-toggle]")
    if await toggle.is_visible():
        await toggle.click()
    await page.get_by_role("button", name="More").first.click()
    await check(page, f"{where} menu", found)
    await page.get_by_role("menuitem", name="Rename").click()
    await check(page, f"{where} rename", found)
    await page.keyboard.press("Escape")
    await page.get_by_label("Message", exact=True).focus()
    await page.keyboard.press("?")
    await check(page, f"{where} help", found)
    await page.keyboard.press("Escape")


@needs_axe
@pytest.mark.parametrize(("theme", "size"), STATES, ids=str)
async def test_axe_finds_nothing(browser: Browser, stage: Stage, theme: Any, size: tuple[int, int]) -> None:
    deployment = stage.deployment
    await deployment.ask("telegram:42", "hello", title="María José")
    for n in range(2):
        await deployment.ask("telegram:43", f"bury me because reason {n}")
    await enrol(deployment.session.bus, "telegram", 42, "user", "Ann")
    context = await browser.new_context(
        base_url=stage.url, bypass_csp=True, color_scheme=theme, viewport={"width": size[0], "height": size[1]},
        reduced_motion="reduce",
    )  # fmt: skip
    page, found, where = await context.new_page(), list[str](), f"{theme} {size[0]}"
    page.set_default_timeout(15_000)
    await chat_states(page, where, found)
    for path in ("/web/conversations", "/web/conversations/telegram:42", "/web/conversations?search=nobody", "/web/now",
                 "/web/now?span=24h", "/web/log", "/web/log?process=nobody", "/web/dead", "/web/dead?search=nobody",
                 "/web/usage", "/web/people", "/web/login",
                 "/web/conversations/nobody", "/web/offline"):  # fmt: skip
        await page.goto(path)
        await page.wait_for_load_state("networkidle") if "usage" in path or "people" in path else None
        await expect(page.locator("main")).to_be_visible()
        await check(page, f"{where} {path}", found)
    shared = await page.evaluate("""async () => {
      const { conversations } = await (await fetch("/web/chat")).json();
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: '{"shared":true}' };
      return (await (await fetch(`/web/chat/${conversations[0].name}`, options)).json()).shared;
    }""")
    await page.goto(shared)
    await expect(page.locator(".answer").first).to_be_visible()
    await check(page, f"{where} shared", found)
    await context.close()
    assert not found, "\n".join(found)


async def test_everything_of_a_page_is_reached_with_the_tab_key(page: Page, stage: Stage) -> None:
    await stage.deployment.ask("telegram:44", "bury me because of the keyboard")
    for path in ("/", "/web/conversations", "/web/now", "/web/log", "/web/dead", "/web/usage", "/web/people"):
        await page.goto(path)
        await page.wait_for_timeout(500)
        wanted = await page.evaluate("""() => {
          const usable = "a[href], button, input:not([type=hidden]), select, textarea, summary";
          const shown = [...document.querySelectorAll(usable)].filter((one) => !one.disabled && one.checkVisibility());
          shown.forEach((one, place) => { one.dataset.reach = place; });
          return shown.length;
        }""")
        await page.evaluate("document.activeElement?.blur()")
        reached = set()
        for _ in range(wanted + 20):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement?.dataset?.reach ?? null"))
        missing = set(map(str, range(wanted))) - reached
        names = await page.evaluate(
            "(list) => list.map((n) => document.querySelector(`[data-reach='${n}']`)?.outerHTML.slice(0, 80))",
            sorted(missing),
        )
        assert not [name for name in names if name], f"{path}: {names}"


async def test_nothing_moves_for_those_who_want_that(browser: Browser, stage: Stage) -> None:
    context = await browser.new_context(base_url=stage.url, reduced_motion="reduce")
    page = await context.new_page()
    await page.goto("/")
    await say(page, "slowly, " + "word after word " * 10)
    await expect(page.locator(".answer.runs .body")).to_contain_text("word")
    assert await page.evaluate("document.getAnimations().filter((one) => one.playState === 'running').length") == 0
    await context.close()


async def test_a_login_works_with_the_keyboard(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with staged(tmp_path_factory.mktemp("keys")) as stage:
        _, secret = await create_key(stage.deployment.session.bus, "ann")
        page = await browser.new_page(base_url=stage.url)
        while "/web/login" not in page.url:
            await page.goto("/")
        await page.keyboard.type(secret)
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        assert await page.locator(".nav a").count() == 1
        await page.context.close()
