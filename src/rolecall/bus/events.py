"""Events of a turn, for its followers. The conversation's event stream is authoritative. Pub/sub brings small events as
they are and wakes readers for others; a follower that may have missed something reads the stream."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from rolecall.bus.bus import Bus, confirmed
from rolecall.bus.turn import TurnState, snapshot
from rolecall.bus.wakeups import LOOK_AGAIN_SECONDS, Listener, Wakeups
from rolecall.errors import WAITS, RolecallError, ServerUnavailable, told
from rolecall.redis.server import field_map

logger = logging.getLogger(__name__)
READ_AGAIN_SECONDS = 1.0
"""When a follower reads again whose read failed."""
SEPARATOR = b"\x1f"
"""Between the parts of a message that brings an event, of which the text ``x`` is the last."""
PAGE = 500
FINAL = ("final", "error", "cancelled")
ADMISSIONS = ("accepted", "queued")
"""The kinds of events that say that a message was admitted."""
OF_MESSAGES = (*ADMISSIONS, "cleared")
"""What followers of a conversation's notices are told besides, if they want to."""
EVENT_ID = re.compile(r"\d{1,19}(-\d{1,20})?", re.ASCII)
DELAY = re.compile(r"([a-z_]+) (\d{1,9})", re.ASCII)
"""The text of ``queued`` for a delay of a known kind: kind and seconds."""
Kind = Literal[
    "accepted", "queued", "started", "delta", "final", "error", "cancelled", "notice", "cleared", "asked", "answered"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """What happened in a turn. ``id`` increases strictly and can resume a follow. ``text`` is the piece of a delta at
    ``position`` characters, or the whole answer of a final event. ``started`` makes earlier deltas void.

    The ``text`` of ``queued`` is why the turn waits, if not for the ones before it; if the reason is one of
    errors.WAITS, the ``payload`` has its ``kind`` and the ``wait`` in seconds. The payload of the last event has
    ``failure`` if the turn failed for a reason of errors.FAILURES: ``kind``, ``wait`` and ``turn``; of a
    budget its limit, ``tokens`` or ``cost``.

    ``asked`` is a question to the user, with the payload of a UserQuestion (bus/steps/answers.py); ``answered`` says
    that it is closed: its ``id`` and the ``choice``. ``cleared`` says that the conversation was cleared: its turns up
    to the number in ``text``.
    """

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
        """Whether this event ends the turn."""
        return self.kind in FINAL

    @property
    def cut(self) -> bool:
        """Whether the model stopped at its length limit, so that the answer is not whole."""
        return self.payload.get("finish") == "length"


async def follow(
    bus: Bus, wakeups: Wakeups, conversation: str, turn: str, after: str = "0-0"
) -> AsyncGenerator[Event, None]:
    """The events of ``turn`` after the event id ``after``, up to the final one, which comes exactly once.

    Stored and new events follow each other without gaps or duplicates. A turn whose result has expired ends with an
    error event. While the server is unavailable, this waits. Raises RolecallError for an invalid ``after``.
    """
    if not EVENT_ID.fullmatch(after):
        raise RolecallError(f"{after[:60]!r} is not an event ID: expected one such as 1795246462181-0")
    async with wakeups.listen(bus.shard(conversation).channel(conversation)) as listener:
        last, look = after, True
        while True:
            wakeups.check_open()
            listener.woken.clear()
            seconds = LOOK_AGAIN_SECONDS
            try:
                async for event_id, fields in _news(bus, listener, conversation, last):
                    if fields[b"t"] == turn.encode() and fields[b"k"].decode() in FINAL:
                        await confirmed(bus, bus.shard(conversation))
                    last = event_id
                    if fields[b"t"] == turn.encode():
                        event, look = _event(last, fields), False  # the stream has it, so it will have the final event
                        yield event
                        if event.last:
                            return
                if look and (ending := await _ending(bus, conversation, turn, after, last)) is not None:
                    await confirmed(bus, bus.shard(conversation))
                    for event in ending:
                        yield event
                    return
            except ServerUnavailable as error:
                logger.debug("following %s: %s", conversation, error)
                seconds = READ_AGAIN_SECONDS  # what woke us was not read
            # A wake-up means a new event; a turn without events any more is looked up at intervals.
            look = not await listener.doze(seconds)


async def follow_notices(
    bus: Bus, wakeups: Wakeups, conversation: str, after: str = "", *, messages: bool = False
) -> AsyncGenerator[Event, None]:
    """The notices of a conversation, and the answers of its schedules, after the event id ``after``, by default those
    from now on, without an end; with ``messages`` also each ``accepted`` and ``queued`` of its turns, and ``cleared``.
    While the server is unavailable, this waits. Raises RolecallError for an invalid ``after``."""
    if after and not EVENT_ID.fullmatch(after):
        raise RolecallError(f"{after[:60]!r} is not an event ID: expected one such as 1795246462181-0")
    shard = bus.shard(conversation)
    async with wakeups.listen(shard.channel(conversation)) as listener:
        last, told = after, OF_MESSAGES if messages else ()
        while True:
            wakeups.check_open()
            listener.woken.clear()
            seconds = LOOK_AGAIN_SECONDS
            try:
                last = last or await newest_event(bus, conversation)
                async for event_id, fields in _news(bus, listener, conversation, last):
                    last = event_id
                    if fields[b"k"] == b"notice" or b"s" in fields or fields[b"k"].decode() in told:
                        yield _event(event_id, fields)
            except ServerUnavailable as error:
                logger.debug("following %s: %s", conversation, error)
                seconds = READ_AGAIN_SECONDS
            await listener.doze(seconds)


async def newest_event(bus: Bus, conversation: str) -> str:
    """The id of the newest event of a conversation, 0-0 if there is none."""
    found = await bus.server.call("XREVRANGE", bus.shard(conversation).events(conversation), "+", "-", "COUNT", 1)
    return found[0][0].decode() if found else "0-0"


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
    """How far a turn has come: ``kind`` and id (``seen``) of its newest event, the ``role`` that works on it, and the
    ``questions`` that are open, by their ids."""

    kind: str = ""
    seen: str = "0-0"
    role: str = ""
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Apply the next event."""
        self.kind, self.seen = event.kind, event.id
        self.apply(event)
        if event.kind == "started":
            self.role = event.role
        elif event.kind == "queued":
            self.role = ""
        elif event.kind == "asked":
            self.questions[event.payload["id"]] = event.payload
        elif event.kind == "answered":
            self.questions.pop(event.payload["id"], None)


async def progress(bus: Bus, conversation: str, turn: str) -> Progress:
    """How far ``turn`` has come, without its final event."""
    found = Progress()
    async for event_id, fields in _stored(bus.server.fetch, bus.shard(conversation).events(conversation), "0-0"):
        if fields[b"t"] == turn.encode() and fields[b"k"].decode() not in FINAL:
            found.add(_event(event_id, fields))
    return found


async def told_length(bus: Bus, conversation: str, turn: str, until: str) -> int | None:
    """How many characters of the answer the events up to the id ``until`` have told; None if that is not stored."""
    length: int | None = None
    async for event_id, fields in _stored(bus.server.fetch, bus.shard(conversation).events(conversation), "0-0"):
        if _order(event_id) > _order(until):
            break
        if fields[b"t"] == turn.encode():
            event = _event(event_id, fields)
            length = 0 if event.kind == "started" else length
            length = event.position + len(event.text) if event.kind == "delta" else length
    return length


async def so_far(bus: Bus, conversation: str, turn: str) -> str:
    """The answer to ``turn`` as far as it was streamed to followers."""
    return (await progress(bus, conversation, turn)).text


async def keeps(bus: Bus, conversation: str, event_id: str) -> bool:
    """Whether that event of the conversation is still stored, and with it all later ones."""
    return bool(await bus.server.fetch("XRANGE", bus.shard(conversation).events(conversation), event_id, event_id))


async def _stored(
    ask: Callable[..., Awaitable[Any]], stream: str, last: str
) -> AsyncIterator[tuple[str, dict[bytes, bytes]]]:
    """The entries after ``last``, of all turns."""
    while True:
        page = await ask("XRANGE", stream, f"({last}", "+", "COUNT", PAGE)
        for raw_id, flat in page:
            last = raw_id.decode()
            yield last, field_map(flat)
        if len(page) < PAGE:
            return


async def _news(
    bus: Bus, listener: Listener, conversation: str, last: str
) -> AsyncIterator[tuple[str, dict[bytes, bytes]]]:
    """The entries after ``last``, of all turns, that were heard, or read if something may be missing."""
    while listener.heard and not listener.behind:
        found = _heard(listener.heard.popleft())
        if found is None:
            listener.behind = True
        elif _order(found[0]) > _order(last):
            yield found
    if listener.behind:
        listener.begin()
        try:
            async for found in _stored(bus.server.call, bus.shard(conversation).events(conversation), last):
                yield found
        except BaseException:
            listener.behind = True
            raise


def _heard(data: bytes) -> tuple[str, dict[bytes, bytes]] | None:
    """Id and fields of the event that a message brings; None for a message that only wakes."""
    event_id, *parts = data.split(SEPARATOR, 3)
    if len(parts) < 2:
        return None
    fields, rest = {b"t": parts[0], b"k": parts[1]}, b"".join(parts[2:])
    while rest:
        name, _, rest = rest.partition(SEPARATOR)
        fields[name], _, rest = (rest, b"", b"") if name == b"x" else rest.partition(SEPARATOR)
    return event_id.decode(), fields


async def _ending(bus: Bus, conversation: str, turn: str, after: str, last: str) -> list[Event] | None:
    """The final event of a turn that has ended, made from its result, as the event stream may be trimmed or expired,
    and a message lost: while a server becomes a replica, a later event may be heard though this one was not. None while
    the turn goes on; empty if the final event is not after ``after``."""
    found = await snapshot(bus, conversation, turn)
    if found.state is TurnState.FINISHED and found.final is not None:
        final = found.final
        told = _order(found.final_id) <= _order(after)
        event = Event(final["kind"], found.final_id, turn, final.get("text", ""), payload=final)
        return [] if told else [event]
    if found.state in (TurnState.GONE, TurnState.UNKNOWN):
        text = "The result is not kept any more." if found.state is TurnState.GONE else "There is no such turn."
        payload = {"kind": "error", "text": text, "reason": found.state}
        return [Event("error", max(last, found.last, key=_order), turn, text, payload=payload)]
    return None


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _event(event_id: str, fields: dict[bytes, bytes]) -> Event:
    kind: Any = fields[b"k"].decode()
    text = fields.get(b"x", b"").decode("utf-8", "replace")
    payload = msgspec.json.decode(text) if kind in (*FINAL, "asked", "answered") else {}
    if kind == "queued" and (delay := DELAY.fullmatch(text)) and delay[1] in WAITS:
        payload = {"kind": delay[1], "wait": int(delay[2]), "text": told(delay[1], int(delay[2]))}
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
