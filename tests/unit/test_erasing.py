"""Removing a conversation for good."""

from __future__ import annotations

from typing import Any

from rolecall.bus.admission import admit
from rolecall.bus.blobs import Blobs, Files
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import erase_conversation
from rolecall.bus.chat_messages import keep_question
from rolecall.bus.conversation import give_feedback, remembered
from rolecall.bus.envelope import Envelope
from tests.bus.steps import answer, ask, bury_turn, names, take_one


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


async def test_the_pictures_and_files_of_a_conversation_go_with_it_and_those_of_others_stay(bus: Bus) -> None:
    async def put(data: bytes, conversation: str = "telegram:42") -> str:
        return await Blobs(bus).put(conversation, data, "image/png")

    async def send(**lists: Any) -> None:
        await admit(bus, Envelope(conversation="telegram:42", payload={"text": "look", **lists}))

    answered, dead, waiting, document = [await put(data) for data in (b"1", b"2", b"3", b"4")]
    others = await put(b"5", "telegram:43")
    await send(images=[answered, others])
    delivery = await take_one(bus)
    await answer(bus, delivery, history=remembered("look", "I see", "1", asked=delivery.envelope))
    await send(images=[dead])
    await bury_turn(bus, await take_one(bus))
    await send(images=[waiting], files=[{"blob": document, "name": "a.txt"}])
    kept = await Files(bus, "telegram:42", 1000).store(b"6", "b.txt", "text/plain", "document", 60)
    own = {bus.shard("telegram:42").blob(one) for one in (answered, dead, waiting, document, kept.id)}
    assert own <= await names(bus)
    await erase_conversation(bus, "telegram:42", instance="t:h:1:0")
    assert not own & await names(bus)
    assert await Blobs(bus).get("telegram:43", others) is not None
