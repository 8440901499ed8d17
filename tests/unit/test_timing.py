"""When schedules are due: intervals, cron lines, and the two nights on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from rolecall.bus.schedule.timing import MAX_MISSED, Timing, known_zone, next_of_cron, timing_of, zone_name, zone_of
from rolecall.errors import BadSchedule
from rolecall.settings import Settings, time_zone

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
HOUR = 3_600_000


def test_the_time_zone_of_a_machine_is_named_where_it_links_to_one(tmp_path: Path) -> None:
    berlin = Path("/usr/share/zoneinfo/Europe/Berlin")
    if not berlin.exists():
        pytest.skip("no zoneinfo files on this machine")
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    linked.symlink_to(berlin)
    copied.write_bytes(berlin.read_bytes())
    named = [zone_name(time_zone(str(path))) for path in (berlin, linked, copied)]
    assert named == ["Europe/Berlin", "Europe/Berlin", "the system's time zone"]


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def utc(stamp: int) -> str:
    return f"{datetime.fromtimestamp(stamp / 1000, UTC):%Y-%m-%dT%H:%MZ}"


def times(cron: str, after: str, count: int, zone: ZoneInfo = BERLIN) -> list[str]:
    found, stamp = [], ms(after)
    for _ in range(count):
        stamp = next_of_cron(cron, stamp, zone)
        found.append(utc(stamp))
    return found


def test_a_daily_time_keeps_its_wall_clock_when_clocks_change() -> None:
    assert times("0 9 * * *", "2026-03-27T12:00+01:00", 3) == [
        "2026-03-28T08:00Z", "2026-03-29T07:00Z", "2026-03-30T07:00Z",
    ]  # fmt: skip
    assert times("0 9 * * *", "2026-10-23T12:00+02:00", 3) == [
        "2026-10-24T07:00Z", "2026-10-25T08:00Z", "2026-10-26T08:00Z",
    ]  # fmt: skip


def test_a_time_that_the_spring_night_skips_is_due_after_the_gap() -> None:
    assert times("30 2 * * *", "2026-03-28T12:00+01:00", 2) == ["2026-03-29T01:00Z", "2026-03-30T00:30Z"]
    assert times("30 2 * * *", "2026-03-07T12:00-05:00", 2, NEW_YORK) == ["2026-03-08T07:00Z", "2026-03-09T06:30Z"]


def test_a_time_that_the_autumn_night_repeats_is_due_once() -> None:
    assert times("30 2 * * *", "2026-10-24T12:00+02:00", 2) == ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]


@pytest.mark.parametrize("after", ["2026-10-25T00:30Z", "2026-10-25T00:59Z", "2026-10-25T01:00Z", "2026-10-25T01:29Z"])
def test_within_the_repeated_hour_the_next_time_is_that_of_the_next_day(after: str) -> None:
    assert times("30 2 * * *", after, 1) == ["2026-10-26T01:30Z"]


def test_every_quarter_of_an_hour_goes_on_through_both_nights() -> None:
    assert times("*/30 * * * *", "2026-10-25T02:00+02:00", 4) == [
        "2026-10-25T00:30Z", "2026-10-25T01:00Z", "2026-10-25T01:30Z", "2026-10-25T02:00Z",
    ]  # fmt: skip
    assert times("*/30 * * * *", "2026-03-29T01:30+01:00", 2) == ["2026-03-29T01:00Z", "2026-03-29T01:30Z"]


@pytest.mark.parametrize(
    ("wall", "expected"),
    [("2026-03-29T02:30", "2026-03-29T01:30Z"), ("2026-10-25T02:30", "2026-10-25T00:30Z")],
    ids=["skipped", "repeated"],
)
def test_a_single_time_of_those_nights_has_one_meaning(wall: str, expected: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=BERLIN)
    assert utc(timing_of(now, at=datetime.fromisoformat(wall)).at) == expected


def test_a_duration_is_time_that_passes_whatever_the_clock_on_the_wall_does() -> None:
    now = datetime(2026, 3, 29, 1, 30, tzinfo=BERLIN)
    assert utc(timing_of(now, at=timedelta(hours=1)).at) == "2026-03-29T01:30Z"


@pytest.mark.parametrize(("late", "missed"), [(0, 0), (HOUR - 1, 0), (HOUR, 1), (5 * HOUR + 1, 5)])
def test_an_interval_keeps_its_beat_after_an_outage(late: int, missed: int) -> None:
    due = ms("2026-01-01T00:00Z")
    assert Timing(every=HOUR).following(due, due + late, BERLIN) == (due + (missed + 1) * HOUR, missed)


def test_a_cron_line_counts_what_was_missed() -> None:
    due, now = ms("2026-10-24T09:00+02:00"), ms("2026-10-27T10:00+01:00")
    following = Timing(cron="0 9 * * *").following(due, now, BERLIN)
    assert (utc(following.due), following.missed) == ("2026-10-28T08:00Z", 3)


def test_counting_ends_at_a_thousand() -> None:
    due = ms("2026-01-01T00:00Z")
    for timing in (Timing(cron="* * * * *"), Timing(every=60_000)):
        following = timing.following(due, due + 3000 * 60_000 + 1, BERLIN)
        assert (following.due, following.missed) == (due + 3001 * 60_000, MAX_MISSED)


def test_a_single_time_has_no_next_one() -> None:
    assert Timing(at=1).following(1, 5, BERLIN) == (0, 0)


def test_a_line_whose_day_never_comes_is_refused() -> None:
    with pytest.raises(BadSchedule, match="never matches a date"):
        next_of_cron("* * */20 * 1L", ms("2026-01-01T00:00Z"), BERLIN)


@pytest.mark.parametrize("said", ["Europe/Berlin", "europe/berlin", "Berlin", " berlin "])
def test_a_time_zone_is_known_by_its_name_or_its_city(said: str) -> None:
    assert known_zone(said) == "Europe/Berlin"
    assert known_zone("new york") == "America/New_York"


@pytest.mark.parametrize("said", ["", "Europe", "Nowhere", "../../etc/passwd", "x" * 999, "GMT+2", "gmt-5"])
def test_another_name_is_refused_in_one_line(said: str) -> None:
    with pytest.raises(BadSchedule, match=r"^time zone '.{0,60}' is unknown: expected a name such as"):
        known_zone(said)


def test_the_deployments_time_zone_is_the_setting_else_the_systems() -> None:
    assert str(zone_of(Settings(tz="Asia/Tokyo"))) == "Asia/Tokyo"
    assert zone_of(Settings()).utcoffset(datetime(2026, 1, 1)) is not None
