"""SCHEDULE: turns that begin by themselves, each once, and what is refused."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from rolecall.bus.bus import Bus
from rolecall.bus.cancel import erase_conversation, stop_conversation
from rolecall.bus.conversation import prefer
from rolecall.bus.maintenance import wake_due
from rolecall.bus.schedule.schedules import Schedule, fire, schedule, schedules_of, unschedule
from rolecall.bus.turn import turns_in_flight
from rolecall.errors import BadSchedule, RolecallError
from rolecall.redis.server import server_ms
from rolecall.settings import Settings
from rolecall.stats import totals
from tests.bus.steps import answer, ask, entries, finals, hash_of, log_records, names, take_one, take_role

HOUR = timedelta(hours=1)
MINUTE = 60_000


@pytest.fixture
def settings() -> Settings:
    return Settings(mailbox_limit=1, in_flight_limit=2, schedule_limit=3, tz="Europe/Berlin")


def member(made: Schedule) -> str:
    return f"{made.conversation}\x1f{made.id}"


async def overdue(bus: Bus, made: Schedule, ms: float) -> Schedule:
    """The schedule as if it had been due ``ms`` ago."""
    shard, due = bus.shard(made.conversation), round(await server_ms(bus.server) - ms)
    for key in (shard.planned, shard.deferred):
        await bus.server.call("ZADD", key, "XX", due, member(made))
    return next(one for one in await schedules_of(bus, made.conversation) if one.id == made.id)


async def due_now(bus: Bus, conversation: str = "a", text: str = "drink", **options: Any) -> Schedule:
    options = options or {"at": HOUR}
    return await overdue(bus, await schedule(bus, conversation, text, **options), 1)


async def wake(bus: Bus) -> int:
    return (await wake_due(bus, bus.shards[0], await server_ms(bus.server))).woken


async def test_a_schedule_begins_one_turn_with_its_text_when_it_is_due(bus: Bus) -> None:
    made = await schedule(bus, "a", " drink water ", at=HOUR, role="remind", user="ann", meta={"share": 0.5})
    assert await wake(bus) == 0
    await overdue(bus, made, 1)
    assert await wake(bus) == 1

    delivery = await take_one(bus)
    assert delivery.envelope is not None
    payload, meta = delivery.envelope.payload, delivery.envelope.meta
    assert (payload["text"], payload["role"], payload["scheduled"]["id"]) == ("drink water", "remind", made.id)
    assert meta == {"share": 0.5, "user": "ann"}
    assert await schedules_of(bus, "a") == []
    assert await wake(bus) == 0


async def test_one_that_repeats_is_due_again_after_its_interval(bus: Bus) -> None:
    made = await due_now(bus, every=HOUR)
    assert await wake(bus) == 1
    (left,) = await schedules_of(bus, "a")
    assert (left.due, left.turn) == (made.due + 60 * MINUTE, "1")


async def test_of_many_processes_one_begins_the_turn(bus: Bus, other: Bus) -> None:
    made = await due_now(bus, every=HOUR)
    now = await server_ms(bus.server)
    verdicts = await asyncio.gather(*(fire((bus, other)[n % 2], member(made), now) for n in range(20)))
    assert verdicts.count("BEGUN") == 1
    assert set(verdicts) <= {"BEGUN", "MOVED", "EARLY"}
    assert await turns_in_flight(bus, bus.shards[0]) == 1


async def test_missed_times_become_one_turn_and_the_user_is_told_how_many(bus: Bus) -> None:
    made = await overdue(bus, await schedule(bus, "telegram:42", "stretch", every=HOUR), 3.5 * 60 * MINUTE)
    assert await wake(bus) == 1
    (delivery,) = await take_role(bus)
    assert delivery.envelope is not None
    assert delivery.envelope.payload["scheduled"]["missed"] == 3
    (notice,) = await entries(bus, bus.shards[0].outbox("telegram"))
    assert "missed: 3" in notice["e"] and msgspec.json.decode(notice["e"])["late"]["missed"] == 3
    (left,) = await schedules_of(bus, "telegram:42")
    assert left.due == made.due + 4 * 60 * MINUTE
    await answer(bus, delivery)
    assert await wake(bus) == 0


async def test_one_that_was_due_once_comes_late_and_says_so(bus: Bus) -> None:
    await overdue(bus, await schedule(bus, "http:x:1", "call", at=HOUR), 10 * MINUTE)
    assert await wake(bus) == 1
    notices = [event for event in await entries(bus, bus.shards[0].events("http:x:1")) if event["k"] == "notice"]
    assert len(notices) == 1 and notices[0]["x"].startswith("This was due at 20")


async def test_an_answer_goes_to_the_outbox_of_the_conversations_front_end(bus: Bus) -> None:
    made = await due_now(bus, "telegram:42")
    await wake(bus)
    await answer(bus, await take_one(bus), "⏰ drink")
    (entry,) = await entries(bus, bus.shards[0].outbox("telegram"))
    assert (entry["c"], entry["t"], entry["s"]) == ("telegram:42", "1", made.id)


async def test_an_answer_that_followers_read_stays_for_an_hour(bus: Bus) -> None:
    await due_now(bus, "http:x:1")
    await wake(bus)
    await answer(bus, await take_one(bus), "⏰ drink")
    assert await bus.server.call("TTL", bus.shards[0].events("http:x:1")) > 3000


async def test_a_refused_turn_is_tried_again_and_its_time_is_not_lost(bus: Bus) -> None:
    for conversation in "bc":
        await ask(bus, conversation)
    made = await due_now(bus, every=HOUR)
    before = await names(bus)
    assert await fire(bus, member(made), await server_ms(bus.server)) == "LATER"
    assert await names(bus) == before
    assert await fire(bus, member(made), await server_ms(bus.server)) == "EARLY"
    (left,) = await schedules_of(bus, "a")
    assert left.due == made.due

    await answer(bus, await take_one(bus))
    await bus.server.call("ZADD", bus.shards[0].deferred, 1, member(made))
    assert await wake(bus) == 1


async def test_a_schedule_has_one_unfinished_turn_at_most(bus: Bus) -> None:
    made = await due_now(bus, every=HOUR)
    await wake(bus)
    await overdue(bus, made, 1)
    assert await wake(bus) == 0
    await answer(bus, await take_one(bus))
    await bus.server.call("ZADD", bus.shards[0].deferred, 1, member(made))
    assert await wake(bus) == 1


async def test_a_scheduled_turn_waits_behind_the_running_one_of_its_conversation(bus: Bus) -> None:
    await ask(bus)
    await due_now(bus)
    await wake(bus)
    await answer(bus, await take_one(bus))
    assert (await take_one(bus)).turn == "2"


async def test_a_schedule_is_stored_once_for_its_key_even_after_it_was_due(bus: Bus) -> None:
    first = await schedule(bus, "a", "x", at=HOUR, idempotency="k")
    assert (await schedule(bus, "a", "x", at=HOUR, idempotency="k")).id == first.id
    assert len(await schedules_of(bus, "a")) == 1
    await overdue(bus, first, 1)
    await wake(bus)
    past = datetime.fromtimestamp(first.due / 1000).astimezone() - 2 * HOUR
    assert (await schedule(bus, "a", "x", at=past, idempotency="k")).id == first.id
    assert await schedules_of(bus, "a") == []


@pytest.mark.parametrize("removal", ["unschedule", "clear", "erase"])
async def test_what_is_removed_never_begins_and_leaves_nothing(bus: Bus, removal: str) -> None:
    made = await due_now(bus)
    kept = await due_now(bus, "b")
    if removal == "unschedule":
        assert await unschedule(bus, "a", made.id) == 1
        assert await unschedule(bus, "a", made.id) == 0
    elif removal == "clear":
        await stop_conversation(bus, "a", forget=True)
    else:
        await erase_conversation(bus, "a", instance="test")
    assert await wake(bus) == 1
    assert bus.shards[0].schedules("a") not in await names(bus)
    assert await fire(bus, member(made), await server_ms(bus.server)) == "GONE"
    assert [one.id for one in await schedules_of(bus, "b")] == [] and kept.id != made.id


async def test_stop_keeps_the_schedules(bus: Bus) -> None:
    await schedule(bus, "a", "x", every=HOUR)
    await stop_conversation(bus, "a")
    assert len(await schedules_of(bus, "a")) == 1


async def test_a_wall_time_is_meant_in_the_conversations_time_zone(bus: Bus) -> None:
    berlin = await schedule(bus, "a", "x", cron="0 9 * * *")
    await prefer(bus, "a", "timezone", "Asia/Tokyo")
    tokyo = await schedule(bus, "a", "x", cron="0 9 * * *")
    assert (berlin.zone_name, tokyo.zone_name) == ("Europe/Berlin", "Asia/Tokyo")
    assert berlin.when.endswith(" 09:00 ↻ 0 9 * * *") and tokyo.when.endswith(" 09:00 ↻ 0 9 * * *")
    assert berlin.due != tokyo.due
    assert (await schedules_of(bus, "a"))[0].zone_name in ("Europe/Berlin", "Asia/Tokyo")


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", {"at": HOUR}, "a schedule needs a text of 1 to 2000 characters"),
        ("x" * 2001, {"at": HOUR}, "a schedule needs a text of 1 to 2000 characters"),
        ("x", {}, "expected one of at, every, cron and when"),
        ("x", {"at": HOUR, "every": HOUR}, "expected one of at, every, cron and when"),
        ("x", {"when": "tomorrow at 9", "cron": "0 9 * * *"}, "expected one of at, every, cron and when"),
        ("x", {"at": -HOUR}, "is in the past: it is"),
        ("x", {"at": datetime(2020, 1, 1, 9)}, "2020-01-01 09:00 is in the past: it is"),
        ("x", {"at": timedelta(days=5000)}, "is too far away: expected a time in the next ten years"),
        ("x", {"at": datetime.max}, "too far away: expected a time in the next ten years"),
        ("x", {"at": timedelta.max}, "too far away: expected a time in the next ten years"),
        ("x", {"every": timedelta(seconds=59)}, "every 59 s is too often: expected at least every minute"),
        ("x", {"every": timedelta.max}, "the interval is too long: expected at most ten years"),
        ("x", {"cron": "61 * * * *"}, "cron line '61 * * * *' is invalid: bad minute; expected five fields: minute"),
        ("x", {"cron": "* * * *"}, "cron line '* * * *' is invalid: expected five fields"),
        ("x", {"cron": "* * * * * *"}, "cron line '* * * * * *' is invalid: expected five fields"),
        ("x", {"cron": "0 0 30 2 *"}, "cron line '0 0 30 2 *' is invalid: bad day-of-month"),
        ("x", {"cron": "0 0 * * " + "1," * 100}, "…' is invalid: expected five fields"),
        ("x", {"at": HOUR, "zone": "Mars/Olympus"}, "time zone 'Mars/Olympus' is unknown: expected a name such as"),
        ("x", {"at": HOUR, "zone": "../etc/passwd"}, "time zone '../etc/passwd' is unknown: expected a name such as"),
    ],
)
async def test_a_schedule_that_cannot_be_kept_is_refused_in_one_line(
    bus: Bus, text: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadSchedule) as caught:
        await schedule(bus, "a", text, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert await names(bus) == set()


async def test_a_conversation_has_so_many_schedules_and_no_more(bus: Bus) -> None:
    for _ in range(3):
        await schedule(bus, "a", "x", every=HOUR)
    with pytest.raises(BadSchedule, match="has 3 schedules already"):
        await schedule(bus, "a", "x", every=HOUR)
    await schedule(bus, "b", "x", every=HOUR)
    with pytest.raises(RolecallError, match="control characters"):
        await schedule(bus, "a\x1fb", "x", every=HOUR)


async def test_a_schedule_of_a_later_version_is_left_for_its_processes(bus: Bus) -> None:
    made = await due_now(bus)
    await bus.server.call("HSET", bus.shards[0].schedules("a"), made.id, b'{"text": 7}')
    assert await wake(bus) == 0
    assert made.id in await hash_of(bus, bus.shards[0].schedules("a"))
    assert await schedules_of(bus, "a") == []


async def test_schedules_do_not_count_as_deferred_turns(bus: Bus) -> None:
    await schedule(bus, "a", "x", every=HOUR)
    assert (await totals(bus))["deferred"] == 0


async def test_what_is_due_soon_is_told_so_that_it_begins_on_time(bus: Bus) -> None:
    made = await schedule(bus, "a", "x", at=timedelta(seconds=0.5))
    woken = await wake_due(bus, bus.shards[0], await server_ms(bus.server), soon=1)
    assert (woken.woken, woken.next) == (0, made.due)


async def test_the_transcript_says_what_was_scheduled_and_removed(bus: Bus) -> None:
    made = await schedule(bus, "a", "drink", every=HOUR)
    await unschedule(bus, "a", made.id)
    said = [record["x"] for record in await log_records(bus) if record["w"] == "NOTE"]
    assert said[0].startswith(f"schedule {made.id}: 20") and said[0].endswith('↻ 1 h "drink"')
    assert said[1] == f"schedule {made.id} removed"
    assert await finals(bus) == []
