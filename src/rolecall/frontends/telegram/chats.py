"""The only module that sends. Per chat: in order, rate-limited.

A chat that Telegram rate-limits (429) or does not answer for delays no other chat.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial as bound
from typing import Any

from telegram import Bot, InlineKeyboardMarkup, InputMediaDocument, InputMediaPhoto, LinkPreviewOptions, ReplyParameters
from telegram.constants import ChatAction
from telegram.error import BadRequest, ChatMigrated, TelegramError

from rolecall.bus.blobs import image_type
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import message_entities
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.outlet import (
    ANSWER,
    COSMETIC,
    MESSAGE,
    Failing,
    IdSpace,
    NotFree,
    Outlet,
    Outlets,
    SendOutcome,
    Unwanted,
    is_blocked,
    outcome_of,
)

logger = logging.getLogger(__name__)
Keyboard = InlineKeyboardMarkup
Edit = Callable[[], Awaitable[Any]]
Wanted = Callable[[], bool]
EDIT_SECONDS = 1.2
GROUP_FACTOR = 2.5
"""Telegram accepts 20 messages and edits a minute in a group, so partial edits are less frequent there."""
PLACE_SECONDS = 10.0
SHOWN = 10_000
"""Messages whose present look is remembered."""
FILE_SECONDS = 60.0
PHOTO_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The bot cannot write to a chat, Telegram rejects the message or, if ``failing``, keeps failing; ``reason`` is
    Telegram's."""

    reason: str
    failing: bool = False


class Chats:
    """The chats of one bot. Two edits in a chat are at least ``edit_seconds`` apart."""

    def __init__(self, bot: Bot, *, edit_seconds: float = EDIT_SECONDS) -> None:
        self.bot = bot
        self.edit_seconds = edit_seconds
        self._outlets = Outlets()
        self._shown: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._moved: dict[int, int] = {}

    # ── messages ────────────────────────────────────────────────────────────────────────────

    async def send(
        self,
        address: Address,
        part: TextPart,
        *,
        reply_to: int | None = None,
        keyboard: Keyboard | None = None,
        ring: bool = False,
        priority: int = MESSAGE,
        announce: Callable[[IdSpace], Awaitable[None]] | None = None,
    ) -> int | Unreachable:
        """Send a message and return its id. Waits while the chat is rate-limited. ``priority`` is its place among those
        that wait for the chat.

        If Telegram's answer is lost, the message is sent again and may appear twice; ``TurnMessages.create`` removes
        such duplicates. ``announce`` is awaited before each try, in the order of the chat, with the chat's ids.
        """

        async def sending(look: TextPart) -> int:
            with outlet.ids.sending_one():
                if announce is not None:
                    await announce(outlet.ids)
                return await self._send(address, look, reply_to, keyboard, ring)

        looks = [part, TextPart(part.text)] if part.entities else [part]
        async with self._outlet(address, priority) as outlet:
            for look in (*looks, looks[-1]):  # once more for a group that became a supergroup
                try:
                    sent = await outlet.retry(bound(sending, look))
                    outlet.note(sent)
                    self._note_look(address, sent, hash((look, keyboard)))
                    return sent
                except ChatMigrated as error:
                    self._moved[address.chat] = error.new_chat_id
                except Failing as error:
                    return Unreachable(str(error), failing=True)
                except TelegramError as error:
                    outlet.reason = str(error)
                    if is_blocked(error):
                        break
        logger.warning("Telegram refused a message for %s: %s", address.conversation, outlet.reason)
        return Unreachable(outlet.reason)

    async def edit(
        self,
        address: Address,
        message_id: int,
        part: TextPart,
        keyboard: Keyboard | None = None,
        *,
        wanted: Wanted | None = None,
        partial: bool = False,
    ) -> SendOutcome:
        """Edit a message of the bot into ``part``; retried until it succeeds or cannot. A ``partial`` text is tried
        once, and only if the chat is free. ``wanted`` is asked just before each request. Nothing is sent if the message
        is known to look so already."""
        message, look = (self._chat(address), message_id), hash((part, keyboard))
        if self._shown.pop(message, None) == look:
            outcome: SendOutcome = "OK"
        else:
            looks = [part, TextPart(part.text)] if part.entities and not partial else [part]
            edits = [bound(self._edit, address, message_id, each, keyboard) for each in looks]
            outcome = await self._edited(address, edits, wanted, once=partial)
        if outcome == "OK":
            self._note_look(address, message_id, look)
        return outcome

    async def edit_file(
        self,
        address: Address,
        message_id: int,
        file: OutgoingFile,
        keyboard: Keyboard | None = None,
        *,
        wanted: Wanted | None = None,
    ) -> SendOutcome:
        """Edit a message of the bot into an image or a document. An image that Telegram refuses becomes a document."""
        kinds = (InputMediaPhoto, InputMediaDocument) if file.is_photo else (InputMediaDocument,)
        edits = [bound(self._edit_media, address, message_id, file, kind, keyboard) for kind in kinds]
        return await self._edited(address, edits, wanted, once=False)

    async def delete(self, address: Address, message_id: int) -> bool:
        """Delete a message; False if it is gone or cannot be deleted."""
        async with self._outlet(address) as outlet:
            try:
                return await outlet.retry(lambda: self.bot.delete_message(self._chat(address), message_id))
            except (TelegramError, Failing):
                return False

    async def typing(self, address: Address) -> None:
        """Show that the bot is typing, unless the chat is rate-limited."""
        chat = self._chat(address)  # unlike other methods, this one takes the general topic, 1
        await self._of(address).attempt(
            lambda: self.bot.send_chat_action(chat, ChatAction.TYPING, message_thread_id=address.topic)
        )

    async def draft(self, address: Address, draft_id: int, part: TextPart, wanted: Wanted) -> bool:
        """Show ``part`` as a draft in a private chat, if it is still ``wanted`` when the chat is free; whether it
        succeeded."""
        entities, chat, topic = message_entities(part), self._chat(address), address.topic
        async with self._outlet(address, COSMETIC) as outlet:
            outlet.edited = time.monotonic()
            return wanted() and await outlet.attempt(
                lambda: self.bot.send_message_draft(chat, draft_id, part.text, topic, entities=entities)
            )

    async def delete_own(self, address: Address, ids: Iterable[int]) -> int:
        """Delete those messages with ``ids`` that the bot sent and that are not known here; returns how many.

        Nothing else is sent to the chat meanwhile. Detects the bot's own messages by editing their reply markup;
        Telegram rejects edits to others'.
        """
        removed, chat = 0, self._chat(address)
        async with self._outlet(address, COSMETIC) as outlet:
            for number in ids:
                if outlet.knows(number):
                    continue
                outlet.tried.append(number)
                with suppress(TelegramError, Failing):
                    if await outlet.retry(bound(self._is_own, chat, number)):
                        removed += await outlet.retry(bound(self.bot.delete_message, chat, number))
        return removed

    # ── state ───────────────────────────────────────────────────────────────────────────

    def stalled(self, address: Address) -> float:
        """Seconds until a partial edit may be sent; 0 for now."""
        outlet, gap = self._of(address), self.edit_seconds * (1 if address.private else GROUP_FACTOR)
        left = max(outlet.free, outlet.edited + gap) - time.monotonic()
        return max(0.0, left, outlet.busy_seconds(group=not address.private))

    def place_stalled(self, address: Address) -> float:
        """Seconds until a place in the queue may be updated again; 0 for now."""
        return max(0.0, self._of(address).placed + PLACE_SECONDS - time.monotonic())

    def note_place(self, address: Address) -> None:
        """Note that a place in the queue is updated now."""
        self._of(address).placed = time.monotonic()

    async def answers(self) -> bool:
        """Whether Telegram answers the bot at all."""
        try:
            await self.bot.get_me()
        except TelegramError:
            return False
        return True

    def moved(self, old: int, new: int) -> None:
        """The chat ``old`` goes on as ``new``: what is for it goes there."""
        self._moved[old] = new

    def current(self, chat: int) -> int:
        """The id that Telegram knows ``chat`` by now."""
        return self._moved.get(chat, chat)

    def reason(self, address: Address) -> str:
        """Telegram's last refusal in this chat."""
        return self._of(address).reason

    def newest(self, address: Address) -> int:
        """The highest message id seen in the chat; 0 for none."""
        return self._of(address).newest

    def newest_id(self, address: Address) -> int:
        """The highest id seen among the chats that share their ids with this one; 0 for none."""
        return self._of(address).ids.newest

    def note(self, address: Address, message_id: int) -> None:
        """Note that the message exists."""
        self._of(address).note(message_id)

    def knows(self, address: Address, message_id: int) -> bool:
        """Whether the message with this id was seen, or tried in vain."""
        return self._of(address).knows(message_id)

    def learn(self, address: Address, messages: Iterable[int], counted: int) -> None:
        """Note that ``messages`` exist and that Telegram had ``counted`` at least that far."""
        outlet = self._of(address)
        outlet.ids.newest = max(outlet.ids.newest, counted)
        for message_id in messages:
            outlet.note(message_id)

    # ── requests ──────────────────────────────────────────────────────────────────────────

    async def _send(
        self, address: Address, part: TextPart, reply_to: int | None, keyboard: Keyboard | None, ring: bool
    ) -> int:
        message = await self.bot.send_message(
            self._chat(address), part.text, entities=message_entities(part), disable_notification=not ring,
            message_thread_id=address.topic if address.topic != 1 else None, reply_markup=keyboard,
            reply_parameters=ReplyParameters(reply_to, allow_sending_without_reply=True) if reply_to else None,
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )  # fmt: skip
        return message.message_id

    async def _edit(self, address: Address, message_id: int, part: TextPart, keyboard: Keyboard | None) -> None:
        await self.bot.edit_message_text(
            part.text, self._chat(address), message_id, entities=message_entities(part), reply_markup=keyboard,
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )  # fmt: skip

    async def _edit_media(
        self,
        address: Address,
        message_id: int,
        file: OutgoingFile,
        kind: type[InputMediaPhoto | InputMediaDocument],
        keyboard: Keyboard | None,
    ) -> None:
        media = kind(file.data, filename=file.name)
        await self.bot.edit_message_media(
            media, self._chat(address), message_id, reply_markup=keyboard,
            read_timeout=FILE_SECONDS, write_timeout=FILE_SECONDS,
        )  # fmt: skip

    async def _is_own(self, chat: int, message_id: int) -> bool:
        try:
            await self.bot.edit_message_reply_markup(chat, message_id)
        except BadRequest as error:
            return outcome_of(error) == "OK"
        return True

    async def _edited(
        self, address: Address, edits: Sequence[Edit], wanted: Wanted | None, *, once: bool
    ) -> SendOutcome:
        """The outcome of the first of ``edits`` whose content Telegram accepts."""
        async with self._outlet(address, COSMETIC if once else ANSWER) as outlet:
            for edit in edits:
                try:
                    await outlet.retry(edit, gap=self.edit_seconds, wanted=wanted, once=once)
                    return "OK"
                except Unwanted:
                    return "DROPPED"
                except NotFree:
                    return "LATER"
                except Failing:
                    return "FAILING"
                except ChatMigrated as error:  # the messages stayed in the old chat
                    self._moved[address.chat] = error.new_chat_id
                    return "GONE"
                except TelegramError as error:
                    outlet.reason = str(error)
                    if (outcome := outcome_of(error)) is not None:
                        return outcome
        logger.warning("Telegram refused an edit in %s: %s", address.conversation, outlet.reason)
        return "DROPPED" if once else "REFUSED"

    def _note_look(self, address: Address, message_id: int, look: int) -> None:
        self._shown[self._chat(address), message_id] = look
        if len(self._shown) > SHOWN:
            self._shown.popitem(last=False)

    # ── outlets ─────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _outlet(self, address: Address, priority: int = MESSAGE) -> AsyncIterator[Outlet]:
        outlet = self._of(address)
        async with outlet.lock.hold(priority):
            yield outlet

    def _of(self, address: Address) -> Outlet:
        return self._outlets.of(self._chat(address))

    def _chat(self, address: Address) -> int:
        return self._moved.get(address.chat, address.chat)


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """An image or a document to send."""

    data: bytes
    media_type: str
    name: str

    @property
    def is_photo(self) -> bool:
        """Whether Telegram accepts it as a photo."""
        return image_type(self.data) not in ("", "image/gif") and len(self.data) <= PHOTO_BYTES
