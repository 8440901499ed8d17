"""Times as people write them: "in 10 minutes", "tomorrow at 9", "every weekday at 8:30", "cron 0 9 * * 1-5".

Durations from now are understood in the languages of the front ends, the other forms in English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

from rolecall.errors import BadSchedule

EXPECTED = (
    "expected a time such as: in 10 minutes, tomorrow at 9, 2026-12-24 18:00, every 2 hours, every monday at 8:30, "
    "cron 0 9 * * 1-5"
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MORNING, EVENING = 9, 20
"""The hour of a day without a time, and of tonight."""
UNITS: Mapping[str, str] = MappingProxyType({
    "seconds": r"s|secs?|seconds?|sek(unden?)?|secondes?|segundos?|second[oi]|сек\w*|saniye|ثانية|ثوان\w*|秒钟?|秒",
    "minutes": r"m|mins?|minutes?|minuten?|minutos?|minut[oi]|мин\w*|хв\w*|dakika|dk|دقيقة|دقائق|分钟|分鐘|分",
    "hours": r"h|hrs?|hours?|std|stunden?|heures?|horas?|or[ae]|ч|час\w*|год\w*|saat|ساعة|ساعات|小时|小時|時間",
    "days": r"d|days?|tage?n?|jours?|d[ií]as?|giorn[oi]|дн\w*|день|gün|يوما?|أيام|天|日",
    "weeks": r"w|weeks?|wochen?|semaines?|semanas?|settiman[ae]|недел\w*|тиж\w*|hafta|أسبوع|أسابيع|周|週|週間",
})  # fmt: skip
UNIT = "|".join(UNITS.values())
SPAN = rf"(?P<count>\d{{1,5}}|an?|one)\s*(?P<unit>{UNIT})"
CLOCK = r"(?P<hour>\d{1,2})(?:[:.](?P<minute>\d{2}))?\s*(?P<half>[ap]m)?"
SURE_CLOCK = r"(?:(?:\d{1,2})[:.]\d{2}(?:\s*[ap]m)?|\d{1,2}\s*[ap]m)"
"""A time of day by its looks, without an "at"."""
DAY = rf"(?P<day>today|tonight|tomorrow|{'|'.join(DAYS)}|\d{{4}}-\d{{2}}-\d{{2}}|\d{{1,2}}\.\d{{1,2}}\.\d{{4}})"
WEEKLY = rf"(?P<days>day|weekday|weekend|{'|'.join(DAYS)})s?"
AT = rf"(?:\s*(?:,|t|at|um)?\s*{CLOCK})"


class Times(NamedTuple):
    """What a phrase means: one of the three."""

    at: datetime | timedelta | None = None
    every: timedelta | None = None
    cron: str = ""


def split_when(text: str) -> tuple[str, str]:
    """The time at the start or at the end of ``text``, such as "in 10 minutes", and the rest; ("", text) without
    one."""
    text = " ".join(text.split())
    for form, _ in FORMS:
        if found := re.match(rf"{form}(?=$|[\s:,;])", text, re.IGNORECASE):
            return found[0], text[found.end() :].strip(" :,;")
    for form, _ in FORMS:
        if found := re.search(rf"(?:^|\s){form}[.!?]?$", text, re.IGNORECASE):
            return found[0].strip(" .!?"), text[: found.start()].strip(" :,;")
    return "", text


def read_when(when: str, now: datetime) -> Times:
    """What ``when`` means at ``now``, which is aware and in the user's time zone. Raises BadSchedule."""
    said = " ".join(when.split())
    for form, meaning in FORMS:
        if found := re.fullmatch(form, said, re.IGNORECASE):
            try:
                return meaning(found, now)
            except (ValueError, OverflowError):
                break
    raise BadSchedule(f"{when[:60]!r} is not a time: {EXPECTED}")


def _duration(found: re.Match[str]) -> timedelta:
    count = found["count"]
    unit = next(name for name, words in UNITS.items() if re.fullmatch(words, found["unit"], re.IGNORECASE))
    return timedelta(**{unit: int(count) if count.isdigit() else 1})


def _span(found: re.Match[str], now: datetime) -> Times:
    """Whole days keep the time of day, whatever the clocks do in between."""
    passing = _duration(found)
    if passing % timedelta(days=1):
        return Times(at=passing)
    return Times(at=(now + passing).replace(tzinfo=None))


def _interval(found: re.Match[str], now: datetime) -> Times:
    return Times(every=_duration(found))


def _unit_interval(found: re.Match[str], now: datetime) -> Times:
    return Times(every=timedelta(**{f"{found['one'].lower()}s": 1}))


def _weekly(found: re.Match[str], now: datetime) -> Times:
    hour, minute = _clock(found)
    day = (found.groupdict().get("days") or "day").lower()
    days = {"day": "*", "weekday": "1-5", "weekend": "6,0"}.get(day) or str((DAYS.index(day) + 1) % 7)
    return Times(cron=f"{minute} {hour} * * {days}")


def _date(found: re.Match[str], now: datetime) -> Times:
    day = (found.groupdict().get("day") or "").lower()
    given = found.groupdict().get("hour")
    hour, minute = _clock(found) if given else (EVENING if day == "tonight" else MORNING, 0)
    if day == "tonight" and given and hour < 12 and not found["half"]:
        hour += 12
    wall = now.replace(tzinfo=None, hour=hour, minute=minute, second=0, microsecond=0)
    passed = wall <= now.replace(tzinfo=None)
    if day in DAYS:
        ahead = (DAYS.index(day) - now.weekday()) % 7
        return Times(at=wall + timedelta(days=ahead or 7 * passed))
    if day in ("", "today", "tonight", "tomorrow"):
        return Times(at=wall + timedelta(days=int(day == "tomorrow" or (not day and passed))))
    parts = [int(part) for part in re.split(r"[-.]", day)]
    year, month, number = parts if "-" in day else reversed(parts)
    return Times(at=wall.replace(year=year, month=month, day=number))


def _cron(found: re.Match[str], now: datetime) -> Times:
    return Times(cron=found["line"])


def _clock(found: re.Match[str]) -> tuple[int, int]:
    hour, minute, half = int(found["hour"]), int(found["minute"] or 0), (found["half"] or "").lower()
    if half and not 1 <= hour <= 12:
        raise ValueError("a twelve-hour clock has 1 to 12")
    if half:
        hour = hour % 12 + 12 * (half == "pm")
    if hour > 23 or minute > 59:
        raise ValueError("a day has 24 hours")
    return hour, minute


FORMS: tuple[tuple[str, Callable[[re.Match[str], datetime], Times]], ...] = (
    (r"cron:?\s+(?P<line>(?:\S+\s+){4}[^\s:]+)", _cron),
    (rf"(?:every|each)\s+{WEEKLY}\s+(?:at\s+)?{CLOCK}", _weekly),
    (rf"daily\s+(?:at\s+)?{CLOCK}", _weekly),
    (rf"(?:every|each|alle|каждые|кожні|toutes les|tous les|cada|a cada|ogni|كل)\s+{SPAN}", _interval),
    (r"(?:every|each)\s+(?P<one>minute|hour|day|week)", _unit_interval),
    (rf"(?:in|after|через|dans|en|em|tra|fra|بعد)\s+{SPAN}", _span),
    (rf"{SPAN}(?:后|後)(?:に)?", _span),
    (rf"{SPAN}\s+sonra", _span),
    (r"(?P<count>\d{1,5})(?P<unit>s|m|min|h|d|w)", _span),
    (rf"(?:on\s+|at\s+)?{DAY}{AT}?", _date),
    (rf"at\s+{CLOCK}", _date),
    (rf"(?={SURE_CLOCK}){CLOCK}", _date),
)  # fmt: skip
