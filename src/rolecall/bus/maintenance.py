"""Maintenance: wake deferred turns, begin scheduled ones, audit running ones, end overdue ones, and clean up after dead
processes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from rolecall.background import Boundary
from rolecall.bus.bus import Bus, count_soon
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.dead_letters import KEPT
from rolecall.bus.envelope import short_turn_id
from rolecall.bus.leases import RELEASED_MS, read_entry
from rolecall.bus.schedule.schedules import fire
from rolecall.bus.turn import FIRST_ROLE, EntryPlace, is_control, is_schedule, member_of, parted
from rolecall.errors import told
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import pairs, text_map

logger = logging.getLogger(__name__)
PAGE = 100
NEVER = 2.0**53
PACKAGE = "rolecall.bus"
PROMOTE = script(
    PACKAGE, "scripts/turn/promote",
    names="deferred active conversation journal wake_stream name turn early expected held",
)  # fmt: skip
AUDIT = script(
    PACKAGE, "scripts/turn/audit",
    names="conversation journal active deferred stream first_high first_normal first_low name turn seen",
)  # fmt: skip
ABANDON = script(PACKAGE, "scripts/process/abandon", names="alive streams process released")
RETIRE = script(PACKAGE, "scripts/process/retire", names="alive streams process own")
STEP = script(PACKAGE, "scripts/process/step", names="clock deferred active streams before shift")
FALLBACK = script(PACKAGE, "scripts/process/fallback", names="stream destination conversation journal alive entry turn")


async def with_sleepers(bus: Bus, known: Collection[int]) -> list[ShardKeys]:
    """The shards to wake deferred turns in. On a single server, these are the ``known`` ones, by number, and any other
    that has some now; that there is no other takes one command."""
    shards = bus.servers[0]
    if len(shards) == 1:
        return list(bus.shards)
    others = [shard for shard in shards if shard.number not in known]
    if others and await bus.server.call("EXISTS", *(shard.deferred for shard in others)):
        found = await asyncio.gather(*(bus.server.call("EXISTS", shard.deferred) for shard in others))
        others = [shard for shard, there in zip(others, found, strict=True) if there]
        known = {*known, *(shard.number for shard in others)}
    return [shard for shard in shards if shard.number in known]


class WakeResult(NamedTuple):
    """How many turns were woken or begun, and the next due time in ms if it comes soon."""

    woken: int
    next: float | None = None


async def wake_due(bus: Bus, shard: ShardKeys, now_ms: float, *, soon: float = 0) -> WakeResult:
    """Wake the deferred turns and begin the turns of the schedules that are due by the server's clock, and tell what
    is due within the next ``soon`` seconds. ``now_ms`` is what the clock should show; the earlier time counts. Any
    number of processes may do this."""
    until = round(now_ms + soon * 1000)
    flat = await bus.server.call("ZRANGEBYSCORE", shard.deferred, "-inf", until, "WITHSCORES", "LIMIT", 0, PAGE)
    scores = {member: float(score) for member, score in pairs(flat)}
    due = [member for member, score in scores.items() if score <= now_ms]
    schedules = [member for member in due if is_schedule(_text(member))]
    turns = [member for member in due if member not in schedules]
    woken = await _each(bus, "promote", turns, lambda member: promote(bus, shard, *parted(member), now_ms))
    begun = await _each(bus, "schedule", schedules, lambda member: fire(bus, member, now_ms))
    later = min((score for score in scores.values() if score > now_ms), default=None)
    return WakeResult(woken.count("OK") + begun.count("BEGUN"), later)


async def promote(
    bus: Bus, shard: ShardKeys, conversation: str, call: str = "", now_ms: float = NEVER, *,
    early: bool = False, as_if_due: bool = False, held: str = "",
) -> str:  # fmt: skip
    """Wake the sleeping turn of a conversation, or one of its calls, if it is due by the server's clock and by
    ``now_ms``. With ``early``, also before its time, unless it is suspended: that ends when what it waits for is there.
    With ``as_if_due``, in any case and as if its time had come. With ``held``, before its time, but only if this turn
    is the running one and has not begun."""
    field = f"{call}:defer:s" if call else "defer:s"
    stream = await bus.server.call("HGET", shard.journal(conversation), field)
    verdict: bytes = await bus.server.run(
        PROMOTE, deferred=shard.deferred, active=shard.active, conversation=shard.conversation(conversation),
        journal=shard.journal(conversation), wake_stream=stream or shard.deferred, name=conversation, turn=call,
        early=2 if as_if_due else int(early), expected=round(now_ms), held=held,
    )  # fmt: skip
    return verdict.decode()


async def audit(bus: Bus, shard: ShardKeys, now_ms: float) -> int:
    """Check that the running turns of the shard have their entries, and end turns that are in flight for too long, by
    ``now_ms`` and by what the server's clock should show. Looks at the oldest and, where there are many, at as many of
    the others, chosen at random; turns that sleep cost nothing. Returns how many entries were repaired: 0, unless
    something outside Rolecall deleted data."""
    now_ms = bus.clocks[shard.number].earlier(now_ms)
    since = await _since(bus, shard)
    sleeping = await bus.server.call("ZMSCORE", shard.deferred, *since) if since else []
    awake = {member for member, due in zip(since, sleeping, strict=True) if due is None}
    overdue = {member for member, began in since.items() if _overdue(bus, now_ms, began)}

    async def look(member: str) -> str:
        conversation, call = parted(member)
        if member.encode() in overdue:
            return await _expire(bus, shard, conversation, call, now_ms)
        return await audit_one(bus, shard, conversation, call)

    wanted = [one for one in since if one in awake | overdue and not is_control(parted(_text(one))[1])]
    return (await _each(bus, "audit", wanted, look)).count("REPAIRED")


async def _since(bus: Bus, shard: ShardKeys) -> dict[bytes, float]:
    """Active turns to look at and when they began, in ms."""
    count = await bus.server.call("ZCARD", shard.active)
    starts = (0, random.randrange(PAGE, count)) if count > PAGE else (0,)
    pages = [await bus.server.call("ZRANGE", shard.active, at, at + PAGE - 1, "WITHSCORES") for at in starts]
    return {member: float(began) for page in pages for member, began in pairs(page)}


async def audit_one(bus: Bus, shard: ShardKeys, conversation: str, call: str = "") -> str:
    """Audit the running turn of a conversation, or one of its calls: OK, IDLE, MOVED or REPAIRED."""
    place = (shard.journal(conversation), f"{call}:a") if call else (shard.conversation(conversation), "at")
    at: Any = await bus.server.call("HGET", *place) or b""
    high, normal, low = (shard.stream(FIRST_ROLE, band) for band in keys.BANDS)
    verdict: bytes = await bus.server.run(
        AUDIT, conversation=shard.conversation(conversation), journal=shard.journal(conversation), active=shard.active,
        deferred=shard.deferred, stream=EntryPlace.parse(at).stream or shard.deferred, first_high=high,
        first_normal=normal, first_low=low, name=conversation, turn=call, seen=at,
    )  # fmt: skip
    if verdict == b"REPAIRED":
        logger.error("the entry of %s was missing and has been written again", conversation)
    return verdict.decode()


async def load_steps(bus: Bus, shard: ShardKeys) -> None:
    """Learn of the steps that the clock of the shard's server made before."""
    steps = text_map(await bus.server.fetch("HGETALL", shard.clock))
    forward = [(float(before), float(shift)) for before, shift in steps.items() if float(shift) > 0]
    bus.clocks[shard.number].steps = forward


async def mend_step(bus: Bus, shard: ShardKeys, roles: Iterable[str]) -> None:
    """Put right what a step of the server's clock did, if ``renew`` has noticed one. Every process does so after each
    heartbeat, for ``roles``, before it takes leases over."""
    clock = bus.clocks[shard.number]
    if not (shift := clock.step):
        return
    logger.warning("the server's clock stepped by %+.0f s; all leases are renewed", shift / 1000)
    await bus.server.run(
        STEP, clock=shard.clock, deferred=shard.deferred, active=shard.active, before=round(clock.now()),
        shift=round(shift), streams=[shard.stream(role, band) for role in roles for band in keys.BANDS],
    )  # fmt: skip
    clock.accept()
    await load_steps(bus, shard)
    if shift < 0:
        await _shorten(bus, shard)


async def _shorten(bus: Bus, shard: ShardKeys) -> None:
    """Make what dead processes left last no longer than it was to, after the clock stepped back."""
    lease = milliseconds(bus.settings.lease_seconds)
    for process in await bus.server.call("ZRANGE", keys.WORKERS, 0, -1):
        for name in (shard.alive(process.decode()), keys.worker(process.decode())):
            await bus.server.call("PEXPIRE", name, lease, "LT")


async def rescue_direct(bus: Bus, shard: ShardKeys, roles: Iterable[str], gone: str) -> int:
    """Move the entries addressed to the dead process ``gone`` to the streams of its roles; returns how many."""
    moved = 0
    for role in roles:
        page = PAGE
        while page == PAGE:
            page = await _rescue_page(bus, shard, role, gone)
            moved += page
    return moved


async def retire(bus: Bus, shard: ShardKeys, roles: Sequence[str], gone: str) -> bool:
    """Clean up in ``shard`` after the dead process ``gone``; True if nothing of it is left."""
    await rescue_direct(bus, shard, roles, gone)
    own = [shard.direct(role, gone) for role in roles]
    shared = [shard.stream(role, band) for role in roles for band in keys.BANDS]
    left = await bus.server.run(RETIRE, alive=shard.alive(gone), streams=[*own, *shared], process=gone, own=len(own))
    return bool(left == 0)


async def abandon(bus: Bus, shard: ShardKeys, roles: Sequence[str], gone: str) -> int:
    """Let what the process ``gone``, which is known to be dead, holds in ``shard`` be taken over at once; returns how
    many entries. A process that is alive would lose them."""
    streams = [shard.stream(role, band) for role in roles for band in keys.BANDS]
    own = [shard.direct(role, gone) for role in roles]
    found = await bus.server.run(
        ABANDON, alive=shard.alive(gone), streams=[*streams, *own], process=gone, released=RELEASED_MS
    )
    await rescue_direct(bus, shard, roles, gone)
    return int(found)


async def sweep(bus: Bus, roles: Sequence[str]) -> int:
    """Clean up after dead processes: entries addressed to them move to their roles, and their consumers are deleted.
    Returns how many processes. Any number of processes may do this."""
    gone = 0
    for raw in await bus.server.call("ZRANGE", keys.WORKERS, 0, -1):
        process = raw.decode()
        if await bus.server.call("EXISTS", keys.worker(process)):
            continue
        if all([await retire(bus, shard, roles, process) for shard in bus.shards]):
            await bus.server.call("ZREM", keys.WORKERS, process)
            gone += 1
    return gone


async def depart(bus: Bus, roles: Sequence[str]) -> None:
    """Leave the bus: nothing more is addressed to this process, and entries addressed to it move to their roles."""
    for shard in bus.shards:
        await bus.server.call("DEL", shard.alive(bus.process))
        await retire(bus, shard, roles, bus.process)


async def _rescue_page(bus: Bus, shard: ShardKeys, role: str, gone: str) -> int:
    stream, moved = shard.direct(role, gone), 0
    for entry in await bus.server.call("XRANGE", stream, "-", "+", "COUNT", PAGE):
        found = read_entry(shard.number, stream, role, entry)
        band = keys.band(found.envelope.priority) if found.envelope else "n"
        verdict = await bus.server.run(
            FALLBACK, stream=stream, destination=shard.stream(role, band), entry=found.id, turn=found.turn,
            conversation=shard.conversation(found.conversation), journal=shard.journal(found.conversation),
            alive=shard.alive(gone),
        )  # fmt: skip
        moved += verdict == b"OK"
    return moved


async def _each(
    bus: Bus, name: str, members: Iterable[bytes], work: Callable[[str], Awaitable[str]]
) -> list[str]:  # fmt: skip
    """What ``work`` says of each member; one that fails is logged and counted, and leaves the others alone."""
    found, boundary = list[str](), Boundary(name, tries=1, count=partial(count_soon, bus.server, "failures"))

    async def do(member: bytes) -> None:
        found.append(await work(member.decode()))

    for member in members:
        await boundary.attempt(repr(member), do(member))
    return found


async def _expire(bus: Bus, shard: ShardKeys, conversation: str, call: str, now_ms: float) -> str:
    current = await bus.server.call("HGET", shard.conversation(conversation), "cur")
    turn = call or (current or b"").decode()
    # Read after `cur`: that turn is at least this old, or another one has begun since.
    since = await bus.server.call("ZSCORE", shard.active, member_of(conversation, call) if call else conversation)
    if turn and since and _overdue(bus, now_ms, float(since)):
        await _give_up(bus, shard, conversation, turn, now_ms)
    return "OVERDUE"


async def _give_up(bus: Bus, shard: ShardKeys, conversation: str, turn: str, now_ms: float) -> None:
    """End a turn as if an instance had given it up. Its dead letter is written first: if this process dies in between,
    the next audit writes another, but none is missing."""
    why, raw = "in flight too long", await bus.server.call("HGET", shard.journal(conversation), f"{turn}:e")
    letter = await bus.server.call(
        "XADD", shard.dead, "MAXLEN", "~", KEPT, "*", "c", conversation, "t", turn, "h", 0, "e", raw or b"",
        "why", why, "n", 0, "s", "", "ms", round(now_ms),
    )  # fmt: skip
    short = short_turn_id(conversation, turn)
    ended = await cancel_turn(
        bus, conversation, turn, instance="upkeep", kind="error", text=f"{told('took_too_long')} (turn {short})",
        reason=why, failure={"kind": "took_too_long", "wait": 0, "turn": short},
    )  # fmt: skip
    if not ended:
        await bus.server.call("XDEL", shard.dead, letter)


def _overdue(bus: Bus, now_ms: float, since: float) -> bool:
    return now_ms - since > bus.settings.turn_seconds * 1000


def _text(member: bytes) -> str:
    return member.decode("utf-8", "replace")
