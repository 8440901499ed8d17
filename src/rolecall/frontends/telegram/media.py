"""Files that users send: downloads them from Telegram, and stores them, or the text of documents, as blobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from telegram import Bot
from telegram.error import BadRequest, Forbidden, NetworkError, TelegramError

from rolecall.bus.blobs import UNHEARD, Blobs, image_type, sound_type
from rolecall.bus.envelope import UNREAD
from rolecall.errors import BlobTooLarge
from rolecall.frontends.documents import UnreadableFile, text_of
from rolecall.frontends.telegram.bot import FloodWait
from rolecall.frontends.telegram.message import Attachment, Incoming

logger = logging.getLogger(__name__)
FETCH_SECONDS = 20.0
"""Limit for one file over all tries; the update is not confirmed before."""
AT_ONCE = 8
Problem = tuple[str, Mapping[str, str]]
"""A key of texts.toml and its values."""


@dataclass(frozen=True)
class FetchedFiles:
    """What the files of a message add to the payload, and a problem for each file that could not be downloaded or
    read. ``missing`` is true if a file of the message itself is among these."""

    payload: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    missing: bool = False


class UnusableFile(Exception):
    """A file that cannot be downloaded or read. ``problem`` is what to tell the user."""

    def __init__(self, key: str, **values: str) -> None:
        super().__init__(key)
        self.problem: Problem = (key, values)


class Media:
    """Downloads files, AT_ONCE at a time. ``voice`` says whether a speech-to-text model is configured; documents are
    shortened to ``characters``."""

    def __init__(self, bot: Bot, blobs: Blobs, *, voice: bool = False, characters: int = 24_000) -> None:
        self.bot, self.blobs, self.voice, self.characters = bot, blobs, voice, characters
        self._places = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, incoming: Incoming) -> FetchedFiles:
        """Download the files of ``incoming`` as ``images`` (blob ids) and ``files`` ({blob, name, type}) of a payload.

        Files that cannot be read and failures of Telegram are reported as problems. Raises ServerError.
        """
        async with asyncio.TaskGroup() as group:
            conversation = incoming.address.conversation
            tasks = [group.create_task(self._store(conversation, one), name="telegram file") for one in incoming.files]
        payload: dict[str, list[Any]] = {}
        problems, missing = [], False
        for attached, task in zip(incoming.files, tasks, strict=True):
            result = task.result()
            if isinstance(result, UnusableFile):
                problems.append(result.problem)
                payload.setdefault(UNREAD, []).append(attached.name or attached.media_type)
                missing = missing or not attached.quoted
            else:
                payload.setdefault(result[0], []).append(result[1])
        return FetchedFiles(payload, tuple(problems), missing)

    async def _store(self, conversation: str, attached: Attachment) -> tuple[str, Any] | UnusableFile:
        """The name in the payload and the value to append there."""
        try:
            self._check(attached)
            data, media_type = await self._fetch_one(attached), attached.media_type
            if attached.kind == "image":
                if not (media_type := image_type(data)):  # whatever its sender calls it
                    raise UnusableFile("file_unknown", name=attached.name)
                return "images", await self.blobs.put(conversation, data, media_type)
            if attached.kind == "voice" and (media_type := sound_type(data, media_type)) in UNHEARD:
                raise UnusableFile("file_unknown", name=attached.name)
            if attached.kind == "document":
                data, media_type = await self._read(attached, data), "text/plain"
            blob = await self.blobs.put(conversation, data, media_type)
            whose = {"from": attached.author, "quoted": True} if attached.quoted else {}
            return "files", {"blob": blob, "name": attached.name, "type": media_type, **whose}
        except UnusableFile as unusable:
            return unusable
        except BlobTooLarge:
            return self._too_large(attached)

    def _check(self, attached: Attachment) -> None:
        if attached.kind == "unknown" and not attached.name:
            raise UnusableFile("message_unknown")
        if attached.kind == "unknown":
            raise UnusableFile("file_unknown", name=attached.name)
        if attached.kind == "voice" and not self.voice:
            raise UnusableFile("voice_off")
        try:
            self.blobs.check_size(attached.size)
        except BlobTooLarge:
            raise self._too_large(attached) from None

    async def _fetch_one(self, attached: Attachment) -> bytes:
        try:
            async with asyncio.timeout(FETCH_SECONDS), self._places:
                return await self._download(attached)
        except (TimeoutError, TelegramError) as error:
            if "too big" in str(error).lower():
                raise self._too_large(attached) from None
            logger.warning("a file could not be fetched from Telegram: %s", type(error).__name__)
            raise UnusableFile("file_lost", name=attached.name) from None

    async def _download(self, attached: Attachment) -> bytes:
        """Download the file; retry temporary failures until cancelled."""
        pause = 0.2
        while True:
            try:
                file = await self.bot.get_file(attached.file_id)
                return bytes(await file.download_as_bytearray())
            except (BadRequest, Forbidden):
                raise
            except (NetworkError, FloodWait):
                await asyncio.sleep(pause)
                pause *= 2

    async def _read(self, attached: Attachment, data: bytes) -> bytes:
        try:
            return (await text_of(data, self.characters)).encode("utf-8", "replace")
        except UnreadableFile as unreadable:
            raise UnusableFile(unreadable.key, name=attached.name) from None

    def _too_large(self, attached: Attachment) -> UnusableFile:
        return UnusableFile("file_large", name=attached.name, megabytes=str(self.blobs.bus.settings.blob_megabytes))
