"""Single steps on the bus, for tests that need one thing to happen."""

from __future__ import annotations

from typing import Any

from rolecall.bus.admission import Admission, admit
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import NOTHING, Delivery, Demand, take, take_and_begin
from rolecall.bus.settle import bury, complete, defer, hop
from rolecall.bus.turn import Records
from rolecall.redis import keys


async def ask(bus: Bus, conversation: str = "a", text: str = "hi", **options: Any) -> Admission:
    """Admit a message; options of Envelope and of ``admit`` alike."""
    kept = {name: options.pop(name) for name in ("priority", "reply_to") if name in options}
    return await admit(bus, Envelope(conversation=conversation, payload={"text": text}, **kept), **options)


async def take_role(bus: Bus, role: str = "manager", free: int = 1, **options: Any) -> list[Delivery]:
    """What one TAKE in the first shard brings for one role, and begins in ``instances``."""
    last_ok, instances = options.pop("last_ok", True), options.pop("instances", ())
    return await take(bus, bus.shards[0], [Demand(role, free, last_ok, instances)], **options)


async def take_one(bus: Bus, role: str = "manager", **options: Any) -> Delivery:
    (delivery,) = await take_role(bus, role, **options)
    return delivery


async def began(bus: Bus, delivery: Delivery, instance: str = "i") -> str:
    """Record that an instance begins an entry that a blocking read brought; whether the process still held it."""
    _, ((verdict, _),) = await take_and_begin(bus, bus.shards[0], NOTHING, [(delivery, instance)])
    return verdict


async def send(bus: Bus, delivery: Delivery, *roles: str) -> str:
    """Send the turn on."""
    assert delivery.envelope is not None
    return await hop(bus, delivery, delivery.envelope.via(*roles), Records("test"))


async def answer(bus: Bus, delivery: Delivery, text: str = "hello", **extra: Any) -> str:
    """Complete the turn."""
    assert delivery.envelope is not None
    options = {name: extra.pop(name) for name in ("history", "preferences", "forget") if name in extra}
    return await complete(bus, delivery, delivery.envelope.reply(text, **extra), Records("test"), **options)


async def defer_turn(bus: Bus, delivery: Delivery, seconds: float = 1000) -> str:
    """Put the turn to sleep."""
    assert delivery.envelope is not None
    return await defer(bus, delivery, seconds, delivery.envelope, "busy", Records("test"))


async def bury_turn(bus: Bus, delivery: Delivery) -> str:
    return await bury(bus, delivery, "why", "sorry", Records("test"))


async def expire(bus: Bus, *deliveries: Delivery) -> None:
    """Let leases run out, as if their holder had been silent for long."""
    for delivery in deliveries:
        held = await bus.server.call("XPENDING", delivery.stream, keys.GROUP, delivery.id, delivery.id, 1)
        lease = (delivery.stream, keys.GROUP, held[0][1], 0, delivery.id, "IDLE", 10_000_000, "JUSTID")
        await bus.server.call("XCLAIM", *lease)


async def hash_of(bus: Bus, key: str) -> dict[str, str]:
    flat = await bus.server.call("HGETALL", key)
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def entries(bus: Bus, stream: str) -> list[dict[str, str]]:
    """The entries of a stream as the fields they have."""
    found = await bus.server.call("XRANGE", stream, "-", "+")
    decoded = ([part.decode("utf-8", "replace") for part in flat] for _, flat in found)
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in decoded]


async def log_records(bus: Bus) -> list[dict[str, str]]:
    """The log records of the first shard. An entry has the records of each of its turns in turn."""
    result, common = list[dict[str, str]](), dict[str, str]()
    for _, flat in await bus.server.call("XRANGE", bus.shards[0].log, "-", "+"):
        fields = [part.decode("utf-8", "replace") for part in flat]
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            if name == "r":
                result.append(common | dict(zip(("ms", "d", "i", "w", "x"), value.split("\x1f", 4), strict=True)))
            else:
                common[name] = value
    return result


async def names(bus: Bus) -> set[str]:
    """Every key on the server."""
    return {key.decode() for key in await bus.server.call("KEYS", "*")}


async def finals(bus: Bus, conversation: str = "a") -> list[tuple[str, str]]:
    """The final events of a conversation: turn and kind, in order."""
    events = await entries(bus, bus.shard(conversation).events(conversation))
    return [(e["t"], e["k"]) for e in events if e["k"] in ("final", "error", "cancelled")]
