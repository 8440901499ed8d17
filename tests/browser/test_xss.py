"""What others wrote is shown, and never run: the corpus through every way in."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from rolecall.errors import RolecallError
from rolecall.transcripts.record import conversation_dir
from tests.browser.browser import WATCH
from tests.browser.corpus import VECTORS
from tests.browser.stage import Stage
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMS = "form:not([data-composer], [data-filters], [data-login], [data-own])"
ELEMENTS = f"script:not([src^='/static/']), iframe, object, embed, base, {FORMS}"
SUSPECTS = """() => {
  const found = [];
  for (const element of document.querySelectorAll("*")) {
    for (const { name, value } of element.attributes) {
      if (/^on/i.test(name) || /^\\s*(javascript|vbscript|data):/i.test(value))
        found.push(`${element.tagName} ${name}=${value}`);
    }
    const web = ["http:", "https:", "mailto:", ":", "", undefined];
    if (element.tagName === "A" && !web.includes(element.protocol)) found.push(element.href);
  }
  return found;
}"""


async def check(page: Page) -> None:
    """Nothing of the corpus became anything but text, whatever is pointed at or clicked."""
    assert await page.locator(ELEMENTS).count() == 0
    assert await page.locator("main :is(img, video, audio, marquee, math, style, link, meta)").count() == 0
    assert await page.evaluate(SUSPECTS) == []
    for element in (await page.locator("main a[target=_blank], main details > summary").all())[:20]:
        await element.dispatch_event("mouseover")
        await element.dispatch_event("focus")
    assert await page.evaluate("window.executed") == []
    violations = await page.evaluate("window.violations")
    assert violations == [], f"stopped only by the policy: {violations}"


async def test_answers_of_a_model(page: Page, stage: Stage) -> None:
    assert len(VECTORS) == len(set(VECTORS)) >= 80
    for start in range(0, len(VECTORS), 8):
        await page.goto(f"/#web-answers-{start}")
        await page.get_by_label("Message", exact=True).fill("\n\n".join(VECTORS[start : start + 8]).replace("\0", ""))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Copy answer")).to_be_visible()
        await check(page)
        await page.reload()
        await expect(page.get_by_role("button", name="Copy answer")).to_be_visible()
        await check(page)
    for vector in VECTORS:
        await stage.deployment.ask("http:local:web-single", vector)
    await page.goto("/#web-single")
    # The newest of them: a conversation remembers only so many.
    await expect(page.locator(".answer").last).to_be_visible()
    await check(page)


async def test_ids_of_conversations_and_names_of_users(page: Page, stage: Stage) -> None:
    taken = []
    for vector in VECTORS:
        conversation = f"telegram:{vector}"[:150]
        try:
            await stage.deployment.ask(conversation, f"bury me because {vector}", title=vector)
        except (RolecallError, AssertionError):
            continue  # refused at the door: no id has control characters
        taken.append(conversation_dir(conversation))
    assert len(taken) > len(VECTORS) / 2
    root = stage.deployment.log_dir / "conversations"
    await wait_until(lambda: all((root / name).exists() for name in taken))
    for path in ("/web/conversations", "/web/conversations?page=2", "/web/conversations?search=%3Cscript%3Exss()"):
        await page.goto(path)
        await expect(page.locator(".rows li").first).to_be_visible()
        await page.wait_for_timeout(300)
        await check(page)
    for name in taken[:: len(taken) // 12]:
        await page.goto(f"/web/conversations/{name}")
        await expect(page.locator(".log li").last).to_be_visible()
        await check(page)
    for number in range(1, 6):
        await page.goto(f"/web/dead?page={number}")
        await check(page)
    await page.goto("/web/login?next=javascript:xss()")
    await check(page)


async def test_everything_that_is_shown_while_it_runs(page: Page, stage: Stage) -> None:
    vector = '"><img src=x onerror=xss()><script>xss()</script>'
    received = await stage.deployment.say(f"telegram:{vector}", f"slowly {vector} " * 12, title=vector)
    await page.goto("/web/now")
    await expect(page.locator("[data-instances] tr").first).to_contain_text("onerror")
    await check(page)
    await page.goto(f"/web/conversations/{conversation_dir(f'telegram:{vector}')}")
    await expect(page.locator(".log li", has_text="STARTED").last).to_be_visible()
    await check(page)
    await stage.deployment.answer(received)
    await expect(page.locator(".turn .pill")).to_have_text("answered")
    await check(page)


async def test_the_policy_stops_what_a_mistake_would_let_in(stage: Stage, browser: Browser) -> None:
    context = await browser.new_context(base_url=stage.url)
    await context.add_init_script(WATCH)
    page = await context.new_page()
    await page.goto("/")
    tried = await page.evaluate("""() => [
      (place) => { place.innerHTML = "<img src=x onerror=xss()>"; },
      (place) => { place.insertAdjacentHTML("beforeend", "<svg onload=xss()>"); },
      (place) => { place.setAttribute("onclick", "xss()"); place.click(); },
      (place) => { place.append(Object.assign(document.createElement("script"), { text: "xss()" })); },
      () => { location.href = "javascript:xss()"; },
      (place) => { place.append(Object.assign(document.createElement("img"), { src: "https://a.example/x.png" })); },
    ].map((mistake) => {
      const place = document.createElement("div");
      document.body.append(place);
      try { mistake(place); } catch { return "refused"; }
      return "done";
    })""")
    assert tried[:4] == ["refused"] * 4
    await page.wait_for_timeout(200)
    assert await page.evaluate("window.executed") == []
    violated = set(await page.evaluate("window.violations"))
    assert {"require-trusted-types-for", "img-src"} <= violated
    await context.close()
