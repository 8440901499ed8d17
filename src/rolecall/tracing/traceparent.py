"""The W3C trace context: what travels in HTTP headers, in envelopes and into the process log."""

from __future__ import annotations

import re
import sys
from contextvars import ContextVar
from typing import Any

HEADER = "traceparent"
"""Of HTTP requests, and the key in an envelope's ``meta``."""
FORM = re.compile(r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
TRACEPARENT = ContextVar("rolecall traceparent", default="")
"""Of the span in which the current task works, or of the request that it serves; empty while nothing is traced."""


def parsed(value: object) -> tuple[int, int, bool] | None:
    """Trace ID, span ID and whether the trace is recorded; None for what is no traceparent."""
    found = FORM.fullmatch(value) if isinstance(value, str) and len(value) <= 512 else None
    return None if found is None else (int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1))


def written(trace: int, span: int, recorded: bool) -> str:
    """The header for a span."""
    return f"00-{trace:032x}-{span:016x}-{int(recorded):02x}"


def carried() -> dict[str, str]:
    """What the ``meta`` of a new envelope takes along: the traceparent of the request that this task serves, or of the
    span in which the calling program works."""
    if value := TRACEPARENT.get():
        return {HEADER: value}
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return {HEADER: written(context.trace_id, context.span_id, context.trace_flags.sampled)} if context.is_valid else {}


def trace_id() -> str:
    """The trace that the current task works for, as 32 hex digits; empty without one."""
    return TRACEPARENT.get()[3:35]


async def add_traceparent(request: Any) -> None:
    """Event hook of httpx: say in the request which span it belongs to."""
    if value := TRACEPARENT.get():
        request.headers[HEADER] = value
