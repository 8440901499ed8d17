"""The handling of one envelope: its handler is run, and what became of it is settled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from rolecall.agent.completion import HopUsage
from rolecall.agent.context import Context
from rolecall.background import Rarely
from rolecall.bus.bus import count_soon
from rolecall.bus.conversation import remembered
from rolecall.bus.envelope import Envelope, short_turn_id
from rolecall.bus.leases import Beginning, Delivery, owns_turn, uncount
from rolecall.bus.process.process_log import WHO, public
from rolecall.bus.settle import Awaited, Supply, bury, complete, defer, discard, hop, quarantine, suspend
from rolecall.bus.turn import Records, Verdict, member_of, note, quoted
from rolecall.errors import Reject, Retry, ServerError, ServerUnavailable, StepError, TurnTimeout, text_of, told
from rolecall.tracing import conventions
from rolecall.tracing.span import NOTHING, UNRECORDED, UNTRACED, Span
from rolecall.worker.deltas import DeltaStream

if TYPE_CHECKING:
    from rolecall.worker.instance import Instance

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


class Handling:
    """What ``instance`` does with ``delivery``, by the agent and the services that it has now. ``run`` never raises for
    anything an agent, an envelope or a model did."""

    def __init__(self, instance: Instance, delivery: Delivery) -> None:
        self.delivery = delivery
        self.role = instance.role
        self.lost = ""
        """Why the handler was cancelled, or the verdict that the entry could not be settled; empty while the instance
        owns its entry."""
        self.cancelled = 0.0
        """When, by the monotonic clock."""
        self._instance = instance
        self._services = instance.services
        self._bus = instance.services.bus
        self._records = self._new_records()
        self._failure = ""
        """Why the turn is given up, as a kind of error."""
        self._age = 0.0
        """Seconds since the turn was admitted, when this handling started."""
        self._settling = False
        """Whether a settling step is on its way."""
        self._task: asyncio.Task[None] | None = None
        """Runs this; None before and afterwards, when only tasks that the handler left behind may still ask for
        something."""
        self._span: Span = UNRECORDED

    async def run(self) -> None:
        """Handle the envelope, settle it, and free the instance."""
        self._task, where = asyncio.current_task(), _where(self.delivery)
        WHO.set(self._instance.id)
        logger.debug("handling %s", where)
        try:
            with self._traced() as self._span:
                try:
                    await self._handle()
                except asyncio.CancelledError:
                    await self._after_cancellation()
                except ServerError:
                    raise
                except Exception as error:  # the boundary, once more: nothing can be made of what the handler left
                    self._records = self._new_records()
                    await self._bury_failed(error)
            if self.lost == "FENCED":
                await uncount(self._bus, self.delivery)
        except ServerError as error:
            logger.warning("leaving %s until its lease expires: %s", where, error)
        finally:
            self._task = None
            seconds = self._instance.release()
            logger.info("handled %s in %.3f s", where, seconds)

    def cancel(self, reason: str) -> None:
        """See Instance.cancel."""
        if self._settling and reason != "DRAIN":
            return
        if self._task is not None and not self.lost:
            self.lost, self.cancelled = reason, time.monotonic()
            self._task.cancel()

    def begun(self, verdict: Verdict, beginning: Beginning) -> None:
        """What became of the beginning of the entry, whose handler may run since it was read."""
        if verdict != "OK":
            return self.cancel(verdict)
        self.delivery.beginning = beginning
        self._note_beginning(beginning)
        if self._late:
            self.cancel("LATE")

    def deaf(self) -> bool:
        """Whether the handler goes on DEAF_SECONDS after it was cancelled or should have been."""
        if self._task is None or self._settling:
            return False
        due = self.cancelled if self.lost else self._instance.since + self._instance.rules.timeout
        return time.monotonic() - due > DEAF_SECONDS

    async def abandon(self) -> None:
        """End the turn of a handler that does not end, unless another process has it. Raises ServerError."""
        if self.lost in ("", "LATE"):
            self.lost, self._records = "LATE", self._new_records()
            await self._bury_late()

    def _fence(self) -> None:
        """Another instance owns the entry."""
        self.cancel("FENCED")

    def _traced(self) -> AbstractContextManager[Span]:
        envelope, tracing = self.delivery.envelope, self._services.tracing
        if envelope is None or tracing is UNTRACED:
            return NOTHING
        about = conventions.agent(self.role, self._instance.id, self.delivery.conversation, self.delivery.turn)
        about |= {
            "rolecall.hop": self.delivery.hop,
            "rolecall.attempt": envelope.attempt,
            "rolecall.delivery": self.delivery.count,
        }
        return tracing.hop(f"invoke_agent {self.role}", about, envelope.id, self.delivery.turn, envelope.meta)

    async def _handle(self) -> None:
        envelope, bus = self.delivery.envelope, self._bus
        if envelope is None:
            return await self._settle_unreadable()
        if self.delivery.stale:
            self.lost = "STALE"
            return await discard(bus, self.delivery)
        if self.delivery.count > bus.settings.max_deliveries:
            reason = "each time it was handled, its worker ended before an answer"
            return await self._bury(reason, failure=DEFECT)
        if self.delivery.beginning is not None:
            self._note_beginning(self.delivery.beginning)
        if self._late:
            return await self._bury_late()
        await self._run_handler(envelope)

    async def _run_handler(self, envelope: Envelope) -> None:
        deltas = DeltaStream(self._bus, self.delivery, self._fence)
        ctx = Context(
            self._services, self.delivery, envelope, instance=self._instance.id, records=self._records,
            publish=_unseen if self.delivery.call else deltas.publish, lost=self._fence,
            park=partial(self._suspend, deltas),
        )  # fmt: skip
        try:
            result = await self._run_steps(envelope, ctx)
        except Retry as retry:
            await self._defer(envelope, retry)
        except Reject as refusal:
            await self._bury(str(refusal), failure=(refusal.kind, refusal.wait))
        except TurnTimeout as late:
            await self._bury(str(late), failure=TOO_LONG)
        except ServerUnavailable:  # not the handler's doing: the lease expires and the envelope is handled again
            raise
        except StepError as error:
            await self._bury(f"{self.role} failed: {error}", failure=(error.kind, 0.0))
        except BaseException as error:  # the boundary: whatever an agent does, sys.exit() included, has an outcome
            if self._ends_this_task(error):
                raise
            await self._bury_failed(error)
        else:
            deltas.close()  # a piece sent after the settling step would be told that the entry is gone
            await self._settle(result, ctx)
        finally:
            deltas.close()
            ctx.close()
            self._instance.reads[self.role] = self.delivery.along.reads

    async def _run_steps(self, envelope: Envelope, ctx: Context) -> Envelope:
        """What the handler returns, run from the steps that earlier handlings have recorded."""
        if self.delivery.stepped:
            await ctx.recorder.load()
        try:
            result = await self._instance.handler(envelope, ctx)
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

    def _note_beginning(self, beginning: Beginning) -> None:
        self._age = self._bus.clocks[self.delivery.shard].age(beginning.received, beginning.age)
        self._services.meter.time("wait", beginning.waited, self.role)
        self._span.set({"rolecall.wait_seconds": beginning.waited})
        if self.delivery.previous:
            self._services.meter.count("takeovers", self.role)

    @property
    def _late(self) -> bool:
        return self._age > self._bus.settings.turn_seconds

    def _settles(self, onward: str = "") -> Supply | None:
        """Note that a settling step is on its way; returns what to take along."""
        self._settling = True
        supplier = self._instance.supplier
        return None if supplier is None else partial(supplier, self._instance, onward)

    async def _suspend(self, deltas: DeltaStream, awaited: Awaited, used: HopUsage | None) -> tuple[Verdict, int]:
        """Suspend the turn, and cancel its handler unless there is nothing to wait for any more."""
        if self._task is None:  # only a task that the handler left behind waits
            return "FENCED", 0
        await deltas.drain()
        told = self._records.copy()
        told.add("SUSPENDED", _with_usage(f"waits for {awaited.text}", used))
        verdict, now = await suspend(self._bus, self.delivery, awaited, told, self._settles())
        self._settling = False
        if verdict == "CONTROL":
            raise StepError("a command cannot wait")
        if verdict != "READY" and not self.lost:
            self.lost, self.cancelled = "SUSPENDED" if verdict == "OK" else verdict, time.monotonic()
            if self._task is not None:
                self._task.cancel()
        return verdict, now

    async def _settle(self, result: Envelope, ctx: Context) -> None:
        bus, (changes, forget) = self._bus, ctx.changes
        if not result.answered:
            self._records.add("SENT", _with_usage(f"to role stream {result.role}", ctx.used))
            supply = self._settles(result.role.partition("@")[0])
            self._note_verdict(await hop(bus, self.delivery, result, self._records, changes, supply))
            return
        asked = self.delivery.envelope
        if ctx.called is not None and asked is not None:
            result = asked.reply(ctx.called, remember=False)
        payload = result.payload
        history: list[bytes] = []
        if asked is not None and payload.pop("remember", not self.delivery.control) and not self.delivery.call:
            history = remembered(asked.text, result.text, self.delivery.turn, asked=asked, answered=payload)
        if ctx.logprobs:
            payload["logprobs"] = ctx.logprobs
        self._records.add("PROCESSING_COMPLETE", _summary(payload, ctx.used))
        verdict = await complete(
            bus, self.delivery, result, self._records, history=history, preferences=changes, forget=forget,
            supply=self._settles(),
        )  # fmt: skip
        self._note_verdict(verdict, ended=True)

    async def _defer(self, envelope: Envelope, retry: Retry) -> None:
        if retry.free:
            return await self._defer_for_free(envelope, retry)
        later = msgspec.structs.replace(envelope, attempt=envelope.attempt + 1)
        if later.attempt >= self._instance.rules.attempts:
            return await self._bury(f"{later.attempt} tries did not help: {retry}")
        self._records.add("RETRY" if retry.after < 5 else "DEFERRED", f"in {retry.after:.1f} s: {retry}")
        verdict = await defer(
            self._bus, self.delivery, retry.after, later, self._reason(retry), self._records, supply=self._settles()
        )
        await self._deferred(verdict, retry)

    async def _defer_for_free(self, envelope: Envelope, retry: Retry) -> None:
        """Defer without counting an attempt. User and transcript are told once, however often the turn comes back."""
        reason = self._reason(retry)
        if _has_waited(self.delivery):
            self._records, reason = self._new_records(), ""
        else:
            self._records.add(
                "DEFERRED", f"until it is back: {retry}" if retry.models else f"{retry.after:.1f} s: {retry}"
            )
        later = msgspec.structs.replace(envelope, meta={**envelope.meta, WAITED: True})
        verdict = await defer(
            self._bus, self.delivery, retry.after, later, reason, self._records, quiet=True, supply=self._settles()
        )
        await self._deferred(verdict, retry)
        if verdict == "OK" and self._services.waits is not None:
            for model in retry.models:
                await self._services.waits(model, member_of(self.delivery.conversation, self.delivery.turn))

    async def _deferred(self, verdict: Verdict, retry: Retry) -> None:
        """Note what became of a deferral. A control turn cannot sleep: it is given up."""
        if verdict != "CONTROL":
            return self._note_verdict(verdict)
        await self._bury(str(retry), failure=("model_away" if retry.kind else "", 0.0))

    async def _bury(self, reason: str, failure: tuple[str, float] = ("", 0)) -> None:
        """Give the turn up. ``failure`` is what the user is told, a kind of FAILURES and its wait, else ``reason``."""
        self._instance.errors += 1
        self._services.meter.count("errors", self.role)
        self._failure = failure[0] or "rejected"
        reason = self._bus.settings.redacted(reason)[:MAX_REASON_CHARS].strip().removesuffix(".")
        reason = reason or "it gave no reason"
        turn = short_turn_id(self.delivery.conversation, self.delivery.turn)
        kind, wait = failure
        sentence = told(kind, wait) if kind else f"Sorry, this did not work: {reason}."
        details = {"kind": kind, "wait": wait, "turn": turn} if kind else None
        self._records.add("DEAD_LETTER", reason)
        text = self.delivery.envelope.text if self.delivery.envelope else ""
        apology, history = f"{sentence} (turn {turn})", list[bytes]()
        if text and not self.delivery.control and not self.delivery.call:
            history = remembered(text, apology, self.delivery.turn, "error", asked=self.delivery.envelope)
        where = _where(self.delivery)
        logger.warning("gave up %s: %s", where, reason, extra=public(f"gave up {where}"))
        verdict = await bury(
            self._bus, self.delivery, reason, apology, self._records, history, details, self._settles()
        )
        self._note_verdict(verdict, ended=True)

    async def _bury_failed(self, error: BaseException) -> None:
        logger.error("failed at %s", _where(self.delivery), exc_info=error)
        await self._bury(f"{self.role} failed: {_raised(error)}", failure=DEFECT)

    async def _bury_late(self) -> None:
        await self._bury("it took too long", failure=TOO_LONG)

    async def _settle_unreadable(self) -> None:
        """Defer what a newer version wrote, bury it if a turn depends on it, quarantine anything else."""
        bus = self._bus
        if self.delivery.usable and await owns_turn(bus, self.delivery):
            if self.delivery.newer and not self.delivery.control:
                # A worker of that version may be there by then; if none ever is, the turn's time ends it.
                self._note_verdict(await defer(bus, self.delivery, 1, None, self.delivery.problem, self._records))
            else:
                problem = f"its envelope could not be read: {self.delivery.problem}"
                await self._bury(problem, failure=DEFECT)
            return
        self._instance.errors += 1
        QUARANTINED.warn(logger, "quarantined an entry of %s: %s", self.delivery.stream, self.delivery.problem)
        await quarantine(bus, self.delivery)
        count_soon(bus.server, "set_aside", "envelope")

    async def _after_cancellation(self) -> None:
        if not self.lost and self._instance.draining:
            self.lost = "DRAIN"  # the process ends before draining is done
        if not self.lost:  # the handler has cancelled its own task
            if self._task is not None:
                self._task.uncancel()
            reason = f"{self.role} failed: it cancelled its own task"
            return await self._bury(reason, failure=DEFECT)
        if self.lost == "LATE":
            return await self._bury_late()
        logger.info("cancelled at %s: %s", _where(self.delivery), self.lost)
        if self.lost not in ("DRAIN", "HANDED_BACK", "BLOCKED", "SUSPENDED"):
            await self._record_fencing()

    def _note_verdict(self, verdict: str, *, ended: bool = False) -> None:
        self._span.set({"rolecall.verdict": verdict})
        if self._failure:
            self._span.fail(self._failure)
        if verdict != "OK":
            logger.info("too late to settle %s: %s", _where(self.delivery), verdict)
            self.lost = verdict
        elif ended:
            self._services.meter.time("turn", self._age + time.monotonic() - self._instance.since)
            self._trace_turn()

    def _trace_turn(self) -> None:
        if (envelope := self.delivery.envelope) is not None and self._services.tracing is not UNTRACED:
            about = {
                **conventions.turn(self.delivery.conversation, self.delivery.turn),
                "rolecall.hops": self.delivery.hop + 1,
            }
            self._services.tracing.turn(
                about, envelope.id, self.delivery.turn, envelope.meta, self.delivery.received, self._failure
            )

    def _reason(self, retry: Retry) -> str:
        """What followers are told of a delay: its kind and the seconds it takes, or the handler's own words."""
        return self._bus.settings.redacted(f"{retry.kind} {retry.after:.0f}" if retry.kind else str(retry))

    def _new_records(self) -> Records:
        return Records(self._instance.id, self._bus.settings.redacted)

    async def _record_fencing(self) -> None:
        records = self._new_records()
        records.add("FENCED", f"its work on hop {self.delivery.hop} is void")
        shard = self._bus.shards[self.delivery.shard]  # the journal of an ended turn does not say when it began
        await note(self._bus, shard, self.delivery.conversation, self.delivery.turn, records, self.delivery.received)


async def _unseen(position: int, text: str) -> None:
    """Nobody follows a call."""


def _summary(payload: Mapping[str, Any], used: HopUsage | None) -> str:
    kind = "plain reply" if payload.get("plain") else "reply"
    said = _with_usage(f"{kind} {len(payload['text'])} chars", used)
    if not used and payload.get("model"):
        said += f", {payload['model']}"
    return f"{said}: {quoted(payload['text'])}"


def _with_usage(text: str, used: HopUsage | None) -> str:
    return f"{text}, {used}" if used else text


def _raised(error: BaseException) -> str:
    """What the handler raised, in words that also say what an error without a text is."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code if error.code is not None else ''})"
    text = text_of(error)
    return f"{name}: {text}" if text else name


def _runs(task: asyncio.Task[None] | None) -> bool:
    """Whether ``task`` is the one that runs now: a task whose event loop is closed is only being thrown away."""
    return task is not None and asyncio.current_task(task.get_loop()) is task


def _has_waited(delivery: Delivery) -> bool:
    return delivery.envelope is not None and WAITED in delivery.envelope.meta


def _where(delivery: Delivery) -> str:
    return f"{delivery.conversation}/{delivery.turn} hop {delivery.hop}"
