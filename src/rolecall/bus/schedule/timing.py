"""When a schedule is due: once, at an interval, or by a cron line in a time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from os.path import realpath
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from cronsim import CronSim, CronSimError

from rolecall.bus.schedule.phrase import read_when
from rolecall.errors import BadSchedule, ConfigError, expect
from rolecall.redis.scripts import milliseconds
from rolecall.settings import SYSTEM_ZONE, Settings, time_zone

SHORTEST = timedelta(minutes=1)
FURTHEST = timedelta(days=3660)
MAX_MISSED = 1000
CRON_CHARS = 100
CRON = "expected five fields: minute hour day-of-month month day-of-week, such as 0 9 * * 1-5"


class NextDue(NamedTuple):
    """The due time after one that has come, in ms, 0 if there is none; and how many of the times between them have
    passed unused, at most MAX_MISSED."""

    due: int
    missed: int


class Timing(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of ``at`` (ms since the epoch), ``every`` (ms) and ``cron``; ``zone`` is the name of a time zone, empty for
    the deployment's."""

    at: int = 0
    every: int = 0
    cron: str = ""
    zone: str = ""

    def first(self, now: int, zone: tzinfo) -> int:
        """The first due time after ``now``, in ms. Raises BadSchedule for a time that has passed or never comes."""
        if self.at:
            if self.at <= now:
                raise BadSchedule(
                    f"{clock(self.at, zone)} is in the past: it is {clock(now, zone)} in {zone_name(zone)}", "past"
                )
            if self.at - now > milliseconds(FURTHEST.total_seconds()):
                raise BadSchedule("the time is too far away: expected a time in the next ten years", "far")
            return self.at
        if self.every:
            if self.every < milliseconds(SHORTEST.total_seconds()):
                raise BadSchedule(
                    f"every {self.every / 1000:g} s is too often: expected at least every minute", "often"
                )
            if self.every > milliseconds(FURTHEST.total_seconds()):
                raise BadSchedule("the interval is too long: expected at most ten years", "far")
            return now + self.every
        return next_of_cron(self.cron, now, zone)

    def following(self, planned: int, now: int, zone: tzinfo) -> NextDue:
        """What follows the due time ``planned``, which has come by ``now``."""
        if self.at:
            return NextDue(0, 0)
        if self.every:
            missed = max(0, now - planned) // self.every
            return NextDue(planned + (missed + 1) * self.every, min(missed, MAX_MISSED))
        due, missed = next_of_cron(self.cron, planned, zone), 0
        while due <= now:
            missed += 1
            if missed == MAX_MISSED:
                return NextDue(next_of_cron(self.cron, now, zone), missed)
            due = next_of_cron(self.cron, due, zone)
        return NextDue(due, missed)


def timing_of(
    now: datetime, *, at: datetime | timedelta | None = None, every: timedelta | None = None, cron: str = "",
    when: str = "", zone: str = "",
) -> Timing:  # fmt: skip
    """The timing of exactly one of ``at``, ``every``, ``cron`` and ``when``. ``now`` is aware, in the zone that a naive
    ``at`` is meant in. Raises BadSchedule, and TypeError."""
    expect(at is None or isinstance(at, datetime | timedelta), "at", at, "a datetime, or a timedelta from now on")
    expect(every is None or isinstance(every, timedelta), "every", every, "a timedelta")
    if (at is not None) + (every is not None) + bool(cron) + bool(when) != 1:
        raise BadSchedule("expected one of at, every, cron and when")
    if when:
        at, every, cron = read_when(when, now)
    try:
        if isinstance(at, timedelta):
            at = now.astimezone(UTC) + at
        elif at is not None and at.tzinfo is None:
            at = at.replace(tzinfo=now.tzinfo)
        stamp = 0 if at is None else milliseconds(at.timestamp())
    except (OverflowError, ValueError):
        raise BadSchedule("the time is too far away: expected a time in the next ten years", "far") from None
    if at is not None and stamp <= 0:
        raise BadSchedule(f"{at:%Y-%m-%d %H:%M} is in the past", "past")
    if every is not None and every < SHORTEST:
        raise BadSchedule(f"every {every.total_seconds():g} s is too often: expected at least every minute", "often")
    return Timing(stamp, milliseconds(every.total_seconds()) if every else 0, " ".join(cron.split()), zone)


def next_of_cron(cron: str, after: int, zone: tzinfo) -> int:
    """The first time after ``after`` that the line ``cron`` means in ``zone``, in ms. As in Debian's cron, a time that
    the start of daylight saving skips is due right after the gap, and one that its end repeats is due once. Raises
    BadSchedule."""
    shown = cron if len(cron) <= CRON_CHARS else f"{cron[:CRON_CHARS]}…"
    if len(cron) > CRON_CHARS or len(cron.split()) != 5:
        raise BadSchedule(f"cron line {shown!r} is invalid: {CRON}", "cron")
    try:
        begin = datetime.fromtimestamp(after / 1000, zone)
        found = next(CronSim(cron, begin))
        while milliseconds(found.timestamp()) <= after:  # the end of daylight saving time repeats an hour
            begin += SHORTEST
            found = next(CronSim(cron, begin))
    except CronSimError as error:
        reason = str(error)
        raise BadSchedule(f"cron line {shown!r} is invalid: {reason[:1].lower()}{reason[1:]}; {CRON}", "cron") from None
    except (StopIteration, OverflowError):
        raise BadSchedule(f"cron line {shown!r} never matches a date", "cron") from None
    return milliseconds(found.timestamp())


def zone_of(settings: Settings, name: str = "") -> tzinfo:
    """The time zone ``name``, else that of the deployment: TZ, else the system's. Raises BadSchedule."""
    if name:
        return ZoneInfo(known_zone(name))
    try:
        return time_zone(settings.tz or SYSTEM_ZONE)
    except ConfigError:
        if settings.tz:
            raise
        return UTC


def known_zone(name: str) -> str:
    """The full name of the time zone ``name``, which may be in lower case or, where that is unique, only the city.
    ``GMT+2`` is none: the zone Etc/GMT+2 is two hours behind UTC. Raises BadSchedule."""
    asked = name.strip().replace(" ", "_").lower()
    found = _zones().get(asked)
    if found is None:
        cities = [
            full for key, full in _zones().items() if key.rpartition("/")[2] == asked and not key.startswith("etc/")
        ]
        found = cities[0] if len(cities) == 1 else None
    if found is None:
        raise BadSchedule(f"time zone {name[:60]!r} is unknown: expected a name such as Europe/Berlin or UTC")
    return found


def zone_name(zone: tzinfo) -> str:
    """``zone`` for users."""
    key = getattr(zone, "key", "") or str(zone)
    if not key.startswith("/"):
        return key
    name = realpath(key).partition("/zoneinfo/")[2]  # where a machine links /etc/localtime to
    return _zones().get(name.lower(), "the system's time zone")


def clock(ms: int, zone: tzinfo) -> str:
    """``ms`` since the epoch as users of every language read it: 2026-12-24 18:00."""
    return f"{datetime.fromtimestamp(ms / 1000, zone):%Y-%m-%d %H:%M}"


@cache
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in sorted(available_timezones())}
