"""The Telegram front end whole: who serves, what operators are told, and the real command line at work."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.members import note_bot
from rolecall.errors import ConfigError
from rolecall.frontends.telegram import telegram_front
from rolecall.frontends.telegram.bot import open_bot
from rolecall.session import Session, open_session
from tests import telegram_proof
from tests.deployment import Deployment, deployed
from tests.integration.telegram_process import Place, telegram_place
from tests.telegram.api import TelegramApi
from tests.telegram.bot import connected
from tests.waiting import wait_until

ANN = 11
SECRET = "only-telegram-knows_42"


class ManagerAgent(Agent):
    """Answers at once; ``wait`` for ever."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "wait":
            await asyncio.sleep(600)
        return envelope.reply(f"echo: {envelope.text}")


@asynccontextmanager
async def deployment(directory: Path, api: TelegramApi, **settings: Any) -> AsyncIterator[Deployment]:
    given = {
        "telegram_allowed": "*", "telegram_edit_seconds": 0.05, "drain_seconds": 0.1,
        "telegram_bot_token": api.token, "telegram_api_url": api.url, **settings,
    }  # fmt: skip
    async with deployed(directory, (Role(ManagerAgent, instances=2),), **given) as app:
        yield app


@asynccontextmanager
async def serving(app: Deployment, told: list[str], **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A front end of ``app`` at work; what it tells operators is in ``told``."""
    running = asyncio.create_task(_serve(app.session, app, told, **options), name="telegram under test")
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _serve(session: Session, app: Deployment, told: list[str], **options: Any) -> None:
    bot = open_bot(session.application.settings)
    await telegram_front.TelegramFront(bot, session, app.runtime.wakeups, told.append, **options).run()


async def answered(api: TelegramApi, text: str) -> None:
    """Ann writes ``text`` and has her answer."""
    api.user(ANN).write(text)
    wanted = f"echo: {text}"
    await api.wait_for(lambda: wanted in [one.text for one in api.chat(ANN).answers], seconds=40, what=text)


def lines(told: list[str], words: str) -> list[str]:
    return [line for line in told if words in line]


# ── one process ─────────────────────────────────────────────────────────────────────────────────


async def test_whatever_stands_in_the_way_is_one_line_and_then_it_serves(api: TelegramApi, tmp_path: Path) -> None:
    told: list[str] = []
    api.world.updates.url = "https://forgotten.example.org"
    async with deployment(tmp_path, api) as app, serving(app, told, watchdog_seconds=0.8):
        await answered(api, "a webhook was left over")
        assert len(lines(told, "a webhook was still set for the bot; deleted it, because this process polls")) == 1
        (greeting,) = lines(told, "is served")
        assert greeting.startswith("Telegram: @rolecall_bot is served: https://t.me/rolecall_bot")
        assert (
            len(lines(told, "there is no admin yet; the first person to open this link becomes admin: https://t.me/"))
            == 1
        )

        async with connected(api) as other:

            async def noticed() -> bool:  # a poll that is not on its way just then is not disturbed
                await asyncio.gather(other.get_updates(timeout=0), return_exceptions=True)
                return bool(lines(told, "another program polls this bot with the same token"))

            await wait_until(noticed, seconds=40)
        await answered(api, "the other one has ended")

        api.delay(30, "getUpdates")
        await wait_until(lambda: lines(told, "Telegram was silent for 0.8 s: reconnecting"), seconds=40)
        api.delay(0, "getUpdates")
        await answered(api, "it is back")
    assert api.token not in "".join(told)


async def test_a_token_that_telegram_does_not_know_is_one_line(api: TelegramApi, tmp_path: Path) -> None:
    told: list[str] = []
    async with (
        deployment(tmp_path, api, telegram_bot_token="4242:some-other-token") as app,
        serving(app, told) as running,
    ):
        with pytest.raises(ConfigError, match="Telegram does not know the token: see TELEGRAM_BOT_TOKEN"):
            await asyncio.wait_for(running, 10)
    assert told == []


async def test_another_process_receives_when_the_one_that_received_ends(
    api: TelegramApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telegram_front, "STAND_BY_SECONDS", 0.2)
    first: list[str] = []
    second: list[str] = []
    async with deployment(tmp_path, api) as app:
        application = app.session.application
        async with open_session(application, "host:2~bbbbbb", start=True) as session:
            async with serving(app, first):
                await answered(api, "to the first")
                standby = asyncio.create_task(_serve(session, app, second), name="standby")
                await wait_until(
                    lambda: lines(second, "another process receives what users write to @rolecall_bot"),
                    seconds=40,
                )
                await answered(api, "still to the first")
                assert not lines(second, "is served")
            await answered(api, "to the second")
            standby.cancel()
            await asyncio.gather(standby, return_exceptions=True)
    assert lines(second, "is served")


async def test_two_applications_with_one_token_serve_the_bot_one_after_the_other(
    api: TelegramApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telegram_front, "STAND_BY_SECONDS", 0.2)
    told: list[str] = []
    async with deployment(tmp_path, api, lease_seconds=2, heartbeat_seconds=0.5) as app:
        async with serving(app, []):
            await answered(api, "to the first")
            second = asyncio.create_task(_serve(app.session, app, told, name="another"), name="the other application")
            await wait_until(lambda: lines(told, "another application serves @rolecall_bot"), seconds=20)
            await answered(api, "still to the first")
        await wait_until(lambda: lines(told, "is served"), seconds=20)
        await answered(api, "to the second")
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
    assert not lines(told, "another program polls this bot")


async def test_a_second_bot_under_the_name_of_the_first_is_told_what_it_needs(
    api: TelegramApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telegram_front, "STAND_BY_SECONDS", 0.2)
    told: list[str] = []
    async with (
        deployment(tmp_path, api) as app,
        open_session(app.session.application, "host:2~bbbbbb", start=True) as other,
        serving(app, []),
    ):
        await answered(api, "to the first")
        await note_bot(app.session.bus, "telegram", 77, "first_bot")
        async with serving(replace(app, session=other), told):
            await wait_until(lambda: told, seconds=20)
    assert told == [
        "Telegram: the front end 'telegram' serves @first_bot; @rolecall_bot waits until that ends: "
        "`rolecall telegram --name NAME` serves it as well"
    ]


async def test_by_webhook_updates_come_only_from_who_knows_the_secret(api: TelegramApi, tmp_path: Path) -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free_port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{free_port}/telegram"
    hook = {"telegram_webhook_url": url, "telegram_webhook_secret": SECRET, "telegram_webhook_port": free_port}
    async with deployment(tmp_path, api, **hook) as app:
        with socket.create_server(("127.0.0.1", free_port)) as other:
            other.listen()
            running = asyncio.create_task(_serve(app.session, app, told), name="telegram under test")
            await wait_until(lambda: lines(told, f"retrying: TELEGRAM_WEBHOOK_HOST and _PORT, 127.0.0.1:{free_port}"))
        await answered(api, "by webhook")
        async with httpx.AsyncClient(trust_env=False) as stranger:
            assert (await stranger.post(url, json={"update_id": 1})).status_code == 403
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert api.calls["getUpdates"] == 0
    assert SECRET not in "".join(told)


async def test_placeholders_come_while_every_instance_is_busy(api: TelegramApi, tmp_path: Path) -> None:
    async with deployment(tmp_path, api) as app, serving(app, []):
        people = [api.user(100 + number, language_code="de") for number in range(25)]
        for user in people:
            user.write("wait")
        await api.wait_for(
            lambda: all(user.id in api.world.chats and api.chat(user.id).answers for user in people), seconds=40
        )
        assert {api.chat(user.id).answers[0].text for user in people} == {"Ich denke nach…"}


# ── the real command line ───────────────────────────────────────────────────────────────────────


async def test_up_prints_the_link_that_makes_its_first_user_admin_and_the_token_is_nowhere(
    api: TelegramApi, tmp_path: Path
) -> None:
    with telegram_place(tmp_path, api, TELEGRAM_ALLOWED="", LOG_LEVEL="DEBUG") as place:
        process = await place.up()
        await process.says("?start=")
        found = re.search(r"https://t\.me/rolecall_bot\?start=([\w-]{22})\n", process.said)
        assert found, process.said
        ann, stranger = api.user(ANN), api.user(666)
        stranger.write("let me in")
        await api.wait_for(lambda: 666 in api.world.chats and api.chat(666).answers, seconds=40)
        ann.write(f"/start {found[1]}")
        await api.wait_for(lambda: ANN in api.world.chats and api.chat(ANN).answers, seconds=40)
        stranger.write(f"/start {found[1]}")
        api.lose(0.3)
        await answered(api, "hello")
        assert await asyncio.to_thread(process.stop) == 0
        assert not [path for path in (tmp_path / "log").rglob("*666*")], "a stranger has no transcript"
        assert telegram_proof.leaks(place) == []


async def test_with_a_wrong_token_the_rest_of_up_goes_on_and_other_verbs_end(api: TelegramApi, tmp_path: Path) -> None:
    with telegram_place(tmp_path, api) as place:
        process = place.start("up", "--no-chat", token="4242:some-other-token")
        await process.says("talk ")
        await wait_until(lambda: "is not served, everything else is: Telegram does not know the" in process.logged)
        assert not process.ended
        address = re.search(r"http://127\.0\.0\.1:\d+", process.said)
        assert address is not None

        def warnings() -> str:
            return str(httpx.get(f"{address[0]}/health/ready").json()["warnings"])

        await wait_until(lambda: "Telegram is not served, everything else is: Telegram does not know" in warnings())
        for verb in ("telegram", "invite"):
            other = place.start(verb, token="4242:some-other-token")
            await wait_until(lambda other=other: other.ended, seconds=40)
            assert other.stop() == 2
            assert other.logged.splitlines()[-1].startswith("rolecall: Telegram does not know the token: see")
            assert other.said == ""
        assert await asyncio.to_thread(process.stop) == 0
        assert "Traceback" not in process.said + process.logged


async def test_through_kills_and_lost_answers_each_message_is_answered_once_and_in_order(
    api: TelegramApi, tmp_path: Path
) -> None:
    with telegram_place(tmp_path, api) as place:
        found = await telegram_proof.kill_front_ends(place, turns=12, users=4, every=1.5, fronts=2, quiet=1.0, most=2)
        assert found.good, found
        assert found.kills, found


async def test_processes_deliver_side_by_side_and_one_that_is_killed_loses_and_doubles_nothing(
    api: TelegramApi, tmp_path: Path
) -> None:
    people = [api.user(100 + number) for number in range(12)]
    written = 0

    async def all_write(times: int = 1) -> None:
        nonlocal written
        for _ in range(times):
            for user in people:
                user.write(f"{user.id}-{written}")
            written += 1

    def answered() -> bool:
        return all(telegram_proof.answered(api, user) >= written for user in people)

    with telegram_place(tmp_path, api) as place:
        place.start("worker")
        await place.telegram()
        helper = place.start("telegram")
        await helper.says("this one helps to deliver")

        async def shared() -> bool:
            await all_write()
            await api.wait_for(answered, seconds=60)
            return len(delivered_by(place)) == 2

        await wait_until(shared, seconds=60, what="the second process delivers nothing")
        before = written
        await all_write(3)
        await api.wait_for(lambda: any(telegram_proof.answered(api, user) > before for user in people), seconds=60)
        await asyncio.to_thread(helper.kill)
        await all_write()
        await api.wait_for(answered, seconds=60)
        found = telegram_proof.Kills(written * len(people), kills=1)
        for user in people:
            telegram_proof.judge(api, user, written, found)
        assert found.good, found


def delivered_by(place: Place) -> set[str]:
    """The processes that delivered answers so far, by the transcripts."""
    lines = (line for path in place.directory.rglob("log/**/*.log") for line in path.read_text("utf-8").splitlines())
    return {found[0] for line in lines if " DELIVERED" in line and (found := re.search(r"telegram:\S+", line))}
