"""What one does with messages and conversations on the chat page, in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, FilePayload, Page, Route, expect

from rolecall.agent.role import Role
from tests.browser.stage import ROLES, Stage, TranslationAgent, staged
from tests.browser.test_chat import say
from tests.unit.test_telegram_documents import pdf
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def answered(page: Page, text: str) -> None:
    await expect(page.locator(".answer").last.locator(".body")).to_have_text(text)
    await expect(page.locator(".answer.runs")).to_have_count(0)


async def ask(page: Page, *texts: str) -> None:
    for text in texts:
        await say(page, text)
        await answered(page, text)


async def test_a_message_is_edited_and_sent_again_in_place_of_all_that_followed(page: Page) -> None:
    await page.goto("/")
    await ask(page, "first", "second", "third")
    row = page.locator(".said-row").nth(1)
    await row.hover()
    await row.get_by_role("button", name="Edit and send again").click()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("second")
    await say(page, "second, changed")
    await answered(page, "second, changed")
    await expect(page.locator(".said")).to_have_text(["first", "second, changed"])
    await page.reload()
    await expect(page.locator(".said")).to_have_text(["first", "second, changed"])
    await expect(page.locator(".answer .body")).to_have_text(["first", "second, changed"])


async def test_an_edit_that_a_reload_interrupts_goes_on_where_it_was(page: Page) -> None:
    await page.goto("/")
    await ask(page, "first", "second")
    row = page.locator(".said-row").first
    await row.hover()
    await row.get_by_role("button", name="Edit and send again").click()
    await page.get_by_label("Message", exact=True).fill("first, chan")
    await page.reload()
    await expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("first, chan")
    await say(page, "first, changed")
    await answered(page, "first, changed")
    await expect(page.locator(".said")).to_have_text(["first, changed"])


async def test_nothing_is_replaced_while_a_message_is_on_its_way(page: Page) -> None:
    await page.goto("/")
    await ask(page, "first")
    held: list[Route] = []
    await page.route("**/chat/page", lambda route: held.append(route), times=1)
    await say(page, "second")
    row = page.locator(".said-row").last
    await row.hover()
    await expect(row.get_by_role("button", name="Copy message")).to_be_visible()
    await expect(row.get_by_role("button", name="Edit and send again")).to_be_hidden()
    await expect(page.get_by_role("button", name="Answer again").first).to_be_hidden()
    await wait_until(lambda: bool(held), what="the message")
    await held[0].abort()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("second")
    await expect(page.get_by_role("button", name="Answer again").first).to_be_visible()


async def test_an_edit_whose_acceptance_was_lost_is_written_again_and_asked_once_with_its_pictures(page: Page) -> None:
    await page.goto("/")
    async with page.expect_file_chooser() as chosen:
        await page.get_by_role("button", name="Attach pictures or files").click()
    await (await chosen.value).set_files([FilePayload(name="a.png", mimeType="image/png", buffer=PIXEL)])
    await ask(page, "first")

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await page.route("**/chat/page", lose, times=1)
    row = page.locator(".said-row").first
    await row.hover()
    await row.get_by_role("button", name="Edit and send again").click()
    await say(page, "first, changed")
    await expect(page.get_by_label("Message", exact=True)).to_have_value("first, changed")
    await page.keyboard.press("Enter")
    await answered(page, "first, changed")
    for _ in range(2):
        await expect(page.locator(".said")).to_have_text(["first, changed"])
        await expect(page.locator(".said-row .attached img")).to_have_count(1)
        await page.reload()


async def test_an_answer_is_made_again_and_a_failure_tried_again(page: Page) -> None:
    await page.goto("/")
    await ask(page, "hello")
    await page.get_by_role("button", name="Answer again").click()
    await expect(page.locator(".answer")).to_have_count(1)
    await answered(page, "hello")
    await say(page, "bury me because it is broken")
    await expect(page.locator(".answer.failed")).to_have_count(1)
    await page.locator(".answer.failed").get_by_role("button", name="Answer again").click()
    await expect(page.locator(".answer.failed .body")).to_contain_text("-4)")
    await expect(page.locator(".said")).to_have_text(["hello", "bury me because it is broken"])


async def test_what_was_said_answered_and_by_whom_is_the_same_after_a_reload(page: Page, stage: Stage) -> None:
    await page.goto("/")
    await say(page, "/translate good morning")
    await answered(page, "echo: good morning")
    await say(page, "bury me because of nothing")
    await expect(page.locator(".answer.failed")).to_have_count(1)
    apology = await page.locator(".answer.failed .body").inner_text()
    await expect(page.locator(".answer").first.locator(".facts-line")).to_contain_text("echo@test")
    root = stage.deployment.log_dir / "conversations"
    name = page.url.partition("#")[2]
    await wait_until(
        lambda: any("DEAD_LETTER" in path.read_text() for path in root.glob(f"http_local_{name}*/*/*.log"))
    )
    await page.reload()
    await expect(page.locator(".said")).to_have_text(["/translate good morning", "bury me because of nothing"])
    await expect(page.locator(".answer.failed .body")).to_have_text(apology)
    first = page.locator(".answer").first
    await expect(first.locator(".hop")).to_have_text(["manager", "translation"])
    await expect(first.locator(".facts-line")).to_contain_text("echo@test")


async def test_one_waiting_message_is_taken_back(page: Page) -> None:
    await page.goto("/")
    await say(page, "slowly, " + "word after word " * 40)
    await say(page, "this one not")
    row = page.locator(".said-row", has_text="this one not")
    await row.get_by_role("button", name="Cancel this message").click()
    await expect(page.locator(".answer").last).to_have_class(re.compile("stopped"))
    await expect(page.locator(".answer.runs")).to_have_count(1)
    await page.keyboard.press("Escape")
    await expect(page.locator(".answer.runs")).to_have_count(0)


async def test_pictures_and_files_are_attached_by_button_paste_and_drop(page: Page) -> None:
    await page.goto("/")
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="Attach pictures or files").click()
    dot: FilePayload = {"name": "dot.png", "mimeType": "image/png", "buffer": PIXEL}
    report: FilePayload = {"name": "report.pdf", "mimeType": "application/pdf", "buffer": pdf("what a heron eats")}
    await (await chooser.value).set_files([dot, report])
    await expect(page.locator(".box .attached img")).to_have_count(1)
    await page.evaluate("""([data]) => {
      const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
      const send = (target, type, name, kind, field, content = bytes) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([content], name, { type: kind }));
        const event = new Event(type, { bubbles: true, cancelable: true });
        Object.defineProperty(event, field, { value: transfer });
        target.dispatchEvent(event);
      };
      const box = document.querySelector("[data-message]");
      send(box, "paste", "pasted.png", "image/png", "clipboardData");
      send(box, "drop", "notes.md", "", "dataTransfer", "# Notes");
      send(box, "drop", "program.exe", "application/octet-stream", "dataTransfer");
    }""", [base64.b64encode(PIXEL).decode()])  # fmt: skip
    await expect(page.locator(".box .attached li")).to_have_count(4)
    await expect(page.locator("[data-notice]")).to_contain_text("program.exe is neither")
    await page.get_by_role("button", name="Remove pasted.png").click()
    await ask(page, "what is this?")
    await expect(page.locator(".said-row .attached img")).to_have_count(1)
    await expect(page.locator(".said-row .attached .file")).to_have_text(["report.pdf", "notes.md"])
    await page.reload()
    picture = page.locator(".said-row .attached img")
    await expect(picture).to_have_js_property("naturalWidth", 1)
    await expect(page.locator(".said-row .attached .file")).to_have_text(["report.pdf", "notes.md"])
    await page.get_by_role("button", name="Answer again").click()
    await answered(page, "what is this?")
    await page.reload()
    await expect(picture).to_have_js_property("naturalWidth", 1)


async def test_a_conversation_that_is_too_long_for_the_page_says_where_the_rest_is(page: Page, stage: Stage) -> None:
    await stage.ask_all("http:local:web-long", [f"repeat {number}" for number in range(201)])
    await page.goto("/#web-long")
    await expect(page.locator(".said")).to_have_count(200)
    hint = page.locator("[data-thread]").get_by_text("The last 200 messages are shown.")
    await expect(hint).to_have_count(1)
    exported = await (await page.request.get("/web/export/json/web-long")).json()
    assert len(exported["messages"]) == 201
    await open_menu(page, "repeat 0", "Share")
    await expect(page.get_by_label("Link")).to_have_value(re.compile("http.*/web/shared/"))
    shared = await page.context.new_page()
    await shared.goto(await page.get_by_label("Link").input_value())
    await expect(shared.get_by_text("The last 200 messages are shown.")).to_have_count(1)
    await shared.close()
    await page.keyboard.press("Escape")
    await say(page, "/clear")
    await expect(page.locator(".said")).to_have_text(["/clear"])
    await expect(hint).to_have_count(0)


async def open_menu(page: Page, title: str, item: str) -> None:
    row = page.locator("[data-kept-list] li", has_text=title)
    await row.hover()
    await row.get_by_role("button", name="More").click()
    await page.get_by_role("menuitem", name=item).click()


async def test_a_conversation_is_renamed_pinned_searched_and_deleted(page: Page) -> None:
    await page.goto("/")
    await ask(page, "about herons")
    await page.get_by_role("button", name="New conversation").click()
    await ask(page, "about storks")
    await open_menu(page, "about herons", "Rename")
    await page.get_by_label("Title").fill("Birds of the river")
    await page.keyboard.press("Enter")
    await open_menu(page, "Birds of the river", "Pin")
    await expect(page.locator("[data-kept-list] li").first).to_contain_text("Birds of the river")
    await page.keyboard.press("Control+k")
    await page.keyboard.type("HERONS")
    await expect(page.locator("[data-kept-list] li")).to_have_count(1)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.locator(".said")).to_have_text("about herons")
    await page.get_by_label("Search your conversations").fill("")
    await page.reload()
    await expect(page.locator("[data-kept-list] li").first).to_contain_text("Birds of the river")
    row = page.locator("[data-kept-list] li", has_text="Birds of the river")
    await row.hover()
    await row.get_by_role("button", name="More").click()
    await page.get_by_role("menuitem", name="Delete").click()
    await page.get_by_role("menuitem", name="Delete for good?").click()
    await expect(page.locator("[data-notice]")).to_contain_text("deleted")
    await expect(row).to_have_count(0)


async def test_a_conversation_is_exported_and_shared_until_the_link_is_withdrawn(page: Page, browser: Browser) -> None:
    await page.goto("/")
    await say(page, "something **worth** sharing")
    await answered(page, "something worth sharing")
    for form, item in (("md", "Export as Markdown"), ("json", "Export as JSON")):
        async with page.expect_download() as coming:
            await open_menu(page, "worth", item)
        content = Path(await (await coming.value).path()).read_text(encoding="utf-8")
        assert content.count("something **worth** sharing") >= 2
        assert form == "md" or json.loads(content)["messages"][0]["said"] == "something **worth** sharing"
    await open_menu(page, "worth", "Share")
    await expect(page.get_by_label("Link")).to_have_value(re.compile("http.*/web/shared/"))
    link = await page.get_by_label("Link").input_value()
    stranger = await browser.new_context()
    other = await stranger.new_page()
    await other.goto(link)
    await expect(other.locator(".answer strong")).to_have_text("worth")
    assert await other.get_by_role("textbox").count() == 0
    await page.get_by_role("button", name="Stop sharing").click()
    await expect(page.locator("[data-notice]")).to_contain_text("no longer works")
    await other.goto(link)
    await expect(other.locator("main")).to_contain_text("withdrawn")
    await stranger.close()


async def test_shortcuts_are_explained_and_the_page_can_be_installed(page: Page) -> None:
    await page.goto("/")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_hidden()
    manifest = await page.evaluate("fetch('/manifest.webmanifest').then((answer) => answer.json())")
    for icon in manifest["icons"]:
        assert (await page.request.get(icon["src"])).headers["content-type"] == "image/png"
    assert await page.evaluate("navigator.serviceWorker.ready.then((worker) => worker.active.scriptURL)")
    kept = await page.evaluate("""async () => {
        const kept = await caches.open("rolecall");
        await kept.put("/web/offline", new Response("of the version before"));
        await kept.put("/static/before/page.css", new Response(""));
        await fetch(document.querySelector("link[rel=icon]").href.replace("icon.svg", "login.js"));
        return [await kept.match("/static/before/page.css"), await (await kept.match("/web/offline")).text()];
    }""")
    assert kept[0] is None and "<!doctype html>" in kept[1]
    await page.context.set_offline(True)
    await page.goto("/web/now")
    await expect(page.locator("main")).to_contain_text("Server unreachable")
    await page.context.set_offline(False)


async def test_what_an_agent_asks_is_answered_with_a_button_also_after_a_reload(page: Page) -> None:
    await page.goto("/")
    await say(page, "ask me")
    await page.get_by_role("group", name="Shall I?").get_by_role("button", name="Yes").click()
    colours = page.get_by_role("group", name="Which colour?")
    await expect(colours.get_by_role("button")).to_have_text(["red", "green", "blue"])
    await page.reload()
    await colours.get_by_role("button", name="green").click()
    await answered(page, "True green")
    await expect(colours.get_by_role("button", name="green")).to_have_attribute("aria-pressed", "true")


async def test_reminders_of_a_conversation_are_listed_and_deleted(page: Page) -> None:
    await page.goto("/")
    await ask(page, "water the ferns")
    name = page.url.partition("#")[2]
    made = await page.request.post(
        "/chat/reminders", data={"conversation_id": name, "text": "the ferns again", "when": "2h", "timezone": "UTC"}
    )
    assert made.status == 201, await made.text()
    await open_menu(page, "ferns", "Reminders")
    dialog = page.get_by_role("dialog", name="Reminders")
    await expect(dialog.locator("li")).to_contain_text("the ferns again")
    await dialog.get_by_role("button", name="Delete the reminder").click()
    await expect(dialog).to_contain_text("no reminders")


async def test_messages_answers_and_code_are_copied_as_they_were_written(page: Page) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copied = "navigator.clipboard.readText()"
    await page.goto("/")
    written = "# Herons\n\n**Two** of them & <b>one</b>:\n\n```python\nbirds = 2\n```"
    await say(page, written)
    await expect(page.locator(".answer.runs")).to_have_count(0)
    await expect(page.locator(".answer strong")).to_have_text("Two")
    await page.get_by_role("button", name="Copy answer").click()
    await expect(page.get_by_role("button", name="Copy answer")).to_have_text("Copied")
    assert await page.evaluate(copied) == written
    await page.locator(".answer .code").get_by_role("button", name="Copy").click()
    assert (await page.evaluate(copied)).strip() == "birds = 2"
    await page.locator(".said-row").hover()
    await page.get_by_role("button", name="Copy message").click()
    assert await page.evaluate(copied) == written
    await page.reload()
    await page.get_by_role("button", name="Copy answer").click()
    await expect(page.get_by_role("button", name="Copy answer")).to_have_text("Copied")
    assert await page.evaluate(copied) == written


async def test_a_role_and_a_model_are_chosen_for_the_next_message(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    roles = (*ROLES[:3], Role(TranslationAgent, models=("echo@test", "loud@test"), match="/translate"))
    async with staged(tmp_path_factory.mktemp("models"), roles) as stage:
        page = await browser.new_page(base_url=stage.url)
        await page.goto("/")
        model, role = page.get_by_label("Model", exact=True), page.get_by_label("Role", exact=True)
        await expect(model.locator("option")).to_have_text(["Any model", "echo@test", "loud@test"])
        answer = page.locator(".answer").last
        await role.select_option("translation")
        for chosen, spoke in (("loud@test", "loud@test"), ("Any model", "echo@test"), ("echo@test", "echo@test")):
            await model.select_option(chosen)
            await say(page, f"by {chosen}")
            await answered(page, f"echo: by {chosen}")
            await expect(answer.locator(".hop").last).to_have_text("translation")
            await expect(answer.locator(".facts-line")).to_contain_text(spoke)
        await role.select_option("Any role")
        await say(page, "by any")
        await answered(page, "by any")
        await expect(answer.locator(".hop").last).to_have_text("samplellm")
        await page.context.close()


async def test_reading_aloud_and_dictation_are_offered_only_where_the_browser_has_them(page: Page) -> None:
    await page.add_init_script("""
      window.read = [];
      if (window.speechSynthesis) speechSynthesis.speak = (utterance) => window.read.push(utterance.text);
    """)
    await page.goto("/")
    assert await page.evaluate("'webkitSpeechRecognition' in window && 'speechSynthesis' in window")
    await say(page, "read **me**\n\n```\nnot me\n```")
    await expect(page.locator(".answer.runs")).to_have_count(0)
    await expect(page.get_by_role("button", name="Dictate")).to_be_visible()
    await page.get_by_role("button", name="Read aloud").click()
    assert [text.split() for text in await page.evaluate("window.read")] == [["read", "me"]]
    await expect(page.get_by_role("button", name="Read aloud")).to_have_attribute("aria-pressed", "true")

    await page.add_init_script("""
      for (const name of ["SpeechRecognition", "webkitSpeechRecognition", "speechSynthesis"]) delete window[name];
    """)
    await page.reload()
    assert not await page.evaluate("'webkitSpeechRecognition' in window || 'speechSynthesis' in window")
    await expect(page.get_by_role("button", name="Copy answer")).to_be_visible()
    await expect(page.get_by_role("button", name="Dictate")).to_be_hidden()
    await expect(page.get_by_role("button", name="Read aloud")).to_be_hidden()
