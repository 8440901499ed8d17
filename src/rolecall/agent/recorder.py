"""Records the steps of a handler as it finishes them, and replays what its earlier handlings have recorded."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec

from rolecall.background import heeded
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery
from rolecall.bus.steps.journal import Journal, Step, StepFailure, encoded, record, recorded
from rolecall.bus.turn import Records
from rolecall.errors import NonDeterministic, ServerError, StepError, text_of
from rolecall.tracing import conventions
from rolecall.tracing.span import NOTHING, Span, current_span, span

TRACED = ("model", "tool")
"""Kinds of steps that have spans of their own."""
UNHURRIED_SECONDS = 0.05
"""How long the record of an unhurried step may wait for something to go with. A handler that ends meanwhile needs no
record."""
CLEANUP_SECONDS = 0.05
"""How long a step waits that a cancelled handler asks for, so that one that never gives up does not block others."""
ADVICE = "a handler must ask for the same steps each time it runs; was it changed while the turn was in flight?"


@dataclass(eq=False)
class Scope:
    """Where steps are counted: a task of the handler, or what runs inside one step. Steps in one scope follow each
    other, so that their ordinals are the same each time."""

    handling: object
    """Stands for the recorder. Scopes do not hold it, so that a handling leaves nothing to the garbage collector."""
    task: asyncio.Task[Any] | None
    prefix: str = ""
    within: StepRun | None = None
    """The step that it is inside of."""
    steps: int = 0
    tasks: int = 0
    failed: list[tuple[str, Step]] = field(default_factory=list)
    """Steps that raised. Recorded once the handler asks for another step, for then it has caught the error."""


SCOPE = ContextVar[Scope | None]("rolecall steps", default=None)


@dataclass(eq=False)
class StepRun:
    """A step that a handler asks for: ``found`` holds its record, if an earlier handling has finished it."""

    recorder: Recorder
    scope: Scope
    key: str
    kind: str
    name: str
    found: Step | None
    waits: int = 0
    """How many steps inside this one wait for others."""

    async def perform(
        self,
        work: Callable[[], Awaitable[Any]],
        encode: Callable[[Any], bytes],
        *,
        hurried: bool = True,
        note: Callable[[Any], str] | None = None,
    ) -> Any:
        """What ``work`` returns. ``encode`` makes the JSON to record, which is written before this returns if
        ``hurried``, else soon; ``note`` makes what the transcript tells of it. Raises StepError if it cannot be
        recorded."""
        await self.recorder.before(self.scope)
        try:
            with self.recorder.working(self), self._traced():
                value = await _contained(work())
        except (Exception, asyncio.CancelledError) as error:
            self.scope.failed.append((self.key, Step(self.kind, self.name, failure=_failure(error))))
            raise
        raw = msgspec.Raw(self._encoded(value, encode))
        await self.recorder.add(self.key, Step(self.kind, self.name, raw), hurried, note(value) if note else "")
        return value

    def result(self) -> bytes:
        """The recorded result. Raises what the step raised."""
        assert self.found is not None
        self.recorder.count("replayed", self.kind)
        current_span().event("replayed", conventions.step(self.kind, self.name, self.key))
        if self.found.failure is not None:
            raise _raised(self.found.failure)
        return bytes(self.found.value)

    def around(self) -> Iterator[StepRun]:
        """The steps that this one is inside of."""
        within = self.scope.within
        while within is not None:
            yield within
            within = within.scope.within

    def _traced(self) -> AbstractContextManager[Span]:
        if self.kind in TRACED:
            return NOTHING
        return span(f"{self.kind} {self.name}", conventions.step(self.kind, self.name, self.key))

    def _encoded(self, value: Any, encode: Callable[[Any], bytes]) -> bytes:
        try:
            raw = encode(value)
            msgspec.json.decode(raw)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            self.recorder.broke(
                StepError(
                    f"step {self.key} ({self.kind} {self.name}) returned a value of type {type(value).__name__} that "
                    "cannot be recorded: expected JSON, such as text, numbers, lists, dicts and dataclasses: "
                    f"{_line(error)}"
                )
            )
        return raw


class Recorder:
    """The steps of one handling in ``task``. ``identity`` names the turn for ``step_key``, ``lost`` is called once
    another process owns the entry, ``count`` with ``recorded`` or ``replayed`` and the kind of a step."""

    def __init__(
        self,
        bus: Bus,
        delivery: Delivery,
        *,
        identity: str,
        task: asyncio.Task[Any] | None,
        records: Callable[[], Records],
        lost: Callable[[], None],
        count: Callable[[str, str], None],
    ) -> None:
        self.count = count
        self.broken: StepError | None = None
        """Why the turn cannot go on; what the handler makes of it does not matter."""
        self._bus = bus
        self._delivery = delivery
        self._identity = identity
        self._records = records
        self._lost = lost
        self.journal = Journal()
        """What earlier handlings have recorded."""
        self.idle: Callable[[], None] | None = None
        """Told when a step has ended while others may wait."""
        self.parking: asyncio.Task[None] | None = None
        """The attempt to suspend the turn that is on its way."""
        self._handling = object()
        self._root = Scope(self._handling, task)
        self._sure = time.monotonic() - _age_of(bus, delivery)
        self._performing: set[StepRun] = set()
        self._blocked: set[asyncio.Future[None]] = set()
        self._asked: set[str] = set()
        self._pending: list[tuple[str, Step]] = []
        self._notes: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read what earlier handlings have recorded; without it, nothing is replayed. Blocks once the lease is lost,
        until the handler is cancelled."""
        asked = time.monotonic()
        verdict, journal = await recorded(self._bus, self._delivery)
        if verdict != "OK":
            await self.gone()
        self.journal, self._sure = journal, asked

    def next(self, kind: str, name: str) -> StepRun:
        """The next step of the running task. Raises NonDeterministic if another one was recorded in its place."""
        if self.broken is not None:
            raise self.broken
        scope = self._scope()
        scope.steps += 1
        key = f"{scope.prefix}{scope.steps}"
        found = self.journal.steps.get(key)
        if found is not None and (found.kind, found.name) != (kind, name):
            self.broke(
                NonDeterministic(
                    f"step {key} was {found} when it was recorded, and now is {Step(kind, name)}: {ADVICE}"
                )
            )
        self._asked.add(key)
        return StepRun(self, scope, key, kind, name, found)

    @property
    def step_key(self) -> str:
        """A key of the next step of the running task: the same each time the handler runs, and used by no other step
        of any turn."""
        scope = self._scope()
        parts = (self._identity, self._delivery.turn, str(self._delivery.hop), f"{scope.prefix}{scope.steps + 1}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    async def before(self, scope: Scope) -> None:
        """Record what is not recorded yet, before another step of ``scope`` begins. Blocks once the turn is suspended,
        until the handler is cancelled."""
        while self.parking is not None:
            if self.parking.done():
                await self.gone()
            await asyncio.wait((self.parking,))
        self._pending += scope.failed
        scope.failed.clear()
        await self.flush()
        if time.monotonic() - self._sure > self._bus.settings.lease_seconds / 2:
            # This process may have been stopped for longer than its lease, and others may have done this step.
            asked = time.monotonic()
            if (await recorded(self._bus, self._delivery))[0] != "OK":
                await self.gone()
            self._sure = asked

    async def add(self, key: str, step: Step, hurried: bool, note: str = "") -> None:
        """Record a finished step, now if ``hurried``, else soon, with a ``note`` for the transcript."""
        self.count("recorded", step.kind)
        self._notes[key] = note
        self._pending.append((key, step))
        if hurried:
            await self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(UNHURRIED_SECONDS, self._start_writing)

    async def flush(self) -> None:
        """Record what is not recorded yet. Raises StepError, and ServerUnavailable; blocks once the lease is lost,
        until the handler is cancelled."""
        while self._pending or self._writing is not None:
            if self._writing is None:
                self._start_writing()
            assert self._writing is not None
            await asyncio.shield(self._writing)

    def close(self) -> None:
        """Record nothing more: the handler has ended, and so have its steps. Cancels tasks that it left waiting."""
        self.broken = self.broken or StepError(
            f"the handler of {self._delivery.role} has ended: await the tasks that it starts before it returns"
        )
        self._pending.clear()
        for waiting in tuple(self._blocked):
            waiting.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()

    async def gone(self) -> NoReturn:
        """Another process owns the entry, or the turn is suspended: block until the handler is cancelled. A handler
        that asks for steps while it cleans up after a cancellation is cancelled again."""
        self._lost()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            await asyncio.sleep(CLEANUP_SECONDS)
        else:
            await self.blocked()
        raise asyncio.CancelledError

    def blocked(self) -> asyncio.Future[None]:
        """A future to wait for, which is cancelled when the handler ends first."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._blocked.add(waiting)
        waiting.add_done_callback(self._blocked.discard)
        return waiting

    async def finish(self) -> None:
        """The handler has ended: what it does next goes with its result, so that no unhurried step is recorded any more
        unless ``flush`` is called. Raises StepError if a step made that worthless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.parking is not None:
            await asyncio.wait((self.parking,))
        if self.broken is not None:
            raise self.broken

    def check_complete(self) -> None:
        """Raises NonDeterministic if the handler asked for fewer steps than were recorded."""
        steps = self.journal.steps
        unasked = [key for key in steps if key not in self._asked and key.isdigit()]
        if unasked:
            step = steps[key := min(unasked, key=int)]
            raise NonDeterministic(
                f"step {key} was {step} when it was recorded, and now the handler ends without it: {ADVICE}"
            )

    @contextmanager
    def working(self, run: StepRun) -> Iterator[None]:
        """``run`` is being performed: what runs inside it counts its steps by itself."""
        token = SCOPE.set(Scope(self._handling, asyncio.current_task(), f"{run.key}/", run))
        self._performing.add(run)
        try:
            yield
        finally:
            SCOPE.reset(token)
            self._performing.discard(run)
            if self.idle is not None:
                self.idle()

    @property
    def busy(self) -> bool:
        """Whether a step is being performed that does not wait for others itself."""
        return any(not run.waits for run in self._performing)

    @property
    def returning(self) -> bool:
        """Whether the handler, run again after a wait, has not come back to what it waited for."""
        journal = self.journal
        waits = journal.results.keys() | journal.due.keys() | journal.calls.keys()
        return bool(self._delivery.resumed) and not waits <= self._asked

    def broke(self, error: StepError) -> NoReturn:
        """Note that the turn cannot go on, and raise ``error``."""
        self.broken = self.broken or error
        raise error

    def _scope(self) -> Scope:
        """That of the running task. A task that the handler has started has one of its own."""
        scope, task = SCOPE.get(), asyncio.current_task()
        if task is not None and self._root.task is not None and task.get_loop() is not self._root.task.get_loop():
            raise StepError(
                "ctx belongs to the event loop of its handler: from a thread, use "
                "asyncio.run_coroutine_threadsafe(…, loop).result()"
            )
        if scope is None or scope.handling is not self._handling:
            scope = self._root
        if scope.task is not task:
            scope.tasks += 1
            scope = Scope(self._handling, task, f"{scope.prefix}{scope.tasks}:", scope.within)
            SCOPE.set(scope)
        return scope

    def _start_writing(self) -> None:
        self._timer = None
        if self._writing is None and self._pending:
            self._writing = asyncio.create_task(self._write(), name="rolecall steps")
            self._writing.add_done_callback(heeded)

    async def _write(self) -> None:
        steps, self._pending = self._pending, []
        try:
            await self._record(steps)
        except ServerError:
            self._pending = [*steps, *self._pending]
            raise
        finally:
            self._writing = None

    async def _record(self, steps: list[tuple[str, Step]]) -> None:
        records = self._records()
        for key, step in steps:
            records.add("STEP", f"{key} {step}{' failed' if step.failure else ''}")
            if note := self._notes.get(key):
                records.add("NOTE", note)
        try:
            for key, step in steps:
                encoded(self._bus, key, step)
            asked = time.monotonic()
            verdict = await record(self._bus, self._delivery, steps, records)
        except StepError as error:
            self.broke(error)
        if verdict != "OK":
            await self.gone()
        self._sure = asked


def _age_of(bus: Bus, delivery: Delivery) -> float:
    """The seconds since this process has got the entry, by the server's clock as far as it is known. What a blocking
    read brought may have lain about while the process was stopped."""
    begun, clock = delivery.beginning, bus.clocks[delivery.shard].now()
    if begun is None:
        return float("inf")
    return max(0.0, clock - begun.received - delivery.paused - begun.age * 1000) / 1000 if clock else 0.0


async def _contained(work: Awaitable[Any]) -> Any:
    """What ``work`` returns. Raises RuntimeError in place of what would end the event loop if a task raised it."""
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"it raised {type(error).__name__}: {error}") from error


def _failure(error: BaseException) -> StepFailure:
    """``error`` to be recorded. Cancelling a step and going on is what a timeout in the handler does."""
    kind = TimeoutError if isinstance(error, asyncio.CancelledError) else type(error)
    try:
        more = msgspec.json.decode(msgspec.json.encode(vars(error)))
    except (TypeError, ValueError, RecursionError):
        more = {}
    return StepFailure(kind.__module__, kind.__qualname__, text_of(error), more)


def _raised(failure: StepFailure) -> Exception:
    """The exception that was recorded; of a class that is not loaded here, a RuntimeError with its name."""
    kind: Any = sys.modules.get(failure.module)
    with suppress(AttributeError):
        for part in failure.name.split("."):
            kind = getattr(kind, part)
        if isinstance(kind, type) and issubclass(kind, Exception):
            error = kind.__new__(kind, failure.text)
            error.args = (failure.text,)
            vars(error).update(failure.attributes)
            return error
    return RuntimeError(f"{failure.name}: {failure.text}")


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
