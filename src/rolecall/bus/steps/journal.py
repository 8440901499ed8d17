"""The journal of a handler's steps: written as they finish, read when the handler is run again, gone with the turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import msgspec

from rolecall.bus.admission import said
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, encode
from rolecall.bus.leases import Delivery, lease_block
from rolecall.bus.settle import next_band
from rolecall.bus.turn import Records, TurnBlock, Verdict, root_of, verdict_of
from rolecall.errors import StepTooLarge
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import pairs

PACKAGE = "rolecall.bus"


class StepBlock(TypedDict):
    """What ``scripts/lib/step.lua`` declares."""

    steps: str
    hop: int
    limit: int


RECORD = script(PACKAGE, "scripts/step/record", TurnBlock, StepBlock, names="received step_keys values records")
LOAD = script(PACKAGE, "scripts/step/load", TurnBlock, StepBlock)
BEGIN = script(
    PACKAGE, "scripts/step/begin", TurnBlock, StepBlock,
    names="active streams user instance root outbox_stem step_keys definitions delays envelopes said asked",
)  # fmt: skip


class StepFailure(msgspec.Struct, frozen=True):
    """What a step raised: the module and the name of the exception's class, its text, and its attributes as far as they
    are JSON."""

    module: str
    name: str
    text: str
    attributes: dict[str, Any] = {}


class Step(msgspec.Struct, frozen=True, omit_defaults=True, rename=lambda name: name[0]):
    """A recorded step: its kind (``model``, ``tool``, ``once`` …), its name, and either its result or what it
    raised."""

    kind: str
    name: str
    value: msgspec.Raw = msgspec.Raw(b"null")
    failure: StepFailure | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


async def record(bus: Bus, delivery: Delivery, steps: Sequence[tuple[str, Step]], records: Records) -> Verdict:
    """Write finished steps by their keys, with log ``records``. Atomic and idempotent; a step stays as it was recorded
    first. Raises StepTooLarge, with nothing written, when all steps of the handler exceed STEPS_KB."""
    verdict: Any = await bus.server.run(
        RECORD, lease_block(bus, delivery), step_block(bus, delivery), received=delivery.received,
        step_keys=[key for key, _ in steps], values=[encoded(bus, key, step) for key, step in steps],
        records=records.flat(),
    )  # fmt: skip
    return _checked(bus, verdict)


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step to begin that the handler will wait for: ``seconds`` until it is due, None for ever, and for a call its
    ``envelope``, with the role to call. Of a question, ``asked`` is what front ends and followers get, as JSON, and
    ``said`` what the log shows."""

    key: str
    step: Step
    seconds: float | None = None
    envelope: Envelope | None = None
    asked: bytes = b""
    said: str = ""


async def begin(
    bus: Bus, delivery: Delivery, new: Sequence[NewStep], *, user: str, instance: str
) -> tuple[Verdict, int]:
    """Begin steps of other parties: calls, timers, questions. Calls run as turns of their own from now on. Returns the
    verdict, CONTROL for a control turn, which cannot wait, and the server's clock in ms. Atomic and idempotent. Raises
    StepTooLarge and EnvelopeTooLarge."""
    shard = bus.shards[delivery.shard]
    block, calls = step_block(bus, delivery), [one.envelope for one in new]
    verdict, now = await bus.server.run(
        BEGIN, lease_block(bus, delivery), block, active=shard.active,
        streams=[shard.stream(e.role, next_band(delivery, e)) if e else block["steps"] for e in calls],
        user=user, instance=instance, root=root_of(delivery.turn), outbox_stem=shard.outbox(""),
        step_keys=[one.key for one in new],
        definitions=[encoded(bus, one.key, one.step) for one in new],
        delays=["" if one.seconds is None else milliseconds(one.seconds) for one in new],
        envelopes=[encode(e) if e else "" for e in calls],
        said=[said(one.envelope) if one.envelope else one.said for one in new],
        asked=[one.asked for one in new],
    )  # fmt: skip
    return _checked(bus, verdict), now


@dataclass(frozen=True, slots=True)
class Journal:
    """What earlier handlings of a hop have recorded, by the keys of steps: the steps, the results of those that others
    finish, when these are due in ms of the server's clock, and the turns of calls."""

    steps: dict[str, Step] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    calls: dict[str, str] = field(default_factory=dict)


async def recorded(bus: Bus, delivery: Delivery) -> tuple[Verdict, Journal]:
    """Whether this process still holds the entry of ``delivery``, and the journal of its hop."""
    journal = Journal()
    verdict, flat = await bus.server.run(LOAD, lease_block(bus, delivery), step_block(bus, delivery))
    found = dict(pairs(flat))
    found.pop(b"h", None)
    found.pop(b"b", None)
    for raw_key, value in found.items():
        key = raw_key.decode()
        if key.startswith("="):
            journal.results[key[1:]] = value
        elif key.startswith("d"):
            journal.due[key[1:]] = int(value)
        elif key.startswith("c"):
            journal.calls[key[1:]] = value.decode()
        else:
            journal.steps[key] = msgspec.json.decode(value, type=Step)
    return verdict_of(verdict), journal


def _checked(bus: Bus, verdict: bytes) -> Verdict:
    if verdict == b"FULL":
        limit = bus.settings.steps_kb
        raise StepTooLarge(f"the steps of this handler exceed {limit} kB in all: record less, or raise STEPS_KB")
    return verdict_of(verdict)


def encoded(bus: Bus, key: str, step: Step) -> bytes:
    """The JSON of ``step``. Raises StepTooLarge."""
    raw, limit = msgspec.json.encode(step), bus.settings.step_kb * 1024
    if len(raw) > limit:
        raise StepTooLarge(f"step {key} ({step}) has {len(raw):,} bytes: expected at most {limit:,}, see STEP_KB")
    return raw


def step_block(bus: Bus, delivery: Delivery) -> StepBlock:
    """The values of StepBlock."""
    shard = bus.shards[delivery.shard]
    return {
        "steps": shard.steps(delivery.conversation, delivery.turn),
        "hop": delivery.hop,
        "limit": bus.settings.steps_kb * 1024,
    }
