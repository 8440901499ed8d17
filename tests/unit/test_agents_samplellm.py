"""What the answering agent asks its model: with pictures, documents and quotes; and what it says when that fails."""

from __future__ import annotations

from agents.manager import ManagerAgent
from agents.samplellm import RECENT, SMALL, SampleLLMAgent
from agents.texts import Speaker
from agents.voice import VoiceAgent
from rolecall import Role
from rolecall.errors import ImagesRefused
from rolecall.models.fallback import Fallback
from rolecall.testing import FakeModel, run_turn

ROLES = (Role(ManagerAgent), Role(SampleLLMAgent))
PNG = b"\x89PNG picture"


async def test_pictures_go_to_the_model_with_the_question() -> None:
    model = FakeModel("A cat.")
    turn = await run_turn(ROLES, "What is this?", model=model, images=(PNG, PNG + b"2"))
    asked = model.requests[0].messages[-1]
    assert (turn.text, asked.text, asked.images) == ("A cat.", "What is this?", (PNG, PNG + b"2"))
    assert turn.history == (("user", "What is this?"), ("assistant", "A cat."))


async def test_a_model_that_takes_no_pictures_is_said_so_clearly() -> None:
    turn = await run_turn(ROLES, "What is this?", model=FakeModel(ImagesRefused("no images")), images=(PNG,))
    assert (turn.kind, turn.text) == ("final", Speaker("en").say("no_pictures"))


async def test_a_picture_goes_on_to_a_model_that_takes_it() -> None:
    seeing = FakeModel("A cat.", name="seeing@test")
    turn = await run_turn(ROLES, "?", model=Fallback((FakeModel(ImagesRefused("no")), seeing)), images=(PNG,))
    assert turn.text == "A cat."


async def test_documents_and_what_is_replied_to_stand_before_the_question() -> None:
    model, quoted = FakeModel("Fine."), {"from": "Bob", "text": "It is 7 </quoted> 8"}
    turn = await run_turn(
        ROLES, "Is it?", model=model, documents={"a.py": "x = 1\n</document>"}, payload={"quoted": quoted}
    )
    asked = model.requests[0].messages[-1].text
    assert asked == (
        "<document name='a.py'>\nx = 1\n‹/document>\n</document>\n\n"
        "<quoted from='Bob'>\nIt is 7 ‹/quoted> 8\n</quoted>\n\nIs it?"
    )
    assert turn.history[0] == ("user", "Is it?")


async def test_a_document_that_is_not_kept_any_more_is_said_to_be_gone() -> None:
    model = FakeModel("What?")
    files = [{"blob": "0" * 32, "name": "a.txt", "type": "text/plain"}]
    await run_turn(ROLES, "Sum it up", model=model, payload={"files": files})
    assert "has expired" in model.requests[0].messages[-1].text


async def test_voice_is_written_down_first_and_a_recording_without_words_is_answered_so() -> None:
    files = [{"blob": "0" * 32, "name": "voice.ogg", "type": "audio/ogg"}]
    turn = await run_turn((*ROLES, Role(VoiceAgent)), "", payload={"files": files})
    assert turn.trace == ("manager", "voice")
    assert "couldn't make out" in turn.text


async def test_a_tiny_model_is_asked_with_the_latest_messages_alone() -> None:
    history = tuple(("user", f"question {number}") for number in range(20))
    tiny, large = FakeModel("ok", name=SMALL[0]), FakeModel("ok")
    for model in (tiny, large):
        await run_turn(ROLES, "now", model=model, history=history)
    texts = [message.text for message in tiny.requests[0].messages if message.role == "user"]
    assert texts == [*(f"question {number}" for number in range(20 - RECENT, 20)), "now"]
    assert len([message for message in large.requests[0].messages if message.role == "user"]) == 21
