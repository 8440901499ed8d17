"""What the processes log, for operators: each publishes its warnings, its errors and how it starts, scales and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

import msgspec

from rolecall.background import cancel_and_wait
from rolecall.bus.bus import Bus
from rolecall.errors import ConfigError, ServerError
from rolecall.redis import keys
from rolecall.redis.scripts import milliseconds
from rolecall.redis.server import field_map

WHO = ContextVar("rolecall instance", default="")
"""The instance that the current task works for; empty outside the work of an instance."""
OURS = "rolecall"
"""The logger whose lines are published. Those of agents and libraries may hold what users wrote."""
LIFECYCLE = tuple(
    f"{OURS}.{name}"
    for name in (
        "cli", "redis", "serving", "session", "transcripts.scribe", "worker.reload", "worker.runtime",
        "frontends.http.hosting",
    )
)  # fmt: skip
"""The loggers whose INFO lines tell how a process is doing. Those of the others tell of single turns."""
PUBLIC = "public_text"
"""The attribute of a log record with the text to publish instead of its own; see ``public``."""
LEVELS = ("info", "warning", "error")
FLUSH_SECONDS = 0.3
MOST_WAITING = 50
"""Lines that a process keeps until it publishes them; the oldest of more are counted and left out."""
MOST_LINES = 2000
MOST_CHARS = 500
KEPT_MS = 86_400_000
"""How long lines are kept, at least while fewer than MOST_LINES come."""
AGAIN_SECONDS = 2.0
END_SECONDS = 1.0


class ProcessLine(msgspec.Struct, frozen=True):
    """One line of a process's log. ``ms`` is the process's time, ``who`` the instance whose work it is or ""."""

    ms: int
    level: str
    process: str
    who: str
    text: str


def public(text: str) -> Mapping[str, str]:
    """For a log call's ``extra``: publish ``text`` in place of a line that may hold what users wrote."""
    return {PUBLIC: text}


async def process_lines(
    bus: Bus, after: str = "", *, process: str = "", level: str = LEVELS[0], limit: int = MOST_LINES
) -> list[tuple[str, ProcessLine]]:
    """The newest ``limit`` lines after the one with the id ``after``, each with its id, oldest first: those of
    ``process``, by default of all, from ``level`` on."""
    start = f"({after}" if after else f"{milliseconds(time.time()) - KEPT_MS}"
    entries = await bus.server.call("XRANGE", keys.PROCESS_LOG, start, "+")
    wanted = LEVELS[LEVELS.index(level) :]
    found = [
        (raw_id.decode(), msgspec.json.decode(field_map(flat)[b"l"], type=ProcessLine)) for raw_id, flat in entries
    ]
    lines = [(line_id, line) for line_id, line in found if line.level in wanted and process in ("", line.process)]
    return lines[-limit:]


@asynccontextmanager
async def publishing(bus: Bus) -> AsyncIterator[None]:
    """Publish what this process logs until the block is left."""
    log = _Publisher(bus)
    logger = logging.getLogger(OURS)
    logger.addHandler(log)
    task = asyncio.create_task(log.run(), name="rolecall process log")
    try:
        yield
    finally:
        logger.removeHandler(log)
        await cancel_and_wait(task)
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await log.publish()


class _Publisher(logging.Handler):
    """Collects the lines of this process from any thread, and publishes them from the event loop."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(logging.INFO)
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._lines: deque[ProcessLine] = deque()
        self._left_out = 0
        self._wanted = asyncio.Event()

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the lines of single turns before anything is made of them."""
        return record.levelno >= logging.WARNING or record.name.startswith(LIFECYCLE)

    def emit(self, record: logging.LogRecord) -> None:
        text = self._bus.settings.redacted(_text(record)).replace("\n", " ")
        level = LEVELS[(record.levelno >= logging.WARNING) + (record.levelno >= logging.ERROR)]
        line = ProcessLine(milliseconds(record.created), level, self._bus.process, WHO.get(), text[:MOST_CHARS])
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._add, line)

    async def run(self) -> None:
        """Publish lines soon after they were logged, until cancelled. Those of an outage wait for its end."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(FLUSH_SECONDS)
            self._wanted.clear()
            try:
                await self.publish()
            except ServerError:
                self._wanted.set()
                await asyncio.sleep(AGAIN_SECONDS)

    async def publish(self) -> None:
        """Publish the lines that wait. Raises ServerError; those that were not published go on waiting."""
        if not self._lines:
            return
        if self._left_out:
            text, last = f"{self._left_out} more lines were left out", self._lines[0]
            self._lines.appendleft(ProcessLine(last.ms, "warning", self._bus.process, "", text))
            self._left_out = 0
        while self._lines:
            # One at a time: none is published twice, unless the answer to it was lost.
            line = msgspec.json.encode(self._lines[0])
            await self._bus.server.call("XADD", keys.PROCESS_LOG, "MAXLEN", "~", MOST_LINES, "*", "l", line)
            self._lines.popleft()
        before = milliseconds(time.time()) - KEPT_MS
        await self._bus.server.call("XTRIM", keys.PROCESS_LOG, "MINID", "~", before)

    def _add(self, line: ProcessLine) -> None:
        self._lines.append(line)
        if len(self._lines) > MOST_WAITING:
            self._lines.popleft()
            self._left_out += 1
        self._wanted.set()


def _text(record: logging.LogRecord) -> str:
    """What is published of a line: of an exception only its type, unless it is one that tells of the server or the
    configuration, as its words may be a user's."""
    if shown := getattr(record, PUBLIC, ""):
        return str(shown)
    given = record.args if isinstance(record.args, tuple) else ()
    args = tuple(_named(value) if isinstance(value, BaseException) else value for value in given)
    text = record.msg % args if args else record.getMessage()
    raised = record.exc_info[1] if record.exc_info else None
    return f"{text}: {_named(raised)}" if raised is not None else text


def _named(error: BaseException) -> str:
    return str(error) if isinstance(error, ServerError | ConfigError) else type(error).__name__
