"""What operators look at, in a real browser."""

from __future__ import annotations

import logging
import re

import pytest
from playwright.async_api import Browser, Page, expect

from rolecall.agent.role import Role
from rolecall.bus.access_keys import create_key
from rolecall.bus.members import enrol, find_member
from rolecall.redis import keys
from rolecall.settings import Terms
from tests.browser.stage import ROLES, Stage, TranslationAgent, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW = "slowly, " + "word after word " * 30


async def test_a_conversation_is_opened_while_it_runs_and_followed_to_its_end(page: Page, stage: Stage) -> None:
    await page.goto("/web/conversations")
    await stage.deployment.say("telegram:42", SLOW, title="María José")
    row = page.locator(".rows li", has_text="María José")
    await expect(row.locator(".dot")).to_have_class(re.compile("runs"))
    await row.click()
    await expect(page.locator("[data-running]")).to_have_text("running")
    await expect(page.locator(".hop-row")).to_have_count(3)
    await expect(page.locator(".log li", has_text="STARTED").last).to_be_visible()
    await expect(page.locator(".log li").last).to_contain_text("PROCESSING_COMPLETE")
    await expect(page.locator(".turn .pill")).to_have_text("answered")
    await expect(page.locator(".hop-row .times").last).to_contain_text("model")
    await expect(page.locator("[data-running]")).to_have_text("idle")
    await stage.deployment.ask("telegram:42", "one more")
    await expect(page.locator(".turn")).to_have_count(2)
    ids = await page.locator(".log li .at").all_inner_texts()
    assert ids == sorted(ids)
    async with page.expect_download() as coming:
        await page.get_by_role("link", name="Download").click()
    assert "one more" in (await (await coming.value).path()).read_text()
    assert await page.evaluate("window.violations") == []


async def test_turns_behind_another_one_are_shown_as_waiting_and_counted(page: Page, stage: Stage) -> None:
    await stage.deployment.say("telegram:48", SLOW * 3)
    for n in range(3):
        await stage.deployment.say("telegram:48", f"question {n}")
    await page.goto("/web/conversations/telegram:48")
    await expect(page.locator(".turn .pill")).to_have_text(["running", "waiting", "waiting", "waiting"])
    await expect(page.locator("[data-waiting]")).to_have_text("3")
    await page.goto("/web/now")
    await expect(page.locator('[data-figure="deferred"]')).to_contain_text("3 waiting")
    await page.goto("/web/conversations/telegram:48")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".turn .pill")).to_have_text(["cancelled"] * 4)
    await page.goto("/web/now")
    await expect(page.locator('[data-figure="deferred"]')).not_to_contain_text("waiting")


async def test_a_hop_tells_its_model_its_tokens_and_its_cost(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    roles = (*ROLES[:3], Role(TranslationAgent, models=("priced@test",), match="/translate"))
    terms = {"priced@test": Terms(price_in=20_000, price_out=60_000)}
    async with staged(tmp_path_factory.mktemp("priced"), roles, terms=terms) as stage:
        page = await browser.new_page(base_url=stage.url)
        await page.goto("/web/conversations")
        await stage.deployment.ask("telegram:47", "/translate good morning")
        await page.locator(".rows li", has_text="telegram:47").click()
        hops = page.locator(".hop-row")
        await expect(hops).to_have_count(2)
        await expect(hops.first.locator(".spent")).to_be_hidden()
        spent = hops.last.locator(".spent")
        await expect(spent).to_contain_text("priced@test")
        await expect(spent).to_have_text(re.compile(r"\d+ tokens in, \d+ out +\$0\.\d{4}$"))
        await stage.deployment.ask("telegram:47", "/translate good evening to you all")
        await expect(hops).to_have_count(4)
        drawn = (await spent.inner_text()).split()
        await page.reload()
        assert (await spent.inner_text()).split() == drawn
        await page.goto("/web/now")
        row = page.locator("[data-models] tr", has_text="priced@test")
        await expect(row).to_contain_text("→")
        await expect(row.locator("td").nth(4)).to_have_text("2")
        await expect(page.locator("[data-models] tr", has_text="echo@test").locator("td").nth(4)).to_have_text("–")
        await page.context.close()


async def test_a_conversation_is_stopped_and_deleted(page: Page, stage: Stage) -> None:
    received = await stage.deployment.say("telegram:43", SLOW * 5)
    await page.goto("/web/conversations")
    await page.locator(".rows li", has_text="telegram:43").click()
    await page.get_by_role("button", name="Stop").click()
    assert (await stage.deployment.answer(received)).kind == "cancelled"
    await expect(page.locator(".turn .pill")).to_have_text("cancelled")
    await page.get_by_role("button", name="Delete").click()
    await page.get_by_role("button", name="Delete for good?").click()
    await page.wait_for_url("**/web/conversations")
    await expect(page.locator(".rows li", has_text="telegram:43")).to_have_count(0)


async def test_the_list_is_searched_as_one_types_and_walked_with_arrows(page: Page, stage: Stage) -> None:
    for name in ("ann", "ben"):
        await stage.deployment.ask(f"terminal:{name}", f"I am {name}")
    await page.goto("/web/conversations")
    await expect(page.locator(".rows li", has_text="terminal:ben")).to_have_count(1)
    await page.keyboard.press("/")
    await page.keyboard.type("I am")
    await expect(page.locator(".rows li")).to_have_count(2)
    await expect(page).to_have_url(re.compile(r"search=I\+am"))
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("terminal:ann")
    await page.goto("/web/conversations?search=nobody")
    await expect(page.locator("[data-none]")).to_contain_text("No matches")


async def test_a_dead_letter_is_replayed_and_another_dropped(page: Page, stage: Stage) -> None:
    for why in ("the first", "the second"):
        await stage.deployment.ask("telegram:44", f"bury me because {why}")
    await page.goto("/web/dead")
    await expect(page.locator("[data-dead]")).to_have_text("2")
    second, first = page.locator(".letter").first, page.locator(".letter").last
    await expect(second.locator(".reason")).to_contain_text("the second")
    await expect(second.locator(".letter-said")).to_have_text("bury me because the second")
    await second.locator("summary").click()
    await expect(second.locator("pre")).to_contain_text('"conversation": "telegram:44"')
    await second.get_by_role("button", name="Replay").click()
    await expect(second.locator("[data-outcome]")).to_contain_text("Replayed as turn 3")
    await first.get_by_role("button", name="Drop").click()
    await first.get_by_role("button", name="Drop for good?").click()
    await expect(first.locator("[data-outcome]")).to_have_text("Dropped.")
    await second.get_by_role("link", name="turn 3").click()
    await expect(page.locator(".turn .pill").last).to_have_text("given up")


async def test_now_shows_who_does_what(page: Page, stage: Stage) -> None:
    await page.goto("/web/now")
    await expect(page.locator('[data-figure="instances"]')).to_have_text("of 6")
    await expect(page.locator("[data-roles] tr")).to_have_count(4)
    before = await page.evaluate("window.shifts")
    received = await stage.deployment.say("telegram:45", SLOW)
    await expect(page.locator("[data-instances] tr").first).to_contain_text("telegram:45/1")
    await expect(page.locator('[data-figure="busy"]')).to_have_text("1")
    await expect(page.locator(".slots i.busy")).to_have_count(1)
    await stage.deployment.answer(received)
    await expect(page.locator('[data-figure="busy"]')).to_have_text("0")
    assert await page.evaluate("window.shifts") - before < 0.01, await page.evaluate("window.shifted")
    await expect(page.locator("[data-plot] svg")).to_have_count(4)
    await page.locator('[data-plot="busy"] svg').hover()
    await expect(page.locator(".plot .hover text")).to_contain_text("busy")
    await expect(page.locator("[data-models]")).to_contain_text("ready")
    await expect(page.locator("[data-processes]")).to_contain_text("of 64")


async def test_a_role_is_scaled_and_its_messages_wait_while_it_is_paused(page: Page, stage: Stage) -> None:
    await page.goto("/web/now")
    row = page.locator("[data-roles] tr", has_text="translation")
    await row.get_by_role("button", name="One instance of translation more").click()
    await expect(row.locator(".slots i")).to_have_count(2)
    await expect(row.locator('[data-f="count"]')).to_have_text("2")
    await row.get_by_role("button", name="One instance of translation less").click()
    await expect(row.locator(".slots i")).to_have_count(1)
    await row.get_by_role("button", name="Pause translation").click()
    await expect(row.locator(".slots")).to_have_text("none")
    await expect(row).to_have_class(re.compile("paused"))
    await expect(row.get_by_role("button", name="One instance of translation less")).to_be_disabled()
    received = await stage.deployment.say("telegram:49", "/translate while it is paused")
    await expect(row.locator('[data-f="queue"]')).to_have_text("1")
    await row.get_by_role("button", name="Resume translation").click()
    await expect(row.locator(".slots i")).to_have_count(1)
    assert (await stage.deployment.answer(received)).text == "echo: while it is paused"
    await expect(row.locator('[data-f="queue"]')).to_have_text("0")
    await page.get_by_role("link", name="24 hours").click()
    await expect(page).to_have_url(re.compile("span=24h"))
    await expect(page.locator("[data-plot] svg .grid")).to_have_count(12)


async def test_the_log_of_the_processes_is_followed_and_filtered(page: Page) -> None:
    logger = logging.getLogger("rolecall.worker.worker")
    logger.warning("shard 7: <b>late</b>")
    await page.goto("/web/now")
    await page.locator("[data-processes] a").first.click()
    await expect(page).to_have_url(re.compile("/web/log\\?process=host%3A"))
    log = page.locator("[data-lines] li")
    await expect(log.filter(has_text="shard 7: <b>late</b>").last).to_have_class("warn")
    logger.error("shard 8: lost")
    await expect(log.last).to_contain_text("shard 8: lost")
    await expect(log.last).to_have_class("bad")
    await page.get_by_label("from level").select_option("error")
    await expect(page).to_have_url(re.compile("level=error"))
    await expect(log.filter(has_text="shard 7")).to_have_count(0)
    await expect(log.filter(has_text="shard 8")).not_to_have_count(0)
    await page.reload()
    await expect(page.get_by_label("from level")).to_have_value("error")
    await expect(log.filter(has_text="shard 8")).not_to_have_count(0)
    await expect(log.filter(has_text="shard 7")).to_have_count(0)
    await page.goto("/web/log?process=nobody%3A1")
    await expect(page.locator("[data-none]")).to_contain_text("No matches")


async def test_the_dead_letters_that_match_are_replayed_at_once(page: Page, stage: Stage) -> None:
    for n in range(3):
        await stage.deployment.ask("telegram:50", f"bury me because of the storm, {n}")
    await stage.deployment.ask("telegram:51", "bury me because of the flood")
    await page.goto("/web/dead")
    await page.get_by_role("searchbox").fill("THE STORM")
    await page.keyboard.press("Enter")
    await expect(page.locator(".letter")).to_have_count(3)
    await page.get_by_role("button", name="Replay all 3").click()
    await expect(page.locator("[data-notice]")).to_have_text("3 replayed, 0 refused.")
    await expect(page.locator(".letter.gone [data-outcome]")).to_have_text(["Replayed."] * 3)
    await page.goto("/web/conversations/telegram:50")
    await expect(page.locator(".turn .pill")).to_have_text(["given up"] * 6)
    await page.goto("/web/conversations/telegram:51")
    await expect(page.locator(".turn .pill")).to_have_text(["given up"])


async def test_many_dead_letters_are_chosen_and_dropped(page: Page, stage: Stage) -> None:
    for n in range(3):
        await stage.deployment.ask(f"telegram:47{n}", f"bury me because cranes {n}")
    await page.goto("/web/dead")
    await page.get_by_role("searchbox").fill("cranes")
    await page.keyboard.press("Enter")
    await expect(page.locator(".letter")).to_have_count(3)
    await page.locator(".letter").first.get_by_role("checkbox").check()
    await page.get_by_role("button", name="Drop 1", exact=True).click()
    await page.get_by_role("button", name="Drop for good?").click()
    await expect(page.locator(".letter.gone")).to_have_count(1)
    await page.get_by_role("button", name="Replay all 2").click()
    await expect(page.locator("[data-notice]")).to_contain_text("2 replayed")
    await expect(page.locator(".letter.gone")).to_have_count(3)


async def test_usage_is_chosen_by_the_address_and_drawn(page: Page, stage: Stage) -> None:
    server = stage.deployment.session.server
    for field, by in {"m:big@openai:in": 900, "m:big@openai:cost": 4_000_000, "u:http:ann:tokens": 900}.items():
        await server.call("HINCRBY", keys.spent(keys.today()), field, by)
    await page.goto("/web/usage?what=tokens&by=users&days=7")
    await expect(page.locator("[data-names]")).to_contain_text("http:ann")
    await page.locator("select[name=by]").select_option("models")
    await expect(page.locator("[data-names]")).to_contain_text("big@openai")
    await expect(page).to_have_url(re.compile("by=models"))
    await expect(page.locator("[data-days] svg")).to_have_attribute("aria-label", re.compile("900"))


async def test_people_are_let_in_and_out(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with staged(tmp_path_factory.mktemp("people")) as stage:
        _, secret = await create_key(stage.deployment.session.bus, "olga", admin=True)
        await enrol(stage.deployment.session.bus, "telegram", 42, "user", "Ann")
        page = await browser.new_page(base_url=stage.url)
        while "/web/login" not in page.url:
            await page.goto("/web/people")
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await page.get_by_label("Name of the owner").fill("ben")
        await page.get_by_role("button", name="Create key").click()
        await expect(page.locator("[data-secret-text]")).to_contain_text("rk_")
        row = page.locator("[data-keys-list] tr", has_text="ben")
        await row.get_by_role("button", name="Revoke").click()
        await row.get_by_role("button", name="Revoke for good?").click()
        await expect(row).to_have_count(0)
        await page.locator("[data-keys-list] tr", has_text="olga").get_by_role("button", name="Revoke").click()
        await page.get_by_role("button", name="Revoke for good?").click()
        await expect(page.locator("[data-notice]")).to_contain_text("logged in with")
        await page.get_by_role("button", name="Create invitation").click()
        await expect(page.locator("[data-code-text]")).to_contain_text("/start ")
        await page.locator("[data-members-list] [data-rank]").select_option("stranger")
        await expect(page.locator("[data-notice]")).to_contain_text("Ann is now: no access")
        await page.route(
            "**/web/people/members/42", lambda route: route.fulfill(status=403, json={"detail": "Not you."})
        )
        rank = page.locator("[data-members-list] [data-rank]")
        await rank.select_option("admin")
        await expect(page.locator("[data-notice]")).to_contain_text("Not you.")
        await expect(rank).to_have_value("stranger")
        member = await find_member(stage.deployment.session.bus, "telegram", 42)
        assert member is not None and not member.allowed
        await page.context.close()


async def test_everything_fits_a_phone(page: Page, stage: Stage) -> None:
    await stage.deployment.ask("telegram:46:" + "x" * 80, "bury me because " + "very-long-words" * 9, title="A" * 90)
    await page.set_viewport_size({"width": 360, "height": 740})
    for path in (
        "/",
        "/web/conversations",
        "/web/now",
        "/web/dead",
        "/web/usage",
        "/web/people",
        "/web/log",
        "/web/login",
    ):
        await page.goto(path)
        await page.wait_for_timeout(300)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360, path
    await page.goto("/web/conversations")
    await page.locator(".rows li").first.click()
    await expect(page.locator(".hop-row").first).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_the_theme_is_the_systems_until_one_is_chosen_which_is_kept(page: Page) -> None:
    light, dark = "rgb(246, 246, 243)", "rgb(18, 20, 22)"
    body, switch = page.locator("body"), page.get_by_role("button", name="Switch between light and dark")
    await page.goto("/")
    await expect(body).to_have_css("background-color", light)
    await page.emulate_media(color_scheme="dark")
    await expect(body).to_have_css("background-color", dark)
    await switch.click()
    await expect(body).to_have_css("background-color", light)
    await page.goto("/web/now")
    await expect(body).to_have_css("background-color", light)
    await switch.click()
    await expect(body).to_have_css("background-color", dark)
    await page.emulate_media(color_scheme="light")
    await page.reload()
    await expect(body).to_have_css("background-color", dark)
    await expect(page.locator("html")).to_have_css("color-scheme", "dark")


async def test_one_logs_in_with_a_key_and_out_again(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with staged(tmp_path_factory.mktemp("login")) as stage:
        _, secret = await create_key(stage.deployment.session.bus, "olga", admin=True)
        page = await browser.new_page(base_url=stage.url)
        # Another process may go by the keys it knew for two seconds.
        while not page.url.endswith("/web/login?next=/web/now"):
            await page.goto("/web/now")
        await page.get_by_label("API key").fill("rk_wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("This key is unknown or was revoked.")
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Now")
        who = page.locator(".rail .who")
        await expect(who).to_have_text("olga · operator")
        assert await who.evaluate("(element) => element.scrollWidth <= element.clientWidth")
        assert await page.evaluate("document.cookie") == ""
        received = await stage.deployment.say("telegram:1", SLOW)
        await page.goto("/web/conversations/telegram:1")
        await page.get_by_role("button", name="Stop").click()
        assert (await stage.deployment.answer(received)).kind == "cancelled"
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url("**/web/login")
        await page.goto("/#web-kept")
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{stage.url}/#web-kept")
        await page.get_by_label("Message", exact=True).fill("after the login ended")
        await page.context.clear_cookies()
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await page.wait_for_url(lambda url: url.endswith("/web/login?next=%2F#web-kept"))
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Message", exact=True)).to_have_value("after the login ended")
        await page.goto("/web/now")
        await page.get_by_role("link", name="Chat").click()
        await expect(page.get_by_label("Message", exact=True)).to_have_value("after the login ended")
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Message", exact=True)).to_have_value("")
        await page.context.close()


async def test_a_server_that_is_away_is_seen_at_once_and_so_is_its_return(page: Page) -> None:
    await page.goto("/web/now")
    await expect(page.locator("[data-stamp]")).to_have_text("live")
    await page.context.set_offline(True)
    await expect(page.locator("[data-health] .dot")).to_have_class(re.compile("bad"), timeout=6000)
    await page.context.set_offline(False)
    await expect(page.locator("[data-health] .dot")).to_have_class(re.compile("good"), timeout=7000)
