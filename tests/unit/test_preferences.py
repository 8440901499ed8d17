"""What front ends change and keep of a conversation: preferences from outside, questions to ask once more."""

from __future__ import annotations

import pytest

from rolecall.agent.memory import Memory
from rolecall.bus.bus import Bus
from rolecall.bus.chat_messages import keep_question, question_of
from rolecall.bus.conversation import forget_turn, prefer, remembered
from rolecall.bus.events import so_far
from rolecall.bus.leases import emit
from tests.bus.steps import answer, ask, began, hash_of, log_records, take_one

# ── preferences ─────────────────────────────────────────────────────────────────────────────────


async def test_a_preference_is_set_noted_and_taken_back(bus: Bus) -> None:
    shard = bus.shards[0]
    await ask(bus)
    assert [await prefer(bus, "a", "model", "x@y", instance="t:h:1:0") for _ in range(2)] == [True, False]
    assert await Memory(bus, "a").preferences() == {"model": "x@y"}
    assert await prefer(bus, "a", "model", "") and not await prefer(bus, "a", "model", "")
    assert await hash_of(bus, shard.preferences("a")) == {}
    notes = [entry["x"] for entry in await log_records(bus) if entry["w"] == "NOTE" and " is " in entry["x"]]
    assert notes == ["model is x@y", "model is auto"]


@pytest.mark.parametrize("before", ["nothing", "a turn", "a rest"])
async def test_it_is_kept_as_long_as_its_conversation(bus: Bus, before: str) -> None:
    shard = bus.shards[0]
    if before != "nothing":
        await ask(bus)
    if before == "a rest":
        await answer(bus, await take_one(bus))
    await prefer(bus, "a", "queue", "collect")
    left = await bus.server.call("PTTL", shard.preferences("a"))
    assert left == -1 if before == "a turn" else 29 * 86_400_000 < left <= 30 * 86_400_000
    if before == "a turn":
        await answer(bus, await take_one(bus))
        assert await bus.server.call("PTTL", shard.preferences("a")) > 0


# ── questions ───────────────────────────────────────────────────────────────────────────────────


async def test_a_question_of_several_messages_is_whole_in_their_order(bus: Bus) -> None:
    await keep_question(bus, "a", "1", "tg:1:2:10", {"text": "second", "images": ["b"], "quoted": {"text": "q"}})
    await keep_question(bus, "a", "1", "tg:1:2:9", {"text": "first", "images": ["a"], "model": "m"})
    await keep_question(bus, "a", "1", "tg:1:2:11", {"text": "typo"})
    await keep_question(bus, "a", "1", "tg:1:2:11", {"text": "third"})  # its edit
    assert await question_of(bus, "a", "1") == {
        "text": "first\n<quoted from='you'>\nq\n</quoted>\n\nsecond\nthird", "images": ["a", "b"], "model": "m",
    }  # fmt: skip
    assert 0 < await bus.server.call("PTTL", bus.shards[0].question("a", "1")) <= 86_400_000
    assert await question_of(bus, "a", "2") is None


async def test_a_turn_can_be_taken_out_of_the_history_and_out_of_sight(bus: Bus) -> None:
    for turn in ("1", "2"):
        await ask(bus, text=turn)
        await answer(bus, await take_one(bus), history=remembered(f"q{turn}", f"a{turn}", turn))
    memory = Memory(bus, "a", without="2")
    assert [message.text for message in await memory.history()] == ["q1", "a1"]
    for _ in range(2):
        await forget_turn(bus, "a", "1")
    assert [one.text for one in await Memory(bus, "a").entries()] == ["q2", "a2"]


# ── an answer in the making ─────────────────────────────────────────────────────────────────────


async def test_what_was_said_so_far_is_that_of_the_last_beginning(bus: Bus) -> None:
    await ask(bus)
    delivery = await take_one(bus)
    assert await so_far(bus, "a", "1") == ""
    for _ in range(2):
        await began(bus, delivery, "manager:host:1:0")
        for position, text in ((0, "half "), (5, "an ans"), (0, "half "), (20, "lost")):
            await emit(bus, delivery, position, text)
        assert (await so_far(bus, "a", "1"))[:11] in ("half an ans", "half ")
    assert await so_far(bus, "b", "1") == ""
