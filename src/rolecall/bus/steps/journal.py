"""The journal of a handler's steps: written as they finish, read when the handler is run again, gone with the turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, lease_block
from rolecall.bus.turn import Records, TurnBlock, Verdict
from rolecall.errors import StepTooLarge
from rolecall.redis.scripts import script
from rolecall.redis.server import pairs

PACKAGE = "rolecall.bus"
OWN_FIELDS = frozenset((b"h", b"b"))
"""The fields of a journal that are no steps."""


class StepBlock(TypedDict):
    """What ``scripts/lib/step.lua`` declares."""

    steps: str
    hop: int
    limit: int


RECORD = script(PACKAGE, "scripts/step/record", TurnBlock, StepBlock, names="received step_keys values records")


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


async def record(bus: Bus, delivery: Delivery, steps: Sequence[tuple[str, Step]], records: Records) -> Verdict:
    """Write finished steps by their keys, with log ``records``. Atomic and idempotent; a step stays as it was recorded
    first. Raises StepTooLarge, with nothing written, when all steps of the handler exceed STEPS_KB."""
    verdict: Any = await bus.server.run(
        RECORD, lease_block(bus, delivery), step_block(bus, delivery), received=delivery.received,
        step_keys=[key for key, _ in steps], values=[encoded(bus, key, step) for key, step in steps],
        records=records.flat(),
    )  # fmt: skip
    if verdict == b"FULL":
        limit = bus.settings.steps_kb
        raise StepTooLarge(f"the steps of this handler exceed {limit} kB in all: record less, or raise STEPS_KB")
    return verdict.decode()  # type: ignore[no-any-return]  # the script answers only these words


async def recorded(bus: Bus, delivery: Delivery) -> dict[str, Step]:
    """The steps that earlier handlings of this delivery's hop have recorded, by their keys."""
    shard = bus.shards[delivery.shard]
    found = dict(pairs(await bus.server.fetch("HGETALL", shard.steps(delivery.conversation, delivery.turn))))
    if int(found.get(b"h", -1)) != delivery.hop:
        return {}
    return {
        key.decode(): msgspec.json.decode(raw, type=Step) for key, raw in found.items() if key not in OWN_FIELDS
    }  # fmt: skip


def encoded(bus: Bus, key: str, step: Step) -> bytes:
    """The JSON of ``step``. Raises StepTooLarge."""
    raw, limit = msgspec.json.encode(step), bus.settings.step_kb * 1024
    if len(raw) > limit:
        raise StepTooLarge(
            f"step {key} ({step.kind} {step.name}) has {len(raw):,} bytes: expected at most {limit:,}, see STEP_KB"
        )
    return raw


def step_block(bus: Bus, delivery: Delivery) -> StepBlock:
    """The values of StepBlock."""
    shard = bus.shards[delivery.shard]
    return {
        "steps": shard.steps(delivery.conversation, delivery.turn),
        "hop": delivery.hop,
        "limit": bus.settings.steps_kb * 1024,
    }
