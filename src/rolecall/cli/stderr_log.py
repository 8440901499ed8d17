"""The log of this process on stderr, for people and for machines."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

import msgspec

from rolecall.bus.process.process_log import WHO
from rolecall.settings import Settings, redacted
from rolecall.tracing.traceparent import trace_id
from rolecall.transcripts.record import visible

NOISY = ("httpx", "httpcore", "httpx2", "httpcore2", "openai", "asyncio", "mcp", "uvicorn")


def log_to_stderr(settings: Settings, *, quiet: bool = False) -> None:
    """Send this process's log to stderr as the settings say; with ``quiet`` only its warnings, while the process log on
    the bus gets all of it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING if quiet else logging.NOTSET)
    form = ForPeople if sys.stderr.isatty() else ForMachines
    handler.setFormatter(form(settings.secrets))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_tells_more)


def _tells_more(record: logging.LogRecord) -> bool:
    """Whether a line of asyncio's tells what nothing else does: uvloop calls it a fatal error when bytes arrive on a
    TLS connection that was closed here."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, RuntimeError) and "SSL protocol" in record.getMessage())


class _Redacting(logging.Formatter):
    """Takes secrets out of whatever was formatted, tracebacks included; knows who speaks."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._secrets = secrets
        self._process = f"{socket.gethostname()}:{os.getpid()}"

    @property
    def who(self) -> str:
        """The instance whose work this is, else the process."""
        return WHO.get() or self._process

    def redacted(self, text: str) -> str:
        return redacted(text, self._secrets)


class ForPeople(_Redacting):
    """``22:30:15 warning samplellm:m4:12345:2 text``. Control characters, which may be a user's, are escaped, and
    further lines are indented: none can pass for a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = super().format(record)
        lines = self.redacted(f"{clock} {record.levelname.lower():7} {self.who} {text}").split("\n")
        return "\n  ".join(map(visible, lines))


class ForMachines(_Redacting):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "worker": self.who,
            **({"trace_id": trace} if (trace := trace_id()) else {}),
            "text": self.redacted(super().format(record)),
        }
        return msgspec.json.encode(entry).decode()
