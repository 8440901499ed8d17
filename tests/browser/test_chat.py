"""The chat page in a real browser."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from playwright.async_api import Browser, FilePayload, Page, Route, ViewportSize, expect

from rolecall.bus.conversation import notify, running_turn
from rolecall.bus.schedule.schedules import schedule
from rolecall.redis.server import server_ms
from tests.browser.stage import Stage
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def test_a_question_is_answered_with_its_markdown_and_kept(page: Page) -> None:
    await page.goto("/")
    await page.keyboard.press("/")
    await say(page, "How does a message travel here?")
    answer = page.locator(".answer").last
    await expect(answer.locator("ol > li")).to_have_count(3)
    await expect(answer.locator("strong")).to_have_text("three steps")
    await expect(answer.locator("pre code")).to_contain_text("async def handle")
    await expect(answer.locator("td").last).to_have_text("1.4 s")
    await expect(answer.locator("blockquote a")).to_have_attribute("href", "https://example.org/data-model")
    await expect(answer.locator(".hop")).to_have_text(["manager", "lang", "samplellm"])
    await expect(answer).not_to_have_class(re.compile("runs"))
    await expect(page.locator("[data-kept-list] li")).to_have_count(1)
    await page.reload()
    await expect(page.locator(".said")).to_have_text("How does a message travel here?")
    await expect(page.locator(".answer pre code")).to_contain_text("envelope.reply")
    assert await page.evaluate("window.violations") == []


async def test_what_is_no_markdown_is_shown_as_it_was_written(page: Page) -> None:
    await page.goto("/")
    text = "* fix __init__.py\n\n1. in   *ten* minutes"
    for sent, shown in (
        (f"repeat {text}", text),
        (f"bury me because {text}", None),
        ("/stop", "There is nothing to stop."),
    ):
        await page.get_by_label("Message", exact=True).fill(sent)
        await page.keyboard.press("Enter")
        answer = page.locator(".answer").last
        await expect(answer.locator(".written")).to_have_count(1)
        assert shown is None or await answer.locator(".written").text_content() == shown
    await page.reload()
    await expect(page.locator(".answer .written")).to_have_count(2)  # commands are not kept
    assert await page.locator(".answer .written").first.text_content() == text
    assert await page.evaluate("window.violations") == []


async def test_an_answer_is_stopped_by_escape_and_by_the_button(page: Page) -> None:
    await page.goto("/")
    for stop in ("Escape", "Stop"):
        await say(page, f"slowly, {stop}: " + "word after word " * 40)
        answer = page.locator(".answer").last
        await expect(answer.locator(".body")).to_contain_text("word after")
        if stop == "Escape":
            await page.keyboard.press("Escape")
        else:
            await page.get_by_role("button", name="Stop").click()
        await expect(answer).to_have_class(re.compile("stopped"))
        await expect(answer.locator(".foot")).to_contain_text("stopped")
        await expect(answer.locator(".body")).to_contain_text("word after")
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()


async def test_an_answer_goes_on_after_the_page_was_left_and_opened_again(page: Page) -> None:
    await page.goto("/")
    text = "slowly, " + " ".join(str(number) for number in range(80))
    await say(page, text)
    await say(page, "and this afterwards")
    await expect(page.locator(".answer").first.locator(".body")).to_contain_text("slowly, 0 1 2 3")
    await expect(page.locator(".answer").last.locator(".trail")).to_have_text("queued behind 1")

    async def an_hour_ago(route: Route) -> None:
        found = await (await route.fetch()).json()
        await route.fulfill(json={**found, "tasks": [{**one, "at": one["at"] - 3_600_000} for one in found["tasks"]]})

    await page.route("**/web/chat/web-*", an_hour_ago)
    await page.reload()
    await expect(page.locator(".answer").last.locator(".foot")).to_have_text(re.compile(r"^36\d\d s$"))
    await expect(page.locator(".said")).to_have_text([text, "and this afterwards"])
    await expect(page.locator(".answer").last.locator(".body")).to_have_text("and this afterwards")
    assert await page.locator(".answer").first.locator(".body").inner_text() == text
    await expect(page.locator(".answer.runs")).to_have_count(0)


async def test_the_page_answers_and_stops_however_many_messages_wait(page: Page) -> None:
    await page.goto("/")
    for number in range(8):
        await say(page, f"slowly {number}: " + "word after word " * 40)
        await expect(page.locator(".answer.runs")).to_have_count(number + 1)
    await expect(page.locator(".answer").last.locator(".trail")).to_have_text("queued behind 7")
    await page.locator(".said-row").last.locator("[data-act=cancel]").click()
    await expect(page.locator(".answer.stopped")).to_have_count(1)
    await expect(page.locator(".answer").first.locator(".body")).to_contain_text("slowly 0")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".answer.stopped")).to_have_count(8)
    await expect(page.get_by_role("button", name="Stop")).to_be_hidden()


async def test_hidden_pages_hold_no_connection_and_show_later_what_came_meanwhile(page: Page, stage: Stage) -> None:
    async with page.expect_response("**/chat/notices/*"):
        await page.goto("/#web-many")
    opened = [page]
    for _ in range(7):  # a browser has six connections for all pages of a server
        await opened[-1].evaluate(HIDE, True)
        opened.append(await page.context.new_page())
        async with opened[-1].expect_response("**/chat/notices/*"):
            await opened[-1].goto("/#web-many")
    assert await notify(stage.deployment.session.bus, "http:local:web-many", "told meanwhile") == "OK"
    await expect(opened[-1].locator(".answer")).to_have_text(re.compile("told meanwhile"))
    await page.evaluate(HIDE, False)
    await expect(page.locator(".answer")).to_have_text(re.compile("told meanwhile"))


async def test_a_tab_shows_what_was_said_in_another_one_once_it_is_looked_at(page: Page) -> None:
    await page.goto("/#web-tabs")
    await say(page, "first")
    await expect(page.locator(".answer .body")).to_have_text("first")
    await say(page, "/stop")  # kept by no one, so it must stay
    await expect(page.locator(".answer .written")).to_have_count(1)
    await page.evaluate(HIDE, True)
    async with page.expect_response("**/web/chat/web-tabs"):
        await page.evaluate(HIDE, False)
    await expect(page.locator(".said")).to_have_text(["first", "/stop"])
    await page.evaluate(HIDE, True)
    other = await page.context.new_page()
    await other.goto("/#web-tabs")
    await expect(other.locator(".answer .body")).to_have_text("first")
    await say(other, "second")
    await expect(other.locator(".answer .body").last).to_have_text("second")
    await page.evaluate(HIDE, False)
    await expect(page.locator(".answer .body")).to_have_text(["first", "second"])


async def test_two_windows_show_each_others_messages(page: Page) -> None:
    other = await page.context.new_page()
    for window in (page, other):
        async with window.expect_response("**/chat/notices/*"):
            await window.goto("/#web-windows")
    await say(page, "from the one")
    await expect(other.locator(".answer .body")).to_have_text(["from the one"])
    await say(other, "slowly from the other")
    await say(page, "and once more")
    for window in (page, other):
        await expect(window.locator(".said")).to_have_text(["from the one", "slowly from the other", "and once more"])
        await expect(window.locator(".answer .body").last).to_have_text("and once more")
    row = page.locator(".said-row").nth(1)
    await row.hover()
    await row.get_by_role("button", name="Edit and send again").click()
    await say(page, "edited")
    for window in (page, other):
        await expect(window.locator(".said")).to_have_text(["from the one", "edited"])
        await expect(window.locator(".answer .body").last).to_have_text("edited")
    await say(other, "slowly, " + "word after word " * 40)
    await expect(page.locator(".answer.runs")).to_have_count(1)
    await say(page, "/clear")
    await expect(page.locator(".said")).to_have_text(["/clear"])
    await expect(page.locator(".answer .written")).to_have_count(1)
    await expect(other.locator(".said")).to_have_count(0)
    await expect(other.locator("[data-welcome]")).to_be_visible()
    await say(other, "anew")
    await expect(page.locator(".answer .body").last).to_have_text("anew")
    await other.reload()
    await expect(other.locator(".said")).to_have_text(["anew"])


async def test_a_tab_that_was_hidden_while_the_conversation_was_cleared_is_empty_once_it_is_looked_at(
    page: Page,
) -> None:
    await page.goto("/#web-hidden")
    await say(page, "first")
    await expect(page.locator(".answer .body")).to_have_text("first")
    await page.evaluate(HIDE, True)
    other = await page.context.new_page()
    await other.goto("/#web-hidden")
    await say(other, "/clear")
    await expect(other.locator(".said")).to_have_text(["/clear"])
    await page.evaluate(HIDE, False)
    await expect(page.locator(".said")).to_have_count(0)


async def test_the_first_line_of_a_message_keeps_its_indentation(page: Page) -> None:
    await page.goto("/")
    await say(page, "\n    def f():\n        pass\n")
    assert await page.locator(".said").text_content() == "    def f():\n        pass"
    await say(page, "  /stop")
    await expect(page.locator(".answer .written")).to_have_count(1)


async def test_the_answer_of_a_schedule_is_shown_once_also_if_it_ran_when_the_page_was_opened(
    page: Page, stage: Stage
) -> None:
    await page.goto("/#web-due")
    await say(page, "first")
    await expect(page.locator(".answer .body")).to_have_text("first")
    bus, conversation = stage.deployment.session.bus, "http:local:web-due"
    text = "slowly, " + "but surely " * 8 + "it comes"
    made = await schedule(bus, conversation, text, at=timedelta(hours=1))
    shard, due = bus.shard(conversation), round(await server_ms(bus.server))
    for key in (shard.planned, shard.deferred):
        await bus.server.call("ZADD", key, "XX", due, f"{conversation}\x1f{made.id}")
    await wait_until(lambda: running_turn(bus, conversation), what="its turn")
    found = await page.request.get("/web/chat/web-due")
    assert [task["said"] for task in (await found.json())["tasks"]] == [""]
    await page.route("**/web/chat/web-due", lambda route: route.fulfill(response=found))  # however long a reload takes
    async with page.expect_response("**/chat/notices/*"):
        await page.reload()
    await expect(page.locator(".answer").last).not_to_have_class(re.compile("runs"))
    assert await notify(bus, conversation, "and a notice") == "OK"
    await expect(page.locator(".answer .body")).to_have_text(["first", text, "and a notice"])
    await page.unroute("**/web/chat/web-due")
    await page.reload()
    await expect(page.locator(".answer .body")).to_have_text(["first", text, "and a notice"])
    await expect(page.locator(".said")).to_have_text(["first"])


async def test_an_answer_is_shown_although_its_stream_was_refused(page: Page) -> None:
    await page.goto("/")
    refused: list[str] = []

    async def refuse(route: Route) -> None:
        refused.append(route.request.url)
        await (route.fulfill(status=503) if len(refused) == 1 else route.continue_())

    await page.route("**/web/chat/tasks/*/events", refuse)
    await say(page, "slowly, but " + "surely " * 8 + "in the end")
    await expect(page.locator(".answer .body")).to_contain_text("in the end")
    await expect(page.locator(".answer").last).not_to_have_class(re.compile("runs|failed"))
    assert len(refused) == 2


async def test_however_many_hidden_pages_wait_for_answers_another_one_opens(page: Page) -> None:
    pages = [page, *[await page.context.new_page() for _ in range(6)]]
    for one in pages:
        await one.goto("/")
        await say(one, "ask me")
        await expect(one.get_by_role("group", name="Shall I?")).to_be_visible()
        await one.evaluate(HIDE, True)
    other = await page.context.new_page()
    await other.goto("/")
    await say(other, "Hello")
    await expect(other.locator(".answer .body")).to_have_text("Hello")
    for one in pages[:2]:
        await one.evaluate(HIDE, False)
        await one.get_by_role("button", name="Yes", exact=True).click()
        await one.get_by_role("button", name="green").click()
    await expect(pages[0].locator(".answer .body")).to_have_text("True green")
    await expect(pages[0].locator(".hop")).to_have_text(["manager", "lang", "samplellm"])
    await pages[1].evaluate(HIDE, True)
    await expect(pages[1].locator(".answer .body")).to_have_text("True green")
    for one in (*pages[1:], other):
        await one.close()


async def test_a_message_whose_acceptance_was_lost_is_asked_once_when_sent_again(page: Page) -> None:
    await page.goto("/")

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await page.route("**/chat/page", lose, times=1)
    await say(page, "only once")
    await expect(page.get_by_label("Message", exact=True)).to_have_value("only once")
    await page.keyboard.press("Enter")
    await expect(page.locator(".answer .body")).to_have_text(["only once"])  # also if the window had caught up
    await page.reload()
    await expect(page.locator(".answer .body")).to_have_text("only once")
    for _ in range(2):  # the same text may be sent twice on purpose
        await say(page, "and again")
    await expect(page.locator(".answer .body", has_text="and again")).to_have_count(2)


async def test_each_block_runs_in_the_direction_of_its_script(page: Page) -> None:
    await page.goto("/")
    await say(page, "مرحبا، هذه `code --flag` إجابة.\n\n- واحد\n\nAnd English.\n\n```\nx = 1\n```")
    body = page.locator(".answer .body")
    await expect(body.locator("pre")).to_be_visible()
    for selector, direction in (("p >> nth=0", "rtl"), ("ul", "rtl"), ("p >> nth=1", "ltr"), ("pre", "ltr"),
                                ("p code", "ltr")):  # fmt: skip
        assert await body.locator(selector).evaluate("(one) => getComputedStyle(one).direction") == direction, selector
    assert await page.locator(".said").evaluate("(one) => getComputedStyle(one).direction") == "rtl"


async def test_what_is_written_on_a_phone_can_be_sent_however_little_the_keyboard_leaves(
    stage: Stage, browser: Browser
) -> None:
    for width, height in ((360, 300), (320, 256)):
        viewport: ViewportSize = {"width": width, "height": height}
        phone = await browser.new_context(base_url=stage.url, has_touch=True, is_mobile=True, viewport=viewport)
        page = await phone.new_page()
        await page.goto("/")
        picture: FilePayload = {"name": "a.gif", "mimeType": "image/gif", "buffer": b"GIF89a"}
        await page.locator("input[type=file]").set_input_files([picture] * 3)
        await expect(page.locator(".box .attached img")).to_have_count(3)
        await page.get_by_label("Message", exact=True).fill("line\n" * 12 + "end")
        await page.get_by_role("button", name="Send").tap(timeout=5000)
        await expect(page.locator(".said")).to_contain_text("end")
        await phone.close()


async def test_enter_begins_a_line_on_a_phone_and_belongs_to_an_input_method_that_composes(
    page: Page, stage: Stage, browser: Browser
) -> None:
    phone = await browser.new_context(base_url=stage.url, has_touch=True, is_mobile=True)
    touched = await phone.new_page()
    await touched.goto("/")
    await touched.get_by_label("Message", exact=True).fill("one")
    await touched.keyboard.press("Enter")
    await touched.keyboard.type("two")
    await touched.get_by_role("button", name="Send").tap()
    await expect(touched.locator(".said")).to_have_text("one\ntwo")
    await phone.close()
    await page.goto("/")
    box = page.get_by_label("Message", exact=True)
    await box.fill("かな")
    for composing in ({"isComposing": True}, {"keyCode": 229}):  # Safari: the key after the composition
        await box.dispatch_event("keydown", {"key": "Enter", **composing})
        assert await box.input_value() == "かな"
    await page.keyboard.press("Enter")
    await expect(page.locator(".said")).to_have_text("かな")


async def test_nothing_jumps_while_an_answer_streams_in(page: Page) -> None:
    await page.goto("/")
    await say(page, "slowly, " + "a line of words that wraps around at some point " * 6)
    await expect(page.locator(".answer.runs")).to_have_count(1)
    said, box = page.locator(".said"), page.locator(".box")
    before = await page.evaluate("window.shifts")
    places = [await said.bounding_box(), await box.bounding_box()]
    await expect(page.locator(".answer.runs")).to_have_count(0)
    assert places == [await said.bounding_box(), await box.bounding_box()]
    assert await page.evaluate("window.shifts") - before < 0.01, await page.evaluate("window.shifted")


async def test_no_answer_keeps_the_page_busy_for_long(page: Page) -> None:
    await page.goto("/")
    size = 50_000
    nested = "> " * 2000 + "- " * 2000
    for hard in (
        "*" * size, "[" * size, "`a" * (size // 2), "**a" * (size // 3), "_a" * (size // 2), "[a](" * (size // 4),
        "# " + " " * size + "x", "``` " + "a" * size + "`", "- " * (size // 2) + "x", "|" * size + "\n" + "|-" * 999,
        "https://a" + ")" * size, nested, "\n".join("  " * (n % 99) + "- a" for n in range(500)), "\\" * size,
    ):  # fmt: skip
        count = await page.get_by_role("button", name="Copy answer").count()
        await say(page, hard)
        await expect(page.get_by_role("button", name="Copy answer")).to_have_count(count + 1)


async def test_a_command_and_a_refusal_are_answered_at_once(page: Page) -> None:
    await page.goto("/")
    await say(page, "/stop")
    await expect(page.locator(".answer .body")).to_have_text("There is nothing to stop.")
    await say(page, "x" * 70_000)
    await expect(page.locator("[data-notice]")).to_contain_text("64 kB")
    await expect(page.locator(".said")).to_have_count(1)
    assert len(await page.get_by_label("Message", exact=True).input_value()) == 70_000


async def test_a_refusal_covers_no_button_and_goes_with_the_next_message_or_conversation(page: Page) -> None:
    covering = """(selectors) => selectors.filter((selector) => {
      const box = document.querySelector(selector).getBoundingClientRect();
      const there = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
      return !there.closest(selector);
    })"""
    notice = page.locator("[data-notice].bad")
    for size in ((1280, 800), (360, 740)):
        await page.set_viewport_size({"width": size[0], "height": size[1]})
        await page.goto("/")
        await say(page, "x" * 70_000)
        await expect(notice).to_contain_text("64 kB")
        await expect(notice).not_to_contain_text("String should")
        await say(page, "slowly, " + "word after word " * 40)
        await expect(notice).to_be_hidden()
        await say(page, "y" * 70_000)
        await expect(notice).to_be_visible()
        await expect(page.locator("[data-stop]")).to_be_visible()
        assert await page.evaluate(covering, ["[data-stop]", "[data-send]", "[data-message]", "[data-new]"]) == []
        await page.locator("[data-new]").click()
        await expect(notice).to_be_hidden()


async def test_what_failed_or_was_stopped_is_shown_as_such_and_still_after_a_reload(page: Page) -> None:
    await page.goto("/")
    await say(page, "bury me because I say so")
    await expect(page.locator(".answer.failed .body")).not_to_be_empty()
    await say(page, "slowly, " + "word after word " * 40)
    await expect(page.locator(".answer.runs .body")).to_contain_text("word")
    await page.keyboard.press("Escape")
    await expect(page.locator(".answer.stopped")).to_have_count(1)
    await page.reload()
    await expect(page.locator(".answer.failed .body")).not_to_be_empty()
    await expect(page.locator(".answer.stopped")).to_have_count(1)


async def test_conversations_are_chosen_with_the_keyboard_and_the_address(page: Page, stage: Stage) -> None:
    for name in ("web-a", "web-b"):
        await stage.deployment.ask(f"http:local:{name}", f"first of {name}")
    root = stage.deployment.log_dir / "conversations"
    await wait_until(lambda: len(list(root.glob("http_local_web-[ab]-*"))) == 2)
    await page.goto("/#web-a")
    await expect(page.locator(".said")).to_have_text("first of web-a")
    await expect(page.locator("[data-kept-list] li.open")).to_have_count(1)
    await page.locator("[data-kept-list] li.open a").focus()
    await page.keyboard.press("Home")
    await page.keyboard.press("Enter")
    await expect(page.locator(".said")).to_have_text("first of web-b")
    await page.go_back()
    await expect(page.locator(".said")).to_have_text("first of web-a")
    await page.get_by_role("button", name="New conversation").click()
    await expect(page.get_by_role("heading", name="How can I help?")).to_be_visible()
    await expect(page.get_by_label("Message", exact=True)).to_be_focused()


async def test_a_role_is_asked_by_its_name(page: Page) -> None:
    await page.goto("/")
    await page.get_by_label("Role", exact=True).select_option("translation")
    await say(page, "good morning")
    await expect(page.locator(".answer .hop").last).to_have_text("translation")
    await expect(page.locator(".answer .body")).to_have_text("echo: good morning")


async def test_a_button_under_the_list_of_reminders_deletes_one(page: Page) -> None:
    await page.goto("/")
    await say(page, "hello")
    await expect(page.locator(".answer").last).not_to_have_class(re.compile("runs"))
    made = await page.evaluate(
        """async () => {
            const token = document.querySelector("meta[name=csrf]")?.content ?? "";
            const headers = { "Content-Type": "application/json", "X-CSRF-Token": token };
            const statuses = [];
            for (const text of ["tea", "bread"]) {
                const body = JSON.stringify({ text, when: "in 2 hours", conversation_id: location.hash.slice(1) });
                statuses.push((await fetch("/chat/reminders", { method: "POST", headers, body })).status);
            }
            return statuses;
        }"""
    )
    assert made == [201, 201]
    await say(page, "/reminders")
    listed = page.locator(".answer").last
    await expect(listed).to_contain_text("tea")
    await listed.get_by_role("button", name="Delete 1").click()
    await expect(listed).not_to_contain_text("tea")
    await expect(listed).to_contain_text("bread")
    await listed.get_by_role("button", name="Delete 1").click()
    await expect(listed).to_contain_text("There are no reminders.")
