"""Writing to chats. Nothing else sends: each chat has its order and pace, and what it may not be sent it is not.

A chat that Telegram lets wait (429), or that it does not answer for, holds up itself alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial as bound
from typing import Any

from telegram import Bot, InlineKeyboardMarkup, InputMediaDocument, InputMediaPhoto, LinkPreviewOptions, ReplyParameters
from telegram.constants import ChatAction
from telegram.error import BadRequest, ChatMigrated, TelegramError

from rolecall.background import BackgroundTasks
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import message_entities
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.outlet import Box, Outcome, Outlet, Outlets, Unwanted, is_blocked, outcome_of

logger = logging.getLogger(__name__)
Keyboard = InlineKeyboardMarkup
Edit = Callable[[], Awaitable[Any]]
Wanted = Callable[[], bool]
EDIT_SECONDS = 1.2
GROUP_FACTOR = 2.5
"""Telegram takes 20 messages and edits a minute in a group: what may be left out comes less often there."""
TELLS = 16
FILE_SECONDS = 60.0
PHOTOS = {"image/png", "image/jpeg", "image/webp"}
PHOTO_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Gone:
    """Nobody can be written to there, or Telegram takes none of it; ``reason`` is Telegram's word."""

    reason: str


class Chats:
    """The chats of one bot. ``edit_seconds`` lie between two edits in a chat, whatever they edit."""

    def __init__(self, bot: Bot, *, edit_seconds: float = EDIT_SECONDS) -> None:
        self.bot = bot
        self.edit_seconds = edit_seconds
        self._outlets = Outlets()
        self._moved: dict[int, int] = {}
        self._telling = BackgroundTasks()

    # ── what is sent ────────────────────────────────────────────────────────────────────────────

    async def send(
        self,
        address: Address,
        part: TextPart,
        *,
        reply_to: int | None = None,
        keyboard: Keyboard | None = None,
        ring: bool = False,
        announce: Callable[[Box], Awaitable[None]] | None = None,
    ) -> int | Gone:
        """Send a message; returns its id. Waits while the chat is stalled: where updates are received, ``tell``.

        Where Telegram's answer gets lost it is sent again, and may be there twice: what must not be is for
        Recorded.make. ``announce`` is awaited before each try, in this chat's order, with the box that the message
        will be in.
        """

        async def sending(look: TextPart) -> int:
            with outlet.box.one_more():
                if announce is not None:
                    await announce(outlet.box)
                return await self._send(address, look, reply_to, keyboard, ring)

        looks = [part, TextPart(part.text)] if part.entities else [part]
        async with self._outlet(address) as outlet:
            for look in (*looks, looks[-1]):  # a group that became another one is told once
                try:
                    sent = await outlet.patiently(bound(sending, look))
                    outlet.note(sent)
                    return sent
                except ChatMigrated as error:
                    self._moved[address.chat] = error.new_chat_id
                except TelegramError as error:
                    outlet.reason = str(error)
                    if is_blocked(error):
                        break
        logger.warning("telegram took no message for %s: %s", address.conversation, outlet.reason)
        return Gone(outlet.reason)

    async def edit(
        self,
        address: Address,
        message_id: int,
        part: TextPart,
        keyboard: Keyboard | None = None,
        *,
        wanted: Wanted | None = None,
        partial: bool = False,
    ) -> Outcome:
        """Let a message of ours read as ``part``, until that is so or cannot be; a ``partial`` text is tried once. At
        the last moment before it is sent, ``wanted`` says whether it still is."""
        looks = [part, TextPart(part.text)] if part.entities and not partial else [part]
        edits = [bound(self._edit, address, message_id, look, keyboard) for look in looks]
        return await self._edited(address, edits, wanted, once=partial)

    async def edit_file(
        self,
        address: Address,
        message_id: int,
        file: File,
        keyboard: Keyboard | None = None,
        *,
        wanted: Wanted | None = None,
    ) -> Outcome:
        """Let a message of ours become an image or a document: however often, it stays one. An image that Telegram
        refuses becomes a document."""
        kinds = (InputMediaPhoto, InputMediaDocument) if file.is_photo else (InputMediaDocument,)
        edits = [bound(self._edit_media, address, message_id, file, kind, keyboard) for kind in kinds]
        return await self._edited(address, edits, wanted, once=False)

    async def delete(self, address: Address, message_id: int) -> bool:
        """Remove a message; False when it cannot be, or is gone."""
        async with self._outlet(address) as outlet:
            try:
                return await outlet.patiently(lambda: self.bot.delete_message(self._chat(address), message_id))
            except TelegramError:
                return False

    async def typing(self, address: Address) -> None:
        """Show for some seconds that the bot writes, unless the chat is stalled."""
        chat = self._chat(address)  # the general topic, 1, is named here alone
        await self._of(address).in_passing(
            lambda: self.bot.send_chat_action(chat, ChatAction.TYPING, message_thread_id=address.topic)
        )

    async def draft(self, address: Address, draft_id: int, part: TextPart, wanted: Wanted) -> bool:
        """Show ``part`` as what the bot is about to send, in a private chat, if it is ``wanted`` when its turn has
        come; False when that did not work."""
        entities, chat, topic = message_entities(part), self._chat(address), address.topic
        async with self._outlet(address) as outlet:
            outlet.edited = time.monotonic()
            return wanted() and await outlet.in_passing(
                lambda: self.bot.send_message_draft(chat, draft_id, part.text, topic, entities=entities)
            )

    def tell(
        self, address: Address, part: TextPart, *, reply_to: int | None = None, keyboard: Keyboard | None = None
    ) -> bool:
        """Send a message some time soon, without waiting for it; False when there is enough to tell to this chat
        already, and this is left out. For refusals and the like."""
        outlet = self._of(address)
        if outlet.telling >= TELLS:
            return False
        outlet.telling += 1
        self._telling.start(self._tell(outlet, address, part, reply_to, keyboard), "rolecall telegram tell")
        return True

    async def aclose(self) -> None:
        """End what ``tell`` still had to send."""
        await self._telling.drain(0)

    async def remove_ours(self, address: Address, ids: Iterable[int]) -> int:
        """Remove those of the messages ``ids`` that are ours and still unknown here, before anything else is sent;
        returns how many. Whose one is shows when its (missing) buttons are taken away: others' cannot be edited."""
        removed, chat = 0, self._chat(address)
        async with self._outlet(address) as outlet:
            for number in ids:
                if outlet.knows(number):
                    continue
                outlet.tried.append(number)
                with suppress(TelegramError):
                    if await outlet.patiently(bound(self._is_ours, chat, number)):
                        removed += await outlet.patiently(bound(self.bot.delete_message, chat, number))
        return removed

    # ── what is known ───────────────────────────────────────────────────────────────────────────

    def stalled(self, address: Address) -> float:
        """Seconds until a partial edit need not wait; 0 for now."""
        outlet, gap = self._of(address), self.edit_seconds * (1 if address.private else GROUP_FACTOR)
        return max(0.0, max(outlet.free, outlet.edited + gap) - time.monotonic())

    def reason(self, address: Address) -> str:
        """Why something could not be written there, in Telegram's words."""
        return self._of(address).reason

    def newest(self, address: Address) -> int:
        """The highest id of a message that was seen in the chat, 0 for none yet."""
        return self._of(address).newest

    def saw(self, address: Address, message_id: int) -> None:
        """That there is such a message has been heard of."""
        self._of(address).note(message_id)

    def knows(self, address: Address, message_id: int) -> bool:
        """Whether it is known what this message is."""
        return self._of(address).knows(message_id)

    def learn(self, address: Address, messages: Iterable[int], counted: int) -> None:
        """There are these ``messages``, and Telegram had ``counted`` so far when it sent others."""
        outlet = self._of(address)
        outlet.box.newest = max(outlet.box.newest, counted)
        for message_id in messages:
            outlet.note(message_id)

    # ── how it is sent ──────────────────────────────────────────────────────────────────────────

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
        file: File,
        kind: type[InputMediaPhoto | InputMediaDocument],
        keyboard: Keyboard | None,
    ) -> None:
        media = kind(file.data, filename=file.name)
        await self.bot.edit_message_media(
            media, self._chat(address), message_id, reply_markup=keyboard,
            read_timeout=FILE_SECONDS, write_timeout=FILE_SECONDS,
        )  # fmt: skip

    async def _is_ours(self, chat: int, message_id: int) -> bool:
        try:
            await self.bot.edit_message_reply_markup(chat, message_id)
        except BadRequest as error:
            return outcome_of(error) == "OK"
        return True

    async def _edited(self, address: Address, edits: Sequence[Edit], wanted: Wanted | None, *, once: bool) -> Outcome:
        """What became of the first of ``edits`` that Telegram does not refuse for what is in it."""
        async with self._outlet(address) as outlet:
            for edit in edits:
                try:
                    await outlet.patiently(edit, gap=self.edit_seconds, wanted=wanted, once=once)
                    return "OK"
                except Unwanted:
                    return "DROPPED"
                except ChatMigrated as error:  # the messages stayed behind
                    self._moved[address.chat] = error.new_chat_id
                    return "GONE"
                except TelegramError as error:
                    outlet.reason = str(error)
                    if (outcome := outcome_of(error)) is not None:
                        return outcome
        logger.warning("telegram refused an edit in %s: %s", address.conversation, outlet.reason)
        return "DROPPED" if once else "REFUSED"

    async def _tell(
        self, outlet: Outlet, address: Address, part: TextPart, reply_to: int | None, keyboard: Keyboard | None
    ) -> None:
        try:
            await self.send(address, part, reply_to=reply_to, keyboard=keyboard)
        finally:
            outlet.telling -= 1

    # ── outlets ─────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _outlet(self, address: Address) -> AsyncIterator[Outlet]:
        outlet = self._of(address)
        async with outlet.lock:
            yield outlet

    def _of(self, address: Address) -> Outlet:
        return self._outlets.of(self._chat(address))

    def _chat(self, address: Address) -> int:
        return self._moved.get(address.chat, address.chat)


@dataclass(frozen=True, slots=True)
class File:
    """An image or a document on its way out."""

    data: bytes
    media_type: str
    name: str

    @property
    def is_photo(self) -> bool:
        """Whether Telegram may show it as a photo."""
        return self.media_type in PHOTOS and len(self.data) <= PHOTO_BYTES
