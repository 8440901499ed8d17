"""The time zone that people see."""

from __future__ import annotations

from datetime import tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rolecall.config import Application
from rolecall.errors import ConfigError


def time_zone(application: Application) -> tzinfo | None:
    """The time zone of the transcripts: TZ, or None for the system's. Raises ConfigError for an unknown one."""
    name = application.settings.tz
    if name is None:
        return None
    try:
        return ZoneInfo(name.removeprefix(":"))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"TZ={name}: no such time zone; Europe/Berlin or UTC, for instance, is allowed") from None
