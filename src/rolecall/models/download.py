"""A large file from the web: resumed where it broke off, and known by its hash."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.errors import MissingExtra, ModelUnavailable

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 15
SILENCE_SECONDS = 60
CHUNK = 1 << 16


async def download(
    url: str, target: Path, *, size: int, sha256: str, progress: Callable[[int, int], None] | None = None
) -> None:
    """Put the ``size`` bytes of ``url`` to ``target``, which appears whole and with that hash or not at all.

    What has come lies beside it, ``.part``, and is gone on with by the next call, after a kill too. One call at a time.
    Raises ModelUnavailable with the reason, OSError when the disk does not take it.
    """
    try:
        import httpx2
    except ImportError:
        raise MissingExtra("local", url) from None
    part = target.with_name(f".{target.name}.part")
    wait = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    try:
        async with httpx2.AsyncClient(timeout=wait, follow_redirects=True) as http:
            await _append(http, url, part, size, progress)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ModelUnavailable(f"{url} cannot be reached: {str(error) or type(error).__name__}") from None
    if await asyncio.to_thread(_sha256, part) != sha256:
        part.unlink()
        raise ModelUnavailable(f"what came from {url} has the wrong SHA-256 and was deleted")
    part.replace(target)


async def _append(
    http: httpx2.AsyncClient, url: str, part: Path, size: int, progress: Callable[[int, int], None] | None
) -> None:
    begun = _begun(part, size)
    if begun == size:
        return
    async with http.stream("GET", url, headers={"Range": f"bytes={begun}-"} if begun else {}) as answer:
        if answer.status_code not in (200, 206):
            raise ModelUnavailable(f"{url} answers with status {answer.status_code}")
        if answer.status_code == 200:  # all of it, whatever was asked for
            begun = 0
        with part.open("r+b" if begun else "wb") as out:
            out.seek(begun)
            async for chunk in answer.aiter_bytes(CHUNK):
                begun += out.write(chunk)
                if begun > size:
                    raise ModelUnavailable(f"{url} is larger than the {size} bytes that it should have")
                if progress:
                    progress(begun, size)
            os.fsync(out.fileno())
    if begun < size:
        raise ModelUnavailable(f"{url} broke off after {begun // 1_000_000} of {size // 1_000_000} MB")


def _begun(part: Path, size: int) -> int:
    """How much of it is here; what is too much is no beginning of it."""
    here = part.stat().st_size if part.exists() else 0
    return here if here <= size else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
