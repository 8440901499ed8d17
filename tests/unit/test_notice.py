"""NOTIFY, placeholders, blobs and feedback: what front ends need beside turns."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec
import pytest

from rolecall import stats
from rolecall.agent.memory import Memory
from rolecall.bus.blobs import Blob, Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.chat_messages import Placeholders
from rolecall.bus.conversation import give_feedback, notify
from rolecall.bus.turn import turns_in_flight
from rolecall.errors import BlobTooLarge, RolecallError
from rolecall.redis.keys import today
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from tests.bus.steps import answer, ask, entries, hash_of, log_records, names, take_one


async def tell(
    bus: Bus, text: str = "ready", key: str = "k", conversation: str = "a", *, remember: bool = True
) -> Literal["OK", "DUP", "CONFLICT", "BUSY"]:
    front = {"front": "telegram", "instance": "t:h:1:0"}
    return await notify(bus, conversation, text, idempotency=key, remember=remember, **front)


# ── notices ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_notice_is_told_remembered_and_logged_once(bus: Bus) -> None:
    assert [await tell(bus), await tell(bus), await tell(bus, "other")] == ["OK", "DUP", "CONFLICT"]
    (entry,) = await entries(bus, bus.shards[0].outbox("telegram"))
    assert (entry["c"], entry["t"], msgspec.json.decode(entry["e"])) == ("a", "", {"text": "ready", "kind": "notice"})
    assert [m.text for m in await Memory(bus, "a").entries()] == ["ready"]
    log = [(e["t"], e["i"], e["w"], e["x"]) for e in await log_records(bus)]
    assert log == [("", "t:h:1:0", "NOTE", "session of a title -"), ("", "t:h:1:0", "NOTE", 'notice: "ready"')]
    assert await turns_in_flight(bus, bus.shards[0]) == 0


async def test_events_stay_a_minute_once_a_conversation_rests_and_an_hour_after_a_notice(bus: Bus) -> None:
    for conversation, seconds in (("http:a", 60), ("http:b", 3600)):
        await ask(bus, conversation)
        if seconds == 3600:
            await notify(bus, conversation, "ready")
        assert await answer(bus, await take_one(bus)) == "OK"
        assert seconds - 30 < await bus.server.call("TTL", bus.shards[0].events(conversation)) <= seconds


async def test_a_notice_needs_no_more_than_a_conversation_and_a_text(bus: Bus) -> None:
    assert [await notify(bus, "telegram:42:7", "ready"), await notify(bus, "telegram:42:7", "ready")] == ["OK", "OK"]
    told = await entries(bus, bus.shards[0].outbox("telegram"))
    assert [(entry["c"], msgspec.json.decode(entry["e"])["text"]) for entry in told] == [("telegram:42:7", "ready")] * 2
    with pytest.raises(RolecallError):
        await notify(bus, "", "ready")


@pytest.mark.parametrize("before", ["nothing", "a turn", "a rest"])
async def test_a_notice_leaves_turns_alone_and_is_forgotten_with_its_conversation(bus: Bus, before: str) -> None:
    shard = bus.shards[0]
    if before != "nothing":
        await ask(bus)
    if before == "a rest":
        await answer(bus, await take_one(bus), history=[b"{}"])
    state = await hash_of(bus, shard.conversation("a"))
    assert await tell(bus) == "OK"
    assert {**state, **await hash_of(bus, shard.conversation("a"))} == {**await hash_of(bus, shard.conversation("a"))}
    ttl = await bus.server.call("PTTL", shard.conversation("a"))
    assert ttl == -1 if before == "a turn" else ttl > 0
    if before != "a turn":
        assert 0 <= ttl - await bus.server.call("PTTL", shard.history("a")) < 5000  # looked at a moment later
    assert (await ask(bus)).outcome == ("WAIT" if before == "a turn" else "RUN")


@pytest.mark.parametrize("conversation", ["http:local:1", "terminal:ann", "program:7"])
async def test_where_nobody_reads_an_outbox_a_notice_is_an_event_and_nothing_piles_up(
    bus: Bus, conversation: str
) -> None:
    shard, front = bus.shard(conversation), conversation.partition(":")[0]
    await bus.server.call("XADD", shard.outbox(front), "*", "c", conversation, "t", "", "e", "{}")
    assert await notify(bus, conversation, "ready") == "OK"
    assert await entries(bus, shard.outbox(front)) == []
    (event,) = await entries(bus, shard.events(conversation))
    assert (event["t"], event["k"], event["x"]) == ("", "notice", "ready")
    assert await bus.server.call("TTL", shard.events(conversation)) > 0
    assert [message.text for message in await Memory(bus, conversation).entries()] == ["ready"]


async def test_a_notice_need_not_be_remembered_and_its_key_meets_no_message(bus: Bus) -> None:
    assert await tell(bus, remember=False) == "OK"
    assert await Memory(bus, "a").entries() == []
    assert (await ask(bus, idempotency="k")).outcome == "RUN"


async def test_a_full_server_takes_no_notice_and_writes_none(bus: Bus) -> None:
    await bus.server.call("CONFIG", "SET", "maxmemory", 1)
    assert await tell(bus) == "BUSY"
    await bus.server.call("CONFIG", "SET", "maxmemory", 0)
    assert await names(bus) == set()


async def test_of_many_equal_notices_at_once_one_is_told(bus: Bus, other: Bus) -> None:
    got = await asyncio.gather(*(tell((bus, other)[n % 2]) for n in range(10)))
    assert sorted(got) == ["DUP"] * 9 + ["OK"]
    assert len(await entries(bus, bus.shards[0].outbox("telegram"))) == 1


# ── placeholders ────────────────────────────────────────────────────────────────────────────────


async def test_of_several_messages_that_would_show_a_turn_the_first_stands(bus: Bus, other: Bus) -> None:
    got = await asyncio.gather(*(Placeholders((bus, other)[n % 2]).record("a", "1", str(n)) for n in range(6)))
    assert len(set(got)) == 1
    assert await Placeholders(bus).record("a", "1", "77", part="1") == "77"
    assert await Placeholders(bus).of("a", "1") == {"0": got[0], "1": "77"}
    assert await Placeholders(bus).turn_of("a", "77") == "1"
    assert await Placeholders(bus).turn_of("a", "78") == ""
    assert await Placeholders(bus).turn_of("b", "77") == ""


async def test_a_message_is_forgotten_only_while_it_is_the_one_that_stands(bus: Bus) -> None:
    placeholders = Placeholders(bus)
    await placeholders.record("a", "1", "10")
    assert not await placeholders.forget("a", "1", "11")
    assert await placeholders.forget("a", "1", "10")
    assert await placeholders.record("a", "1", "12") == "12"
    assert not await placeholders.forget("a", "1", "10")
    assert (await placeholders.of("a", "1"), await placeholders.turn_of("a", "10")) == ({"0": "12"}, "")


async def test_what_shows_a_turn_is_known_for_its_days(bus: Bus) -> None:
    await Placeholders(bus, days=1).record("a", "1", "10")
    for key in await names(bus):
        assert 86_000_000 < await bus.server.call("PTTL", key) <= 86_400_000


# ── blobs ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_blob_comes_back_as_it_was_for_its_own_conversation_alone(bus: Bus) -> None:
    blobs, data = Blobs(bus), bytes(range(256)) * 10
    blob = await blobs.put("a", data, "image/png")
    assert await blobs.put("a", data, "image/png") == blob
    assert await blobs.put("b", data, "image/png") != blob
    assert await blobs.get("a", blob) == Blob(blob, "image/png", data)
    assert await blobs.get("b", blob) is None
    assert await blobs.get("a", "0" * 32) is None
    for key in await names(bus):
        assert 0 < await bus.server.call("PTTL", key) <= 86_400_000


async def test_what_is_too_large_or_no_media_type_or_finds_no_room_is_refused(server: RedisServer) -> None:
    bus = Bus(server, Settings(blob_megabytes=1), "p")
    with pytest.raises(BlobTooLarge, match=r"1\.0 MB; the limit is 1 MB"):
        await Blobs(bus).put("a", b"x" * (1024 * 1024 + 1), "image/png")
    with pytest.raises(RolecallError, match="not a media type"):
        await Blobs(bus).put("a", b"x", "image/png\nx")
    await server.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(RolecallError, match="no room"):
        await Blobs(bus).put("a", b"x", "image/png")
    await server.call("CONFIG", "SET", "maxmemory", 0)
    assert await names(bus) == set()


async def test_a_blob_lives_in_the_shard_of_its_conversation(server: RedisServer) -> None:
    bus = Bus(server, Settings(shards=16), "p")
    for n in range(10):
        blob = await Blobs(bus).put(f"telegram:{n}", b"x", "image/png")
        await Placeholders(bus).record(f"telegram:{n}", "1", "10")
        assert await tell(bus, conversation=f"telegram:{n}") == "OK"
        assert bus.shard(f"telegram:{n}").blob(blob) in await names(bus)
        assert await Placeholders(bus).turn_of(f"telegram:{n}", "10") == "1"


# ── feedback ────────────────────────────────────────────────────────────────────────────────────


async def test_feedback_is_noted_and_counted_once_per_user(bus: Bus) -> None:
    await ask(bus)
    await answer(bus, await take_one(bus))
    votes = [("u", "up"), ("u", "up"), ("v", "down"), ("u", "down"), ("w", ""), ("v", "")]
    news = [await give_feedback(bus, "a", "1", user, vote) for user, vote in votes]  # type: ignore[arg-type]
    assert news == [True, False, True, True, False, True]
    counters = await hash_of(bus, bus.shards[0].statistics(today()))
    assert (counters["up"], counters["down"]) == ("0", "1")
    assert (await stats.summary(bus, []))["feedback"] == {"up": 0, "down": 1}
    said = [e["x"] for e in await log_records(bus) if e["x"].startswith("feedback")]
    assert said == ["feedback up from u", "feedback down from v", "feedback down from u", "feedback taken back from v"]
    assert await hash_of(bus, bus.shards[0].votes("a", "1")) == {"u": f"down|{today()}"}


async def test_a_change_of_mind_after_midnight_leaves_yesterday_alone(bus: Bus) -> None:
    await bus.server.call("HSET", bus.shards[0].votes("a", "1"), "u", "up|20200101")
    assert await give_feedback(bus, "a", "1", "u", "down")
    assert await hash_of(bus, bus.shards[0].statistics(today())) == {"down": "1"}
