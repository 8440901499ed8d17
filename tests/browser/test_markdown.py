"""Markdown of answers in a real browser: its libraries, and what becomes of their tokens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST_OTHER = 102
"""Examples that look otherwise: raw HTML stays text, code is coloured, brackets after backslashes are formulas."""
COMMONMARK = os.environ.get("COMMONMARK_SPEC", "")
"""Path of spec.txt of the CommonMark specification: https://spec.commonmark.org"""
SHOW = """async (text) => {
  const { src } = document.querySelector("script[src*='/page.js']");
  const { show } = await import(src.replace("page.js", "markdown.js"));
  const place = document.createElement("div");
  document.querySelector("[data-thread]").append(place);
  place.className = "prose shown";
  show(place, text);
}"""
FORMULAS = """```python
def f(x):
    return x  # why
```

The sum $\\sum_{i=1}^n i$ is:

$$\\frac{n(n+1)}{2}$$
"""
COMPARED = r"""async ([text, html]) => {
  const { src } = document.querySelector("script[src*='/page.js']");
  const { show } = await import(src.replace("page.js", "markdown.js"));
  const normal = (node, code = false) => {
    if (node.nodeType === 3) return code ? node.data : node.data.replace(/\s+/g, " ");
    const name = node.nodeName.toLowerCase();
    const inner = [...node.childNodes].map((child) => normal(child, code || name === "pre")).join("");
    if (["#document", "body", "html"].includes(name)) return inner.trim();
    if (name === "br") return " ";
    if (name === "img") return node.getAttribute("alt");
    if (name === "pre") return `<pre>${inner.trimEnd()}</pre>`;
    if (name === "code" && node.parentNode.nodeName === "PRE") return inner;
    if (name === "a") {
      const address = node.getAttribute("href") ?? "";
      const leads = /^(https?|mailto):/.test(address) ? new URL(address).href : "";
      return leads ? `<a ${leads}>${inner}</a>` : inner;
    }
    const start = name === "ol" && node.start !== 1 ? node.start : "";
    const spaced = /^(p|ul|ol|li|blockquote|pre|hr|h\d)$/.test(name);
    return name === "body" ? inner : `<${name}${start}>${spaced ? inner.trim() : inner}</${name}>`;
  };
  const made = document.createElement("div");
  show(made, text);
  for (const code of made.querySelectorAll(".code")) code.replaceWith(code.querySelector("pre"));
  for (const wrap of made.querySelectorAll(".table-wrap")) wrap.replaceWith(...wrap.childNodes);
  const parsed = new DOMParser().parseFromString(html, "text/html");
  const tidy = (found) => found.replace(/ *(<\/?(?:p|ul|ol\d*|li|blockquote|pre|hr|h\d)>) */g, "$1").trim();
  const [ours, theirs] = [made, parsed.body].map((place) => [...place.childNodes].map((node) => normal(node)).join(""));
  return tidy(ours) === tidy(theirs) ? "" : `${tidy(ours)}\n${tidy(theirs)}`;
}"""


async def shown(page: Page, text: str) -> None:
    await page.goto("/")
    await page.evaluate(SHOW, text)


async def test_code_is_coloured_and_formulas_are_set_by_libraries_that_come_when_needed(page: Page) -> None:
    loaded: list[str] = []
    page.on("response", lambda answer: loaded.append(answer.url.rpartition("/")[2]))
    await shown(page, "Hello **world**")
    await expect(page.locator(".shown strong")).to_have_text("world")
    assert not {"highlight.js", "math.js"} & set(loaded)
    await page.evaluate(SHOW, FORMULAS)
    await expect(page.locator(".shown .hljs-keyword").first).to_have_text("def")
    await expect(page.locator(".shown .hljs-comment")).to_have_text("# why")
    await expect(page.locator(".shown math")).to_have_count(2)
    await expect(page.locator(".shown div.formula mfrac")).to_have_count(1)
    assert {"highlight.js", "math.js"} <= set(loaded)
    assert await page.evaluate("window.violations") == []


async def test_lists_of_tasks_footnotes_and_tables_are_drawn(page: Page) -> None:
    await shown(
        page,
        "- [x] done\n- [ ] open\n\nSaid[^1].\n\n[^1]: By whom.\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n![cat](https://a.example/cat.png)",
    )
    await expect(page.locator(".shown li.task [role=img]").first).to_have_attribute("aria-label", "done")
    await expect(page.locator(".shown sup")).to_have_text("1")
    await expect(page.locator(".shown .footnotes li")).to_contain_text("By whom.")
    await expect(page.locator(".shown td.end")).to_have_text("2")
    await expect(page.locator(".shown a", has_text="cat")).to_have_attribute("href", "https://a.example/cat.png")
    assert await page.locator(".shown img").count() == 0


async def test_formulas_can_neither_lead_elsewhere_nor_run(page: Page) -> None:
    await shown(page, r"$\href{javascript:xss()}{x}$ $\url{javascript:xss()}$ $\includegraphics{https://a.example/x}$ "
                r"$\class{x}{y}$ $\style{position:fixed}{z}$ " + "$" + r"\def\a{\a\a}\a" + "$")  # fmt: skip
    await expect(page.locator(".shown math").first).to_be_attached()
    assert await page.locator(".shown :is([href], [src], img)").count() == 0
    assert await page.evaluate("[executed, violations]") == [[], []]


@pytest.mark.skipif(not COMMONMARK, reason="set COMMONMARK_SPEC to the path of the specification's spec.txt")
async def test_the_examples_of_commonmark_become_what_they_should(stage: Stage, browser: Browser) -> None:
    """All but those with raw HTML, which is text here, and with links that lead nowhere on the web."""
    spec, fence = await asyncio.to_thread(Path(COMMONMARK).read_text, encoding="utf-8"), "`" * 32
    examples = [part.split(f"\n{fence}")[0] for part in spec.split(f"{fence} example\n")[1:]]
    context = await browser.new_context(base_url=stage.url, bypass_csp=True)  # to parse what is expected
    page = await context.new_page()
    await page.goto("/")
    wrong = []
    for example in examples:
        text, _, html = example.replace("→", "\t").partition("\n.\n")
        if found := await page.evaluate(COMPARED, [text, html]):
            wrong.append(f"{text}\n---\n{found}")
    await context.close()
    print(f"{len(examples) - len(wrong)} of {len(examples)} examples")
    assert len(wrong) <= MOST_OTHER, "\n\n=====\n".join(wrong)
