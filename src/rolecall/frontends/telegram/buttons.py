"""Inline buttons and what happens when one is pressed.

Button data names only a turn of the conversation that the message is in, so forged data cannot reach another
conversation. Access is checked for presses as it is for messages.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from telegram import Bot, CallbackQuery, InlineKeyboardButton, InlineKeyboardMarkup, Message
from telegram.error import TelegramError

from rolecall.background import BackgroundTasks
from rolecall.bus.admission import move_message
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.chat_messages import (
    Placeholders,
    close_offer,
    keep_question,
    only_message,
    pressed_before,
    question_of,
)
from rolecall.bus.conversation import asker_of, forget_turn, prefer, remembered, toggle_feedback
from rolecall.bus.events import so_far
from rolecall.bus.members import applicant
from rolecall.bus.schedule.schedules import schedules_of, unschedule, unschedule_turn
from rolecall.bus.steps.answers import QuestionPlace, find_question
from rolecall.bus.turn import root_of
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access, GroupAdmins, UserStatus
from rolecall.frontends.telegram.admins import let_in
from rolecall.frontends.telegram.bot import explain
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.message import Address, address_of, name_of, principal_of
from rolecall.frontends.telegram.pickers import PICKERS, Choices, chosen_message, reminders_message
from rolecall.frontends.telegram.placeholders import REPLY
from rolecall.frontends.texts import meta_of, say

if TYPE_CHECKING:
    from rolecall.frontends.telegram.progress import ProgressDisplay


logger = logging.getLogger(__name__)
TURN = re.compile(r"\d{1,18}", re.ASCII)
SCHEDULE = re.compile(r"[0-9a-f]{8}", re.ASCII)
CHAT = re.compile(r"-?\d{1,18}", re.ASCII)
CHOICE = re.compile(r"\d{1,2} [\w.:/-]{1,60}", re.ASCII)
TOAST_CHARS = 200
TWICE_MS = 3000
"""Two presses of Regenerate within this time count as one."""
OFFER_MS = 86_400_000
"""Presses of one offer within this time count as one."""


def stop_keyboard(turn: str, language: str | None = None) -> InlineKeyboardMarkup:
    """The keyboard of a placeholder: Stop."""
    return _row((say(language, "stop"), f"stop:{turn}"))


def answer_keyboard(turn: str, language: str | None = None) -> InlineKeyboardMarkup:
    """The keyboard of an answer: Regenerate, 👍 and 👎. Not for control turns and notices."""
    return _row((say(language, "regenerate"), f"again:{turn}"), ("👍", f"up:{turn}"), ("👎", f"down:{turn}"))


def question_message(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The message of an agent's question, as a reply in the outbox: a button for each option, yes and no in one row."""
    options, language = asked.get("options") or (), str(asked.get("language", ""))
    confirms = asked.get("style") == "confirm"
    labels = [say(language, option) if confirms else str(option) for option in options]
    row = [{"text": label, "callback_data": f"choose:{n} {asked['id']}"} for n, label in enumerate(labels)]
    return {"text": asked.get("text", ""), "buttons": [row] if confirms else [[button] for button in row]}


def edit_keyboard(turn: str, language: str | None = None) -> InlineKeyboardMarkup:
    """The keyboard of the offer to answer an edited message again. ``turn`` answered it before; ``keep_question`` has
    stored the new payload."""
    return _row((say(language, "answer_anew"), f"edit:{turn}"))


@dataclass(frozen=True, slots=True)
class ButtonPress:
    """A press of a button: by whom, and on which message."""

    id: str
    status: UserStatus
    language: str | None
    address: Address
    message_id: int
    title: str
    verb: str
    argument: str

    @property
    def principal(self) -> str:
        return principal_of(self.status.user)

    @property
    def conversation(self) -> str:
        return self.address.conversation

    def say(self, key: str, **values: object) -> str:
        return say(self.language, key, **values)


@dataclass
class Buttons:
    """Handles presses. One that is too old, forged or by a stranger gets a friendly answer."""

    bot: Bot
    front: Front
    access: Access
    choices: Choices
    placeholders: Placeholders
    chats: Chats
    progress: ProgressDisplay
    _tasks: BackgroundTasks = field(default_factory=BackgroundTasks, repr=False)

    def __post_init__(self) -> None:
        self.rights = GroupAdmins(self.bot, self.chats.current)

    async def press(self, query: CallbackQuery) -> None:
        """Handle a press; returns once its effect is stored in the server. Messages to Telegram are sent in the
        background. Idempotent. Raises ServerUnavailable."""
        toast = await self._pressed(query)
        self._later(self.bot.answer_callback_query(query.id, toast[:TOAST_CHARS]), "toast")

    async def aclose(self) -> None:
        """Cancel the messages to Telegram that are not sent yet."""
        await self._tasks.drain(0)

    async def _pressed(self, query: CallbackQuery) -> str:
        """Handle the press; returns the text for the user."""
        user, message = query.from_user, query.message
        if not isinstance(message, Message):  # too old: Telegram does not include it
            return say(user.language_code, "too_old")
        address = await self.access.home(address_of(message, self.front.name))
        status = await self.access.status_of(user.id, address.chat)
        if not status.allowed:
            return say(user.language_code, "stranger", id=user.id)
        verb, _, argument = (query.data or "").partition(":")
        press = ButtonPress(
            query.id, status, user.language_code, address, message.message_id,
            message.chat.title or name_of(user), verb, argument,
        )  # fmt: skip
        return await self._find(press)(press)

    def _find(self, press: ButtonPress) -> Callable[[ButtonPress], Awaitable[str]]:
        if press.verb in PICKERS:
            return self._pick
        if press.verb == "unremind" and SCHEDULE.fullmatch(press.argument):
            return self._unremind
        if press.verb in ("allow", "deny") and CHAT.fullmatch(press.argument):
            return self._decide
        if press.verb == "choose" and CHOICE.fullmatch(press.argument):
            return self._choose
        verbs = {"stop": self._stop, "again": self._again, "edit": self._edit, "up": self._vote, "down": self._vote}
        return verbs.get(press.verb, self._unknown) if TURN.fullmatch(press.argument) else self._unknown

    async def _unknown(self, press: ButtonPress) -> str:
        return press.say("unknown_button")

    # ── questions ───────────────────────────────────────────────────────────────────────────────

    async def _choose(self, press: ButtonPress) -> str:
        """Answer an agent's question. Its message then shows what was chosen, without buttons."""
        number, _, question = press.argument.partition(" ")
        asked = await find_question(self.front.bus, press.conversation, question)
        verdict = await self.front.answer(press.conversation, question, int(number), principal=press.principal)
        if verdict == "FORBIDDEN" and (asker := await self._asking_chat(press, question)):
            verdict = await self.front.answer(press.conversation, question, int(number), principal=asker)
        if verdict == "FORBIDDEN":
            return press.say("not_asked")
        if verdict != "OK" or asked is None:
            self._remove_keyboard(press)
            return press.say("question_closed")
        option = asked.options[int(number)]
        chosen = press.say(option) if asked.style == "confirm" else option
        shown = TextPart(f"{asked.text}\n\n→ {chosen}")
        self._later(self.chats.edit(press.address, press.message_id, shown), "question")
        return chosen

    async def _asking_chat(self, press: ButtonPress, question: str) -> str:
        """The user of the turn that asks ``question``, if that is a chat, such as the group of an anonymous admin: it
        presses no buttons, so its admins do. Empty for anyone else's."""
        place = QuestionPlace.parse(question)
        turn = root_of(place.turn) if place else ""
        asker = await asker_of(self.front.bus, press.conversation, turn) or ""
        is_chat = asker.rpartition(":")[2].startswith("-")
        return asker if is_chat and await self.rights.include(press.status, press.address) else ""

    # ── turns ─────────────────────────────────────────────────────────────────────────

    async def _stop(self, press: ButtonPress) -> str:
        """Cancel the turn and keep the text so far in the history. In a group, only its user and admins may."""
        bus, turn = self.front.bus, press.argument
        if await asker_of(bus, press.conversation, turn) is None:
            if not await self._shows(press):  # a message that was left behind
                self._remove_keyboard(press)
            return press.say("nothing_to_stop")
        if not await self._may_end(press):
            return press.say("not_yours")
        ended = await self._end(press, turn, press.say("stopped"))
        return press.say("stopped" if ended else "nothing_to_stop")

    async def _may_end(self, press: ButtonPress) -> bool:
        asker = await asker_of(self.front.bus, press.conversation, press.argument)
        return asker in (None, press.principal) or await self.rights.include(press.status, press.address)

    async def _end(self, press: ButtonPress, turn: str, text: str) -> bool:
        bus, conversation = self.front.bus, press.conversation
        asked = await question_of(self.front.bus, conversation, turn) or {}
        words = str(asked.get("text", ""))
        history = remembered(words, await so_far(bus, conversation, turn), turn, "stopped") if words else []
        return await cancel_turn(bus, conversation, turn, instance=self.front.instance, text=text, history=history)

    async def _again(self, press: ButtonPress) -> str:
        """Ask the question again. The old answer stays in the chat, but is removed from the history."""
        if not await self._shows(press):
            return press.say("too_old")
        turn = (self.front.bus, press.conversation, press.argument)
        doubled = await pressed_before(*turn, press.id, ms=TWICE_MS)
        return press.say("again") if doubled else await self._ask(press)

    async def _edit(self, press: ButtonPress) -> str:
        """Answer the edited message, once for each offer; a turn that still runs for it is cancelled, by its user or an
        admin."""
        shown = await self.placeholders.turn_of(press.conversation, str(press.message_id))
        if shown and not shown.startswith(REPLY):  # an answer, not an offer
            return await self._unknown(press)
        if not await self._may_end(press):
            return press.say("not_yours")
        offer = (self.front.bus, press.conversation, f"{press.argument}/{press.message_id}")
        if await pressed_before(*offer, press.id, ms=OFFER_MS):
            return press.say("again")
        self._later(self.chats.delete(press.address, press.message_id), "offer")
        await close_offer(self.front.bus, press.conversation, press.argument)
        if await question_of(self.front.bus, press.conversation, press.argument) is None:
            return press.say("too_old")
        await cancel_turn(
            self.front.bus, press.conversation, press.argument, instance=self.front.instance,
            text=press.say("replaced"), reason="the message was changed",
        )  # fmt: skip
        return await self._ask(press)

    async def _ask(self, press: ButtonPress) -> str:
        payload = await question_of(self.front.bus, press.conversation, press.argument)
        if payload is None:
            return press.say("too_old")
        if await self.access.pace(press.status) != "OK":
            return press.say("too_fast")
        key = f"tg:{self.bot.id}:cb:{press.id}"
        received = await self.front.receive(
            press.conversation, str(payload.get("text", "")), payload=payload, idempotency=key,
            principal=press.principal, title=press.title,
            meta={
                **press.status.meta, **meta_of(press.language), "again": press.argument, "asks": press.language or True,
            },
        )  # fmt: skip
        if not received.turn:
            keys = {"FULL": "full", "BUSY": "busy", "CONFLICT": "conflict", "TOO_LARGE": "message_large"}
            return press.say(keys.get(received.outcome, "not_received"))
        # Only now, so that a refusal changes nothing; until then "again" in the meta hides the old answer from it.
        await forget_turn(self.front.bus, press.conversation, press.argument)
        await unschedule_turn(self.front.bus, press.conversation, press.argument, instance=self.front.instance)
        message = await only_message(self.front.bus, press.conversation, press.argument)
        await keep_question(self.front.bus, press.conversation, received.turn, message or key, payload)
        if message:
            await move_message(self.front.bus, press.conversation, message, key)
        asked = await self.progress.turn_messages.of(press.conversation, press.argument)
        await self.progress.show(received, press.address, asked.question or press.message_id, press.language)
        return press.say("again")

    # ── feedback ───────────────────────────────────────────────────────────────────

    async def _vote(self, press: ButtonPress) -> str:
        """Record a vote; the same vote again takes it back."""
        if not await self._shows(press):
            return press.say("too_old")
        counts = await toggle_feedback(
            self.front.bus, press.conversation, press.argument, press.principal,
            "up" if press.verb == "up" else "down", instance=self.front.instance,
        )  # fmt: skip
        return press.say("thanks" if counts else "taken_back")

    # ── preferences ─────────────────────────────────────────────────────────────────────────────

    async def _pick(self, press: ButtonPress) -> str:
        value = self.choices.value_of(press.verb, press.argument)
        if value is None:
            return press.say("unknown_button")
        if not await self.rights.include(press.status, press.address):
            return press.say("group_admins_only")
        await prefer(self.front.bus, press.conversation, press.verb, value, instance=self.front.instance)
        chosen = chosen_message(press.verb, value, self.choices, press.language)
        self._later(self.chats.edit(press.address, press.message_id, TextPart(chosen.text), chosen.keyboard), "picker")
        return chosen.text

    # ── access ────────────────────────────────────────────────────────────────────────────────

    async def _decide(self, press: ButtonPress) -> str:
        """Let in, or deny, who asked for access: a user or a group. Only admins, in their private chats."""
        if press.status.rank != "admin" or not press.address.private:
            return press.say("admins_only")
        number, allowed = int(press.argument), press.verb == "allow"
        name, _ = await applicant(self.front.bus, self.front.name, number)
        if allowed:
            rank = (await self.access.status_of(number, min(number, 0))).rank
            if rank == "stranger":  # else this was decided before, by another admin or another press
                rank = "user" if number > 0 else "guest"
                await let_in(self.access, number, rank, str(self.bot.username))
            text = press.say("let_in", id=f"{name} ({number})", rank=press.say(f"rank_{rank}"))
        else:
            denied = await self.access.deny(number)
            text = press.say("shut_out" if denied else "cannot_deny", id=f"{name} ({number})")
        self._later(self.chats.edit(press.address, press.message_id, TextPart(text)), "request")
        return text

    # ── reminders ───────────────────────────────────────────────────────────────────────────────

    async def _unremind(self, press: ButtonPress) -> str:
        """Delete a reminder and show the rest. In a group, only who set it and admins may."""
        bus, conversation = self.front.bus, press.conversation
        found = await schedules_of(bus, conversation)
        chosen = next((one for one in found if one.id == press.argument), None)
        own = chosen is None or chosen.definition.user == press.principal
        if not own and not await self.rights.include(press.status, press.address):
            return press.say("not_yours")
        if chosen is not None:
            await unschedule(bus, conversation, chosen.id, instance=self.front.instance)
            found.remove(chosen)
        left = reminders_message(found, press.language)
        self._later(self.chats.edit(press.address, press.message_id, TextPart(left.text), left.keyboard), "reminders")
        return press.say("reminder_deleted", text=chosen.text) if chosen else press.say("reminder_unknown")

    # ── helpers ─────────────────────────────────────────────────────────────────────────

    async def _shows(self, press: ButtonPress) -> bool:
        """Whether the message shows the turn that the button names."""
        shown = await self.placeholders.turn_of(press.conversation, str(press.message_id))
        return shown == press.argument

    def _remove_keyboard(self, press: ButtonPress) -> None:
        chat = self.chats.current(press.address.chat)
        self._later(self.bot.edit_message_reply_markup(chat, press.message_id), "keyboard")

    def _later(self, work: Coroutine[Any, Any, object], what: str) -> None:
        self._tasks.start(_logged(work), f"rolecall telegram {what}")


async def _logged(work: Coroutine[Any, Any, object]) -> None:
    """Await ``work``; log what Telegram refuses, such as a press that is answered too late."""
    try:
        await work
    except TelegramError as error:
        logger.info("after a button was pressed: %s", explain(error))


def _row(*buttons: tuple[str, str]) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup([[InlineKeyboardButton(text, callback_data=data) for text, data in buttons]])
