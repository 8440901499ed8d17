"""Receives updates: each becomes a turn, an answered command, a pressed button, or a refusal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from telegram import ChatMemberUpdated, Message, Update, User

from rolecall.background import Attempt, BackgroundTasks, Boundary
from rolecall.bus.admission import MODES, Mode, answered_without_turn, edit_message, mark_answered, move_message
from rolecall.bus.bus import count_soon
from rolecall.bus.cancel import stop_turns_of, withdraw_message
from rolecall.bus.commands import COMMANDS, Command, find_command
from rolecall.bus.conversation import forget_turn, preference, running_turn
from rolecall.bus.dead_letters import set_aside
from rolecall.bus.envelope import UNREAD, Envelope
from rolecall.bus.members import note_applicant
from rolecall.bus.outbox import reply
from rolecall.bus.questions import (
    has_fingerprint,
    keep_question,
    note_fingerprint,
    offer_once,
    only_message,
    question_of,
)
from rolecall.bus.schedule.schedules import unschedule_turn
from rolecall.errors import EnvelopeTooLarge, RolecallError, ServerError, ServerUnavailable, cause_of
from rolecall.frontends.front import Front, Received
from rolecall.frontends.telegram import buttons
from rolecall.frontends.telegram.access import Access, UserStatus
from rolecall.frontends.telegram.admins import Admins
from rolecall.frontends.telegram.bot import RAW, UNREADABLE
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats, Keyboard
from rolecall.frontends.telegram.grouping import ChatQueue, MessageGroup, MessageGroups, Ticket
from rolecall.frontends.telegram.media import FetchedFiles, Media
from rolecall.frontends.telegram.menu import TELEGRAM_COMMANDS, Commands
from rolecall.frontends.telegram.message import (
    PLAIN_COMMANDS,
    Address,
    Incoming,
    address_of,
    idempotency_of,
    incoming_of,
)
from rolecall.frontends.telegram.progress import ProgressDisplay
from rolecall.frontends.texts import meta_of, say

logger = logging.getLogger(__name__)
CARRIED_OUT = {"STOPPED": "stopped", "IDLE": "nothing_to_stop", "FORGOTTEN": "forgotten"}
"""Keys of texts.toml for the outcomes of commands that the front end carries out."""
LONGEST_PAUSE = 5.0
TRIES = 3
"""How often an update is tried that fails for another reason than an unavailable server."""
FOR_ADMINS = frozenset(("clear", "reset", "model", "role", "queue"))
"""Commands that change something for a whole group; SETTERS do with an argument."""
SETTERS = frozenset(("lang", "timezone", "files"))
ANSWERED_BESIDE = TELEGRAM_COMMANDS | {command.name for command in COMMANDS if command.lane == "control"}
"""Commands that are answered while a turn runs, and end none."""
PEOPLE = 10_000
REFUSAL_SECONDS = 60.0
"""A chat is told at most this often that a message was not accepted."""
CUT_NOTE = "[The end of this message is missing: it was too long. Answer what is there and say that it is incomplete.]"
"""What a model reads in place of the pieces that did not fit."""
RECENT_SECONDS = 600
"""An edited message that was not admitted before counts as new up to this age."""


class Again(NamedTuple):
    """What an edited message asks as a turn of its own, and the key to admit that under. ``message`` is the key of the
    message, if later edits of it concern that turn; ``turn`` asked it before and is forgotten."""

    payload: Mapping[str, Any]
    key: str
    message: str = ""
    turn: str = ""


@dataclass
class Receiver:
    """Receives updates: those of one chat in order, those of different chats in parallel."""

    front: Front
    media: Media
    access: Access
    commands: Commands
    buttons: Buttons
    chats: Chats
    progress: ProgressDisplay
    keywords: tuple[str, ...] = ()
    queue: ChatQueue = field(default_factory=ChatQueue)
    groups: MessageGroups = field(default_factory=MessageGroups)
    _people: dict[int, tuple[str, str | None]] = field(default_factory=dict, repr=False)
    _releases: BackgroundTasks = field(default_factory=BackgroundTasks, repr=False)
    set_aside: int = 0
    """How many updates this process has given up on."""

    @property
    def me(self) -> User:
        """The bot, as it is called now."""
        return self.buttons.bot.bot

    @property
    def admins(self) -> Admins:
        """The admins of the bot."""
        return self.commands.admins

    def __post_init__(self) -> None:
        self.boundary = Boundary("telegram", tries=TRIES, count=partial(count_soon, self.front.bus.server, "failures"))

    async def aclose(self) -> None:
        """End what goes on in the background; a turn that is held is then released by a worker."""
        self._releases.cancel()
        await self._releases.drain()

    async def receive(self, update: Update) -> None:
        """Receive ``update``; returns once its effect is stored in the server, or it was refused, ignored or set aside,
        so that it can be confirmed. Retries while the server is unavailable. Raises only CancelledError.
        """
        try:
            await self._receive(update)
        except Exception as error:  # the boundary: no update may block the ones behind it
            self.boundary.failed(_item(update), cause_of(error))
            await self._set_aside(update)

    async def _receive(self, update: Update) -> None:
        if UNREADABLE in update.api_kwargs:
            raise RolecallError(update.api_kwargs[UNREADABLE])
        message, query = update.message or update.edited_message, update.callback_query
        if (joined := update.my_chat_member) is not None:
            await self._insist(update, lambda: self._joined(joined, update.update_id))
        elif message is not None and (message.migrate_to_chat_id or message.migrate_from_chat_id):
            with self.queue.enter(_move_to(message.migrate_to_chat_id or message.chat.id)):
                await self._insist(update, lambda: self._moved(message))
        elif query is not None:  # Stop must not wait for a file that is being downloaded
            await self._insist(update, lambda: self.buttons.press(query))
        elif message is not None:
            # Nothing is awaited before the ticket is drawn: the order of calls is the order of messages.
            with self.queue.enter(message.chat.id) as ticket:
                self.chats.note(address_of(message, self.front.name), message.message_id)
                expected = self.groups.continues(message)
                incoming = self._read(update, message, expected=expected)
                if update.edited_message and not (message.location or _is_turn(incoming)):
                    await ticket.wait()
                    await self._insist(update, lambda: self._withdraw(message, update.update_id))
                if incoming is None:
                    return self.groups.pass_over(update)
                for earlier in self.groups.passed_over(message):
                    if earlier.message and (found := self._read(earlier, earlier.message, expected=True)):
                        await self._take_in(update, found, ticket)
                await self._take_in(update, incoming, ticket, head=not expected)

    async def _take_in(self, update: Update, incoming: Incoming, ticket: Ticket, *, head: bool = False) -> None:
        group = self.groups.group(incoming, head=head)
        with self.groups.arriving(group):
            await self._insist(update, lambda: self._take(incoming, group, ticket))

    def _read(self, update: Update, message: Message, *, expected: bool) -> Incoming | None:
        return incoming_of(
            update,
            self.me,
            front=self.front.name,
            keywords=self.keywords,
            commands=PLAIN_COMMANDS | self.commands.names,
            expected=expected,
        )

    async def _insist(self, update: Update, step: Callable[[], Awaitable[None]]) -> None:
        """Run ``step``, which is idempotent, until the server has answered. Any other failure is tried TRIES times."""
        pause = 0.1
        while True:
            try:
                attempt = await self.boundary.attempt(_item(update), step())
                if attempt is Attempt.DONE:
                    return
                if attempt is Attempt.EXHAUSTED:
                    return await self._set_aside(update, tries=TRIES)
            except ServerUnavailable as error:
                logger.debug("update %s is retried: %s", update.update_id, error)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _set_aside(self, update: Update, *, tries: int = 1) -> None:
        """Give up on ``update``: keep it for operators as a dead letter, and tell its user."""
        self.set_aside += 1
        raw, reason = _raw(update), repr(self.boundary.error)
        with suppress(Exception):  # an update that caused one failure may cause another
            await self._apologise(raw, update.update_id)
        try:
            await set_aside(self.front.bus, "update", raw, reason, source=self.front.name, tries=tries)
        except ServerError as error:
            logger.error("update %s could not be kept: %s", update.update_id, error)

    async def _apologise(self, raw: Mapping[str, Any], update: int) -> None:
        """Tell the user of a private chat; in a group it is not known whom the message was for."""
        message = raw.get("message") or {}
        chat = message.get("chat", {}).get("id", 0)
        if chat > 0:
            conversation = Address(chat, None, self.front.name).conversation
            text = say(message.get("from", {}).get("language_code"), "not_received")
            await reply(self.front.bus, self.front.name, conversation, text, idempotency=f"update:{update}")

    # ── groups ──────────────────────────────────────────────────────────────────────────────────

    async def _joined(self, change: ChatMemberUpdated, update: int) -> None:
        await self.queue.settled(_move_to(change.chat.id))
        await self.admins.joined(change, update, str(self.me.username))

    async def _home(self, address: Address) -> Address:
        """Where the messages of ``address`` belong, once a move of its group that came before them is stored."""
        await self.queue.settled(_move_to(address.chat))
        return await self.access.home(address)

    async def _moved(self, message: Message) -> None:
        """A group became a supergroup: its access, memory and waiting turns go along."""
        old = message.migrate_from_chat_id or message.chat.id
        new = message.migrate_to_chat_id or message.chat.id
        await self.access.move(old, new)
        self.chats.moved(old, new)

    # ── access ────────────────────────────────────────────────────────────────────────────────

    async def _take(self, incoming: Incoming, group: MessageGroup, ticket: Ticket) -> None:
        incoming = replace(incoming, address=await self._home(incoming.address))
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
            await self._take_allowed(incoming, group, ticket, status)
        else:
            await self._refuse_stranger(incoming, status)
        if status.allowed:
            await note_fingerprint(*message)
            await self._remember(incoming)

    async def _take_allowed(self, incoming: Incoming, group: MessageGroup, ticket: Ticket, status: UserStatus) -> None:
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
        if incoming.text or fetched.payload.keys() - {UNREAD} or (fetched.payload and group.further):
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
        return await self.buttons.rights.include(status, incoming.address, anonymous=incoming.anonymous)

    async def _refuse_stranger(self, incoming: Incoming, status: UserStatus) -> None:
        """Tell a stranger once an hour, and ask the admins once a day. Whom an admin denied gets no second request; in
        a group, one who was denied is not answered."""
        address, language = incoming.address, incoming.language
        if address.private:
            if not await self.access.first_refusal(incoming.user):
                return
            asked = not status.denied and await self.admins.request(incoming.user, incoming.name, language)
            await self._tell(incoming, "requested" if asked else "stranger", id=str(incoming.user))
        elif status.denied or not await self.access.first_refusal(address.chat):
            return
        elif await self.admins.request_group(address.chat, incoming.title, incoming.name, language):
            await self._tell(incoming, "group_closed")

    async def _remember(self, incoming: Incoming) -> None:
        """Remember the name and the language of a user, for lists and messages to admins."""
        known = (incoming.name, incoming.language)
        if self._people.get(incoming.user) != known:
            await note_applicant(self.front.bus, self.front.name, incoming.user, incoming.name, incoming.language or "")
            if len(self._people) > PEOPLE:
                self._people.clear()
            self._people[incoming.user] = known

    # ── admission ───────────────────────────────────────────────────────────────────────────

    async def _command(self, incoming: Incoming, command: Command, status: UserStatus) -> None:
        """Have a command of the bus carried out. An edit into a command is a new one."""
        if command.lane == "front":
            return await self._carry_out(incoming, status)
        await self._admit(incoming, MessageGroup(), status, incoming.payload({}), incoming.edition)

    async def _admit_or_edit(
        self, incoming: Incoming, group: MessageGroup, status: UserStatus, files: Mapping[str, Any]
    ) -> None:
        """Admit a message. An edit that asks something again counts as one more."""
        payload = incoming.payload(files)
        if not incoming.version:
            return await self._admit(incoming, group, status, payload, incoming.idempotency)
        again = await self._edit(incoming, payload, status)
        if again is not None and not await self._is_too_fast(incoming, status):
            await self._admit(incoming, MessageGroup(), status, again.payload, again.key, again)

    async def _admit(
        self, incoming: Incoming, group: MessageGroup, status: UserStatus, payload: Mapping[str, Any], idempotency: str,
        again: Again | None = None,
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

    async def _withdraw(self, message: Message, version: int) -> None:
        """Take back what ``message`` asked before its edit, which asks nothing, if that still waits."""
        address = await self._home(address_of(message, self.front.name))
        language = message.from_user.language_code if message.from_user else None
        for key in reversed(self.groups.withdrawn_with(message, idempotency_of(message, self.me))):
            if await self._take_back(address.conversation, key, version, language):
                await note_fingerprint(self.front.bus, address.conversation, key, "")  # edited back, it is a change

    async def _take_back(self, conversation: str, key: str, version: int, language: str | None) -> bool:
        return await withdraw_message(
            self.front.bus, conversation, idempotency=key, version=version, instance=self.front.instance,
            text=say(language, "stopped"),
        )  # fmt: skip

    async def _edit(self, incoming: Incoming, payload: Mapping[str, Any], status: UserStatus) -> Again | None:
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
            return Again(payload, incoming.idempotency) if incoming.age <= RECENT_SECONDS else None
        if edited.outcome == "SHARED":  # a command is a turn of its own
            await self._take_back(conversation, incoming.idempotency, incoming.version, incoming.language)
            return Again(payload, incoming.edition, incoming.idempotency)
        if edited.turn:
            await keep_question(self.front.bus, conversation, edited.turn, incoming.idempotency, payload)
        if edited.outcome == "FULL":
            await self._tell(incoming, "message_large")
        elif edited.outcome in ("RUNNING", "DONE") and edited.turn:
            return await self._late(incoming, payload, edited.turn, running=edited.outcome == "RUNNING")
        return None

    async def _late(
        self, incoming: Incoming, payload: Mapping[str, Any], turn: str, *, running: bool
    ) -> Again | None:  # fmt: skip
        """The turn of the edited message has started: ask its question again if the chat prefers to interrupt,
        otherwise offer that."""
        asked = (self.front.bus, incoming.address.conversation, turn)
        if running and await self._mode(incoming.address) == "interrupt":
            return Again(await question_of(*asked) or payload, incoming.edition, await only_message(*asked), turn)
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


def _is_turn(incoming: Incoming | None) -> bool:
    """Whether a message is for the bot and no command that is answered while a turn runs."""
    return incoming is not None and incoming.command not in ANSWERED_BESIDE


def _move_to(chat: int) -> tuple[str, int]:
    """The queue of the moves of groups to the supergroup ``chat``."""
    return ("move", chat)


def _item(update: Update) -> str:
    return f"update {update.update_id}"


def _raw(update: Update) -> dict[str, Any]:
    """The update as it came, or nearly."""
    return update.api_kwargs.get(RAW) or update.to_dict()
