"""The process log on stderr: for people in a terminal, JSON lines elsewhere; no secret in either."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

import msgspec
from pydantic import SecretStr

from rolecall.delivery import WHO
from rolecall.settings import Settings

NOISY = ("httpx", "httpcore", "httpx2", "httpcore2", "openai", "asyncio", "mcp", "uvicorn")
HIDDEN = "•••"


def log_to_stderr(settings: Settings) -> None:
    """Send this process's log to stderr as the settings say."""
    secrets = tuple(
        value.get_secret_value()
        for name in type(settings).model_fields
        if isinstance(value := getattr(settings, name), SecretStr) and value.get_secret_value()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ForPeople(secrets) if sys.stderr.isatty() else ForMachines(secrets))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Redacting(logging.Formatter):
    """Takes the known secrets out of whatever was formatted, tracebacks included; knows who speaks."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._secrets = secrets
        self._process = f"{socket.gethostname()}:{os.getpid()}"

    @property
    def who(self) -> str:
        """The instance whose work this is, else the process."""
        return WHO.get() or self._process

    def redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


class ForPeople(_Redacting):
    """``22:30:15 warning samplellm:m4:12345:2 text``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = super().format(record)
        return self.redacted(f"{clock} {record.levelname.lower():7} {self.who} {text}")


class ForMachines(_Redacting):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "worker": self.who,
            "text": self.redacted(super().format(record)),
        }
        return msgspec.json.encode(entry).decode()
