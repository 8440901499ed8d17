"""Documents that users send, as text."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import sys
from pathlib import Path

logger = logging.getLogger(__name__)
PDF_SECONDS = 20
READ_CHARS = 2_000_000
"""What is read of a PDF before it is cut."""
UNREADABLE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


async def text_of(data: bytes, media_type: str) -> str | None:
    """The text of a file, empty when there is none in it (a scan), None when it cannot be read."""
    if media_type == "application/pdf":
        return await _pdf(data)
    return decoded(data)


def decoded(data: bytes) -> str | None:
    """``data`` as text: UTF-8, UTF-16 with its mark, else what Windows wrote; None for what is no text."""
    for encoding in (*(name for bom, name in BOMS if data.startswith(bom)), "utf-8"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            return None if UNREADABLE.search(text[:10_000]) else text.replace("\r\n", "\n").strip()
    if UNREADABLE.search(data[:10_000].decode("latin-1")):
        return None
    return data.decode("cp1251" if _cyrillic(data) else "cp1252", "replace").replace("\r\n", "\n").strip()


def shortened(text: str, characters: int) -> str:
    """``text``, at most about so many characters: its beginning and its end, with a mark where the rest is missing."""
    if len(text) <= characters:
        return text
    head, tail = text[: characters * 3 // 4], text[-(characters // 4) :]
    head, tail = head[: head.rfind("\n") + 1 or None], tail[tail.find("\n") + 1 :]
    return f"{head.rstrip()}\n[… {len(text) - len(head) - len(tail):,} characters left out …]\n{tail.lstrip()}"


async def _pdf(data: bytes) -> str | None:
    if importlib.util.find_spec("pypdf") is None:
        logger.warning("a PDF was sent, but reading PDFs needs an extra: pip install 'rolecall[telegram]'")
        return None
    script = Path(__file__).with_name("pdf_text.py")
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", script, str(READ_CHARS), stdin=pipe, stdout=pipe, stderr=nowhere, env={}
    )
    try:
        async with asyncio.timeout(PDF_SECONDS):
            out, _ = await process.communicate(data)
    except (TimeoutError, ConnectionError):
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode("utf-8", "replace").strip() if process.returncode == 0 else None


def _cyrillic(data: bytes) -> bool:
    """Whether most of what is not ASCII is in the place of Cyrillic letters, and there is much of it."""
    beyond = [byte for byte in data[:10_000] if byte >= 0x80]
    letters = sum(byte >= 0xC0 or byte in (0xA8, 0xB8) for byte in beyond)
    return len(beyond) * 3 > len(data[:10_000]) and letters * 10 > len(beyond) * 9
