"""A history that is too long for the model: the answer comes all the same, without the oldest part of it."""

from __future__ import annotations

import pytest

from rolecall.agent.completion import excess, without_oldest
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


@pytest.mark.parametrize(
    ("tokens", "limit", "out"),
    [(2200, 2190, 3), (2200, 2000, 5), (2200, 1000, 14), (100_000, 100, 20), (990, 1000, 0), (0, 0, 0), (900, 0, 0)],
)
@pytest.mark.parametrize("dropped", [0, 3])
def test_where_the_provider_counts_the_history_is_cut_by_tokens(
    tokens: int, limit: int, out: int, dropped: int
) -> None:
    """22 messages of 100 tokens, the system's and the question among them; an eighth is left for the answer."""
    past = [Message(role, "x" * 84) for _ in range(10) for role in ("user", "assistant")]
    request = Request((Message("system", "s" * 84), *past, Message("user", "?" * 84)))
    longer = Request((request.messages[0], *past[:dropped], *request.messages[1:]))
    error = ContextTooLong("fake@test: too long", tokens, limit)
    assert excess(longer, dropped and dropped + 1, error) == (out and out + (0 if dropped else 1))


async def test_a_second_cut_by_tokens_goes_on_from_the_first() -> None:
    model = FakeModel(*(ContextTooLong("too long", 1000, 900) for _ in range(3)), "hello")
    assert (await run_turn(ROLES, "and now?", model=model, history=PAST)).text == "hello"
    lengths = [len(request.messages) for request in model.requests]
    assert lengths == sorted(set(lengths), reverse=True)


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
