"""Admits messages: each becomes a turn, an edit of one, an answered command, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any, NamedTuple

from telegram import Message

from rolecall.background import BackgroundTasks
from rolecall.bus.admission import MODES, Mode, answered_without_turn, edit_message, mark_answered, move_message
from rolecall.bus.cancel import stop_turns_of, withdraw_message
from rolecall.bus.chat_messages import (
    has_fingerprint,
    keep_question,
    note_fingerprint,
    offer_once,
    only_message,
    question_of,
)
from rolecall.bus.commands import Command, find_command
from rolecall.bus.conversation import forget_turn, preference, running_turn
from rolecall.bus.envelope import UNREAD, Envelope
from rolecall.bus.members import note_applicant, note_visitor
from rolecall.bus.outbox import reply
from rolecall.bus.schedule.schedules import unschedule_turn
from rolecall.errors import EnvelopeTooLarge
from rolecall.frontends.front import Front, Received
from rolecall.frontends.telegram import buttons
from rolecall.frontends.telegram.access import Access, UserStatus
from rolecall.frontends.telegram.chats import Keyboard
from rolecall.frontends.telegram.grouping import MessageGroup, MessageGroups, Ticket
from rolecall.frontends.telegram.media import FetchedFiles, Media
from rolecall.frontends.telegram.menu import TELEGRAM_COMMANDS, Commands
from rolecall.frontends.telegram.message import Address, Incoming, idempotency_of
from rolecall.frontends.telegram.progress import ProgressDisplay
from rolecall.frontends.texts import meta_of, say

CARRIED_OUT = {"STOPPED": "stopped", "IDLE": "nothing_to_stop", "FORGOTTEN": "forgotten"}
"""Keys of texts.toml for the outcomes of commands that the front end carries out."""
FOR_ADMINS = frozenset(("clear", "reset", "model", "role", "queue"))
"""Commands that change something for a whole group; SETTERS do with an argument."""
SETTERS = frozenset(("lang", "timezone", "files"))
PEOPLE = 10_000
REFUSAL_SECONDS = 60.0
"""A chat is told at most this often that a message was not accepted."""
CUT_NOTE = "[The end of this message is missing: it was too long. Answer what is there and say that it is incomplete.]"
"""What a model reads in place of the pieces that did not fit."""
RECENT_SECONDS = 600
"""An edited message that was not admitted before counts as new up to this age."""


class EditedQuestion(NamedTuple):
    """What an edited message asks as a turn of its own, and the key to admit that under. ``message`` is the key of the
    message, if later edits of it concern that turn; ``turn`` asked it before and is forgotten."""

    payload: Mapping[str, Any]
    key: str
    message: str = ""
    turn: str = ""


@dataclass
class Admitter:
    """Admits the messages of users, as their access and the state of their conversation allow."""

    front: Front
    media: Media
    access: Access
    commands: Commands
    progress: ProgressDisplay
    groups: MessageGroups
    _people: dict[int, tuple[object, ...]] = field(default_factory=dict, repr=False)
    _releases: BackgroundTasks = field(default_factory=BackgroundTasks, repr=False)

    async def aclose(self) -> None:
        """End what goes on in the background; a turn that is held is then released by a worker."""
        self._releases.cancel()
        await self._releases.drain()

    # ── access ────────────────────────────────────────────────────────────────────────────────

    async def admit(self, incoming: Incoming, group: MessageGroup, ticket: Ticket) -> None:
        """Admit ``incoming``, whose address is its conversation's, or tell its user why not. Idempotent."""
        if group.command:
            argument = incoming.text if group.further else incoming.argument
            incoming = replace(incoming, command=group.command, argument=argument)
        message = (self.front.bus, incoming.address.conversation, incoming.idempotency, incoming.fingerprint)
        if incoming.version or not incoming.files:  # downloads need not wait for what came before, such as a code
            await ticket.wait()
        if incoming.version and await has_fingerprint(*message):
            return
        status = await self.access.status_of(incoming.user, incoming.address.chat)
        if not status.allowed:
            await ticket.wait()
            status = await self.access.status_of(incoming.user, incoming.address.chat)
        if status.allowed or (incoming.command == "start" and incoming.address.private):
            await self._admit_allowed(incoming, group, ticket, status)
        else:
            await self._refuse_stranger(incoming, status)
        if status.allowed:
            await note_fingerprint(*message)
            await self._remember(incoming)

    async def _admit_allowed(self, incoming: Incoming, group: MessageGroup, ticket: Ticket, status: UserStatus) -> None:
        if await self._is_for_admins(incoming, status):
            return await self._tell(incoming, "group_admins_only")
        if incoming.command in TELEGRAM_COMMANDS:
            await ticket.wait()
            answer = await self.commands.answer(incoming, status)
            if answer is not None:
                return await self._say(incoming, answer.text, answer.keyboard)
        if not status.allowed:
            return await self._refuse_stranger(incoming, status)
        command = find_command(incoming.text)
        if not (command or incoming.version or group.further) and await self._is_too_fast(incoming, status):
            return self.groups.overflow(group)
        fetched = await self.media.fetch(incoming) if incoming.files else FetchedFiles()
        await ticket.wait()
        if fetched.problems:
            told = [say(incoming.language, key, **values) for key, values in fetched.problems]
            await self._say(incoming, "\n".join(told))
        if command is not None:
            await self._command(incoming, command, status)
        elif not fetched.missing or incoming.album or group.further:  # else it would be another question
            await self._ask(incoming, group, status, fetched)

    async def _ask(self, incoming: Incoming, group: MessageGroup, status: UserStatus, fetched: FetchedFiles) -> None:
        several = incoming.album or group.further
        if incoming.text or fetched.payload.keys() - {UNREAD} or (fetched.payload and several):
            await self._admit_or_edit(incoming, group, status, fetched.payload)
        elif not fetched.problems:  # nothing but the bot's name
            await self._tell(incoming, "welcome")

    async def _is_too_fast(self, incoming: Incoming, status: UserStatus) -> bool:
        """Count a message; whether its user is over the limit per minute, and told once."""
        pace = await self.access.pace(status)
        if pace == "TELL":
            await self._tell(incoming, "too_fast")
        return pace != "OK"

    async def _is_for_admins(self, incoming: Incoming, status: UserStatus) -> bool:
        """Whether a command changes something for a whole group, and its user is not one of its admins."""
        changes = incoming.command in FOR_ADMINS or (incoming.command in SETTERS and incoming.argument)
        return bool(changes) and not await self._decides(incoming, status)

    async def _decides(self, incoming: Incoming, status: UserStatus) -> bool:
        return await self.commands.rights.include(status, incoming.address, anonymous=incoming.anonymous)

    async def _refuse_stranger(self, incoming: Incoming, status: UserStatus) -> None:
        """Tell a stranger once an hour, and ask the admins once a day. Whom an admin denied gets no second request; in
        a group, one who was denied is not answered."""
        address, language = incoming.address, incoming.language
        if address.private:
            if not await self.access.first_refusal(incoming.user):
                return
            asked = not status.denied and await self.commands.admins.request(incoming.user, incoming.name, language)
            await self._tell(incoming, "requested" if asked else "stranger", id=str(incoming.user))
        elif status.denied or not await self.access.first_refusal(address.chat):
            return
        elif await self.commands.admins.request_group(address.chat, incoming.title, incoming.name, language):
            await self._tell(incoming, "group_closed")

    async def _remember(self, incoming: Incoming) -> None:
        """Remember the name and the language of a user, for lists and messages to admins; once a day."""
        known = (incoming.name, incoming.language, incoming.address.private, date.today())
        if self._people.get(incoming.user) != known:
            bus, front = self.front.bus, self.front.name
            await note_applicant(bus, front, incoming.user, incoming.name, incoming.language or "")
            if incoming.address.private:
                await note_visitor(bus, front, incoming.user)
            if len(self._people) > PEOPLE:
                self._people.clear()
            self._people[incoming.user] = known

    # ── admission ───────────────────────────────────────────────────────────────────────────

    async def _command(self, incoming: Incoming, command: Command, status: UserStatus) -> None:
        """Have a command of the bus carried out. An edit into a command is a new one."""
        if command.lane == "front":
            return await self._carry_out(incoming, status)
        await self._admit_turn(incoming, MessageGroup(), status, incoming.payload({}), incoming.edition)

    async def _admit_or_edit(
        self, incoming: Incoming, group: MessageGroup, status: UserStatus, files: Mapping[str, Any]
    ) -> None:
        """Admit a message. An edit that asks something again counts as one more."""
        payload = incoming.payload(files)
        if not incoming.version:
            return await self._admit_turn(incoming, group, status, payload, incoming.idempotency)
        again = await self._edit(incoming, payload, status)
        if again is not None and not await self._is_too_fast(incoming, status):
            await self._admit_turn(incoming, MessageGroup(), status, again.payload, again.key, again)

    async def _admit_turn(
        self, incoming: Incoming, group: MessageGroup, status: UserStatus, payload: Mapping[str, Any], idempotency: str,
        again: EditedQuestion | None = None,
    ) -> None:  # fmt: skip
        """Admit ``payload`` as a turn, or tell why not."""
        message, before = (again.message, again.turn) if again else ("", "")
        if self.groups.is_full(group):
            return
        conversation, mode = incoming.address.conversation, await self._mode(incoming.address)
        offer = partial(
            self.front.receive, conversation, payload=payload, principal=incoming.principal, title=incoming.title,
            group=group.name, meta={**_meta(incoming, status), **({"again": before} if before else {})},
        )  # fmt: skip
        text = str(payload.get("text", ""))
        received = await offer(text, idempotency=idempotency, mode=mode, hold=group.hold)
        if received.outcome == "FULL":  # what cannot wait by itself may join what waits
            received = await offer(text, idempotency=idempotency, mode="collect", hold=group.hold)
        if received.outcome == "FULL" and group.name:
            self.groups.overflow(group)
            if group.further and (await offer(CUT_NOTE, idempotency=f"{idempotency}:cut", payload={})).turn:
                return await self._tell(incoming, "message_cut")
        if received.turn:
            await keep_question(self.front.bus, conversation, received.turn, message or idempotency, payload)
            if message:
                await move_message(self.front.bus, conversation, message, idempotency, version=incoming.version)
            if before:
                await forget_turn(self.front.bus, conversation, before)
                await unschedule_turn(self.front.bus, conversation, before, instance=self.front.instance)
            if group.hold:
                self._releases.start(self.groups.release(self.front.bus, received, group), "release of a held turn")
        await self._show(incoming, received)

    async def _show(self, incoming: Incoming, received: Received) -> None:
        """Tell the user the outcome. A message that joined another turn shows in that turn's answer."""
        if received.turn:
            await self.progress.show(received, incoming.address, incoming.message_id, incoming.language)
        elif received.outcome in ("FULL", "BUSY"):
            refusal = f"{received.outcome}:{received.conversation}"
            if await self.access.first_refusal_within(refusal, REFUSAL_SECONDS):
                await self._tell(incoming, received.outcome.lower())
        elif received.outcome != "CONFLICT":  # CONFLICT: the message before an edit had the same key
            await self._tell(incoming, "message_large" if received.outcome == "TOO_LARGE" else "not_received")

    async def _mode(self, address: Address) -> Mode:
        """What to do while the chat is busy: its preference ``queue``, otherwise the setting."""
        bus = self.front.bus
        mode = await preference(bus, address.conversation, "queue")
        return mode if mode in MODES else bus.settings.while_busy

    async def _carry_out(self, incoming: Incoming, status: UserStatus) -> None:
        """Carry out a command of the front end once: an update that arrives again must not stop newer turns. Who is no
        admin of a group stops only their own turns."""
        bus, conversation = self.front.bus, incoming.address.conversation
        told = "stopped" if incoming.command == "stop" else "forgotten"
        if not await answered_without_turn(bus, conversation, incoming.edition):
            told = await self._carried_out(incoming, status)
            await mark_answered(bus, conversation, incoming.edition)
        await self._say(incoming, say(incoming.language, told), purpose="carried out")

    async def _carried_out(self, incoming: Incoming, status: UserStatus) -> str:
        """Carry it out; returns the key of what to say."""
        bus, conversation = self.front.bus, incoming.address.conversation
        if incoming.command != "stop" or await self._decides(incoming, status):
            return CARRIED_OUT[(await self.front.receive(conversation, incoming.text)).outcome]
        if await stop_turns_of(bus, conversation, incoming.principal, instance=self.front.instance):
            return "stopped"
        return "not_yours" if await running_turn(bus, conversation) else "nothing_to_stop"

    # ── edits ───────────────────────────────────────────────────────────────────────────────────

    async def withdraw(self, message: Message, address: Address, version: int) -> None:
        """Take back what ``message`` asked before its edit, which asks nothing, if that still waits."""
        language = message.from_user.language_code if message.from_user else None
        for key in reversed(self.groups.withdrawn_with(message, idempotency_of(message, self.commands.bot.bot))):
            if await self._take_back(address.conversation, key, version, language):
                await note_fingerprint(self.front.bus, address.conversation, key, "")  # edited back, it is a change

    async def _take_back(self, conversation: str, key: str, version: int, language: str | None) -> bool:
        return await withdraw_message(
            self.front.bus, conversation, idempotency=key, version=version, instance=self.front.instance,
            text=say(language, "stopped"),
        )  # fmt: skip

    async def _edit(self, incoming: Incoming, payload: Mapping[str, Any], status: UserStatus) -> EditedQuestion | None:
        """Replace the admitted message by the edited one; returns what has to be asked in its place, if anything."""
        bus, conversation = self.front.bus, incoming.address.conversation
        envelope = Envelope(
            conversation=conversation, payload=dict(payload), reply_to=self.front.name,
            meta=_meta(incoming, status), priority=bus.settings.default_priority,
        )  # fmt: skip
        try:
            edited = await edit_message(
                bus, envelope, idempotency=incoming.idempotency, version=incoming.version,
                principal=incoming.principal, instance=self.front.instance,
            )  # fmt: skip
        except EnvelopeTooLarge:
            await self._tell(incoming, "message_large")
            return None
        if edited.outcome == "UNKNOWN":
            return EditedQuestion(payload, incoming.idempotency) if incoming.age <= RECENT_SECONDS else None
        if edited.outcome == "SHARED":  # a command is a turn of its own
            await self._take_back(conversation, incoming.idempotency, incoming.version, incoming.language)
            return EditedQuestion(payload, incoming.edition, incoming.idempotency)
        if edited.turn:
            await keep_question(self.front.bus, conversation, edited.turn, incoming.idempotency, payload)
        if edited.outcome == "FULL":
            await self._tell(incoming, "message_large")
        elif edited.outcome in ("RUNNING", "DONE") and edited.turn:
            return await self._late(incoming, payload, edited.turn, running=edited.outcome == "RUNNING")
        return None

    async def _late(
        self, incoming: Incoming, payload: Mapping[str, Any], turn: str, *, running: bool
    ) -> EditedQuestion | None:  # fmt: skip
        """The turn of the edited message has started: ask its question again if the chat prefers to interrupt,
        otherwise offer that."""
        asked = (self.front.bus, incoming.address.conversation, turn)
        if running and await self._mode(incoming.address) == "interrupt":
            return EditedQuestion(
                await question_of(*asked) or payload, incoming.edition, await only_message(*asked), turn
            )
        if await offer_once(*asked, str(incoming.version)):
            await self._say(incoming, say(incoming.language, "edited"), buttons.edit_keyboard(turn, incoming.language))
        return None

    # ── replies ─────────────────────────────────────────────────────────────────────────────────

    async def _tell(self, incoming: Incoming, key: str, **values: str) -> None:
        await self._say(incoming, say(incoming.language, key, **values), purpose="/".join((key, *values.values())))

    async def _say(self, incoming: Incoming, text: str, keyboard: Keyboard | None = None, *, purpose: str = "") -> None:
        """Have ``text`` delivered, once for each ``purpose`` of a message, however often its update comes."""
        rows = [[button.to_dict() for button in row] for row in keyboard.inline_keyboard] if keyboard else []
        await reply(
            self.front.bus, self.front.name, incoming.address.conversation, text,
            idempotency=f"{incoming.idempotency}:{incoming.version}:{purpose}", question=incoming.message_id,
            quote=not incoming.address.private, buttons=rows,
        )  # fmt: skip


def _meta(incoming: Incoming, status: UserStatus) -> dict[str, Any]:
    return {**status.meta, **meta_of(incoming.language), "asks": incoming.language or True}
