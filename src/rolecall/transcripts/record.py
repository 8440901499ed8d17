"""A conversation's log: the record, its line in the file, where the file is, and how it is read.

``<log_dir>/conversations/<conversation>/<YYYY.MM.DD>/<HH:MM:SS>.log`` holds one session, one record a line::

    [2026-11-21 22:30:15.123] [  0.000s] [terminal:m4:12345:0] RECEIVED: telegram:42/17 "Hello"  ~17 1795246462181-0

The tail names the turn and the record; viewers hide it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import msgspec

from rolecall.errors import RolecallError

Order: TypeAlias = tuple[int, int, int]
"""A key that rises from record to record of a conversation."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS = 253_402_000_000_000
"""The last time that can be written, in the year 9999."""
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
SHORT_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
PLAIN = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
NOTICE = "notice: "
"""How the record begins that tells a notice."""
QUOTED = re.compile(r"\\(.)", re.DOTALL)
LINE = re.compile(
    r"\[(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\] \[ *(?P<seconds>\d+)\.(?P<millis>\d{3})s\] "
    r"\[(?P<instance>[^\[\]]*)\] (?P<word>[A-Z_]+): (?P<text>.*)  ~(?P<turn>[^ ]+) (?P<id>\d+-\d+(?:\.\d\d)?)",
    re.ASCII,
)
RECORD_ID = re.compile(r"\d{1,20}-\d{1,20}(\.\d\d)?", re.ASCII)
SESSION_FILE = re.compile(r"(\d\d:\d\d:\d\d)(?:\.(\d+))?\.log", re.ASCII)
SHORT_TURN = re.compile(r"([0-9a-f]{6})-(c?\d+(?:\.\d+)*)", re.ASCII)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, at ``ms`` by the server's clock and ``since`` ms after the turn was received. ``id`` is that of
    its entry of the log stream; later records of the same entry have a number behind it, ``1795246462181-0.01``."""

    ms: int
    since: int
    turn: str
    instance: str
    word: str
    text: str
    id: str

    @property
    def order(self) -> Order:
        """A sort key that rises from record to record of a conversation."""
        return entry_order(self.id)

    @property
    def begins_turn(self) -> bool:
        """Whether it begins a turn of a user, not a call that a turn makes."""
        return self.word == "RECEIVED" and "." not in self.turn

    def is_of(self, turn: str) -> bool:
        """Whether it belongs to ``turn`` or to one of its calls; with an empty name, any record does."""
        return not turn or self.turn == turn or self.turn.startswith(f"{turn}.")


def entry_order(record_id: str) -> Order:
    """A record's id as numbers, for comparison."""
    ms, _, rest = record_id.partition("-")
    number, _, part = rest.partition(".")
    return int(ms), int(number), int(part or 0)


# ── the line ────────────────────────────────────────────────────────────────────────────────────


def escape(text: str) -> str:
    """``text`` without control, format and separator characters and lone surrogates; ``unescape`` undoes it."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(SHORT_ESCAPES.get(char) or _escaped(char) for char in text)


def unescape(text: str) -> str:
    """What ``escape`` was given."""
    return ESCAPE.sub(_unescaped, text) if "\\" in text else text


def format_line(record: Record, tz: tzinfo | None = None) -> str:
    """The line of ``record`` in the time zone ``tz``, else the system's, without a newline."""
    at = (EPOCH + timedelta(milliseconds=min(max(record.ms, 0), LAST_MS))).astimezone(tz)
    since = f"{record.since // 1000}.{record.since % 1000:03d}".rjust(7)
    instance = escape(record.instance).replace("[", "\\x5b").replace("]", "\\x5d")
    text = f" {escape(record.text)}".replace(
        "  ~", "  \\x7e"
    )  # with the blank before it, so that no text looks like the tail
    turn = "\\x2d" if record.turn == "-" else escape(record.turn).replace(" ", "\\x20") or "-"
    stamp = at.replace(tzinfo=None).isoformat(" ", "milliseconds")
    return f"[{stamp}] [{since}s] [{instance}] {record.word}:{text}  ~{turn} {record.id}"


def parse_line(line: str, tz: tzinfo | None = None) -> Record | None:
    """The record of a line that ``format_line`` made with the same ``tz``; None for any other line."""
    found = LINE.fullmatch(line)
    if found is None:
        return None
    with suppress(ValueError, OverflowError):  # matches the pattern but is not a valid date or character
        return Record(
            ms=_ms(found["at"], tz, entry_order(found["id"])[0]),
            since=int(found["seconds"]) * 1000 + int(found["millis"]),
            turn="" if found["turn"] == "-" else unescape(found["turn"]),
            instance=unescape(found["instance"]),
            word=found["word"],
            text=unescape(found["text"]),
            id=found["id"],
        )
    return None


def visible(line: str) -> str:
    """A line of a file as people see it: without its tail and without terminal control characters."""
    shown = line[: line.rindex("  ~")] if LINE.fullmatch(line) else line
    return shown if shown.isprintable() else "".join(_escaped(char) for char in shown)


def _escaped(char: str) -> str:
    if unicodedata.category(char) not in HIDDEN_CATEGORIES:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescaped(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    return chr(int(code, 16)) if code else PLAIN.get(found[4], found[0])


def _ms(at: str, tz: tzinfo | None, near: int) -> int:
    """A local time as ms since 1970; of the two when clocks go back, the one closer to ``near``."""
    local = datetime.fromisoformat(at)
    moments = (local.replace(tzinfo=tz, fold=fold).astimezone(UTC) for fold in (0, 1))
    return min(((m - EPOCH) // timedelta(milliseconds=1) for m in moments), key=lambda ms: abs(ms - near))


def unquoted(text: str) -> str:
    """The words in a record that shows them in double quotes, also if it was cut."""
    if not text.startswith('"'):
        return text
    return QUOTED.sub(r"\1", text[1:].removesuffix('"'))


def words_of(record: Record) -> str:
    """What a user or an agent says in ``record``; empty if it tells something else."""
    if record.word == "RECEIVED":
        return unquoted(record.text.partition(f"/{record.turn} ")[2])
    if record.word == "PROCESSING_COMPLETE":
        return unquoted(record.text.partition(": ")[2])
    return unquoted(record.text.removeprefix(NOTICE)) if record.text.startswith(NOTICE) else ""


# ── names ───────────────────────────────────────────────────────────────────────────────────────


def conversation_dir(conversation: str) -> str:
    """A directory name for ``conversation``: safe on every system, and unique even where case is ignored."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", conversation)[:60]
    return f"{readable}-{_digest(conversation)[:12]}"


def session_file(conversation: str, session: int, tz: tzinfo | None = None, generation: int = 0) -> PurePosixPath:
    """Path within ``conversations`` of the session begun at ``session`` ms; ``generation`` counts wiped servers."""
    at = (EPOCH + timedelta(milliseconds=min(max(session, 0), LAST_MS))).astimezone(tz)
    name = f"{at:%H:%M:%S}.{generation}.log" if generation else f"{at:%H:%M:%S}.log"
    return PurePosixPath(conversation_dir(conversation), f"{at.year:04d}.{at:%m.%d}", name)


def _digest(conversation: str) -> str:
    return hashlib.sha256(conversation.encode("utf-8", "surrogatepass")).hexdigest()


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def directories(log_dir: Path) -> list[Path]:
    """The directories of all conversations, without links."""
    root = log_dir / "conversations"
    return sorted(path for path in root.glob("*-*") if path.is_dir() and not path.is_symlink())


def session_files(directory: Path) -> list[Path]:
    """The files of one conversation, oldest first, without links."""
    found = []
    for path in directory.glob("????.??.??/*.log"):
        name = SESSION_FILE.fullmatch(path.name)
        if name and path.is_file() and not path.is_symlink():
            found.append((path.parent.name, name[1], int(name[2] or 0), path))
    return [path for *_, path in sorted(found)]


def find(log_dir: Path, which: str) -> tuple[Path, str]:
    """The directory that ``which`` names, and a turn or "". ``which`` is a conversation, its directory, or a short turn
    id. Raises RolecallError when nothing matches, or a short turn id matches several conversations."""
    short = SHORT_TURN.fullmatch(which)
    if short:
        fitting = [path for path in directories(log_dir) if path.name[-12:].startswith(short[1])]
        if len(fitting) > 1:
            names = ", ".join(path.name for path in fitting)
            raise RolecallError(f"{which} is ambiguous, name one of these conversations: {names}")
        if fitting:
            return fitting[0], short[2]
    for path in directories(log_dir):
        if path.name in (conversation_dir(which), which):
            return path, ""
    raise RolecallError(
        f"no transcript of {escape(which)!r} in {log_dir / 'conversations'}; `rolecall logs` lists what is there"
    )


def read_lines(path: Path) -> Iterator[str]:
    """The complete lines of a file, without newlines; a last line still being written is skipped."""
    with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for line in file:
            if line.endswith("\n"):
                yield line[:-1]


def records(log_dir: Path, which: str, tz: tzinfo | None = None) -> list[Record]:
    """Every record of a conversation, or of one turn by its short id; see ``find`` for ``which`` and its errors."""
    directory, turn = find(log_dir, which)
    return [record for record in read_records(directory, tz) if record.is_of(turn)]


def read_records(directory: Path, tz: tzinfo | None = None) -> Iterator[Record]:
    """The records of one conversation's directory, oldest file first; other lines are skipped."""
    for path in session_files(directory):
        for line in read_lines(path):
            record = parse_line(line, tz)
            if record is not None:
                yield record


def identity(directory: Path, first: Record) -> tuple[str, str]:
    """Conversation and title as a session's first record names them, if the directory belongs to that conversation;
    otherwise the directory's name. The title is "" when none is given."""
    for conversation, title in _claims(first):
        if conversation_dir(conversation) == directory.name:
            return conversation, "" if title == "-" else title
    return directory.name, ""


def _claims(record: Record) -> Iterator[tuple[str, str]]:
    """All readings of a session's first record: an id may contain the very words that end it."""
    text, mark = record.text, f"/{record.turn} "
    if record.word == "NOTE" and text.startswith("session of "):
        text, mark = text.removeprefix("session of "), " title "
    at = text.find(mark)
    while at >= 0:
        yield text[:at], text[at + len(mark) :] if mark == " title " else ""
        at = text.find(mark, at + 1)
