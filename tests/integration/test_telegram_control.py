"""Commands, menus and buttons in Telegram: pressed and written by users of the local Telegram, on the real bus."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from telegram import CallbackQuery
from telegram import Chat as TelegramChat
from telegram import Message as TelegramMessage
from telegram import User as TelegramUser

from rolecall import Agent, Context, Envelope, Language, Role
from rolecall.agent.memory import Memory
from rolecall.bus.chat_messages import Placeholders, keep_question
from rolecall.frontends.telegram import buttons
from rolecall.frontends.telegram.access import TRIES
from rolecall.frontends.telegram.bot import open_bot
from rolecall.frontends.telegram.telegram_front import TelegramFront
from rolecall.frontends.texts import LANGUAGES, say
from rolecall.redis import keys
from tests.bus.steps import entries, names
from tests.deployment import Deployment, deployed
from tests.telegram.api import Chat, Message, TelegramApi, User

ADA, BEN, CY = 7, 8, 9
GROUP = -1001


class ManagerAgent(Agent):
    """Tells what it was asked and what it remembers; ``long`` begins an answer and goes on for ever."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text.startswith("/"):
            return envelope.via("command")
        if "long" in envelope.text:
            await ctx.emit("half an answer")
            await asyncio.sleep(60)
        if envelope.text in ("ask me", "Ben: ask me"):
            return envelope.reply(f"it is {await ctx.choose('Which colour?', ['red', 'green'])}")
        if envelope.text == "sure?":
            return envelope.reply(f"agreed: {await ctx.confirm('Really?')}")
        if envelope.text == "my share":
            return envelope.reply(f"{float(envelope.meta['share'])} of {envelope.meta['user']}")
        past = [message.text for message in await ctx.memory.history()]
        liked = await ctx.memory.preferences()
        return envelope.reply(f"{envelope.text} by {liked.get('model', 'any')} after {past}")


class CommandAgent(Agent):
    """Answers what Telegram leaves to the bus."""

    languages = MappingProxyType(
        {
            "de": Language("Deutsch", "Ich antworte jetzt auf Deutsch."),
            "ko": Language("한국어", "이제 한국어로 답변합니다."),
        }
    )

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        app = f" for {envelope.meta['language']}" if envelope.meta.get("language", "en") != "en" else ""
        return envelope.reply(f"command {envelope.text}{app}", remember=False)


class WeatherAgent(Agent):
    """Tells the weather."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("rain")


ROLES = (
    Role(ManagerAgent, instances=4, models=("echo@test", "second@test")),
    Role(CommandAgent),
    Role(WeatherAgent, match="/weather"),
)


@dataclass
class Stage:
    """A deployment with a bot at the local Telegram."""

    app: Deployment
    api: TelegramApi
    front: TelegramFront
    told: list[str] = field(default_factory=list)

    async def answered(self, user: User, text: str, *, chat: int | None = None, topic: int | None = None) -> Message:
        """The bot's message that follows ``text``, when it is no promise any more."""
        place = chat or user.id
        before = len(self.api.chat(place).answers) if place in self.api.world.chats else 0
        user.write(text, chat=chat, topic=topic)
        await self.api.wait_for(lambda: self.done(place, before), what=f"an answer to {text!r}")
        return self.api.chat(place).answers[before]

    def done(self, place: int, before: int) -> bool:
        new = self.api.chat(place).answers[before:]
        promises = {"…", *(say(language, "thinking") for language in LANGUAGES)}
        return bool(new) and new[0].text not in promises

    async def toast(self, user: User, message: Message, data: str) -> str:
        """Press a button; what pops up."""
        query = user.press(message, data)
        return await self.popped(query)

    async def popped(self, query: str) -> str:
        queries = self.api.world.queries
        await self.api.wait_for(lambda: queries[query] is not None, what="the press is answered")
        return str((queries[query] or {})["text"])

    async def received(self) -> None:
        """All that was written and pressed is taken in."""
        await self.api.wait_for(lambda: not self.api.world.updates.waiting, what="the bot takes in what came")

    async def until(self, chat: Chat | int, text: str) -> Message:
        """The bot's message that reads so, once it does."""
        place = chat if isinstance(chat, Chat) else self.api.chat(chat)
        await self.api.wait_for(lambda: text in [one.text for one in place.answers], what=repr(text))
        return next(one for one in place.answers if one.text == text)

    async def preferences(self, conversation: str) -> dict[str, str]:
        bus = self.app.session.bus
        return await Memory(bus, conversation).preferences()

    async def history(self, conversation: str) -> list[tuple[str, str, str]]:
        bus = self.app.session.bus
        found = await Memory(bus, conversation).entries()
        return [(one.role, one.text, one.mark) for one in found]


@asynccontextmanager
async def staged(directory: Path, *, scribe: bool = False, **settings: Any) -> AsyncIterator[Stage]:
    async with TelegramApi() as api:
        given: dict[str, Any] = {
            "telegram_admins": str(ADA),
            "telegram_allowed": f"{BEN},{GROUP}",
            "telegram_edit_seconds": 0.05,
            "drain_seconds": 0.1,
            **settings,
        }
        given |= {"telegram_bot_token": api.token, "telegram_api_url": api.url}
        async with deployed(directory, ROLES, scribe=scribe, **given) as app:
            told: list[str] = []
            bot = open_bot(app.session.application.settings)
            front = TelegramFront(bot, app.session, app.runtime.wakeups, told.append)
            running = asyncio.create_task(front.run(), name="telegram under test")
            try:
                await api.wait_for(lambda: api.polling, what="the bot polls")
                yield Stage(app, api, front, told)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


def data_of(message: Message, label: str) -> str:
    """The data of the button that reads so, a check mark aside."""
    return next(str(one["callback_data"]) for one in message.buttons if one["text"].removeprefix("✓ ") == label)


# ── stop ────────────────────────────────────────────────────────────────────────────────────────


async def test_the_stop_button_ends_the_answer_and_what_was_said_is_remembered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA, language_code="de")
        ada.write("long question")
        shown = await stage.until(stage.api.world.private(ada), "half an answer")
        assert [one["text"] for one in shown.buttons] == ["⏹ Stopp"]

        assert await stage.toast(ada, shown, data_of(shown, "⏹ Stopp")) == "Gestoppt."
        await stage.api.wait_for(lambda: "Gestoppt." in shown.text)
        assert await stage.history("telegram:7") == [
            ("user", "long question", "stopped"), ("assistant", "half an answer", "stopped"),
        ]  # fmt: skip
        assert (await stage.answered(ada, "next")).text.startswith("next by any after")


async def test_the_stop_button_of_a_waiting_message_takes_it_out_of_the_queue(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        ada.write("long question")
        running = await stage.until(stage.api.world.private(ada), "half an answer")
        ada.write("second")
        waiting = await stage.until(ADA, "Queued: number 1")
        assert await stage.toast(ada, waiting, data_of(waiting, "⏹ Stop")) == "Stopped."
        await stage.api.wait_for(lambda: "Stopped." in waiting.text)
        assert running.text == "half an answer"
        assert await stage.toast(ada, running, data_of(running, "⏹ Stop")) == "Stopped."


async def test_an_agent_asks_with_buttons_and_only_its_user_answers(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA, language_code="de")
        ada.write("ask me")
        asked = await stage.until(stage.api.world.private(ada), "Which colour?")
        assert [one["text"] for one in asked.buttons] == ["red", "green"]
        assert await stage.toast(ada, asked, data_of(asked, "green")) == "green"
        await stage.until(stage.api.world.private(ada), "it is green")
        await stage.api.wait_for(lambda: asked.text == "Which colour?\n\n→ green" and not asked.buttons)

        ada.write("sure?")
        sure = await stage.until(stage.api.world.private(ada), "Really?")
        assert [one["text"] for one in sure.buttons] == ["Ja", "Nein"]
        first, second = ada.press(sure, data_of(sure, "Ja")), ada.press(sure, data_of(sure, "Nein"))
        assert sorted([await stage.popped(first), await stage.popped(second)]) == ["Diese Frage ist erledigt.", "Ja"]
        await stage.until(stage.api.world.private(ada), "agreed: True")


async def test_a_press_of_stop_that_comes_too_late_is_answered_kindly(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        ada.write("long question")
        shown = await stage.until(stage.api.world.private(ada), "half an answer")
        data = data_of(shown, "⏹ Stop")
        first, second = ada.press(shown, data), ada.press(shown, data)
        assert sorted([await stage.popped(first), await stage.popped(second)]) == [
            "Stopped.", "There is nothing to stop.",
        ]  # fmt: skip


async def test_a_message_that_its_blocked_user_never_saw_finished_loses_its_dead_button(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ben, bus = stage.api.user(BEN), stage.app.session.bus
        ben.write("long question")
        left = await stage.until(BEN, "half an answer")
        ben.block()
        await stage.app.front.stop(f"telegram:{BEN}")

        async def given_up() -> bool:
            return not await Placeholders(bus).turn_of(f"telegram:{BEN}", str(left.id))

        await stage.api.wait_for(given_up, what="the answer is given up")
        ben.unblock()
        assert await stage.toast(ben, left, data_of(left, "⏹ Stop")) == say("en", "nothing_to_stop")
        await stage.api.wait_for(lambda: not left.buttons, what="the button goes")


async def test_what_an_agent_asks_in_a_group_replies_to_the_question(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        group, ben = stage.api.group(GROUP), stage.api.user(BEN, name="Ben")
        question = ben.write("@rolecall_bot ask me", chat=GROUP)
        asked = await stage.until(group, "Which colour?")
        assert asked.reply_to is question


async def test_in_a_group_only_who_asked_and_admins_stop(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, ben, cy = (stage.api.user(user, name=name) for user, name in ((ADA, "Ada"), (BEN, "Ben"), (CY, "Cy")))
        group = stage.api.group(GROUP)
        for stopper in (ben, ada):
            count = len(group.answers)
            ben.write("@rolecall_bot a long question", chat=GROUP)
            await stage.api.wait_for(lambda count=count: len(group.answers) > count)
            shown = group.answers[-1]
            data = data_of(shown, "⏹ Stop")
            assert await stage.toast(cy, shown, data) == say("en", "not_yours")
            assert await stage.toast(stopper, shown, data) == "Stopped."
            await stage.api.wait_for(lambda shown=shown: "Stopped." in shown.text)


# ── regenerate and feedback ─────────────────────────────────────────────────────────────────────


async def test_regenerate_asks_the_same_again_as_if_the_first_answer_had_not_been(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        await stage.answered(ada, "one")
        first = await stage.answered(ada, "two")
        assert first.text == "two by any after ['one', 'one by any after []']"
        assert [one["text"] for one in first.buttons] == ["🔄 Regenerate", "👍", "👎"]

        before = len(stage.api.chat(ADA).answers)
        assert await stage.toast(ada, first, data_of(first, "🔄 Regenerate")) == "Trying again…"
        await stage.api.wait_for(lambda: stage.done(ADA, before))
        second = stage.api.chat(ADA).answers[before]
        assert first.text == second.text == "two by any after ['one', 'one by any after []']"
        assert [text for _, text, _ in await stage.history("telegram:7")].count("two") == 1

        again = await stage.toast(ada, second, data_of(second, "🔄 Regenerate"))  # the new one can be asked anew, too
        assert again == "Trying again…"
        await stage.api.wait_for(lambda: stage.done(ADA, before + 1))


async def test_an_answer_that_is_there_at_once_quotes_its_question_and_speaks_the_users_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def overtaken(*args: Any) -> None:
        await asyncio.sleep(0.2)  # the answer overtakes what follows the admission
        await keep_question(*args)

    monkeypatch.setattr(buttons, "keep_question", overtaken)
    async with staged(tmp_path) as stage:
        group, ben = stage.api.group(GROUP), stage.api.user(BEN, name="Ben", language_code="de")
        first = await stage.answered(ben, "@rolecall_bot one", chat=GROUP)
        await stage.toast(ben, first, data_of(first, say("de", "regenerate")))
        await stage.api.wait_for(lambda: len(group.answers) == 2 and "one by any" in group.answers[1].text)
        again = group.answers[1]
        await stage.api.wait_for(lambda: again.buttons)
        assert again.reply_to is not None and again.reply_to.text == "@rolecall_bot one"
        assert again.buttons[0]["text"] == say("de", "regenerate")


async def test_two_presses_of_regenerate_in_a_row_are_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        answer = await stage.answered(ada, "one")
        data = data_of(answer, "🔄 Regenerate")
        presses = [ada.press(answer, data) for _ in range(3)]
        assert {await stage.popped(press) for press in presses} == {"Trying again…"}
        await stage.api.wait_for(lambda: stage.done(ADA, 1))
        assert (await stage.answered(ada, "two")).text.endswith("after ['one', 'one by any after []']")
        assert len(stage.api.chat(ADA).answers) == 3


async def test_a_press_that_comes_again_after_a_restart_asks_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, serving = stage.api.user(ADA), stage.front.serving
        assert serving is not None and serving.receiving is not None
        answer = await stage.answered(ada, "one")
        chat = TelegramChat(ADA, "private")
        message = TelegramMessage(answer.id, datetime.now(UTC), chat)
        query = CallbackQuery("55", TelegramUser(ADA, "Ada", False), "1", message, data_of(answer, "🔄 Regenerate"))
        for _ in range(3):
            await serving.receiving.buttons.press(query)
        await stage.api.wait_for(lambda: stage.done(ADA, 1))
        bus = stage.app.session.bus
        assert await bus.server.call("HGET", bus.shard("telegram:7").conversation("telegram:7"), "seq") == b"2"


async def test_models_are_asked_for_a_guest_on_half_of_the_budgets_and_for_an_admin_on_no_limit(tmp_path: Path) -> None:
    async with staged(tmp_path, telegram_allowed="*") as stage:
        assert (await stage.answered(stage.api.user(CY), "my share")).text == "0.5 of telegram:user:9"
        assert (await stage.answered(stage.api.user(ADA), "my share")).text == "0.0 of telegram:user:7"


async def test_votes_are_counted_noted_and_taken_back(tmp_path: Path) -> None:
    async with staged(tmp_path, scribe=True) as stage:
        ada = stage.api.user(ADA)
        answer = await stage.answered(ada, "one")
        turn = data_of(answer, "👍").partition(":")[2]
        assert await stage.toast(ada, answer, f"up:{turn}") == "Thank you!"
        assert await stage.toast(ada, answer, f"down:{turn}") == "Thank you!"
        assert await stage.toast(ada, answer, f"down:{turn}") == "Rating removed."
        logs = stage.app.log_dir

        def written() -> bool:
            text = "".join(path.read_text() for path in logs.rglob("*.log"))
            return re.findall(r"feedback (.*) from telegram:user:7", text) == ["up", "down", "taken back"]

        await stage.api.wait_for(written, what="the votes are in the transcript")


# ── an edited message ───────────────────────────────────────────────────────────────────────────


async def test_an_edited_message_that_was_answered_can_be_answered_anew(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        await stage.answered(ada, "one")
        question = stage.api.chat(ADA).messages[0]
        ada.edit(question, "eins")
        offer = await stage.until(ADA, say("en", "edited"))
        assert await stage.toast(ada, offer, data_of(offer, "🔄 Answer again")) == "Trying again…"
        assert (await stage.until(ADA, "eins by any after []")).buttons
        await stage.api.wait_for(lambda: offer.deleted, what="the offer goes")


async def test_an_edited_message_that_is_being_answered_is_begun_anew(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        question = ada.write("long question")
        old = await stage.until(ADA, "half an answer")
        ada.edit(question, "short")
        offer = await stage.until(ADA, say("en", "edited"))
        await stage.toast(ada, offer, data_of(offer, "🔄 Answer again"))
        await stage.until(ADA, "short by any after []")
        await stage.api.wait_for(lambda: "Cancelled: you edited" in old.text)


# ── pickers ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_model_picker_is_one_message_that_changes(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        picker = await stage.answered(ada, "/model")
        assert [one["text"] for one in picker.buttons] == ["✓ automatic", "echo@test", "second@test"]

        assert await stage.toast(ada, picker, data_of(picker, "second@test")) == "Now: second@test"
        await stage.api.wait_for(lambda: picker.text == "Now: second@test")
        assert [one["text"] for one in picker.buttons] == ["automatic", "echo@test", "✓ second@test"]
        assert (await stage.answered(ada, "hi")).text.startswith("hi by second@test")

        await stage.toast(ada, picker, data_of(picker, "automatic"))
        await stage.api.wait_for(lambda: picker.text == "Now: automatic")
        assert await stage.preferences("telegram:7") == {}
        assert len(stage.api.chat(ADA).answers) == 2
        assert (await stage.answered(ada, "/model second@test")).text == "command /model second@test"


async def test_the_queue_of_a_chat_is_picked_and_holds(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        picker = await stage.answered(ada, "/queue")
        assert picker.buttons[0]["text"] == "✓ Answer each one in order"
        typed = await stage.answered(ada, "/queue Collect")
        assert typed.buttons[1]["text"] == "✓ Answer waiting messages together"
        assert await stage.preferences("telegram:7") == {"queue": "collect"}
        await stage.toast(ada, picker, data_of(picker, "Stop and answer the newest one"))
        assert await stage.preferences("telegram:7") == {"queue": "interrupt"}
        ada.write("long question")
        await stage.until(ADA, "half an answer")
        ada.write("newer")
        await stage.api.wait_for(lambda: [t for t in stage.api.chat(ADA).texts if t.startswith("newer by")])


async def test_the_role_picker_offers_roles_that_answer_in_the_users_language(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA, language_code="ja")
        picker = await stage.answered(ada, "/role")
        assert [one["text"] for one in picker.buttons] == ["✓ 自動", "weather"]
        await stage.toast(ada, picker, data_of(picker, "weather"))
        assert await stage.preferences("telegram:7") == {"role": "weather"}


# ── what cannot be honoured ─────────────────────────────────────────────────────────────────────


async def test_the_language_picker_has_native_names_and_confirms_in_the_new_language(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA, language_code="es")
        picker = await stage.answered(ada, "/lang")
        assert picker.text == "¿En qué idioma debo responder?"
        assert [one["text"] for one in picker.buttons] == ["✓ automático", "Deutsch", "한국어"]
        await stage.toast(ada, picker, data_of(picker, "Deutsch"))
        await stage.api.wait_for(lambda: picker.text == "Ich antworte jetzt auf Deutsch.")
        assert await stage.preferences("telegram:7") == {"lang": "de"}
        assert (await stage.answered(ada, "/lang ko")).text == "command /lang ko for es"
        await stage.toast(ada, picker, data_of(picker, "automático"))
        await stage.api.wait_for(lambda: picker.text == say("es", "chosen_lang"))
        assert await stage.preferences("telegram:7") == {}


FORGED = ("", ":", "stop", "stop:", "stop:x", "stop:99", "again:99", "up:99", "down:0", "edit:99", "model:ffffffffffff",
          "role:x", "queue:", "nonsense:1", "again:c1", "up:1:2", "stop:٣", "x" * 64)  # fmt: skip


async def test_forged_and_old_buttons_change_nothing_and_are_answered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        answer = await stage.answered(ada, "one")
        before = await names(stage.app.session.bus)
        kind = {say("en", key) for key in ("too_old", "unknown_button", "nothing_to_stop")}
        for data in FORGED:
            answer.looks[-1].markup = {"inline_keyboard": [[{"text": "x", "callback_data": data}]]}
            assert await stage.toast(ada, answer, data) in kind, data
        assert await names(stage.app.session.bus) ^ before <= {keys.METRICS}  # figures follow within a second
        assert len(stage.api.chat(ADA).answers) == 1


async def test_a_button_of_another_message_does_not_reach_this_ones_turn(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        first, second = await stage.answered(ada, "one"), await stage.answered(ada, "two")
        data = data_of(first, "👍")
        second.looks[-1].markup = {"inline_keyboard": [[{"text": "x", "callback_data": data}]]}
        assert await stage.toast(ada, second, data) == say("en", "too_old")


async def test_a_message_too_old_for_telegram_to_show_is_answered(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        await stage.answered(ada, "one")
        query = "77"
        stage.api.world.queries[query] = None
        old = {"chat": stage.api.chat(ADA).as_json(), "message_id": 1, "date": 0}
        body = {"id": query, "from": ada.as_json(), "message": old, "chat_instance": "1", "data": "again:1"}
        stage.api.world.updates.push("callback_query", body)
        assert await stage.popped(query) == say("en", "too_old")


async def test_a_question_that_is_not_kept_any_more_is_said_so(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, bus = stage.api.user(ADA), stage.app.session.bus
        answer = await stage.answered(ada, "one")
        await bus.server.call("DEL", bus.shard("telegram:7").question("telegram:7", "1"))
        assert await stage.toast(ada, answer, data_of(answer, "🔄 Regenerate")) == say("en", "too_old")


def test_the_data_of_buttons_fits() -> None:
    for keyboard in (buttons.stop_keyboard, buttons.answer_keyboard, buttons.edit_keyboard):
        for button in keyboard("9" * 18).inline_keyboard[0]:
            assert len(str(button.callback_data).encode()) <= 64


# ── strangers and codes ─────────────────────────────────────────────────────────────────────────


async def test_a_stranger_costs_no_envelope_and_is_answered_once(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        cy = stage.api.user(CY, language_code="fr")
        for text in ("hello", "/help", "/start", "/model", "/stop", "/clear", "anyone?"):
            cy.write(text)
        await stage.received()
        await stage.until(CY, say("fr", "requested", id=CY))
        assert [one.text for one in stage.api.chat(CY).answers] == [say("fr", "requested", id=CY)]
        assert str(CY) in stage.api.chat(CY).answers[0].text
        assert stage.api.chat(CY).actions == []
        kept = await names(stage.app.session.bus)
        own = {name for name in kept if f"telegram:{CY}" in name or f":{CY}" in name}
        reply = {name for name in own if name.split(":")[2] in "kvy"}  # that it was told, and by which message
        assert own - reply == {f"{{bus:0}}:front:telegram:{what}:{CY}" for what in ("refused", "asked", "applicant")}
        assert all([await stage.app.session.bus.server.call("PTTL", name) != -1 for name in own])
        assert [one["c"] for one in await entries(stage.app.session.bus, "{bus:0}:l") if str(CY) in one["c"]] == []


async def test_a_stranger_that_presses_a_button_in_a_group_reaches_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path, telegram_allowed=str(BEN)) as stage:
        ben, cy = stage.api.user(BEN), stage.api.user(CY)
        group = stage.api.group(GROUP)
        answer = await stage.answered(ben, "@rolecall_bot one", chat=GROUP)
        assert str(CY) in await stage.toast(cy, answer, data_of(answer, "🔄 Regenerate"))
        assert len(group.answers) == 1


async def test_a_link_made_by_invite_lets_one_in(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, cy = stage.api.user(ADA), stage.api.user(CY, name="Cy")
        invitation = await stage.answered(ada, "/invite")
        link = re.search(r"https://t\.me/rolecall_bot\?start=([A-Za-z0-9_-]{22})$", invitation.text)
        assert link
        assert (await stage.answered(cy, f"/start {link[1]}")).text == say("en", "welcome")
        assert (await stage.answered(cy, "hello")).text.startswith("hello by")
        users = await stage.answered(ada, "/users")
        assert users.text.splitlines() == [
            "User 7 (7): admin, 0 tokens today",
            "8: user, 0 tokens today",
            "Cy (9): user, 0 tokens today",
            "-1001: guest",
        ]


async def test_wrong_codes_are_answered_until_there_were_too_many(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        cy = stage.api.user(CY)
        for n in range(TRIES.user + 4):
            cy.write(f"/start guess{n}")
        await stage.received()
        await stage.until(CY, say("en", "code_tries"))
        said = [one.text for one in stage.api.chat(CY).answers]
        wrong = [say("en", "code_wrong", id=CY)] * TRIES.user
        assert said == [*wrong, say("en", "code_tries")]


async def test_the_start_link_makes_the_first_admin(tmp_path: Path) -> None:
    async with staged(tmp_path, telegram_admins="", telegram_allowed="") as stage:
        code = next(found[1] for line in stage.told if (found := re.search(r"start=([\w-]+)", line)))
        ada, ben = stage.api.user(ADA, language_code="es"), stage.api.user(BEN)
        assert (await stage.answered(ada, f"/start {code}")).text == say("es", "welcome_admin")
        assert (await stage.answered(ben, f"/start {code}")).text == say("en", "code_wrong", id=BEN)
        scope = json.dumps({"type": "chat", "chat_id": ADA}, sort_keys=True)
        await stage.api.wait_for(lambda: (scope, "") in stage.api.world.commands, what="the menu of an admin")
        assert "t.me" in (await stage.answered(ada, "/invite")).text


# ── commands ────────────────────────────────────────────────────────────────────────────────────


async def test_admins_let_in_shut_out_and_tell_everyone(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, ben, cy = (stage.api.user(user) for user in (ADA, BEN, CY))
        assert (await stage.answered(ada, f"/allow {CY} guest")).text == "9 now has access (guest)."
        assert (await stage.answered(cy, "/whoami")).text.startswith("Your Telegram ID: 9 (guest).")
        for wrong in ("/allow", "/allow cy", "/allow 9 king", "/allow --5"):
            assert (await stage.answered(ada, wrong)).text.startswith("Add a user's Telegram ID: /allow"), wrong
        assert (await stage.answered(ada, "/broadcast We are back.")).text == "Sent. Recipients: 2."
        await stage.until(CY, "We are back.")

        assert (await stage.answered(ada, f"/deny {BEN}")).text == "8 is now blocked."
        assert (await stage.answered(ada, "/allow -1009")).text == "-1009 now has access (guest)."
        assert (await stage.answered(ben, "hello")).text == say("en", "stranger", id=BEN)
        assert (await stage.answered(ada, f"/deny {ADA}")).text.startswith("7 can't be blocked here")


async def test_a_broadcast_reaches_whoever_wrote_to_a_bot_for_everyone_with_all_of_its_text(tmp_path: Path) -> None:
    async with staged(tmp_path, telegram_allowed="*") as stage:
        ada, ben, cy = (stage.api.user(user) for user in (ADA, BEN, CY))
        stage.api.group(GROUP)
        await stage.answered(ben, "hello")
        await stage.answered(cy, "@rolecall_bot hello", chat=GROUP)  # but never in private
        assert (await stage.answered(ada, "/broadcast Soon.")).text == "Sent. Recipients: 1."
        await stage.until(BEN, "Soon.")
        first = ada.write("/broadcast " + "a" * 4080)
        assert len(first.text) > 4000
        ada.write("and the end")  # what a client cut off
        await stage.until(BEN, "a" * 4080)
        await stage.until(BEN, "and the end")
        await stage.api.wait_for(
            lambda: [one.text for one in stage.api.chat(ADA).answers][1:] == ["Sent. Recipients: 1."] * 2
        )
        assert await stage.history(f"telegram:{ADA}") == []


@pytest.mark.parametrize("command", ["/invite", "/users", "/allow 9", "/deny 7", "/broadcast x"])
async def test_only_admins_may_do_what_admins_do_and_only_in_private(command: str, tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, ben = stage.api.user(ADA), stage.api.user(BEN)
        stage.api.group(GROUP)
        assert (await stage.answered(ben, command)).text == say("en", "admins_only")
        assert (await stage.answered(ada, command, chat=GROUP)).text == say("en", "privately")
        assert not {name for name in await names(stage.app.session.bus) if ":members" in name or ":code:" in name}


async def test_help_start_and_whoami_speak_the_users_language(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada, ben = stage.api.user(ADA), stage.api.user(BEN, language_code="ru-RU")
        assert (await stage.answered(ben, "/start")).text == say("ru", "welcome")
        lines = (await stage.answered(ben, "/help")).text.splitlines()
        assert "/stop – Остановить ответ и всё, что ждёт" in lines
        assert "/weather – Tells the weather." in lines and not [line for line in lines if "/invite" in line]
        assert "/deny ID – Block a user" in (await stage.answered(ada, "/help")).text.splitlines()
        assert (await stage.answered(ada, "/whoami")).text.splitlines() == [
            "Your Telegram ID: 7 (admin). This conversation: telegram:7.",
            "Settings: automatic",
            "Used today: 0 tokens.",
        ]


async def test_commands_of_the_bus_are_answered_while_a_turn_runs(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ada = stage.api.user(ADA)
        ada.write("long question")
        await stage.until(stage.api.world.private(ada), "half an answer")
        stats = await stage.answered(ada, "/stats")
        assert stats.text == "command /stats"
        assert stats.buttons == []


async def test_menus_are_there_for_private_chats_groups_and_admins_in_every_language(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.api.user(ADA).write("hello")
        known = stage.api.world.commands
        await stage.api.wait_for(lambda: len(known) == 3 * len(LANGUAGES) - 3, what="all menus are set")
        private = json.dumps({"type": "all_private_chats"})
        group = json.dumps({"type": "all_group_chats"})
        admin = json.dumps({"type": "chat", "chat_id": ADA}, sort_keys=True)
        open_names = [
            "help",
            "start",
            "stop",
            "clear",
            "reset",
            "lang",
            "model",
            "role",
            "reminders",
            "timezone",
            "files",
            "stats",
            "whoami",
            "queue",
        ]
        assert [one["command"] for one in known[private, ""]] == [*open_names, "weather"]
        assert "start" not in [one["command"] for one in known[group, "de"]]
        assert {"invite", "users", "allow", "deny"} <= {one["command"] for one in known[admin, "zh"]}
        assert known[private, "ru"][2]["description"] == say("ru", "menu_stop")
        assert {language for _, language in known} == {"", *LANGUAGES} - {"en", "zh-hant"}


async def test_topics_keep_their_own_choices_and_answers_stay_in_them(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        ben = stage.api.user(BEN, name="Ben")
        group = stage.api.group(GROUP, topics={5: "Work", 6: "Play"})
        group.admins.add(BEN)
        picker = await stage.answered(ben, "/model@rolecall_bot", chat=GROUP, topic=5)
        assert picker.thread == 5
        await stage.toast(ben, picker, data_of(picker, "second@test"))
        assert await stage.preferences(f"telegram:{GROUP}:5") == {"model": "second@test"}
        assert await stage.preferences(f"telegram:{GROUP}:6") == await stage.preferences(f"telegram:{GROUP}") == {}
        answer = await stage.answered(ben, "@rolecall_bot hi", chat=GROUP, topic=5)
        assert answer.text.startswith("Ben: hi by second@test")
        before = len(group.answers)
        await stage.toast(ben, answer, data_of(answer, "🔄 Regenerate"))
        await stage.api.wait_for(lambda: stage.done(GROUP, before))
        assert {one.thread for one in group.answers} == {5}
