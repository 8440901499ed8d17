"""Where transcripts go: the directory LOG_DIR, standard output, S3-compatible object storage, or several of these."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from rolecall.bus.envelope import encodable
from rolecall.bus.turn import FORGET
from rolecall.settings import Settings, listed
from rolecall.transcripts.files import LogEntry, TranscriptFiles
from rolecall.transcripts.object_storage import TranscriptObjects

STDOUT = "stdout"


class TranscriptTarget(Protocol):
    """What the scribe writes to. One thread of one process uses it at a time."""

    refused: list[str]
    """What could not be written and never will be; the caller clears the list."""
    pause: float
    """Seconds between two writes, for a target where each write has a price."""

    def begin(self, born: str) -> None:
        """Write for the server named ``born``. Raises OSError."""
        ...

    def write(self, entries: Iterable[LogEntry]) -> None:
        """Append ``entries``; those of one conversation have rising ids. When this returns they are safe. Raises
        OSError; called again with the same entries, it writes what is missing."""
        ...

    def close(self) -> None:
        """Let go of what is open; the next write opens it again."""
        ...


class JsonLines:
    """One JSON object a line, on standard output. What was written cannot be read back: lines that were written when
    the scribe was killed come once more, with the same ``id``."""

    pause = 0.0

    def __init__(self, out: BinaryIO | None = None) -> None:
        self.refused: list[str] = []
        self._out = out

    def begin(self, born: str) -> None:
        """See TranscriptTarget."""

    def write(self, entries: Iterable[LogEntry]) -> None:
        """See TranscriptTarget."""
        out = self._out or sys.stdout.buffer
        out.write(b"".join(_line(entry) for entry in entries))
        out.flush()

    def close(self) -> None:
        """See TranscriptTarget."""


def open_targets(settings: Settings, log_dir: Path, tz: tzinfo | None) -> Sequence[TranscriptTarget]:
    """The targets that LOG_TARGETS names. Raises ConfigError, for a missing extra too."""
    found: list[TranscriptTarget] = []
    for name in listed(settings.log_targets):
        if name == "directory":
            found.append(TranscriptFiles(log_dir, tz))
        elif name == STDOUT:
            found.append(JsonLines())
        else:
            found.append(TranscriptObjects.open(name, settings, tz))
    return found


def _line(entry: LogEntry) -> bytes:
    record = entry.record
    if record.word == FORGET:
        return msgspec.json.encode({"conversation": entry.conversation, "event": "FORGET", "id": record.id}) + b"\n"
    time = datetime.fromtimestamp(record.ms / 1000, UTC).isoformat(timespec="milliseconds")
    fields = {
        "time": time, "conversation": entry.conversation, "turn": record.turn, "since_ms": record.since,
        "instance": record.instance, "event": record.word, "text": record.text, "id": record.id,
    }  # fmt: skip
    valid = {name: encodable(value) if isinstance(value, str) else value for name, value in fields.items()}
    return msgspec.json.encode(valid) + b"\n"
