"""Waiting for what others finish: calls, people, timers. A handler that does nothing but wait is suspended."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from rolecall.agent.recorder import Recorder, StepRun
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import Delivery
from rolecall.bus.settle import Awaited
from rolecall.bus.steps.answers import UserQuestion
from rolecall.bus.steps.journal import NewStep, Step, begin
from rolecall.bus.turn import Verdict, quoted
from rolecall.errors import StepError
from rolecall.redis.scripts import milliseconds

MAX_DAYS = 366
Park = Callable[[Awaited], Awaitable[tuple[Verdict, int]]]
"""Suspends the turn. OK, after which the handler is cancelled, or READY with the server's clock in ms: there is nothing
to wait for any more."""
TICKS = 4
"""So many rounds of the event loop a handler gets to begin other work before it counts as waiting."""


@dataclass(eq=False)
class Wait:
    """A step that others finish. ``seconds`` until it is due, None for ever; the ``envelope`` of a call. While a turn
    waits only for steps that stand ``still``, its time does, too."""

    run: StepRun
    seconds: float | None = None
    envelope: Envelope | None = None
    still: bool = False
    text: str = ""
    """What is waited for, for people."""
    late: Callable[[], Awaitable[object]] | None = None
    """Gives the step a result when it is due and has none; without it, being due is all that was waited for."""
    asked: UserQuestion | None = None
    """What people are asked."""

    @property
    def key(self) -> str:
        """The key of the step."""
        return self.run.key

    def new_step(self) -> NewStep:
        """The step as it begins."""
        if self.asked is None:
            return NewStep(self.key, Step(self.run.kind, self.run.name), self.seconds, self.envelope)
        raw = msgspec.json.encode(self.asked)
        step = Step(self.run.kind, self.run.name, msgspec.Raw(raw))
        return NewStep(self.key, step, self.seconds, asked=raw, said=quoted(self.asked.text))


@dataclass(eq=False)
class Group:
    """Steps that one place of the handler waits for."""

    waits: Sequence[Wait]
    done: asyncio.Future[None]


class Waits:
    """What one handling waits for."""

    def __init__(
        self,
        bus: Bus,
        delivery: Delivery,
        recorder: Recorder,
        *,
        user: str,
        instance: str,
        park: Park,
    ) -> None:
        self._bus = bus
        self._delivery = delivery
        self.recorder = recorder
        self._user = user
        self._instance = instance
        self._park = park
        self._groups: list[Group] = []
        self._looking = False
        # The time as of which timers count: that of the entry is the same however often it is handled.
        self._now = delivery.resumed or int(delivery.id.partition("-")[0])
        recorder.idle = self._look

    async def results(self, waits: Sequence[Wait]) -> list[bytes | None]:
        """The results of ``waits``, once all are finished; None for one that had to become due."""
        recorder = self.recorder
        await self._begin([wait for wait in waits if wait.run.found is None])
        for wait in waits:
            if self._finished(wait):
                recorder.count("replayed", wait.run.kind)
        while not all(map(self._finished, waits)):
            late = [wait.late() for wait in waits if wait.late is not None and self._due(wait)]
            if late:
                await asyncio.gather(*late)
                await recorder.load()
            else:
                await self._wait(Group(waits, recorder.blocked()))
        return [recorder.journal.results.get(wait.key) for wait in waits]

    def wait(self, kind: str, name: str, **more: Any) -> Wait:
        """The next step of the running task, one that others finish."""
        return Wait(self.recorder.next(kind, name), **more)

    async def sleep(self, seconds: float) -> None:
        """Wait until ``seconds`` from now have passed. Raises StepError for more than MAX_DAYS."""
        if not 0 <= seconds <= MAX_DAYS * 86_400:
            self.recorder.broke(StepError(f"sleep({seconds:g}) is invalid: expected 0 s to {MAX_DAYS} days"))
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        text = f"its timer, until {until:%Y-%m-%d %H:%M:%S} UTC"
        await self.results([self.wait("sleep", "", seconds=seconds, still=True, text=text)])

    async def _begin(self, waits: Sequence[Wait]) -> None:
        if not waits:
            return
        recorder, limit = self.recorder, self._bus.settings.call_limit
        journal = recorder.journal
        journal.calls.update((wait.key, "") for wait in waits if wait.envelope is not None)
        if len(journal.calls.keys() - journal.results.keys()) > limit:
            recorder.broke(StepError(f"a handler may have {limit} calls at once, see CALL_LIMIT"))
        await recorder.before(waits[0].run.scope)
        new = [wait.new_step() for wait in waits]
        try:
            verdict, now = await begin(self._bus, self._delivery, new, user=self._user, instance=self._instance)
        except StepError as error:
            recorder.broke(error)
        if verdict == "CONTROL":
            recorder.broke(
                StepError("a command runs outside the conversation's order and cannot wait: use a message for this")
            )
        if verdict != "OK":
            await recorder.gone()
        for wait in waits:
            recorder.count("recorded", wait.run.kind)
            if wait.seconds is not None:
                journal.due[wait.key] = now + milliseconds(wait.seconds)

    async def _wait(self, group: Group) -> None:
        around = [run for run in group.waits[0].run.around()]
        self._groups.append(group)
        for run in around:
            run.waits += 1
        try:
            self._look()
            await group.done
        finally:
            for run in around:
                run.waits -= 1
            self._groups.remove(group)

    def _due(self, wait: Wait) -> bool:
        """Whether the step is due and has no result."""
        journal = self.recorder.journal
        return wait.key not in journal.results and 0 < journal.due.get(wait.key, 0) <= self._now

    def _finished(self, wait: Wait) -> bool:
        return wait.key in self.recorder.journal.results or (wait.late is None and self._due(wait))

    def _look(self) -> None:
        """See soon whether the handler does nothing but wait."""
        if not self._looking and self._groups:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look_again, TICKS)

    def _look_again(self, ticks: int) -> None:
        if ticks:
            asyncio.get_running_loop().call_soon(self._look_again, ticks - 1)
            return
        self._looking = False
        recorder = self.recorder
        if self._groups and not recorder.busy and recorder.parking is None and recorder.broken is None:
            recorder.parking = asyncio.create_task(self._suspend(), name="rolecall suspend")

    async def _suspend(self) -> None:
        """Suspend the turn, or let the handler go on with what is finished meanwhile."""
        try:
            await self.recorder.flush()
            verdict, now = await self._park(self._awaited())
            if verdict != "READY":
                return  # the handler is cancelled
            await self.recorder.load()
            self._now = max(self._now, now)
            self._go_on()
        except Exception as error:  # raised where the handler waits
            for group in self._groups:
                if not group.done.done():
                    group.done.set_exception(error)
        self.recorder.parking = None

    def _go_on(self) -> None:
        for group in self._groups:
            if not group.done.done() and (any(map(self._due, group.waits)) or all(map(self._finished, group.waits))):
                group.done.set_result(None)
        self._look()

    def _awaited(self) -> Awaited:
        missing = [wait for group in self._groups for wait in group.waits if not self._finished(wait)]
        due = [self.recorder.journal.due[wait.key] for wait in missing if wait.key in self.recorder.journal.due]
        keys = [[wait.key for wait in group.waits if not self._finished(wait)] for group in self._groups]
        texts = Counter(wait.text for wait in missing)
        return Awaited(
            groups=keys, due=min(due, default=0), still=all(wait.still for wait in missing),
            text=", ".join(f"{text} ×{n}" if n > 1 else text for text, n in texts.items()),
        )  # fmt: skip
