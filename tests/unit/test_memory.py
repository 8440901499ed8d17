"""What is remembered of a conversation, in a server in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.agent.client_extras import ClientExtras
from rolecall.agent.memory import Memory
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import HistoryEntry, Mark, remembered
from rolecall.bus.leases import Along
from rolecall.models.model import Message
from rolecall.redis.keys import ShardKeys
from rolecall.settings import Settings
from rolecall.testing import FakeServer, run_turn

SHARD = ShardKeys(0)


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    server = FakeServer()
    yield Bus(server, Settings(), "host:1~aaaaaa")
    await server.aclose()


async def keep(bus: Bus, *turns: tuple[str, str, Mark]) -> None:
    for number, (text, answer, mark) in enumerate(turns):
        await bus.server.call("RPUSH", SHARD.history("a"), *remembered(text, answer, str(number), mark))


async def test_nothing_is_remembered_of_a_new_conversation(bus: Bus) -> None:
    memory = Memory(bus, "a")
    assert (await memory.history(), await memory.preferences()) == ([], {})


async def test_a_history_is_what_was_said_oldest_first(bus: Bus) -> None:
    await keep(bus, ("hi", "hello", ""), ("é\n", "日本", ""))
    assert await Memory(bus, "a").history() == [
        Message("user", "hi"), Message("assistant", "hello"), Message("user", "é\n"), Message("assistant", "日本"),
    ]  # fmt: skip


async def test_a_model_sees_no_turn_that_failed_but_one_that_was_stopped(bus: Bus) -> None:
    await keep(bus, ("bad", "", "error"), ("long", "so far", "stopped"))
    memory = Memory(bus, "a")
    assert [message.text for message in await memory.history()] == ["long", "so far"]
    assert [(e.text, e.mark) for e in await memory.entries()] == [
        ("bad", "error"), ("long", "stopped"), ("so far", "stopped"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "texts"), [(0, []), (1, ["a2"]), (3, ["a1", "q2", "a2"]), (99, ["q1", "a1", "q2", "a2"])]
)
async def test_no_more_is_shown_than_the_limit(bus: Bus, limit: int, texts: list[str]) -> None:
    await keep(bus, ("q1", "a1", ""), ("q2", "a2", ""))
    assert [message.text for message in await Memory(bus, "a", limit).history()] == texts


async def test_conversations_do_not_read_each_other(bus: Bus) -> None:
    await keep(bus, ("secret", "", ""))
    assert await Memory(bus, "a:1").history() == []


async def test_a_preference_is_seen_at_once_and_kept_only_when_the_handling_settles(bus: Bus) -> None:
    await bus.server.call("HSET", SHARD.preferences("a"), "lang", "en", "model", "m@test")
    memory = Memory(bus, "a")
    memory.prefer(lang="de", model="")
    assert await memory.preferences() == {"lang": "de"}
    assert await Memory(bus, "a").preferences() == {"lang": "en", "model": "m@test"}
    assert memory.changes == {"lang": "de", "model": ""}


async def test_what_came_along_counts_once_and_then_what_the_server_has(bus: Bus) -> None:
    await keep(bus, ("now", "", ""))
    await bus.server.call("HSET", SHARD.preferences("a"), "lang", "en")
    memory = Memory(bus, "a", along=Along(remembered("then", "", "1"), [b"lang", b"de"]))
    assert [[message.text for message in await memory.history()] for _ in range(2)] == [["then"], ["now"]]
    assert [await memory.preferences() for _ in range(2)] == [{"lang": "de"}, {"lang": "en"}]


async def test_forgetting_is_noted_and_done_when_the_turn_completes(bus: Bus) -> None:
    await keep(bus, ("hi", "hello", ""))
    memory = Memory(bus, "a")
    memory.forget()
    assert memory.forgotten
    assert len(await memory.history()) == 2


def test_an_answer_that_is_empty_is_not_remembered() -> None:
    assert remembered("hi", "", "1") == [b'{"role":"user","text":"hi","turn":"1"}']
    assert HistoryEntry("user", "hi").mark == ""


@pytest.mark.parametrize("payload", [{"images": 5}, {"files": "a.txt"}, {"tokens_out": True}])
async def test_a_turn_is_remembered_whatever_its_payload_holds(payload: dict[str, Any]) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply("hello", **payload)

    turn = await run_turn((Role(ManagerAgent),), "hi", payload=payload)
    assert turn.history == (("user", "hi"), ("assistant", "hello"))


async def test_messages_that_came_along_stand_for_the_remembered_ones(bus: Bus) -> None:
    await keep(bus, ("hi", "hello", ""))
    came = ClientExtras(
        bus, "a", {"history": [{"role": "system", "text": "be brief"}, {"role": "user", "text": "one"}]}
    )
    assert await Memory(bus, "a", extras=came).history() == [Message("system", "be brief"), Message("user", "one")]


async def test_what_the_system_said_alone_stands_before_the_remembered_ones(bus: Bus) -> None:
    await keep(bus, ("hi", "hello", ""))
    came = ClientExtras(bus, "a", {"history": [{"role": "system", "text": "be brief"}]})
    assert [m.text for m in await Memory(bus, "a", extras=came).history()] == [
        "be brief",
        "hi",
        "hello",
    ]


@pytest.mark.parametrize("history", [None, "x", 7, [7], [{"role": "nobody", "text": "x"}], [{"text": "x"}]])
async def test_a_history_that_is_none_is_nothing(bus: Bus, history: object) -> None:
    assert await ClientExtras(bus, "a", {"history": history}).history() == ()
