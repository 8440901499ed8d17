"""Server-sent events, written by hand: ids, keep-alive comments, and an end when the client or the server leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.problems import Problem
from rolecall.frontends.http.services import Services

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
RETRY = b"retry: 1000\n\n"
"""Asks an EventSource to come back within a second: another replica may be there already."""
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

Pieces = AsyncGenerator[bytes, None]


def event(name: str, data: Any, event_id: str = "") -> bytes:
    """One event; ``data`` becomes JSON."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


def check_streams(here: Services, principal: Principal) -> None:
    """Raise Problem when this key has as many streams open in this process as it may."""
    if here.streams[principal.id] >= here.settings.http_streams:
        detail = f"{here.settings.http_streams} streams of this key are open here; end one or try again."
        raise Problem(429, detail, "too_many_streams", headers={"Retry-After": "5"})


class EventStream(Response):
    """``pieces`` as they come, until they end, the client leaves (then ``left`` is called) or the process is to end
    (then ``farewell`` is the last that is sent). Nothing is buffered: a slow reader is waited for."""

    media_type = "text/event-stream"

    def __init__(
        self, here: Services, who: Principal, pieces: Pieces, *, headers: Mapping[str, str] | None = None,
        left: Callable[[], Awaitable[None]] | None = None, farewell: bytes = b"", status_code: int = 200,
    ) -> None:  # fmt: skip
        super().__init__(status_code=status_code, headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._here, self._who = here, who
        self._pieces, self._left, self._farewell = pieces, left, farewell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        check_streams(self._here, self._who)
        self._here.streams[self._who.id] += 1
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._stream(receive, send)
        finally:
            self._here.streams[self._who.id] -= 1
            await self._pieces.aclose()

    async def _stream(self, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send), name="http stream")
        leaving = asyncio.create_task(disconnected(receive), name="http stream's client")
        stopping = asyncio.create_task(self._here.stopping.wait(), name="http stream's end")
        tasks = (writing, leaving, stopping)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            over, gone = writing.done(), leaving.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if over:
            writing.result()
        elif gone:
            if self._left is not None:
                await self._left()
            return
        await send(_body(b"" if over else self._farewell, last=True))

    async def _write(self, send: Send) -> None:
        async with aclosing(kept_alive(self._pieces, KEEP_ALIVE_SECONDS)) as pieces:
            async for piece in pieces:
                await send(_body(piece))


async def kept_alive(pieces: AsyncIterator[bytes], seconds: float) -> Pieces:
    """``pieces``, and a comment whenever none came for ``seconds``."""
    coming = asyncio.create_task(_next(pieces), name="http stream's next")
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=seconds)
            if not done:
                yield KEEP_ALIVE
            elif (piece := coming.result()) is None:
                return
            else:
                yield piece
                coming = asyncio.create_task(_next(pieces), name="http stream's next")
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming


async def disconnected(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


def _body(piece: bytes, *, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": not last}
