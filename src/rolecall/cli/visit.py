"""A short use of a running deployment: what the operators' verbs share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.exceptions import RedisError

from rolecall.cli.process_log import log_to_stderr
from rolecall.config import Application, load
from rolecall.errors import ServerUnavailable
from rolecall.registry import ask_for_reports as ask_for_reports
from rolecall.runtime import process_name
from rolecall.session import Session, open_session


def load_quietly(app_dir: Path | None) -> Application:
    """The application, with only warnings on stderr unless LOG_LEVEL is set. Raises ConfigError."""
    application = load(app_dir)
    quiet = "LOG_LEVEL" not in application.sources
    log_to_stderr(application.settings.model_copy(update={"log_level": "WARNING"}) if quiet else application.settings)
    return application


@asynccontextmanager
async def visiting(app_dir: Path | None) -> AsyncIterator[Session]:
    """The server that the application's processes use; none is started. Raises NothingRunning, ServerUnavailable,
    ConfigError."""
    application = load_quietly(app_dir)
    try:
        async with open_session(application, process_name(), start=False) as session:
            yield session
    except RedisError as error:
        raise ServerUnavailable(f"the server went away or refused: {error}") from error
