"""A model behind its gate: asked when it may be, asked again where that helps, and what came of it reported."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from rolecall.errors import (
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnauthorised,
    ModelUnavailable,
    NoSuchModel,
    NotNow,
    RateLimited,
    Truncated,
)
from rolecall.models.gate import Call, Gate
from rolecall.models.model import Model, ModelEvent, Request, Usage
from rolecall.models.reading import closing

TRIES = 3
PATIENCE_SECONDS = 0.25
"""A wait up to this is sat out; a longer one is the caller's to sleep through without holding anything."""


class Guarded:
    """``model`` as ``gate`` lets it be asked. A failure before the first word is tried again at once, twice, with
    jitter; nothing is repeated after it, and a timeout is not repeated at all."""

    def __init__(self, model: Model, gate: Gate) -> None:
        self.name = model.name
        self.model = model
        self.gate = gate

    def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream. Raises NotNow too, having booked a place in the quota where that is the reason."""
        return self.attempt(request, book=True)

    async def attempt(self, request: Request, *, book: bool) -> AsyncIterator[ModelEvent]:
        """``stream``, with ``book`` only booking when the quota is used up."""
        for tries_left in reversed(range(TRIES)):
            call = await self._enter(request, book)
            try:
                async with closing(self._asked(call, request)) as events:
                    async for event in events:
                        yield event
                return
            except _Again as again:
                if not tries_left:
                    raise again.error from None
            await asyncio.sleep(random.uniform(0.1, 0.3) * 2 ** (TRIES - 1 - tries_left))

    async def book(self, request: Request) -> NotNow | None:
        """Book a place in the quota; None if there is one right now."""
        try:
            self.gate.abandoned(await self.gate.enter(request, book=True))
        except NotNow as later:
            return later
        return None

    async def warm(self, progress: object = None) -> None:
        """Get the model ready, where it is one that needs to be."""
        if hasattr(self.model, "warm"):
            await self.model.warm(progress)

    async def aclose(self) -> None:
        """Close the model, and tell what is still to be told."""
        await self.model.aclose()
        await self.gate.aclose()

    async def _enter(self, request: Request, book: bool) -> Call:
        try:
            return await self.gate.enter(request, book=book)
        except NotNow as later:
            if later.after > PATIENCE_SECONDS:
                raise
            await asyncio.sleep(later.after)
        return await self.gate.enter(request, book=book)

    async def _asked(self, call: Call, request: Request) -> AsyncIterator[ModelEvent]:
        begun = over = False
        try:
            async with closing(self.model.stream(request)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        self.gate.answering(call)
                    if isinstance(event, Usage):
                        call.usage = event
                    yield event
            over = True
            await self.gate.left(call, "OK")
        except ModelError as error:
            over = True
            raise await self._judged(call, error, begun) from None
        finally:
            if not over:  # cancelled, or left alone in the middle
                self.gate.abandoned(call)

    async def _judged(self, call: Call, error: ModelError, begun: bool) -> Exception:
        """Report ``error``, and say what to raise for it."""
        if isinstance(error, NotNow):  # all its servers are away, and it knows until when not to ask
            verdict = await self.gate.left(call, "AWAY", str(error), error.after)
            return NotNow(str(error), verdict.after, (self.name,))
        if isinstance(error, RateLimited):
            verdict = await self.gate.left(call, "LIMITED", str(error), error.retry_after)
            return error if begun else NotNow(str(error), verdict.after)
        if isinstance(error, ModelUnauthorised | NoSuchModel):
            await self.gate.left(call, "NOTHING")
        elif isinstance(error, ModelRefused):
            await self.gate.left(call, "OK")
        elif isinstance(error, ModelUnavailable | Truncated):
            verdict = await self.gate.left(call, "FAILED", str(error))
            if begun:
                return error
            if verdict.away:
                return NotNow(str(error), verdict.after, (self.name,))
            return error if isinstance(error, ModelTimeout) else _Again(error)
        else:
            await self.gate.left(call, "NOTHING")
        return error


class _Again(Exception):
    """``error`` came before the first word: another try may help."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(str(error))
        self.error = error
