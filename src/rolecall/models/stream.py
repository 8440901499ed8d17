"""Reading a provider's stream in a task of its own: what every adapter over an SDK has in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from rolecall.errors import ContextTooLong, ModelTimeout, ModelUnavailable, RateLimited, RolecallError, Truncated
from rolecall.models.model import Delta, Done, ModelEvent, Retracted, Usage
from rolecall.models.thinking import Habit, ThoughtFilter
from rolecall.models.wire import whole_text

logger = logging.getLogger(__name__)
AHEAD = 16
"""Events read before the consumer takes them; a slow consumer slows the provider, not our memory."""
Source = AsyncGenerator[ModelEvent | None, None]
"""A provider's stream as an adapter makes it of what comes; None is a sign of life without text: every byte is one."""
HOLD_SECONDS = 0.5
"""How long the first words of a model are held that may turn out to be thoughts."""
IMAGE_TYPES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


@dataclass(frozen=True)
class Patience:
    """Seconds without a byte borne before the first delta and after it, and for the whole; None: no limit."""

    first: float | None = None
    idle: float | None = None
    whole: float | None = None


async def read(
    source: Source, patience: Patience, name: str, habit: Habit | None = None
) -> AsyncGenerator[ModelEvent, None]:
    """The events of ``source`` without what the model thinks, and with its failures made uniform.

    Ends in Done or raises: Truncated, with the text so far, for whatever breaks an answer that has begun
    (except what the provider refuses for its content), ModelTimeout for silence before that. Cancelled or closed, it
    cancels the task that reads ``source``, and returns once that is over. ``name`` is for messages and the task;
    ``habit`` is what the model is known to do with its thoughts.
    """
    ahead, answer = _Ahead(source, name), _Answer(ThoughtFilter(habit or Habit(False)))
    try:
        async for event in _in_time(ahead, patience, name, answer):
            for one in answer.take(event):
                yield one
    except (ModelUnavailable, RateLimited, ContextTooLong) as error:
        for one in answer.break_off():
            yield one
        if answer.text.shown:
            raise Truncated(str(error), answer.text.shown) from None
        raise
    finally:
        await ahead.close()
    if not answer.done:
        for one in answer.break_off():
            yield one
        raise Truncated(f"{name}: the answer ended without its finish marker", answer.text.shown)


@asynccontextmanager
async def closing(events: AsyncIterator[ModelEvent]) -> AsyncIterator[AsyncIterator[ModelEvent]]:
    """``events``, closed at the end: an abandoned generator would be closed only when collected."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


class _Answer:
    """What an answer shows, from the events that its source brings."""

    def __init__(self, text: ThoughtFilter) -> None:
        self.text = text
        self.begun = self.done = False
        self._half = ""
        self._last: list[ModelEvent] = []

    def take(self, event: ModelEvent | _Release) -> list[ModelEvent]:
        """What to pass on after ``event``. What follows the text is kept until the end."""
        if isinstance(event, _Release):
            return [Delta(piece) for piece in self.text.release()]
        if isinstance(event, Delta):
            self.begun = True
            retracted = self.text.retracted
            shown: list[ModelEvent] = [Delta(piece) for piece in self.text.feed(self._joined(event.text))]
            return [Retracted(), *shown] if self.text.retracted and not retracted else shown
        if not isinstance(event, Done):
            self._last.append(event)
            return []
        self.done = True
        rest = self.text.feed(whole_text(self._half)) + self.text.finish(whole=event.reason != "length")
        return [*map(Delta, rest), *self._last, event]

    def break_off(self) -> list[ModelEvent]:
        """What is left to pass on of an answer that has no end: calls may be incomplete."""
        usage = [event for event in self._last if isinstance(event, Usage)]
        return [*map(Delta, self.text.finish(whole=False)), *usage]

    def _joined(self, text: str) -> str:
        """``text`` with a surrogate pair that was split over two pieces; half of one waits for the next piece."""
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return whole_text(text)


async def _in_time(
    ahead: _Ahead, patience: Patience, name: str, answer: _Answer
) -> AsyncGenerator[ModelEvent | _Release, None]:
    clock = asyncio.get_running_loop().time
    deadline = None if patience.whole is None else clock() + patience.whole
    hold: float | None = None
    while True:
        silence = patience.idle if answer.begun else patience.first
        left = None if deadline is None else deadline - clock()
        limit = min((seconds for seconds in (silence, left) if seconds is not None), default=None)
        if answer.text.holds and hold is None:
            hold = clock() + HOLD_SECONDS
        held = hold - clock() if hold is not None and answer.text.holds else None
        early = held is not None and (limit is None or held < limit)
        try:
            async with asyncio.timeout(held if early else limit):
                event = await ahead.next()
        except TimeoutError:
            if early:
                yield _Release()
                continue
            raise ModelTimeout(_late(name, patience, limit == left, answer.begun)) from None
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


class _Release:
    """Comes when held text has waited long enough."""


class _Ahead:
    """A task that reads ``source`` into a short queue."""

    def __init__(self, source: Source, name: str) -> None:
        self._name = name
        self._events: asyncio.Queue[ModelEvent | _End | None] = asyncio.Queue()
        # A bound of our own: a full queue could not take the end marker that frees the consumer.
        self._room = asyncio.Semaphore(AHEAD)
        self._task = asyncio.create_task(self._fill(source), name=f"read {name}")

    async def next(self) -> ModelEvent | _End | None:
        """The next event; at the end _End, or whatever ``source`` raised."""
        event = await self._events.get()
        if isinstance(event, _End):
            try:
                await self._task
            except RolecallError:
                raise
            except Exception as error:  # the boundary: an adapter that stumbles over what its provider sent
                logger.warning("%s: its answer could not be read", self._name, exc_info=True)
                raise ModelUnavailable(f"{self._name}: its answer cannot be read: {type(error).__name__}") from None
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
