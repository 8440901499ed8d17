"""Files that users send: downloads them from Telegram, extracts the text of documents and stores both as blobs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from charset_normalizer import from_bytes
from telegram import Bot
from telegram.error import BadRequest, Forbidden, NetworkError, TelegramError

from rolecall.bus.blobs import UNHEARD, Blobs, sound_type
from rolecall.errors import BlobTooLarge
from rolecall.frontends.telegram.bot import FloodWait
from rolecall.frontends.telegram.document_text import LOCKED, NO_LIBRARY, Locked
from rolecall.frontends.telegram.message import Attachment, Incoming

logger = logging.getLogger(__name__)
FETCH_SECONDS = 20.0
"""Limit for one file over all tries; the update is not confirmed before."""
AT_ONCE = 8
Problem = tuple[str, Mapping[str, str]]
"""A key of texts.toml and its values."""
DOCUMENT_SECONDS = 20
READ_CHARS = 2_000_000
"""How much text is read of a document before it is shortened."""
UNREADABLE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
COMPOUND = b"\xd0\xcf\x11\xe0"
FOLDERS = {"docx": "word/", "xlsx": "xl/", "pptx": "ppt/"}
SHORT = 64
"""Bytes of a text whose encoding may be guessed."""
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


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
                payload.setdefault("unread", []).append(attached.name)
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
                return "images", await self.blobs.put(conversation, data, media_type)
            if attached.kind == "voice" and (media_type := sound_type(data, media_type)) in UNHEARD:
                raise UnusableFile("file_unknown", name=attached.name)
            if attached.kind == "document":
                data, media_type = await self._read(attached, data), "text/plain"
            blob = await self.blobs.put(conversation, data, media_type)
            return "files", {"blob": blob, "name": attached.name, "type": media_type}
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
            text = await text_of(data)
        except Locked:
            raise UnusableFile("file_locked", name=attached.name) from None
        if text is None:
            raise UnusableFile("file_unknown", name=attached.name)
        if not text:
            raise UnusableFile("file_empty", name=attached.name)
        return shorten(text, self.characters).encode("utf-8", "replace")

    def _too_large(self, attached: Attachment) -> UnusableFile:
        return UnusableFile("file_large", name=attached.name, megabytes=str(self.blobs.bus.settings.blob_megabytes))


async def text_of(data: bytes) -> str | None:
    """The text of a file, by its content: empty if it contains none (a scan), None if it cannot be read. Raises
    Locked."""
    kind = document_kind(data)
    if kind == "locked":
        raise Locked
    return await _document_text(data, kind) if kind else decode_text(data)


def document_kind(data: bytes) -> str:
    """``pdf``, ``docx``, ``xlsx``, ``pptx``, or ``locked`` for an encrypted one of the last three; else empty."""
    if data.startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(COMPOUND) and "EncryptedPackage".encode("utf-16-le") in data:
        return "locked"
    if data.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile, ValueError, OSError), zipfile.ZipFile(io.BytesIO(data)) as packed:
            names = packed.namelist()
            kinds = (kind for kind, folder in FOLDERS.items() if any(name.startswith(folder) for name in names))
            return next(kinds, "")
    return ""


def decode_text(data: bytes) -> str | None:
    """Decode a text in its encoding: UTF-8, UTF-16 with a byte order mark, or what it looks like. None for binary data
    and for an encoding that cannot be told."""
    for encoding in (*(name for bom, name in BOMS if data.startswith(bom)), "utf-8"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            return None if UNREADABLE.search(text[:10_000]) else _plain(text)
    if UNREADABLE.search(data[:10_000].decode("latin-1")):
        return None
    found = from_bytes(data).best()
    if found is None and len(data) > SHORT:
        return None
    encoding = found.encoding if found is not None else "cp1251" if _cyrillic(data) else "cp1252"
    return _plain(data.decode(encoding, "replace"))


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def shorten(text: str, characters: int) -> str:
    """Cut ``text`` to about ``characters``: the first three quarters and the last one, with a mark in between."""
    if len(text) <= characters:
        return text
    head, tail = text[: characters * 3 // 4], text[-(characters // 4) :]
    head, tail = head[: head.rfind("\n") + 1 or None], tail[tail.find("\n") + 1 :]
    return f"{head.rstrip()}\n[… {len(text) - len(head) - len(tail):,} characters left out …]\n{tail.lstrip()}"


async def _document_text(data: bytes, kind: str) -> str | None:
    script = Path(__file__).with_name("document_text.py")
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", script, kind, str(READ_CHARS), stdin=pipe, stdout=pipe, stderr=nowhere, env={}
    )
    try:
        async with asyncio.timeout(DOCUMENT_SECONDS):
            out, _ = await process.communicate(data)
    except (TimeoutError, ConnectionError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == LOCKED:
        raise Locked
    if process.returncode == NO_LIBRARY:
        extra = "telegram" if kind == "pdf" else "documents"
        logger.warning("a %s was sent, but reading it needs an extra: pip install 'rolecall[%s]'", kind, extra)
    return out.decode("utf-8", "replace").strip() if process.returncode == 0 else None


def _cyrillic(data: bytes) -> bool:
    """Whether more than a third of the bytes is beyond ASCII and nearly all of these are letters of code page 1251."""
    beyond = [byte for byte in data[:10_000] if byte >= 0x80]
    letters = sum(byte >= 0xC0 or byte in (0xA8, 0xB8) for byte in beyond)
    return len(beyond) * 3 > len(data[:10_000]) and letters * 10 > len(beyond) * 9
