"""A history that is too long for the model: the answer comes all the same, without the oldest part of it."""

from __future__ import annotations

from rolecall.agent.completion import without_oldest
from rolecall.errors import ContextTooLong
from rolecall.frontends.texts import answer_notes
from rolecall.models.model import Message, Request
from rolecall.testing import FakeModel, run_turn
from tests.unit.test_agents_samplellm import ROLES

PAST = [(role, f"{number} {role}") for number in range(1, 9) for role in ("user", "assistant")]
LONG = ContextTooLong("fake@test: the conversation is too long for this model")


async def test_the_model_is_asked_again_without_the_older_half_until_it_fits() -> None:
    model = FakeModel(LONG, LONG, "hello")
    turn = await run_turn(ROLES, "and now?", model=model, history=PAST)
    assert turn.text == "hello"
    asked = [[message.text for message in request.messages if message.role != "system"] for request in model.requests]
    assert [len(one) for one in asked] == [17, 9, 5]
    assert asked[2] == ["7 user", "7 assistant", "8 user", "8 assistant", "and now?"]
    assert [request.messages[0].role for request in model.requests] == ["system"] * 3
    assert turn.payload["shortened"] is True
    assert "/clear" in answer_notes("de", turn.payload)[0]


async def test_a_question_that_is_too_long_by_itself_is_refused() -> None:
    turn = await run_turn(ROLES, "?", model=FakeModel(LONG), history=PAST)
    assert turn.kind == "error"


async def test_an_answer_to_a_history_that_fits_says_nothing_of_it() -> None:
    turn = await run_turn(ROLES, "?", model=FakeModel("hello"), history=PAST)
    assert "shortened" not in turn.payload and answer_notes("en", turn.payload) == []


def test_calls_of_tools_and_their_results_stay_behind_the_question() -> None:
    messages = (
        Message("system", "s"), Message("user", "1"), Message("assistant", "2"), Message("user", "?"),
        Message("assistant", ""), Message("tool", "r", call="c"),
    )  # fmt: skip
    left = without_oldest(Request(messages), 3).messages
    assert [message.role for message in left] == ["system", "user", "assistant", "tool"]
