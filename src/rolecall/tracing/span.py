"""Spans: what is recorded of a piece of work, or nothing while traces are off."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

Attributes = Mapping[str, Any]


class Span:
    """A piece of work that nobody records."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Note that something happened within it."""

    def fail(self, kind: str, text: str = "") -> None:
        """Mark it as failed, by the kind of its error."""


UNRECORDED = Span()
NOTHING = nullcontext(UNRECORDED)


class Tracing:
    """The traces of a process that records none."""

    def hop(
        self, name: str, attributes: Attributes, identity: str, number: str, meta: Attributes
    ) -> AbstractContextManager[Span]:
        """The span of one handling, in the trace of the turn ``number`` whose envelope has the id ``identity`` and this
        ``meta``. Spans that begin within it are its children."""
        return NOTHING

    def turn(
        self, attributes: Attributes, identity: str, number: str, meta: Attributes, began: int, failure: str = ""
    ) -> None:
        """Record the span of a whole turn, which began at ``began`` (ms since 1970) and ends now. All processes agree
        on its IDs, so that the one that ends the turn can write the span that the hops of others have as a parent."""

    def span(self, name: str, attributes: Attributes, *, client: bool = False) -> AbstractContextManager[Span]:
        """A span within the current one; ``client`` if it is a call of another system."""
        return NOTHING

    async def aclose(self) -> None:
        """Send what is not sent yet, for at most a few seconds."""


UNTRACED = Tracing()
CURRENT = ContextVar[tuple[Tracing, Span] | None]("rolecall span", default=None)


def span(name: str, attributes: Attributes, *, client: bool = False) -> AbstractContextManager[Span]:
    """A span within the current task's; it records nothing unless that is being traced. An exception that leaves the
    block marks it as failed."""
    found = CURRENT.get()
    return NOTHING if found is None else found[0].span(name, attributes, client=client)


def current_span() -> Span:
    """The span in which the current task works."""
    found = CURRENT.get()
    return UNRECORDED if found is None else found[1]
