"""Server-sent events: a comment when nothing comes, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from rolecall.frontends.http.sse import KEEP_ALIVE, event, kept_alive


def test_an_event_is_its_id_its_name_and_its_data_as_json() -> None:
    assert event("delta", {"text": "a\nb ü"}, "1-0") == 'id: 1-0\nevent: delta\ndata: {"text":"a\\nb ü"}\n\n'.encode()
    assert event("done", {}) == b"event: done\ndata: {}\n\n"


async def test_silence_is_filled_with_comments_and_loses_nothing() -> None:
    spoken = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await spoken.wait()
        yield b"two"

    heard: list[bytes] = []
    async with asyncio.timeout(10):
        async for piece in kept_alive(pieces(), 0.01):
            heard.append(piece)
            if heard.count(KEEP_ALIVE) == 3:
                spoken.set()
    assert [piece for piece in heard if piece != KEEP_ALIVE] == [b"one", b"two"]
    assert heard.count(KEEP_ALIVE) >= 3


async def test_leaving_ends_what_was_waited_for() -> None:
    ended = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with aclosing(kept_alive(pieces(), 0.01)) as heard:
        async for piece in heard:
            if piece == KEEP_ALIVE:
                break
    assert ended.is_set()
