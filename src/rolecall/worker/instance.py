"""One instance: it handles one envelope at a time and settles it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.agent.agent import Agent
from rolecall.agent.attachments import Attachments
from rolecall.agent.context import Context, RoleInfo
from rolecall.agent.memory import Memory, brought
from rolecall.agent.policies import Rules, wrapped
from rolecall.agent.prompts import Prompts
from rolecall.agent.tools import Tool, ToolLimits
from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import Mark, remembered
from rolecall.bus.envelope import Envelope, short_turn_id
from rolecall.bus.events import DeltaStream
from rolecall.bus.leases import WHO, Delivery, owns_turn, start_soon
from rolecall.bus.settle import bury, complete, defer, hop, quarantine
from rolecall.bus.turn import Records, note, quoted
from rolecall.errors import Reject, Retry, ServerError, ServerUnavailable, TurnTimeout
from rolecall.models.fallback import preferring
from rolecall.models.gate import Gate
from rolecall.models.model import Caller, Model
from rolecall.models.speech import transcribe
from rolecall.stats import Measures

logger = logging.getLogger(__name__)
WAITED = "waited"
"""In the meta of an envelope whose turn slept for what is no try: what follows of that is not told again."""


@dataclass(frozen=True)
class Surroundings:
    """What the instances of a role share: the bus, the deployment's roles and models, and the rules."""

    bus: Bus
    rules: Rules
    roles: Mapping[str, RoleInfo]
    models: Mapping[str, Model]
    model: Model | None = None
    statistics: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    waits: Callable[[str, str], Awaitable[None]] | None = None
    """Told, of a turn that sleeps until a model is back, the model and the conversation."""
    prompts: Prompts = field(default_factory=Prompts)
    tool_source: Callable[[str], Awaitable[Sequence[Tool]]] | None = None
    measures: Measures = field(default_factory=Measures)
    hearing: Gate | None = None
    """Of the model that writes down what is said."""


@dataclass
class Instance:
    """One slot of a role. ``handle`` never raises for what an agent, an envelope or a model did."""

    id: str
    role: str
    agent: Agent
    around: Surroundings
    delivery: Delivery | None = None
    since: float = 0.0
    handled: int = 0
    errors: int = 0
    busy_seconds: float = 0.0
    retiring: bool = False
    lost: str = ""
    _age: float = field(default=0.0, repr=False)
    """Seconds that the turn had been in flight when this began."""
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._handler = wrapped(self.agent.handle, self.around.rules)

    def assign(self, agent: Agent, around: Surroundings) -> None:
        """Handle the next envelope with ``agent``; one in work ends with the old one."""
        self.agent, self.around = agent, around
        self._handler = wrapped(agent.handle, around.rules)

    @property
    def free(self) -> bool:
        """Whether it may take an envelope."""
        return self.delivery is None and not self.retiring

    def occupy(self, delivery: Delivery) -> None:
        """Take ``delivery``; ``handle`` follows."""
        self.delivery, self.since, self.lost, self._age = delivery, time.monotonic(), "", 0.0

    def let_go(self, why: str) -> None:
        """Cancel the handler: the envelope is another's by now, or its time is over."""
        if self._task is not None and not self.lost:
            self.lost = why
            self._task.cancel()

    async def handle(self) -> None:
        """Handle what it occupies, settle it, and be free again."""
        assert self.delivery is not None
        self._task, where = asyncio.current_task(), _where(self.delivery)
        WHO.set(self.id)
        logger.info("takes %s", where)
        records = Records(self.id)
        try:
            await self._handle(self.delivery, records)
        except asyncio.CancelledError:
            if not self.lost:
                raise
            await self._after_loss(self.delivery, records)
        except ServerError as error:
            logger.warning("leaves %s to its lease: %s", where, error)
        finally:
            handling = time.monotonic() - self.since
            self.around.measures.time("handling", handling, self.role)
            self.busy_seconds += handling
            self.handled += 1
            logger.info("is done with %s after %.3f s", where, handling)
            self.delivery = self._task = None

    async def _handle(self, delivery: Delivery, records: Records) -> None:
        envelope = delivery.envelope
        if envelope is None:
            return await self._refuse(delivery, records)
        if delivery.count > self.around.bus.settings.retries:
            reason = f"it was taken {delivery.count - 1} times and each time its worker ended before an answer"
            return await self._bury(delivery, reason, records)
        self._begin(delivery)
        ctx, deltas = self._context(delivery, envelope, records)
        try:
            result = await self._handler(envelope, ctx)
        except Retry as again:
            await self._defer(delivery, envelope, again, records)
        except (Reject, TurnTimeout) as refusal:
            await self._bury(delivery, str(refusal), records)
        except ServerUnavailable:  # no outcome of the handler's: its lease runs out, and another handling follows
            raise
        except Exception as error:  # the boundary: whatever an agent raises becomes an outcome
            logger.exception("failed at %s", _where(delivery))
            await self._bury(delivery, f"{self.role} failed: {type(error).__name__}: {error}", records)
        else:
            deltas.close()  # a piece that came behind the settling step would be told that the entry is gone
            await self._settle(delivery, result, ctx, records)
        finally:
            deltas.close()

    def _begin(self, delivery: Delivery) -> None:
        def answered(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or future.exception() is not None or self.delivery is not delivery:
                return
            verdict, age, waited = future.result()
            if verdict != b"OK":
                return self.let_go(verdict.decode())
            self._measure_begin(delivery, age / 1000, waited / 1000)
            if self._age > self.around.bus.settings.turn_seconds:
                self.let_go("LATE")

        quiet = _has_waited(delivery) and delivery.count == 1
        start_soon(self.around.bus, delivery, self.id, quiet=quiet).add_done_callback(answered)

    def _measure_begin(self, delivery: Delivery, age: float, waited: float) -> None:
        self._age = age
        self.around.measures.time("wait", waited, self.role)
        if delivery.previous:
            self.around.measures.count("takeovers", self.role)

    def _context(self, delivery: Delivery, envelope: Envelope, records: Records) -> tuple[Context, DeltaStream]:
        bus, around = self.around.bus, self.around
        memory = Memory(
            bus.server, bus.shards[delivery.shard], delivery.conversation, bus.settings.assistant_history_limit,
            without=str(envelope.meta.get("again", "")), brought=brought(envelope.payload),
        )  # fmt: skip
        caller = Caller(delivery.conversation, delivery.turn, str(envelope.meta.get("user", "")), _share(envelope))
        deltas = DeltaStream(bus, delivery, lambda: self.let_go("FENCED"))
        wanted = envelope.payload.get("model")
        chosen = around.models.get(wanted) if isinstance(wanted, str) else None
        return Context(
            instance=self.id,
            memory=memory,
            roles=around.roles,
            models=around.models,
            records=records,
            chosen=preferring(chosen, around.model) if chosen and around.model else around.model,
            publish=deltas.publish,
            statistics=around.statistics,
            prompts=around.prompts,
            tool_source=around.tool_source,
            tool_limits=ToolLimits.of(bus.settings),
            attachments=Attachments(Blobs(bus), delivery.conversation),
            hear=lambda sound, media_type: transcribe(sound, media_type, bus.settings, around.hearing, caller),
            asked=lambda model, seconds: around.measures.time("model", seconds, self.role, model),
            caller=caller,
        ), deltas

    async def _settle(self, delivery: Delivery, result: Envelope, ctx: Context, records: Records) -> None:
        bus, changes = self.around.bus, ctx.memory.changes
        if not result.answered:
            records.add("SENT", f"to role stream {result.role}")
            self._judge(delivery, await hop(bus, delivery, result, records, changes))
            return
        asked, payload = delivery.envelope, result.payload
        history: list[bytes] = []
        if asked is not None and payload.pop("remember", not delivery.control):
            history = remembered(asked.text, result.text, delivery.turn)
        records.add("PROCESSING_COMPLETE", _summary(payload, ctx.model_seconds))
        verdict = await complete(
            bus, delivery, result, records, history=history, preferences=changes, forget=ctx.memory.forgotten
        )
        self._judge(delivery, verdict, ended=True)

    async def _defer(self, delivery: Delivery, envelope: Envelope, again: Retry, records: Records) -> None:
        if again.free:
            return await self._sleep(delivery, envelope, again, records)
        later = msgspec.structs.replace(envelope, attempt=envelope.attempt + 1)
        if later.attempt >= self.around.rules.attempts:
            return await self._bury(delivery, f"{later.attempt} tries did not help: {again}", records)
        records.add("RETRY" if again.after < 5 else "DEFERRED", f"in {again.after:.1f} s: {again}")
        verdict = await defer(self.around.bus, delivery, again.after, later, str(again), records)
        if verdict == "CONTROL":
            return await self._bury(delivery, str(again), records)
        self._judge(delivery, verdict)

    async def _sleep(self, delivery: Delivery, envelope: Envelope, again: Retry, records: Records) -> None:
        """Wait for what is no try. The user and the transcript hear of it once, however often it is looked for."""
        reason, waited = str(again), _has_waited(delivery)
        if waited:
            records, reason = Records(self.id), ""
        else:
            records.add("DEFERRED", f"until it is back: {again}" if again.models else f"{again.after:.1f} s: {again}")
        later = msgspec.structs.replace(envelope, meta={**envelope.meta, WAITED: True})
        verdict = await defer(self.around.bus, delivery, again.after, later, reason, records)
        if verdict == "CONTROL":
            return await self._bury(delivery, str(again), records)
        self._judge(delivery, verdict)
        if verdict == "OK" and self.around.waits is not None:
            for model in again.models:
                await self.around.waits(model, delivery.conversation)

    async def _bury(self, delivery: Delivery, reason: str, records: Records, mark: Mark = "error") -> None:
        self.errors += 1
        self.around.measures.count("errors", self.role)
        turn = short_turn_id(delivery.conversation, delivery.turn)
        apology = f"Sorry, this did not work: {reason}. (turn {turn})"
        records.add("DEAD_LETTER", reason)
        text = delivery.envelope.text if delivery.envelope else ""
        history = remembered(text, "", delivery.turn, mark) if text and not delivery.control else []
        logger.warning("gave up %s: %s", _where(delivery), reason)
        verdict = await bury(self.around.bus, delivery, reason, apology, records, history)
        self._judge(delivery, verdict, ended=True)

    async def _refuse(self, delivery: Delivery, records: Records) -> None:
        """What cannot be read: later if a newer version wrote it, buried if a turn waits for it, else set aside."""
        bus = self.around.bus
        if delivery.usable and await owns_turn(bus, delivery):
            if delivery.newer and not delivery.control:
                # A worker of that version may be there by then; if none ever is, the turn's time ends it.
                self._judge(delivery, await defer(bus, delivery, 1, None, delivery.problem, records))
            else:
                await self._bury(delivery, f"its envelope could not be read: {delivery.problem}", records)
            return
        self.errors += 1
        logger.warning("set an entry of %s aside: %s", delivery.stream, delivery.problem)
        await quarantine(bus, delivery)

    async def _after_loss(self, delivery: Delivery, records: Records) -> None:
        if self.lost == "LATE":
            return await self._bury(delivery, "it took too long", records)
        logger.info("let go of %s: %s", _where(delivery), self.lost)
        if self.lost != "DRAIN":
            await self._tell_fenced(delivery)

    def _judge(self, delivery: Delivery, verdict: str, *, ended: bool = False) -> None:
        if verdict != "OK":
            logger.info("was late with %s: %s", _where(delivery), verdict)
            self.lost = verdict
        elif ended:
            self.around.measures.time("turn", self._age + time.monotonic() - self.since)

    async def _tell_fenced(self, delivery: Delivery) -> None:
        records = Records(self.id)
        records.add("FENCED", f"its work on hop {delivery.hop} is void")
        shard = self.around.bus.shards[delivery.shard]
        await note(self.around.bus, shard, delivery.conversation, delivery.turn, records)


def _summary(payload: Mapping[str, Any], model_seconds: float) -> str:
    parts = [f"reply {len(payload['text'])} chars"]
    if payload.get("tokens_out"):
        parts.append(f"{payload['tokens_out']} tokens")
    if payload.get("model"):
        parts.append(str(payload["model"]))
    if model_seconds:
        parts.append(f"model {model_seconds:.3f} s")
    return f"{', '.join(parts)}: {quoted(payload['text'])}"


def _has_waited(delivery: Delivery) -> bool:
    return delivery.envelope is not None and WAITED in delivery.envelope.meta


def _share(envelope: Envelope) -> float:
    """What part of the budgets of a day its user has, as the front end that knows the user says."""
    share = envelope.meta.get("share")
    return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 1.0


def _where(delivery: Delivery) -> str:
    return f"{delivery.conversation}/{delivery.turn} hop {delivery.hop}"
