"""One instance: handles one envelope at a time and settles it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from rolecall.agent.agent import Agent
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.completion import HopUsage
from rolecall.agent.context import Context
from rolecall.agent.policies import Rules, wrapped
from rolecall.background import Rarely
from rolecall.bus.bus import count_soon
from rolecall.bus.conversation import Mark, remembered
from rolecall.bus.deltas import DeltaStream
from rolecall.bus.envelope import Envelope, short_turn_id
from rolecall.bus.leases import WHO, Beginning, Delivery, Reads, owns_turn, uncount
from rolecall.bus.process.process_log import public
from rolecall.bus.settle import Awaited, Refill, Supply, bury, complete, defer, discard, hop, quarantine, suspend
from rolecall.bus.turn import Records, Verdict, member_of, note, quoted
from rolecall.errors import Reject, Retry, ServerError, ServerUnavailable, StepError, TurnTimeout, told
from rolecall.tracing import conventions
from rolecall.tracing.span import NOTHING, UNRECORDED, UNTRACED, Span

logger = logging.getLogger(__name__)
MAX_REASON_CHARS = 2_000
DEAF_SECONDS = 5.0
"""How long a handler may take to end after its cancellation."""
WAITED = "waited"
"""In the meta of an envelope whose turn was deferred for free: later deferrals are not reported again."""
DEFECT = ("defect", 0.0)
TOO_LONG = ("took_too_long", 0.0)
"""What users are told, as kinds of errors.FAILURES; the reason is for operators."""
QUARANTINED = Rarely()


@dataclass(eq=False)
class Instance:
    """One slot of a role. ``handle`` never raises for anything an agent, an envelope or a model did."""

    id: str
    role: str
    agent: Agent
    services: AgentServices
    delivery: Delivery | None = None
    since: float = 0.0
    handled: int = 0
    errors: int = 0
    busy_seconds: float = 0.0
    retiring: bool = False
    draining: bool = False
    """Whether its worker drains: its handler may then be cancelled because the process ends."""
    reserved: bool = False
    """Whether a step is on its way that may take an envelope for this instance."""
    following: Delivery | None = None
    """What a settling step took for this instance while it was still busy."""
    supplier: Callable[[Instance, str], Refill | None] | None = None
    """Says what to take along when this instance settles an envelope, which may go on to the named role."""
    reads: dict[str, Reads] = field(default_factory=dict)
    """What the last handler of each role of the process read."""
    suspects: set[Instance] = field(default_factory=set, repr=False)
    """The instances of the process that handle an entry on its last delivery."""
    lost: str = ""
    """Why the current handler was cancelled; empty while the instance owns its entry."""
    cancelled: float = 0.0
    """When, by the monotonic clock."""
    _failure: str = field(default="", repr=False)
    """Why the current turn is given up, as a kind of error."""
    _age: float = field(default=0.0, repr=False)
    """Seconds since the turn was admitted, when this handling started."""
    _settling: bool = field(default=False, repr=False)
    """Whether a settling step for the current envelope is on its way."""
    _task: asyncio.Task[None] | None = field(default=None, repr=False)
    _span: Span = field(default=UNRECORDED, repr=False)
    """Of the current handling."""

    def __post_init__(self) -> None:
        self.deploy(self.agent, self.services)

    def deploy(self, agent: Agent, services: AgentServices) -> None:
        """Handle the next envelope with ``agent`` and ``services``; the current one ends with the old ones."""
        self.agent, self.services = agent, services
        self._rules = Rules.of(self.role, services)
        self._handler = wrapped(agent.handle, self._rules)

    @property
    def free(self) -> bool:
        """Whether the instance may take an envelope."""
        return self.delivery is None and self.following is None and not self.retiring and not self.reserved

    def occupy(self, delivery: Delivery) -> None:
        """Take ``delivery``; call ``handle`` next."""
        self.delivery, self.since, self.lost, self._age = delivery, time.monotonic(), "", 0.0
        self._settling, self._failure = False, ""
        if delivery.count >= self.services.bus.settings.max_deliveries:
            self.suspects.add(self)

    def cancel(self, reason: str) -> None:
        """Cancel the handler: FENCED when another instance owns the entry, LATE when the turn's time is over, BLOCKED
        or HANDED_BACK when the watchdog gave the entry away, DRAIN. Once a settling step is on its way, its verdict
        says what became of the entry."""
        if self._settling and reason != "DRAIN":
            return
        if self._task is not None and not self.lost:
            self.lost, self.cancelled = reason, time.monotonic()
            self._task.cancel()

    def _fence(self, delivery: Delivery) -> None:
        """Another instance owns ``delivery``, which a task that the handler left behind may say after the handling."""
        if self.delivery is delivery:
            self.cancel("FENCED")

    def deaf(self) -> bool:
        """Whether the handler goes on DEAF_SECONDS after it was cancelled or should have been."""
        now = time.monotonic()
        if self._task is None or self._settling:
            return False
        return now - (self.cancelled if self.lost else self.since + self._rules.timeout) > DEAF_SECONDS

    async def abandon(self) -> None:
        """End the turn of a handler that does not end, unless another process has it. Raises ServerError."""
        if self.delivery is not None and self.lost in ("", "LATE"):
            self.lost = "LATE"
            await self._bury_late(self.delivery, self._new_records())

    async def handle(self) -> None:
        """Handle the occupying delivery, settle it, and become free again."""
        assert self.delivery is not None
        self._task, where = asyncio.current_task(), _where(self.delivery)
        WHO.set(self.id)
        logger.info("handling %s", where)
        records = self._new_records()
        try:
            with self._traced(self.delivery) as self._span:
                try:
                    await self._handle(self.delivery, records)
                except asyncio.CancelledError:
                    await self._after_cancellation(self.delivery, records)
                except ServerError:
                    raise
                except Exception as error:  # the boundary, once more: nothing can be made of what the handler left
                    await self._bury_failed(self.delivery, error, self._new_records())
            if self.lost == "FENCED":
                await uncount(self.services.bus, self.delivery)
        except ServerError as error:
            logger.warning("leaving %s until its lease expires: %s", where, error)
        finally:
            handling = time.monotonic() - self.since
            self.services.meter.time("handling", handling, self.role)
            self.busy_seconds += handling
            self.handled += 1
            logger.info("handled %s in %.3f s", where, handling)
            self.delivery = self._task = None
            self.suspects.discard(self)

    def _traced(self, delivery: Delivery) -> AbstractContextManager[Span]:
        envelope, tracing = delivery.envelope, self.services.tracing
        if envelope is None or tracing is UNTRACED:
            return NOTHING
        about = conventions.agent(self.role, self.id, delivery.conversation, delivery.turn)
        about |= {
            "rolecall.hop": delivery.hop,
            "rolecall.attempt": envelope.attempt,
            "rolecall.delivery": delivery.count,
        }
        return tracing.hop(f"invoke_agent {self.role}", about, envelope.id, delivery.turn, envelope.meta)

    async def _handle(self, delivery: Delivery, records: Records) -> None:
        envelope, bus = delivery.envelope, self.services.bus
        if envelope is None:
            return await self._settle_unreadable(delivery, records)
        if delivery.stale:
            self.lost = "STALE"
            return await discard(bus, delivery)
        if delivery.count > bus.settings.max_deliveries:
            reason = "each time it was handled, its worker ended before an answer"
            return await self._bury(delivery, reason, records, failure=DEFECT)
        if delivery.beginning is not None:
            self._note_beginning(delivery, delivery.beginning)
        if self._late:
            return await self._bury_late(delivery, records)
        await self._run_handler(delivery, envelope, records)

    async def _run_handler(self, delivery: Delivery, envelope: Envelope, records: Records) -> None:
        bus = self.services.bus
        deltas = DeltaStream(bus, delivery, lambda: self._fence(delivery))
        ctx = Context(
            self.services, delivery, envelope, instance=self.id, records=records,
            publish=_unseen if delivery.call else deltas.publish, lost=lambda: self._fence(delivery),
            park=lambda awaited, used: self._suspend(delivery, records, deltas, awaited, used),
        )  # fmt: skip
        try:
            result = await self._run_steps(delivery, envelope, ctx)
        except Retry as retry:
            await self._defer(delivery, envelope, retry, records)
        except Reject as refusal:
            await self._bury(delivery, str(refusal), records, failure=(refusal.kind, refusal.wait))
        except TurnTimeout as late:
            await self._bury(delivery, str(late), records, failure=TOO_LONG)
        except ServerUnavailable:  # not the handler's doing: the lease expires and the envelope is handled again
            raise
        except StepError as error:
            await self._bury(delivery, f"{self.role} failed: {error}", records, failure=(error.kind, 0.0))
        except BaseException as error:  # the boundary: whatever an agent does, sys.exit() included, has an outcome
            if self._ends_this_task(error):
                raise
            await self._bury_failed(delivery, error, records)
        else:
            deltas.close()  # a piece sent after the settling step would be told that the entry is gone
            await self._settle(delivery, result, ctx, records)
        finally:
            deltas.close()
            ctx.close()
            self.reads[self.role] = delivery.along.reads

    async def _run_steps(self, delivery: Delivery, envelope: Envelope, ctx: Context) -> Envelope:
        """What the handler returns, run from the steps that earlier handlings have recorded."""
        if delivery.stepped:
            await ctx.recorder.load()
        try:
            result = await self._handler(envelope, ctx)
        except Exception as error:
            if (recorder := ctx.stepped) is not None:
                await recorder.finish()
                if isinstance(error, Retry):
                    await recorder.flush()
            raise
        if (recorder := ctx.stepped) is not None:
            await recorder.finish()
            recorder.check_complete()
        return result

    def _ends_this_task(self, error: BaseException) -> bool:
        """Whether ``error`` came to this task from outside, rather than from what the handler did."""
        if isinstance(error, asyncio.CancelledError):
            return bool(self.lost) or self._task is None or self._task.cancelling() > 0
        return isinstance(error, GeneratorExit) and not _runs(self._task)

    def begun(self, delivery: Delivery, verdict: Verdict, beginning: Beginning) -> None:
        """What became of the beginning of ``delivery``, which this instance may be handling since it was read."""
        if self.delivery is not delivery:
            return
        if verdict != "OK":
            return self.cancel(verdict)
        delivery.beginning = beginning
        self._note_beginning(delivery, beginning)
        if self._late:
            self.cancel("LATE")

    def _note_beginning(self, delivery: Delivery, beginning: Beginning) -> None:
        self._age = self.services.bus.clocks[delivery.shard].age(beginning.received, beginning.age)
        self.services.meter.time("wait", beginning.waited, self.role)
        self._span.set({"rolecall.wait_seconds": beginning.waited})
        if delivery.previous:
            self.services.meter.count("takeovers", self.role)

    @property
    def _late(self) -> bool:
        return self._age > self.services.bus.settings.turn_seconds

    def _settles(self, onward: str = "") -> Supply | None:
        """Note that a settling step is on its way; returns what to take along."""
        self._settling = True
        return None if self.supplier is None else partial(self.supplier, self, onward)

    async def _suspend(
        self, delivery: Delivery, records: Records, deltas: DeltaStream, awaited: Awaited, used: HopUsage | None
    ) -> tuple[Verdict, int]:  # fmt: skip
        """Suspend the turn, and cancel its handler unless there is nothing to wait for any more."""
        if self.delivery is not delivery:  # only a task that the handler left behind waits
            return "FENCED", 0
        await deltas.drain()
        told = records.copy()
        told.add("SUSPENDED", _with_usage(f"waits for {awaited.text}", used))
        verdict, now = await suspend(self.services.bus, delivery, awaited, told, self._settles())
        self._settling = False
        if verdict == "CONTROL":
            raise StepError("a command cannot wait")
        if verdict != "READY" and not self.lost:
            self.lost, self.cancelled = "SUSPENDED" if verdict == "OK" else verdict, time.monotonic()
            if self._task is not None:
                self._task.cancel()
        return verdict, now

    async def _settle(self, delivery: Delivery, result: Envelope, ctx: Context, records: Records) -> None:
        bus, (changes, forget) = self.services.bus, ctx.changes
        if not result.answered:
            records.add("SENT", _with_usage(f"to role stream {result.role}", ctx.used))
            supply = self._settles(result.role.partition("@")[0])
            self._note_verdict(delivery, await hop(bus, delivery, result, records, changes, supply))
            return
        asked = delivery.envelope
        if ctx.called is not None and asked is not None:
            result = asked.reply(ctx.called, remember=False)
        payload = result.payload
        history: list[bytes] = []
        if asked is not None and payload.pop("remember", not delivery.control) and not delivery.call:
            history = remembered(asked.text, result.text, delivery.turn, asked=asked, answered=payload)
        if ctx.logprobs:
            payload["logprobs"] = ctx.logprobs
        records.add("PROCESSING_COMPLETE", _summary(payload, ctx.used))
        verdict = await complete(
            bus, delivery, result, records, history=history, preferences=changes, forget=forget,
            supply=self._settles(),
        )  # fmt: skip
        self._note_verdict(delivery, verdict, ended=True)

    async def _defer(self, delivery: Delivery, envelope: Envelope, retry: Retry, records: Records) -> None:
        if retry.free:
            return await self._defer_for_free(delivery, envelope, retry, records)
        later = msgspec.structs.replace(envelope, attempt=envelope.attempt + 1)
        if later.attempt >= self._rules.attempts:
            return await self._bury(delivery, f"{later.attempt} tries did not help: {retry}", records)
        records.add("RETRY" if retry.after < 5 else "DEFERRED", f"in {retry.after:.1f} s: {retry}")
        verdict = await defer(
            self.services.bus, delivery, retry.after, later, self._reason(retry), records, supply=self._settles()
        )
        await self._deferred(delivery, verdict, retry, records)

    async def _defer_for_free(self, delivery: Delivery, envelope: Envelope, retry: Retry, records: Records) -> None:
        """Defer without counting an attempt. User and transcript are told once, however often the turn comes back."""
        reason = self._reason(retry)
        if _has_waited(delivery):
            records, reason = self._new_records(), ""
        else:
            records.add("DEFERRED", f"until it is back: {retry}" if retry.models else f"{retry.after:.1f} s: {retry}")
        later = msgspec.structs.replace(envelope, meta={**envelope.meta, WAITED: True})
        verdict = await defer(
            self.services.bus, delivery, retry.after, later, reason, records, quiet=True, supply=self._settles()
        )
        await self._deferred(delivery, verdict, retry, records)
        if verdict == "OK" and self.services.waits is not None:
            for model in retry.models:
                await self.services.waits(model, member_of(delivery.conversation, delivery.turn))

    async def _deferred(self, delivery: Delivery, verdict: Verdict, retry: Retry, records: Records) -> None:
        """Note what became of a deferral. A control turn cannot sleep: it is given up."""
        if verdict != "CONTROL":
            return self._note_verdict(delivery, verdict)
        await self._bury(delivery, str(retry), records, failure=("model_away" if retry.kind else "", 0.0))

    async def _bury(
        self, delivery: Delivery, reason: str, records: Records, mark: Mark = "error",
        failure: tuple[str, float] = ("", 0),
    ) -> None:  # fmt: skip
        """Give the turn up. ``failure`` is what the user is told, a kind of FAILURES and its wait, else ``reason``."""
        self.errors += 1
        self.services.meter.count("errors", self.role)
        self._failure = failure[0] or "rejected"
        reason = self.services.bus.settings.redacted(reason)[:MAX_REASON_CHARS].strip().removesuffix(".")
        reason = reason or "it gave no reason"
        turn = short_turn_id(delivery.conversation, delivery.turn)
        kind, wait = failure
        sentence = told(kind, wait) if kind else f"Sorry, this did not work: {reason}."
        details = {"kind": kind, "wait": wait, "turn": turn} if kind else None
        records.add("DEAD_LETTER", reason)
        text = delivery.envelope.text if delivery.envelope else ""
        apology, history = f"{sentence} (turn {turn})", list[bytes]()
        if text and not delivery.control and not delivery.call:
            history = remembered(text, apology, delivery.turn, mark, asked=delivery.envelope)
        where = _where(delivery)
        logger.warning("gave up %s: %s", where, reason, extra=public(f"gave up {where}"))
        verdict = await bury(self.services.bus, delivery, reason, apology, records, history, details, self._settles())
        self._note_verdict(delivery, verdict, ended=True)

    async def _bury_failed(self, delivery: Delivery, error: BaseException, records: Records) -> None:
        logger.error("failed at %s", _where(delivery), exc_info=error)
        await self._bury(delivery, f"{self.role} failed: {_raised(error)}", records, failure=DEFECT)

    async def _bury_late(self, delivery: Delivery, records: Records) -> None:
        await self._bury(delivery, "it took too long", records, failure=TOO_LONG)

    async def _settle_unreadable(self, delivery: Delivery, records: Records) -> None:
        """Defer what a newer version wrote, bury it if a turn depends on it, quarantine anything else."""
        bus = self.services.bus
        if delivery.usable and await owns_turn(bus, delivery):
            if delivery.newer and not delivery.control:
                # A worker of that version may be there by then; if none ever is, the turn's time ends it.
                self._note_verdict(delivery, await defer(bus, delivery, 1, None, delivery.problem, records))
            else:
                problem = f"its envelope could not be read: {delivery.problem}"
                await self._bury(delivery, problem, records, failure=DEFECT)
            return
        self.errors += 1
        QUARANTINED.warn(logger, "quarantined an entry of %s: %s", delivery.stream, delivery.problem)
        await quarantine(bus, delivery)
        count_soon(bus.server, "set_aside", "envelope")

    async def _after_cancellation(self, delivery: Delivery, records: Records) -> None:
        if not self.lost and self.draining:
            self.lost = "DRAIN"  # the process ends before draining is done
        if not self.lost:  # the handler has cancelled its own task
            if self._task is not None:
                self._task.uncancel()
            reason = f"{self.role} failed: it cancelled its own task"
            return await self._bury(delivery, reason, records, failure=DEFECT)
        if self.lost == "LATE":
            return await self._bury_late(delivery, records)
        logger.info("cancelled at %s: %s", _where(delivery), self.lost)
        if self.lost not in ("DRAIN", "HANDED_BACK", "BLOCKED", "SUSPENDED"):
            await self._record_fencing(delivery)

    def _note_verdict(self, delivery: Delivery, verdict: str, *, ended: bool = False) -> None:
        self._span.set({"rolecall.verdict": verdict})
        if self._failure:
            self._span.fail(self._failure)
        if verdict != "OK":
            logger.info("too late to settle %s: %s", _where(delivery), verdict)
            self.lost = verdict
        elif ended:
            self.services.meter.time("turn", self._age + time.monotonic() - self.since)
            self._trace_turn(delivery)

    def _trace_turn(self, delivery: Delivery) -> None:
        if (envelope := delivery.envelope) is not None and self.services.tracing is not UNTRACED:
            about = {**conventions.turn(delivery.conversation, delivery.turn), "rolecall.hops": delivery.hop + 1}
            self.services.tracing.turn(
                about, envelope.id, delivery.turn, envelope.meta, delivery.received, self._failure
            )

    def _reason(self, retry: Retry) -> str:
        """What followers are told of a delay: its kind and the seconds it takes, or the handler's own words."""
        return self.services.bus.settings.redacted(f"{retry.kind} {retry.after:.0f}" if retry.kind else str(retry))

    def _new_records(self) -> Records:
        return Records(self.id, self.services.bus.settings.redacted)

    async def _record_fencing(self, delivery: Delivery) -> None:
        records = self._new_records()
        records.add("FENCED", f"its work on hop {delivery.hop} is void")
        shard = self.services.bus.shards[delivery.shard]  # the journal of an ended turn does not say when it began
        await note(self.services.bus, shard, delivery.conversation, delivery.turn, records, delivery.received)


async def _unseen(position: int, text: str) -> None:
    """Nobody follows a call."""


def _summary(payload: Mapping[str, Any], used: HopUsage | None) -> str:
    kind = "plain reply" if payload.get("plain") else "reply"
    said = _with_usage(f"{kind} {len(payload['text'])} chars", used)
    if used is None and payload.get("model"):
        said += f", {payload['model']}"
    return f"{said}: {quoted(payload['text'])}"


def _with_usage(text: str, used: HopUsage | None) -> str:
    return f"{text}, {used}" if used else text


def _raised(error: BaseException) -> str:
    """What the handler raised, in words that also say what an error without a text is."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code if error.code is not None else ''})"
    try:
        text = str(error)
    except Exception:  # the boundary: its class is anybody's code
        return name
    return f"{name}: {text}" if text else name


def _runs(task: asyncio.Task[None] | None) -> bool:
    """Whether ``task`` is the one that runs now: a task whose event loop is closed is only being thrown away."""
    return task is not None and asyncio.current_task(task.get_loop()) is task


def _has_waited(delivery: Delivery) -> bool:
    return delivery.envelope is not None and WAITED in delivery.envelope.meta


def _where(delivery: Delivery) -> str:
    return f"{delivery.conversation}/{delivery.turn} hop {delivery.hop}"
