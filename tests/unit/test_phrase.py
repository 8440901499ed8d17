"""Times as people write them, and where they end in a sentence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from rolecall.bus.schedule.phrase import Times, read_when, split_when
from rolecall.errors import BadSchedule

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 27, 10, 15, 30, tzinfo=BERLIN)  # a Friday


@pytest.mark.parametrize(
    ("when", "passing"),
    [
        ("in 10 minutes", timedelta(minutes=10)), ("10m", timedelta(minutes=10)), ("in an hour", timedelta(hours=1)),
        ("in 2 h", timedelta(hours=2)), ("In 90 Seconds", timedelta(seconds=90)),
        ("in 10 Minuten", timedelta(minutes=10)),
        ("через 10 минут", timedelta(minutes=10)), ("через 2 часа", timedelta(hours=2)),
        ("dans 2 heures", timedelta(hours=2)),
        ("en 5 minutos", timedelta(minutes=5)), ("10分钟后", timedelta(minutes=10)), ("2時間後に", timedelta(hours=2)),
    ],
)  # fmt: skip
def test_a_duration_from_now(when: str, passing: timedelta) -> None:
    assert read_when(when, NOW) == Times(at=passing)


@pytest.mark.parametrize(
    ("when", "wall"),
    [
        ("at 18:00", "2026-11-27 18:00"), ("18:30", "2026-11-27 18:30"), ("6pm", "2026-11-27 18:00"),
        ("at 9", "2026-11-28 09:00"), ("12 am", "2026-11-28 00:00"), ("12:05 pm", "2026-11-27 12:05"),
        ("today at 9", "2026-11-27 09:00"), ("tonight", "2026-11-27 20:00"), ("tonight at 8", "2026-11-27 20:00"),
        ("tomorrow", "2026-11-28 09:00"), ("tomorrow at 7:30", "2026-11-28 07:30"), ("Tomorrow 7", "2026-11-28 07:00"),
        ("friday at 11", "2026-11-27 11:00"), ("friday at 9", "2026-12-04 09:00"), ("on monday", "2026-11-30 09:00"),
        ("2026-12-24 18:00", "2026-12-24 18:00"), ("2026-12-24T18:00", "2026-12-24 18:00"),
        ("24.12.2026 at 18:00", "2026-12-24 18:00"), ("in 2 days", "2026-11-29 10:15"),
        ("in a week", "2026-12-04 10:15"),
    ],
)  # fmt: skip
def test_a_time_on_the_clock_of_the_wall(when: str, wall: str) -> None:
    at = read_when(when, NOW).at
    assert isinstance(at, datetime) and at.tzinfo is None
    assert f"{at:%Y-%m-%d %H:%M}" == wall


@pytest.mark.parametrize(
    ("when", "times"),
    [
        ("every 2 hours", Times(every=timedelta(hours=2))), ("every hour", Times(every=timedelta(hours=1))),
        ("alle 30 Minuten", Times(every=timedelta(minutes=30))),
        ("every 10 seconds", Times(every=timedelta(seconds=10))),
        ("every day at 9", Times(cron="0 9 * * *")), ("daily at 8:30", Times(cron="30 8 * * *")),
        ("every weekday at 8:30", Times(cron="30 8 * * 1-5")), ("every monday at 9pm", Times(cron="0 21 * * 1")),
        ("every sunday at 10", Times(cron="0 10 * * 0")), ("cron 0 9 * * 1-5", Times(cron="0 9 * * 1-5")),
    ],
)  # fmt: skip
def test_what_repeats(when: str, times: Times) -> None:
    assert read_when(when, NOW) == times


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("in 10 minutes call Ann", ("in 10 minutes", "call Ann")),
        ("call Ann in 10 minutes", ("in 10 minutes", "call Ann")),
        ("tomorrow at 9: stand-up, room 7", ("tomorrow at 9", "stand-up, room 7")),
        ("every weekday at 8:30 take the pills", ("every weekday at 8:30", "take the pills")),
        ("every day at 9 water the plants", ("every day at 9", "water the plants")),
        ("water the plants every 2 days.", ("every 2 days", "water the plants")),
        ("cron 0 9 * * 1-5 stand-up", ("cron 0 9 * * 1-5", "stand-up")),
        ("cron 0 9 * * 1,5: stand-up", ("cron 0 9 * * 1,5", "stand-up")), ("18:00 dinner", ("18:00", "dinner")),
        ("in 10 Minuten Tee", ("in 10 Minuten", "Tee")), ("10分钟后 喝水", ("10分钟后", "喝水")),
        ("9 bottles of wine", ("", "9 bottles of wine")), ("call Ann", ("", "call Ann")),
        ("in 10 minutes", ("in 10 minutes", "")),
        ("2026-12-24 18:00 presents", ("2026-12-24 18:00", "presents")), ("in time for tea", ("", "in time for tea")),
    ],
)  # fmt: skip
def test_the_time_and_the_text_are_told_apart(text: str, split: tuple[str, str]) -> None:
    assert split_when(text) == split


@pytest.mark.parametrize("when", ["", "soon", "at 25:00", "13pm", "2026-02-30 09:00", "31.02.2026"])
def test_what_is_no_time_is_refused_with_examples(when: str) -> None:
    with pytest.raises(BadSchedule, match=r"is not a time: expected a time such as: in 10 minutes, tomorrow at 9"):
        read_when(when, NOW)


def test_a_day_ahead_keeps_the_time_of_day_when_clocks_change() -> None:
    at = read_when("in 1 day", datetime(2026, 3, 28, 12, 0, tzinfo=BERLIN)).at
    assert isinstance(at, datetime)
    assert at.replace(tzinfo=BERLIN).astimezone(UTC) == datetime(2026, 3, 29, 10, 0, tzinfo=UTC)
