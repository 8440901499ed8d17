"""Documents that users send, as text: PDF, Office files, and texts in any encoding."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import sys
import zipfile
from pathlib import Path

from rolecall.frontends.document_text import LOCKED, NO_LIBRARY

logger = logging.getLogger(__name__)
DOCUMENT_SECONDS = 20
READ_CHARS = 2_000_000
"""How much text is read of a document before it is shortened."""
UNREADABLE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
COMPOUND = b"\xd0\xcf\x11\xe0"
FOLDERS = {"docx": "word/", "xlsx": "xl/", "pptx": "ppt/"}
SHORT = 64
"""Bytes of a text whose encoding may be guessed."""
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class UnreadableFile(Exception):
    """A file without a text that can be read. ``key`` names what to tell the user in texts.toml, also in its section
    ``[http]``: ``file_locked`` (it needs a password), ``file_empty`` (a scan), ``file_unread`` (the library that reads
    it is not installed) or ``file_unknown``."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


async def text_of(data: bytes, characters: int = READ_CHARS) -> str:
    """The text of a file, by its content, shortened to about ``characters``. Raises UnreadableFile."""
    kind = await asyncio.to_thread(document_kind, data)  # some files are made to take seconds, here and below
    if kind == "locked":
        raise UnreadableFile("file_locked")
    found = await (_document_text(data, kind) if kind else asyncio.to_thread(decode_text, data))
    if not found:
        raise UnreadableFile("file_unknown" if found is None else "file_empty")
    return shorten(found, characters)


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
    try:
        from charset_normalizer import from_bytes
    except ImportError:  # of the extras telegram and documents
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
        raise UnreadableFile("file_locked")
    if process.returncode == NO_LIBRARY:
        logger.warning("a %s was sent, but reading it needs an extra: pip install 'rolecall[documents]'", kind)
        raise UnreadableFile("file_unread")
    return out.decode("utf-8", "replace").strip() if process.returncode == 0 else None


def _cyrillic(data: bytes) -> bool:
    """Whether more than a third of the bytes is beyond ASCII and nearly all of these are letters of code page 1251."""
    beyond = [byte for byte in data[:10_000] if byte >= 0x80]
    letters = sum(byte >= 0xC0 or byte in (0xA8, 0xB8) for byte in beyond)
    return len(beyond) * 3 > len(data[:10_000]) and letters * 10 > len(beyond) * 9
