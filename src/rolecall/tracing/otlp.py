"""Records spans with the OpenTelemetry SDK and sends them to a collector by OTLP over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from rolecall.errors import ConfigError, MissingExtra
from rolecall.settings import Settings
from rolecall.tracing.span import CURRENT, UNTRACED, Attributes, Span, Tracing
from rolecall.tracing.traceparent import HEADER, TRACEPARENT, parsed, written
from rolecall.transport.http_client import address
from rolecall.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span as SdkSpan

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXPORT_SECONDS = 5
"""How long one request to the collector may take."""
CLOSE_SECONDS = 2.0
CHOSEN = ContextVar[tuple[int, int] | None]("rolecall trace and span id", default=None)


def open_tracing(settings: Settings, process: str) -> Tracing:
    """The traces of this process, as the settings say. Raises ConfigError, for a missing extra too."""
    if not settings.otel_exporter_otlp_endpoint:
        return UNTRACED
    if importlib.util.find_spec("opentelemetry.exporter") is None:
        raise MissingExtra("tracing", ENDPOINT)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    url = f"{address(ENDPOINT, settings.otel_exporter_otlp_endpoint)}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=url, headers=_headers(settings), timeout=EXPORT_SECONDS)
    # The SDK tells of each batch that a collector which is away does not take, with a traceback.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return RecordedTraces(settings, process, BatchSpanProcessor(exporter))


class RecordedTraces(Tracing):
    """See Tracing. ``processor`` gets every span that ends."""

    def __init__(self, settings: Settings, process: str, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

        self._redacted = settings.redacted
        self._sampler = TraceIdRatioBased(settings.otel_traces_sampler_arg)
        self._provider = _provider(settings.otel_service_name, process, self._sampler)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("rolecall", __version__)

    @contextmanager
    def hop(self, name: str, attributes: Attributes, identity: str, number: str, meta: Attributes) -> Iterator[Span]:
        trace, sampled = self._trace(identity, meta)
        with self._entered(name, attributes, _within(trace, _root(identity, number), sampled)) as span:
            yield span

    @contextmanager
    def span(self, name: str, attributes: Attributes, *, client: bool = False) -> Iterator[Span]:
        with self._entered(name, attributes, None, client) as span:
            yield span

    def turn(
        self, attributes: Attributes, identity: str, number: str, meta: Attributes, began: int, failure: str = ""
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        trace, sampled = self._trace(identity, meta)
        caller = parsed(meta.get(HEADER))
        token = CHOSEN.set((trace, _root(identity, number)))
        try:
            context = Context() if caller is None else _within(trace, caller[1], sampled)
            span = self._tracer.start_span(
                "turn", context, SpanKind.SERVER, _clean(attributes), start_time=(began or _now_ms()) * 1_000_000
            )
        finally:
            CHOSEN.reset(token)
        if failure:
            _Recorded(span, self._redacted).fail(failure)
        span.end()

    async def aclose(self) -> None:
        """See Tracing. What a collector that is away has not taken is lost."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(closed.set)

        # A thread that does not keep the process, unlike those of asyncio.to_thread.
        threading.Thread(target=close, name="rolecall traces", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await closed.wait()

    @contextmanager
    def _entered(
        self, name: str, attributes: Attributes, within: Context | None, client: bool = False
    ) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind, use_span

        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        span = self._tracer.start_span(name, within, kind, _clean(attributes))
        recorded, about = _Recorded(span, self._redacted), span.get_span_context()
        header = written(about.trace_id, about.span_id, about.trace_flags.sampled)
        before, current = TRACEPARENT.set(header), CURRENT.set((self, recorded))
        try:
            with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
                try:
                    yield recorded
                except BaseException as error:
                    recorded.fail(type(error).__name__, str(error))
                    raise
        finally:
            CURRENT.reset(current)
            TRACEPARENT.reset(before)

    def _trace(self, identity: str, meta: Attributes) -> tuple[int, bool]:
        """The trace of a turn, and whether it is recorded: those of the request it came with, else by its envelope."""
        from opentelemetry.sdk.trace.sampling import Decision

        if (found := parsed(meta.get(HEADER))) is not None:
            return found[0], found[2]
        trace = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:16], "big") or 1
        return trace, self._sampler.should_sample(None, trace, "turn").decision is Decision.RECORD_AND_SAMPLE


class _Recorded(Span):
    def __init__(self, span: SdkSpan, redacted: Callable[[str], str]) -> None:
        self._span = span
        self._redacted = redacted

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_clean(attributes))

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, _clean(attributes))

    def fail(self, kind: str, text: str = "") -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, self._redacted(text)[:500] or None))


def _provider(service: str, process: str, sampler: Any) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import ParentBased

    class ChosenIds(RandomIdGenerator):
        """Random IDs, except for the span of a turn."""

        def generate_trace_id(self) -> int:
            chosen = CHOSEN.get()
            return super().generate_trace_id() if chosen is None else chosen[0]

        def generate_span_id(self) -> int:
            chosen = CHOSEN.get()
            return super().generate_span_id() if chosen is None else chosen[1]

    about = {"service.name": service, "service.version": __version__, "service.instance.id": process}
    return TracerProvider(ParentBased(sampler), Resource.create(about), False, id_generator=ChosenIds())


def _within(trace: int, span: int, sampled: bool) -> Context:
    """The context of a span of another process."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return set_span_in_context(NonRecordingSpan(SpanContext(trace, span, True, flags)), Context())


def _root(identity: str, number: str) -> int:
    """The span ID of a turn: the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{identity}/{number}".encode()).digest()[:8], "big") or 1


def _clean(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _headers(settings: Settings) -> Mapping[str, str]:
    given = settings.otel_exporter_otlp_headers.get_secret_value() if settings.otel_exporter_otlp_headers else ""
    found = {}
    for pair in filter(None, (part.strip() for part in given.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError("OTEL_EXPORTER_OTLP_HEADERS is invalid: expected name=value, comma-separated")
        found[name.strip().lower()] = value.strip()
    return found


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
