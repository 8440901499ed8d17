"""Following a turn: the truth is the conversation's event stream, pub/sub only says when to look."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, emit
from rolecall.bus.turn import TurnState, snapshot
from rolecall.errors import RolecallError, ServerError, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.server import field_map
from rolecall.redis.subscriber import Subscriber

logger = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS = 5.0
UNHURRIED_SECONDS = 0.02
"""How long the news that an instance began may wait for company: often the answer is right behind."""
LINGERING = 256
PAGE = 500
FINAL = ("final", "error", "cancelled")
EVENT_ID = re.compile(r"\d{1,19}(-\d{1,20})?", re.ASCII)
Kind = Literal["accepted", "queued", "started", "delta", "final", "error", "cancelled"]
INTERVAL = 0.05
SLOW_INTERVAL = 0.25
SLOW_AFTER = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a turn. ``id`` rises strictly and resumes a follow; ``text`` is a delta's piece at
    ``position`` characters, or the whole answer of a final event; ``started`` makes earlier deltas void."""

    kind: Kind
    id: str
    turn: str
    text: str = ""
    position: int = 0
    place: int = 0
    role: str = ""
    instance: str = ""
    attempt: int = 0
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        """Whether the turn is over with this."""
        return self.kind in FINAL


class Wakeups:
    """A process's one pub/sub connection: wakes who follows a conversation, and hears the control broadcasts."""

    def __init__(self, pubsub: Subscriber, control: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._pubsub = pubsub
        self._control = control
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._lingering: dict[str, None] = {}
        self.listening = asyncio.Event()
        """Set once control broadcasts are heard."""

    async def run(self) -> None:
        """Listen until cancelled. After a lost connection everyone is woken to look for what was missed: now, and when
        their subscription is confirmed anew."""
        await self._pubsub.subscribe(keys.CONTROL)
        while True:
            try:
                message = await self._pubsub.get_message(timeout=30)
                if message is not None:
                    self._heard(message)
            except ServerError as error:
                logger.info("wake-ups: %s", error)
                await asyncio.sleep(0.2)
                self._wake_everyone()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._pubsub.aclose()

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever ``channel`` speaks; on entry the subscription is confirmed, or the server
        is away and the follower's own looking must do."""
        woken = asyncio.Event()
        self._listeners.setdefault(channel, set()).add(woken)
        try:
            await self._subscribed(channel)
            yield woken
        finally:
            self._listeners[channel].discard(woken)
            if not self._listeners[channel]:
                del self._listeners[channel]
                await self._linger(channel)

    async def _subscribed(self, channel: str) -> None:
        self._lingering.pop(channel, None)
        if channel not in self._confirmed:
            self._confirmed[channel] = asyncio.Event()
            await self._pubsub.subscribe(channel)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                await self._confirmed[channel].wait()

    async def _linger(self, channel: str) -> None:
        """A conversation's next turn often follows soon: its channel is kept until many others came after it."""
        self._lingering[channel] = None
        if len(self._lingering) > LINGERING:
            oldest = next(iter(self._lingering))
            del self._lingering[oldest], self._confirmed[oldest]
            await self._pubsub.unsubscribe(oldest)

    def _heard(self, message: dict[str, Any]) -> None:
        channel = message["channel"].decode()
        if channel == keys.CONTROL:
            self.listening.set()
        if message["type"] == "subscribe" and channel in self._confirmed:
            self._confirmed[channel].set()
        elif message["type"] == "message" and channel == keys.CONTROL:
            self._control_heard(message["data"])
        for woken in self._listeners.get(channel, ()):
            if message["data"] == b"started":
                asyncio.get_running_loop().call_later(UNHURRIED_SECONDS, woken.set)
            else:
                woken.set()

    def _control_heard(self, data: bytes) -> None:
        with suppress(msgspec.DecodeError):
            order = msgspec.json.decode(data)
            if self._control is not None and isinstance(order, dict):
                self._control(order)

    def _wake_everyone(self) -> None:
        for listeners in self._listeners.values():
            for woken in listeners:
                woken.set()


async def follow(
    bus: Bus, wakeups: Wakeups, conversation: str, turn: str, after: str = "0-0"
) -> AsyncGenerator[Event, None]:
    """The events of ``turn`` after the event id ``after``, until its final one, which comes exactly once.

    Joins what is stored with what happens, without gap or double: after the id of the final event there is nothing
    more. A turn whose result is not kept any more ends in an error event. While the server is away it waits. Raises
    RolecallError when ``after`` is no event id.
    """
    if not EVENT_ID.fullmatch(after):
        raise RolecallError(f"{after[:60]!r} is no event id: one reads like 1795246462181-0")
    shard = bus.shard(conversation)
    async with wakeups.listen(shard.channel(conversation)) as woken:
        last, look = after, True
        while True:
            woken.clear()
            try:
                async for event_id, fields in _stored(bus, shard.events(conversation), last):
                    last = event_id
                    if fields[b"t"] == turn.encode():
                        event, look = _event(last, fields), False  # it is there: its final event will be, too
                        yield event
                        if event.last:
                            return
                if look and (ending := await _ending(bus, conversation, turn, last)) is not None:
                    for event in ending:
                        yield event
                    return
            except ServerUnavailable as error:
                logger.info("following %s: %s", conversation, error)
            # Woken, the events tell; what has no event any more is looked for now and then.
            look = not await _doze(woken)


@dataclass(slots=True)
class AnswerText:
    """The text of an answer so far, put together from the events of its turn."""

    text: str = ""

    def apply(self, event: Event) -> str:
        """Apply ``event`` and return what a delta added. ``started`` clears the text; ``final`` sets the whole answer.

        A delta behind a gap is skipped: the final event has the whole answer.
        """
        if event.kind == "started":
            self.restart()
        elif event.kind == "final":
            self.text = event.text
        elif event.kind == "delta" and event.position <= len(self.text):
            added = event.text[len(self.text) - event.position :]
            self.text += added
            return added
        return ""

    def restart(self) -> bool:
        """Clear the text; returns whether there was any."""
        had_text, self.text = bool(self.text), ""
        return had_text

    def rest(self, whole: str) -> str | None:
        """What ``whole`` adds to the text so far; None when it begins differently."""
        return whole[len(self.text) :] if whole.startswith(self.text) else None


@dataclass(slots=True)
class Progress(AnswerText):
    """How far a turn has come: ``kind`` and ``seen`` are those of its newest event, ``role`` is working on it."""

    kind: str = ""
    seen: str = "0-0"
    role: str = ""

    def add(self, event: Event) -> None:
        """Go on by one event."""
        self.kind, self.seen = event.kind, event.id
        self.apply(event)
        if event.kind == "started":
            self.role = event.role
        elif event.kind == "queued":
            self.role = ""


async def progress(bus: Bus, conversation: str, turn: str) -> Progress:
    """How far ``turn`` came; its final event is left out."""
    found = Progress()
    async for event_id, fields in _stored(bus, bus.shard(conversation).events(conversation), "0-0"):
        if fields[b"t"] == turn.encode() and fields[b"k"].decode() not in FINAL:
            found.add(_event(event_id, fields))
    return found


async def so_far(bus: Bus, conversation: str, turn: str) -> str:
    """The answer to ``turn`` as far as it was told to who follows it."""
    return (await progress(bus, conversation, turn)).text


async def keeps(bus: Bus, conversation: str, event_id: str) -> bool:
    """Whether that event of the conversation is still kept, and with it all that followed."""
    return bool(await bus.server.call("XRANGE", bus.shard(conversation).events(conversation), event_id, event_id))


async def _stored(bus: Bus, stream: str, last: str) -> AsyncIterator[tuple[str, dict[bytes, bytes]]]:
    """The entries behind ``last``, of all turns."""
    while True:
        page = await bus.server.call("XRANGE", stream, f"({last}", "+", "COUNT", PAGE)
        for raw_id, flat in page:
            last = raw_id.decode()
            yield last, field_map(flat)
        if len(page) < PAGE:
            return


async def _ending(bus: Bus, conversation: str, turn: str, last: str) -> list[Event] | None:
    """What is left to tell of a turn that is over, from its result: the event stream may have been trimmed or have
    expired. None while it goes on, nothing when its final event is not after ``last``."""
    found = await snapshot(bus, conversation, turn)
    if found.state is TurnState.FINISHED and found.final is not None:
        final = found.final
        told = _order(found.final_id) <= _order(last)
        event = Event(final["kind"], found.final_id, turn, final.get("text", ""), payload=final)
        return [] if told else [event]
    if found.state in (TurnState.GONE, TurnState.UNKNOWN):
        text = "The result is not kept any more." if found.state is TurnState.GONE else "There is no such turn."
        payload = {"kind": "error", "text": text, "reason": found.state}
        return [Event("error", max(last, found.last, key=_order), turn, text, payload=payload)]
    return None


async def _doze(woken: asyncio.Event) -> bool:
    """Whether it was woken before it was time to look again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_AGAIN_SECONDS):
            await woken.wait()
            return True
    return False


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _event(event_id: str, fields: dict[bytes, bytes]) -> Event:
    kind: Any = fields[b"k"].decode()
    text = fields.get(b"x", b"").decode("utf-8", "replace")
    payload = msgspec.json.decode(text) if kind in FINAL else {}
    return Event(
        kind,
        event_id,
        fields[b"t"].decode(),
        payload.get("text", "") if payload else text,
        position=int(fields.get(b"p", 0)),
        place=int(fields.get(b"n", 0)) if kind in ("queued", "accepted") else 0,
        role=fields.get(b"r", b"").decode(),
        instance=fields.get(b"w", b"").decode(),
        attempt=int(fields.get(b"n", 0)) if kind == "started" else 0,
        payload=payload,
    )


class DeltaStream:
    """Joins pieces so that they leave at most every 50 ms, every 250 ms after ten seconds; never holds the handler up.

    ``lost`` is called when the bus says that the envelope is not this instance's any more.
    """

    def __init__(self, bus: Bus, delivery: Delivery, lost: Callable[[], None]) -> None:
        self._bus = bus
        self._delivery = delivery
        self._lost = lost
        self._pieces: list[str] = []
        self._position = 0
        self._began = time.monotonic()
        self._sent = 0.0
        self._task: asyncio.Task[None] | None = None

    async def publish(self, position: int, text: str) -> None:
        """Queue ``text``, which stands at ``position`` characters in the answer."""
        if not self._pieces:
            self._position = position
        self._pieces.append(text)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="rolecall deltas")

    def close(self) -> None:
        """Send nothing more: the final event carries the whole answer."""
        self._pieces.clear()
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        while self._pieces:
            interval = SLOW_INTERVAL if time.monotonic() - self._began > SLOW_AFTER else INTERVAL
            await asyncio.sleep(max(0.0, self._sent + interval - time.monotonic()))
            position, text = self._position, "".join(self._pieces)
            self._pieces.clear()
            self._sent = time.monotonic()
            if not await self._emit(position, text):
                self._lost()
                return
            self._position = position + len(text)

    async def _emit(self, position: int, text: str) -> bool:
        """False when the envelope is not this instance's any more. A piece that cannot be sent is left out: followers
        see the gap and have the whole answer at the end."""
        try:
            return not text or await emit(self._bus, self._delivery, position, text) == "OK"
        except ServerError as error:
            logger.debug("a piece of an answer was left out: %s", error)
            return True
