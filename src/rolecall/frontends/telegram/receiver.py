"""Receives updates: each is a message to admit, a pressed button, or a change of a group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from telegram import ChatMemberUpdated, Message, Update, User

from rolecall.background import Attempt, Boundary
from rolecall.bus.bus import count_soon
from rolecall.bus.commands import COMMANDS
from rolecall.bus.dead_letters import set_aside
from rolecall.bus.outbox import reply
from rolecall.errors import RolecallError, ServerError, ServerUnavailable, cause_of
from rolecall.frontends.front import Front
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.admitter import Admitter
from rolecall.frontends.telegram.bot import RAW, UNREADABLE
from rolecall.frontends.telegram.buttons import Buttons
from rolecall.frontends.telegram.chats import Chats
from rolecall.frontends.telegram.grouping import ChatQueue, MessageGroup, MessageGroups, Ticket
from rolecall.frontends.telegram.menu import TELEGRAM_COMMANDS, Commands
from rolecall.frontends.telegram.message import PLAIN_COMMANDS, Address, Incoming, address_of, incoming_of
from rolecall.frontends.texts import say

logger = logging.getLogger(__name__)
LONGEST_PAUSE = 5.0
TRIES = 3
"""How often an update is tried that fails for another reason than an unavailable server."""
ANSWERED_BESIDE = TELEGRAM_COMMANDS | {command.name for command in COMMANDS if command.lane == "control"}
"""Commands that are answered while a turn runs, and end none."""


@dataclass
class Receiver:
    """Receives updates: those of one chat in order, those of different chats in parallel."""

    front: Front
    access: Access
    commands: Commands
    buttons: Buttons
    chats: Chats
    groups: MessageGroups
    admitter: Admitter
    keywords: tuple[str, ...] = ()
    queue: ChatQueue = field(default_factory=ChatQueue)
    set_aside: int = 0
    """How many updates this process has given up on."""

    @property
    def me(self) -> User:
        """The bot, as it is called now."""
        return self.commands.bot.bot

    def __post_init__(self) -> None:
        self.boundary = Boundary("telegram", tries=TRIES, count=partial(count_soon, self.front.bus.server, "failures"))

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
                await self._receive_message(update, message, ticket)

    async def _receive_message(self, update: Update, message: Message, ticket: Ticket) -> None:
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
            await self._insist(update, lambda: self._admit(incoming, group, ticket))

    async def _admit(self, incoming: Incoming, group: MessageGroup, ticket: Ticket) -> None:
        await self.admitter.admit(replace(incoming, address=await self._home(incoming.address)), group, ticket)

    async def _withdraw(self, message: Message, version: int) -> None:
        address = await self._home(address_of(message, self.front.name))
        await self.admitter.withdraw(message, address, version)

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
        await self.commands.admins.joined(change, update, str(self.me.username))

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
