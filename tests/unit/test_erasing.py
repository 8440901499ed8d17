"""Removing a conversation for good."""

from __future__ import annotations

from rolecall.bus.bus import Bus
from rolecall.bus.cancel import erase_conversation
from rolecall.bus.conversation import give_feedback
from rolecall.bus.questions import keep_question
from tests.bus.steps import answer, ask, names, take_one


async def test_nothing_of_what_was_asked_or_thought_of_it_is_left(bus: Bus) -> None:
    turn = (await ask(bus, "telegram:42", "a secret")).turn
    await answer(bus, await take_one(bus))
    await keep_question(bus, "telegram:42", turn, "tg:1:42:1", {"text": "a secret"})
    await give_feedback(bus, "telegram:42", turn, "telegram:user:42", "up", instance="t:h:1:0")
    shard = bus.shard("telegram:42")
    said = {shard.question("telegram:42", turn), shard.votes("telegram:42", turn), shard.result("telegram:42", turn)}
    assert said <= await names(bus)
    await erase_conversation(bus, "telegram:42", instance="t:h:1:0")
    assert not said & await names(bus)
