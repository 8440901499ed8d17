"""Schedules: turns that begin by themselves, each exactly once however many processes run.

A schedule is stored with its conversation, in the same shard. Its due time stands with those of deferred turns, which
every worker looks at; one script admits the turn and writes the next due time. What was missed while no worker ran is
made up for by one turn, and the user is told how many there would have been.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

import msgspec

from rolecall.bus.admission import AdmitBlock, Offer, Running, from_user
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import FOLLOWED, preferences_of
from rolecall.bus.envelope import SCHEDULED, Envelope, check_conversation, cut
from rolecall.bus.schedule.timing import Timing, clock, known_zone, timing_of, zone_name, zone_of
from rolecall.bus.turn import SEPARATOR, FinishBlock, TurnBlock, final_event, parted, quoted, turn_block
from rolecall.errors import BadSchedule, expect, expect_texts
from rolecall.redis.clock import NOW
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import text_map

logger = logging.getLogger(__name__)
PACKAGE = "rolecall.bus"
TEXT_CHARS = 2000
RETRY_SECONDS = 15.0
"""When a turn is tried again that was refused, or whose predecessor goes on."""
LATE_SECONDS = 60.0
"""Users are told of a delay from this long on."""
SCHEDULE = "schedule"
"""Whom a transcript names where a schedule began a turn."""
ADD = script(
    PACKAGE, "scripts/schedule/add", TurnBlock,
    names="idempotency deferred planned schedules schedule definition due limit repeat_ms instance said",
)  # fmt: skip
REMOVE = script(PACKAGE, "scripts/schedule/remove", TurnBlock, names="deferred planned schedules instance ids")
FIRE = script(
    PACKAGE, "scripts/schedule/fire", TurnBlock, FinishBlock, AdmitBlock,
    names="planned schedules notices schedule due following retry_ms late late_text",
)  # fmt: skip


class Definition(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a schedule says: ``text`` is the message of its turns, ``role`` who answers them (empty: the manager
    decides), ``user`` whose limits they count towards, ``front`` the front end that delivers the answers, ``turn`` the
    one that set it, if one did."""

    text: str
    timing: Timing
    role: str = ""
    user: str = ""
    front: str = ""
    meta: dict[str, Any] = {}
    turn: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule of a conversation: ``due`` is when its next turn begins, in ms; ``turn`` the last one that began."""

    id: str
    conversation: str
    definition: Definition
    due: int
    zone: tzinfo = UTC
    turn: str = ""

    @property
    def text(self) -> str:
        """The message of its turns."""
        return self.definition.text

    @property
    def when(self) -> str:
        """When it is due, as users of every language read it: 2026-12-24 18:00, with ↻ and the rule if it repeats."""
        timing = self.definition.timing
        rule = timing.cron or (span(timing.every) if timing.every else "")
        return " ↻ ".join(filter(None, (clock(self.due, self.zone), rule)))

    @property
    def zone_name(self) -> str:
        """The time zone of ``when``."""
        return zone_name(self.zone)


_decoder = msgspec.json.Decoder(Definition)


async def schedule(
    bus: Bus, conversation: str, text: str, *, at: datetime | timedelta | None = None, every: timedelta | None = None,
    cron: str = "", when: str = "", zone: str = "", role: str = "", roles: Collection[str] = (), user: str = "",
    front: str = "", meta: Mapping[str, Any] | None = None, turn: str = "", idempotency: str = "",
    instance: str = "front",
) -> Schedule:  # fmt: skip
    """Have a turn of ``conversation`` with the message ``text`` begin by itself: once ``at`` a time or after a
    duration, ``every`` so often, or whenever the ``cron`` line says; or ``when`` says one of these as people do, such
    as "tomorrow at 9" (see phrase.py).

    A naive ``at`` and a cron line are meant in the time zone ``zone``, by default the conversation's preference
    ``timezone``, else the deployment's. The answer goes where those of the conversation go, by ``front`` (default: the
    first part of the conversation's name). ``role`` answers, one of ``roles`` if they are known; ``user`` is whose
    limits the turns count towards, and ``turn`` the one that sets the schedule.

    With an ``idempotency`` key a schedule is stored once, for IDEMPOTENCY_SECONDS; the repeat returns the same id.
    Atomic. Raises BadSchedule.
    """
    expect(isinstance(text, str), "the text of a schedule", text)
    expect_texts(cron=cron, when=when, zone=zone, role=role, user=user, idempotency=idempotency)
    if role and roles and role not in roles:
        raise BadSchedule(f"there is no role {role!r} to schedule; there are {', '.join(sorted(roles))}")
    shard = bus.shard(check_conversation(conversation))
    text, user, now = cut(text.strip()), cut(user), int(await bus.server.run(NOW, clock=shard.clock))
    if not text or len(text) > TEXT_CHARS:
        raise BadSchedule(f"a schedule needs a text of 1 to {TEXT_CHARS} characters", "long" if text else "")
    name = zone or (await preferences_of(bus, conversation)).get("timezone", "")
    name, front = known_zone(name) if name else "", front or conversation.partition(":")[0]
    here = zone_of(bus.settings, name)
    wall = datetime.fromtimestamp(now / 1000, here)
    timing = timing_of(wall, at=at, every=every, cron=cron, when=when, zone=name)
    digest = hashlib.sha256((idempotency or secrets.token_hex(16)).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    repeated = idempotency and await bus.server.fetch("EXISTS", _idempotency(bus, conversation, digest))
    due = timing.at if timing.at and repeated else timing.first(now, here)
    definition = Definition(text, timing, role, user or conversation, front, dict(meta or {}), turn)
    made = Schedule(digest, conversation, definition, due, here)
    await _store(bus, made, instance)
    return made


async def schedules_of(bus: Bus, conversation: str) -> list[Schedule]:
    """The schedules of ``conversation``, those that are due first first."""
    shard = bus.shard(conversation)
    fields = text_map(await bus.server.fetch("HGETALL", shard.schedules(conversation)))
    found = [await _read(bus, conversation, name, fields) for name in fields if ":" not in name]
    return sorted(filter(None, found), key=lambda one: (one.due, one.id))


async def unschedule(bus: Bus, conversation: str, *ids: str, instance: str = "front") -> int:
    """Remove schedules of ``conversation``, all of them without ``ids``. Returns how many there were. Atomic."""
    shard = bus.shard(conversation)
    removed = await bus.server.run(
        REMOVE, turn_block(bus, shard, conversation, ""), deferred=shard.deferred, planned=shard.planned,
        schedules=shard.schedules(conversation), instance=instance, ids=ids,
    )  # fmt: skip
    return int(removed)


async def unschedule_turn(bus: Bus, conversation: str, turn: str, *, instance: str = "front") -> int:
    """Remove the schedules that ``turn`` set, because it is asked again. Returns how many there were. Idempotent."""
    ids = [one.id for one in await schedules_of(bus, conversation) if one.definition.turn == turn]
    return await unschedule(bus, conversation, *ids, instance=instance) if ids else 0


async def unschedule_user(bus: Bus, front: str, user: str, place: str, *, instance: str = "front") -> int:
    """Remove the schedules whose turns count towards the limits of ``user``, in any conversation of ``front``, and all
    those of the conversation ``place`` and of its topics. Returns how many there were."""
    removed = 0
    for shard in bus.shards:
        members = [member.decode() for member in await bus.server.call("ZRANGE", shard.planned, 0, -1)]
        named = dict.fromkeys(member.rpartition(SEPARATOR)[0] for member in members)
        for conversation in (one for one in named if one.startswith(f"{front}:")):
            here = f"{conversation}:".startswith(f"{place}:")
            ids = [one.id for one in await schedules_of(bus, conversation) if here or one.definition.user == user]
            removed += await unschedule(bus, conversation, *ids, instance=instance) if ids else 0
    return removed


async def fire(bus: Bus, member: str, now_ms: float) -> str:
    """Begin the turn of the schedule ``member``, ``<conversation>\\x1f<id>``, if it is due by the server's clock.
    ``now_ms`` says which due times were missed and need not be exact. Returns BEGUN, LATER, EARLY, MOVED or GONE. Any
    number of processes may do this."""
    conversation, name = parted(member)
    shard = bus.shard(conversation)
    fields = text_map(await bus.server.call("HGETALL", shard.schedules(conversation)))
    found = await _read(bus, conversation, name, fields)
    if found is None and name in fields:  # written by a later version, whose processes can read it
        await bus.server.call("ZADD", shard.deferred, "XX", round(now_ms + RETRY_SECONDS * 1000), member)
        return "LATER"
    if found is None:
        await unschedule(bus, conversation, name)
        return "GONE"
    firing = _Firing.of(found, round(now_ms))
    late = await _late(bus, found, firing)
    verdict = await bus.server.run(
        FIRE, *_offer(bus, found, firing).blocks(bus, Running()), planned=shard.planned,
        schedules=shard.schedules(conversation), notices=shard.outbox(found.definition.front or "-"), schedule=name,
        due=found.due, following=firing.following or "", retry_ms=milliseconds(RETRY_SECONDS),
        late=final_event("notice", late) if late else "",
        late_text=late["text"] if late and found.definition.front in FOLLOWED else "",
    )  # fmt: skip
    return str(verdict[0].decode())


class _Firing(NamedTuple):
    """The turn that a schedule begins: how late it is in ms, how many before it were missed, when the next one is."""

    late: int
    missed: int
    following: int

    @classmethod
    def of(cls, found: Schedule, now: int) -> _Firing:
        following = found.definition.timing.following(found.due, now, found.zone)
        return cls(max(0, now - found.due), following.missed, following.due)


def _offer(bus: Bus, found: Schedule, firing: _Firing) -> Offer:
    definition = found.definition
    scheduled = {"id": found.id, "due": found.due, "late_ms": firing.late, "missed": firing.missed}
    payload: dict[str, Any] = {"text": definition.text, SCHEDULED: scheduled}
    if definition.role:
        payload["role"] = definition.role
    envelope = Envelope(
        conversation=found.conversation, payload=payload, reply_to=definition.front, meta=dict(definition.meta),
        priority=bus.settings.default_priority,
    )  # fmt: skip
    return Offer(
        from_user(envelope, definition.user), f"schedule:{found.id}:{found.due}", definition.user,
        bus.instance(SCHEDULE),
        outbox="" if definition.front in FOLLOWED else definition.front,
    )  # fmt: skip


async def _late(bus: Bus, found: Schedule, firing: _Firing) -> dict[str, Any]:
    """The notice that a turn comes late and others were missed; empty if there is nothing to tell."""
    if not firing.missed and firing.late < LATE_SECONDS * 1000:
        return {}
    preferences = await preferences_of(bus, found.conversation)
    language = preferences.get("lang") or found.definition.meta.get("language", "")
    due = clock(found.due, found.zone)
    text = f"This was due at {due}:" if not firing.missed else f"Due since {due}, missed: {firing.missed}"
    return {"text": text, "late": {"due": due, "missed": firing.missed, "language": language}}


async def _store(bus: Bus, made: Schedule, instance: str) -> None:
    conversation, shard = made.conversation, bus.shard(made.conversation)
    limit = bus.settings.schedule_limit
    verdict = await bus.server.run(
        ADD, turn_block(bus, shard, conversation, ""), deferred=shard.deferred, planned=shard.planned,
        idempotency=_idempotency(bus, conversation, made.id), schedules=shard.schedules(conversation),
        schedule=made.id, definition=msgspec.json.encode(made.definition), due=made.due, limit=limit,
        repeat_ms=milliseconds(bus.settings.idempotency_seconds), instance=instance,
        said=f"{made.when} {quoted(made.text)}",
    )  # fmt: skip
    if verdict == b"FULL":
        raise BadSchedule(f"this conversation has {limit} schedules already: delete one with /reminders", "full")


def _idempotency(bus: Bus, conversation: str, name: str) -> str:
    return bus.shard(conversation).idempotency(conversation, f"schedule:{name}")


async def _read(bus: Bus, conversation: str, name: str, fields: Mapping[str, str]) -> Schedule | None:
    """The schedule ``name`` of the stored ``fields``; None if there is none, or a newer version wrote it."""
    due = await bus.server.fetch("ZSCORE", bus.shard(conversation).planned, f"{conversation}{SEPARATOR}{name}")
    try:
        definition = _decoder.decode(fields[name])
        zone = zone_of(bus.settings, definition.timing.zone)
    except (KeyError, msgspec.MsgspecError):
        return None
    except BadSchedule as error:  # this machine has fewer time zones than the one that stored it
        logger.warning("schedule %s of %s: %s", name, conversation, error)
        zone = zone_of(bus.settings)
    return None if due is None else Schedule(
        name, conversation, definition, round(float(due)), zone, fields.get(f"{name}:t", "")
    )  # fmt: skip


def span(ms: int) -> str:
    """A duration as users of every language read it: 90 min, 2 h, 3 d."""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if ms % size == 0:
            return f"{ms // size} {unit}"
    return f"{ms / 1000:g} s"
