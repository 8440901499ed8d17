"""Reading a provider's stream in a task of its own: what every adapter over an SDK has in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from rolecall.errors import ModelTimeout, ModelUnavailable, Truncated
from rolecall.models.model import Delta, Done, ModelEvent

AHEAD = 16
"""Events read before the consumer takes them; a slow consumer slows the provider, not our memory."""
Source = AsyncGenerator[ModelEvent | None, None]
"""A provider's stream as an adapter makes it of the SDK's; None is a sign of life without text."""
IMAGE_TYPES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


@dataclass(frozen=True)
class Patience:
    """Seconds of silence borne before the first delta and after it, and for the whole; None: no limit."""

    first: float | None = None
    idle: float | None = None
    whole: float | None = None


async def read(source: Source, patience: Patience, name: str) -> AsyncGenerator[ModelEvent, None]:
    """The events of ``source``, with its failures made uniform.

    Ends in Done or raises: Truncated, with the text so far, for whatever breaks an answer that has begun
    (except what the provider refuses), ModelTimeout for silence before that. Cancelled or closed, it cancels
    the task that reads ``source``, and returns once that is over. ``name`` is for messages and the task.
    """
    ahead = _Ahead(source, name)
    text: list[str] = []
    done = False
    try:
        async for event in _in_time(ahead, patience, name, text):
            if isinstance(event, Delta):
                text.append(event.text)
            done = done or isinstance(event, Done)
            yield event
    except ModelUnavailable as error:
        if text:
            raise Truncated(str(error), "".join(text)) from None
        raise
    finally:
        await ahead.close()
    if not done:
        raise Truncated(f"{name}: the answer ended without its finish marker", "".join(text))


@asynccontextmanager
async def closing(events: AsyncIterator[ModelEvent]) -> AsyncIterator[AsyncIterator[ModelEvent]]:
    """``events``, closed at the end: an abandoned generator would be closed only when collected."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _in_time(ahead: _Ahead, patience: Patience, name: str, text: list[str]) -> AsyncGenerator[ModelEvent, None]:
    clock = asyncio.get_running_loop().time
    deadline = None if patience.whole is None else clock() + patience.whole
    while True:
        silence = patience.idle if text else patience.first
        left = None if deadline is None else deadline - clock()
        limit = min((seconds for seconds in (silence, left) if seconds is not None), default=None)
        try:
            async with asyncio.timeout(limit):
                event = await ahead.next()
        except TimeoutError:
            raise ModelTimeout(_late(name, patience, limit == left, bool(text))) from None
        if isinstance(event, _End):
            return
        if event is not None:
            yield event


def _late(name: str, patience: Patience, whole: bool, begun: bool) -> str:
    if whole:
        return f"{name}: no whole answer within {patience.whole:g} s"
    if begun:
        return f"{name}: silent for {patience.idle:g} s in the middle of its answer"
    return f"{name}: no first word within {patience.first:g} s"


class _End:
    """What follows the last event."""


class _Ahead:
    """A task that reads ``source`` into a short queue."""

    def __init__(self, source: Source, name: str) -> None:
        self._events: asyncio.Queue[ModelEvent | _End | None] = asyncio.Queue()
        # A bound of our own: a full queue could not take the end marker that frees the consumer.
        self._room = asyncio.Semaphore(AHEAD)
        self._task = asyncio.create_task(self._fill(source), name=f"read {name}")

    async def next(self) -> ModelEvent | _End | None:
        """The next event; at the end _End, or whatever ``source`` raised."""
        event = await self._events.get()
        if isinstance(event, _End):
            await self._task
        self._room.release()
        return event

    async def close(self) -> None:
        """Cancel the task and wait for its end, which is when the provider's connection is closed."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _fill(self, source: Source) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    await self._room.acquire()
                    self._events.put_nowait(event)
        finally:
            self._events.put_nowait(_End())


def image_type(image: bytes) -> str:
    """Its MIME type, by its first bytes; image/jpeg for what is not known."""
    return "image/" + next((kind for start, kind in IMAGE_TYPES if image.startswith(start)), "jpeg")
