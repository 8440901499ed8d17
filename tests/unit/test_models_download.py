"""Weights from the web: gone on with where they broke off, whole and the right ones, or not there at all."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rolecall.errors import ModelUnavailable
from rolecall.serving.weights import CATALOGUE, Weights, ensure_weights
from tests.listening import listening

CONTENT = bytes(range(256)) * 4096 * 3


@dataclass
class Shelf:
    """A web server with one file, which can break off."""

    content: bytes = CONTENT
    breaks_after: int | None = None
    status: int = 206
    asked: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        found = re.search(r"range: (bytes=(\d+)-)", head, re.IGNORECASE)
        self.asked.append(found[1] if found else "")
        start = int(found[2]) if found and self.status == 206 else 0
        status = self.status if self.status != 206 or found else 200
        rest = self.content[start:]
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(rest)}\r\nConnection: close\r\n\r\n".encode())
        writer.write(rest[: self.breaks_after])
        with suppress(ConnectionError):
            await writer.drain()


@pytest.fixture
async def shelf(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shelf]:
    shelf = Shelf()
    async with listening(shelf.serve) as port:
        shelf.url = f"http://127.0.0.1:{port}/tiny.gguf"
        tiny = Weights("tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), url=shelf.url)
        monkeypatch.setitem(CATALOGUE, "tiny", tiny)
        yield shelf


async def test_a_file_comes_once_whoever_asks_and_its_progress_is_told(shelf: Shelf, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    paths = await asyncio.gather(
        *(ensure_weights("tiny", tmp_path, lambda done, whole: told.append((done, whole))) for _ in range(3))
    )

    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert shelf.asked == [""]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


async def test_what_broke_off_is_gone_on_with(shelf: Shelf, tmp_path: Path) -> None:
    shelf.breaks_after = 1_000_000
    with pytest.raises(ModelUnavailable, match=r"goes on where it broke off.*tiny\.gguf"):
        await ensure_weights("tiny", tmp_path)
    assert not (tmp_path / "tiny.gguf").exists()
    here = (tmp_path / ".tiny.gguf.part").stat().st_size
    assert 0 < here <= 1_000_000

    shelf.breaks_after = None
    path = await ensure_weights("tiny", tmp_path)

    assert path.read_bytes() == CONTENT
    assert shelf.asked == ["", f"bytes={here}-"]
    assert not (tmp_path / ".tiny.gguf.part").exists()


async def test_a_server_that_knows_no_ranges_sends_all_of_it(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / ".tiny.gguf.part").write_bytes(b"x" * 1000)
    shelf.status = 200
    assert (await ensure_weights("tiny", tmp_path)).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT + b"more"])
async def test_another_file_is_not_taken(shelf: Shelf, tmp_path: Path, content: bytes) -> None:
    shelf.content = content
    with pytest.raises(ModelUnavailable, match=r"wrong SHA-256 and was deleted|larger than the"):
        await ensure_weights("tiny", tmp_path)
    assert not (tmp_path / "tiny.gguf").exists()


async def test_what_is_not_there_is_said_with_what_to_do(shelf: Shelf, tmp_path: Path) -> None:
    shelf.status = 404
    with pytest.raises(ModelUnavailable, match=r"status 404.*put it to .*tiny\.gguf"):
        await ensure_weights("tiny", tmp_path)


def test_the_better_model_is_pinned_to_its_makers_file() -> None:
    weights = CATALOGUE["qwen2.5-coder-1.5b"]
    assert weights.url.startswith("https://huggingface.co/Qwen/")
    assert re.fullmatch(r"[0-9a-f]{64}", weights.sha256)
    assert weights.fetched_size == weights.size == 1_117_320_768
