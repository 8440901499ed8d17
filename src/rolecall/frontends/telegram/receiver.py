"""From an update to what becomes of it: a turn, a command, a pressed button, or a clear refusal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from telegram import Message, Update, User

from rolecall.bus.admission import Mode, answered_without_turn, edit_message, mark_answered
from rolecall.bus.commands import find_command
from rolecall.bus.conversation import preference
from rolecall.bus.envelope import Envelope
from rolecall.bus.questions import keep_question
from rolecall.errors import EnvelopeTooLarge, ServerUnavailable
from rolecall.frontends.front import Front, Received
from rolecall.frontends.telegram import buttons
from rolecall.frontends.telegram.access import Access, Standing
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats, Keyboard
from rolecall.frontends.telegram.grouping import Group, Lane, Lanes, Pieces
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.media import Fetched, Media
from rolecall.frontends.telegram.menu import TELEGRAM_COMMANDS, Commands
from rolecall.frontends.telegram.message import PLAIN_COMMANDS, Address, Incoming, address_of, incoming_of
from rolecall.frontends.telegram.progress import Live
from rolecall.frontends.texts import say

logger = logging.getLogger(__name__)
MODES = ("queue", "collect", "interrupt")
CARRIED_OUT = {"STOPPED": "stopped", "IDLE": "nothing_to_stop", "FORGOTTEN": "forgotten"}
"""What became of a command of the front lane, as a key of words.py."""
LONGEST_PAUSE = 5.0
RECENT_SECONDS = 600
"""An edited message that was never taken in is a new one if it is no older."""


@dataclass
class Receiver:
    """Takes updates in. Those of one chat follow each other, those of different chats do not wait for each other."""

    front: Front
    me: User
    media: Media
    access: Access
    commands: Commands
    buttons: Buttons
    chats: Chats
    live: Live
    keywords: tuple[str, ...] = ()
    lanes: Lanes = field(default_factory=Lanes)
    pieces: Pieces = field(default_factory=Pieces)

    async def receive(self, update: Update) -> None:
        """Return when what ``update`` asks is safe in the server (or refused, or not for us): its offset may be raised.

        Waits and tries again while the server is away. Raises nothing but CancelledError.
        """
        message, query = update.message or update.edited_message, update.callback_query
        if query is not None:  # Stop must not wait for a file that is being fetched
            await self._patiently(lambda: self.buttons.press(query), None)
        elif message is not None:
            address = address_of(message, self.front.name)
            self.chats.saw(address, message.message_id)
            # Up to the lane nothing is awaited: the order of calls is the order of messages.
            with self.lanes.enter(message.chat.id) as lane:
                incoming = self._read(update, message)
                if incoming is not None:
                    group = self.pieces.group(incoming)
                    await self._patiently(lambda: self._take(incoming, group, lane), incoming)

    def _read(self, update: Update, message: Message) -> Incoming | None:
        return incoming_of(
            update,
            self.me,
            front=self.front.name,
            keywords=self.keywords,
            commands=PLAIN_COMMANDS | TELEGRAM_COMMANDS,
            expected=self.pieces.expected(message),
        )

    async def _patiently(self, step: Callable[[], Awaitable[None]], incoming: Incoming | None) -> None:
        """Do ``step`` until the server has answered. Every step may be repeated: what it writes has a key."""
        pause = 0.1
        while True:
            try:
                return await step()
            except ServerUnavailable as error:
                logger.info("an update waits: %s", error)
            except Exception as error:  # the boundary: no update may stop those behind it
                return self._failed(error, incoming)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _failed(self, error: Exception, incoming: Incoming | None) -> None:
        logger.error("an update could not be received: %s: %s", type(error).__name__, error, exc_info=error)
        if incoming is not None:
            self._tell(incoming, "not_received")

    # ── who asks ────────────────────────────────────────────────────────────────────────────────

    async def _take(self, incoming: Incoming, group: Group, lane: Lane) -> None:
        standing = await self.access.look(incoming.user, incoming.address.chat)
        if incoming.command in TELEGRAM_COMMANDS and (standing.allowed or incoming.command == "start"):
            await lane.turn()
            told = None if incoming.version else await self.commands.answer(incoming, standing)
            if told is not None:
                self._say(incoming, told.text, told.keyboard)
                return
        if not standing.allowed:
            return await self._refuse_stranger(incoming)
        pace = "OK" if incoming.version or group.further else await self.access.pace(standing)
        if pace != "OK":
            return self._tell(incoming, "too_fast") if pace == "TELL" else None
        fetched = await self.media.fetch(incoming) if incoming.files else Fetched()
        await lane.turn()
        for key, values in fetched.problems:
            self._tell(incoming, key, **values)
        if incoming.text or fetched.payload:
            await self._admit_or_edit(incoming, group, standing, fetched.payload)

    async def _refuse_stranger(self, incoming: Incoming) -> None:
        if incoming.address.private and await self.access.first_refusal(incoming.user):
            self._tell(incoming, "stranger", id=str(incoming.user))

    # ── what is asked ───────────────────────────────────────────────────────────────────────────

    async def _admit_or_edit(
        self, incoming: Incoming, group: Group, standing: Standing, files: Mapping[str, Any]
    ) -> None:
        payload = {**files, "text": incoming.text}
        if incoming.quoted:
            payload["quoted"] = {"from": incoming.quoted[0], "text": incoming.quoted[1]}
        if incoming.version and await self._edit(incoming, payload, standing):
            return
        command = find_command(incoming.text)
        if command is not None and command.lane == "front":
            return await self._carry_out(incoming)
        await self._admit(incoming, group, standing, payload, incoming.idempotency)

    async def _admit(
        self, incoming: Incoming, group: Group, standing: Standing, payload: Mapping[str, Any], idempotency: str
    ) -> None:
        mode = await self._mode(incoming.address)
        received = await self.front.receive(
            incoming.address.conversation, incoming.text, payload=payload, idempotency=idempotency,
            principal=incoming.principal, title=incoming.title, meta=standing.meta, mode=mode, hold=group.hold,
            group=group.name,
        )  # fmt: skip
        if received.turn:
            await keep_question(self.front.bus, received.conversation, received.turn, idempotency, payload)
        await self._show(incoming, received)

    async def _show(self, incoming: Incoming, received: Received) -> None:
        """Let the user see what became of the message. A part of another turn shows in that one's answer."""
        if received.turn:
            await self.live.show(received, incoming.address, incoming.message_id, incoming.language)
        elif received.outcome in ("FULL", "BUSY"):
            self._tell(incoming, received.outcome.lower())
        elif received.outcome != "CONFLICT":  # another text came under this key: that was the message before an edit
            self._say(incoming, received.reply)

    async def _mode(self, address: Address) -> Mode:
        """What this chat wants while it is busy (its preference ``queue``), else what is configured."""
        bus = self.front.bus
        mode = await preference(bus, address.conversation, "queue")
        return cast(Mode, mode) if mode in MODES else bus.settings.while_busy

    async def _carry_out(self, incoming: Incoming) -> None:
        """A command that the front end carries out itself, once: an update that comes again must not stop what was
        asked since."""
        bus, conversation = self.front.bus, incoming.address.conversation
        if await answered_without_turn(bus, conversation, incoming.idempotency):
            return
        received = await self.front.receive(conversation, incoming.text)
        await mark_answered(bus, conversation, incoming.idempotency)
        self._tell(incoming, CARRIED_OUT[received.outcome])

    # ── edits ───────────────────────────────────────────────────────────────────────────────────

    async def _edit(self, incoming: Incoming, payload: Mapping[str, Any], standing: Standing) -> bool:
        """Let an edited message take the place of the one that was sent; False when that one was never taken in, and
        this is to be taken as new."""
        bus, conversation = self.front.bus, incoming.address.conversation
        envelope = Envelope(
            conversation=conversation, payload=dict(payload), reply_to=self.front.name, meta=dict(standing.meta),
            priority=bus.settings.default_priority,
        )  # fmt: skip
        try:
            edited = await edit_message(
                bus, envelope, idempotency=incoming.idempotency, version=incoming.version,
                principal=incoming.principal, instance=self.front.instance,
            )  # fmt: skip
        except EnvelopeTooLarge as error:
            self._tell(incoming, "not_taken", why=str(error))
            return True
        if edited.outcome == "UNKNOWN":
            return incoming.age > RECENT_SECONDS
        if edited.turn:
            await keep_question(self.front.bus, conversation, edited.turn, incoming.idempotency, payload)
        if edited.outcome == "FULL":
            self._tell(incoming, "full")
        elif edited.outcome in ("RUNNING", "DONE") and not incoming.command and edited.turn:
            await self._late(incoming, payload, standing, edited.turn, running=edited.outcome == "RUNNING")
        return True

    async def _late(
        self, incoming: Incoming, payload: Mapping[str, Any], standing: Standing, turn: str, *, running: bool
    ) -> None:
        """The turn of an edited message has begun: it is interrupted, where that is wanted, else a new answer is
        offered."""
        if running and await self._mode(incoming.address) == "interrupt":
            idempotency = f"{incoming.idempotency}:{incoming.version}"
            return await self._admit(incoming, Group(), standing, payload, idempotency)
        self._say(incoming, say(incoming.language, "edited"), buttons.edited(turn, incoming.language))

    # ── telling ─────────────────────────────────────────────────────────────────────────────────

    def _tell(self, incoming: Incoming, key: str, **values: str) -> None:
        self._say(incoming, say(incoming.language, key, **values))

    def _say(self, incoming: Incoming, text: str, keyboard: Keyboard | None = None) -> None:
        reply_to = None if incoming.address.private else incoming.message_id
        self.chats.tell(incoming.address, TextPart(text), reply_to=reply_to, keyboard=keyboard)
