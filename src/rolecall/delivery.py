"""What an instance holds: an entry leased to this process, and what it has to tell about it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall import keys
from rolecall.envelope import Envelope, decode
from rolecall.errors import DecodeError, NewerVersion

MAX_RECORDS = 64
MAX_RECORD_BYTES = 32 * 1024
MAX_RECORD_CHARS = 8000
WHO = ContextVar("rolecall instance", default="")
"""The instance whose work this is, for the process log; "" beside the work of any."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One leased entry. ``envelope`` is None when it could not be read; ``problem`` then says why.

    ``usable`` tells whether the entry names a conversation and a turn at all. ``count`` is how often it was
    delivered, this time included; ``previous`` is the process that held it before, if one did.
    """

    shard: int
    stream: str
    id: str
    role: str
    count: int
    previous: str
    conversation: str
    turn: str
    hop: int
    raw: bytes
    envelope: Envelope | None
    problem: str = ""
    usable: bool = True
    newer: bool = False
    taken: float = field(default_factory=time.monotonic)

    @property
    def control(self) -> bool:
        """Whether this turn is in the control lane, beside the conversation's order."""
        return self.turn.startswith("c")


@dataclass(slots=True)
class Records:
    """Log records of one handling, sent with its settling step. Bounded: what is over is cut, with a count."""

    instance: str
    entries: list[tuple[float, str, str]] = field(default_factory=list)
    size: int = 0
    left_out: int = 0

    def add(self, word: str, text: str) -> None:
        """Record ``word`` with ``text`` as of now."""
        text = text if len(text) <= MAX_RECORD_CHARS else f"{text[:MAX_RECORD_CHARS]}… [{len(text)} characters]"
        if len(self.entries) >= MAX_RECORDS or self.size + len(text) * 4 > MAX_RECORD_BYTES * 4:
            self.left_out += 1
            return
        self.size += len(text) * 4
        self.entries.append((time.monotonic(), word, text))

    def arguments(self) -> list[str | int]:
        """As the scripts take them: n, then n × (ms ago, instance, word, text). Empties this."""
        if self.left_out:
            self.entries.append((time.monotonic(), "NOTE", f"{self.left_out} records left out"))
        now, arguments = time.monotonic(), [len(self.entries)]
        result: list[str | int] = list(arguments)
        for at, word, text in self.entries:
            result += (max(0, round((now - at) * 1000)), self.instance, word, _encodable(text))
        self.entries, self.size, self.left_out = [], 0, 0
        return result


def read_entry(shard: int, stream: str, role: str, entry: Any, count: int = 1, previous: bytes = b"") -> Delivery:
    """The delivery made of a raw stream entry ``[id, [field, value, …]]``. Never raises for what is inside."""
    raw_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    raw = fields.get(b"e", b"")
    common = (shard, stream, raw_id.decode(), role, count, previous.decode("utf-8", "replace"))
    try:
        conversation, turn, hop = fields[b"c"].decode(), fields[b"t"].decode(), int(fields[b"h"])
    except (KeyError, ValueError):
        shown = msgspec.json.encode({_text(k): _text(v) for k, v in fields.items()})
        return Delivery(*common, "", "", 0, shown, None, "the entry names no conversation and turn", usable=False)
    try:
        envelope = decode(raw, turn=turn, hops=hop, parts=fields.get(b"x", b""))
    except DecodeError as error:
        newer = isinstance(error, NewerVersion)
        return Delivery(*common, conversation, turn, hop, raw, None, str(error), newer=newer)
    if envelope.conversation != conversation:
        problem = "the envelope names another conversation than its entry"
        return Delivery(*common, conversation, turn, hop, raw, None, problem)
    return Delivery(*common, conversation, turn, hop, raw, envelope)


def next_band(delivery: Delivery, envelope: Envelope) -> str:
    """The band of ``envelope``'s priority, as far down as the soft limit of its user had put the turn."""
    bands, came = keys.BANDS, delivery.stream.rpartition(":")[2]
    wanted = bands.index(keys.band(envelope.priority))
    if delivery.envelope is None or came not in bands:
        return bands[wanted]
    down = bands.index(came) - bands.index(keys.band(delivery.envelope.priority))
    return bands[min(len(bands) - 1, wanted + max(0, down))]


def quoted(text: str) -> str:
    """``text`` in double quotes, as log records show words of people and models."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
