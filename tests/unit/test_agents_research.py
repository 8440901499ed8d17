"""The research agent: parts at the same time, one answer, also from a model that cannot split."""

from __future__ import annotations

import pytest

from agents.manager import ManagerAgent
from agents.research import USAGE, ResearchAgent, parts_of
from rolecall import Agent, Context, Envelope, Role
from rolecall.errors import ModelRefused
from rolecall.testing import FakeModel, Turn, run_turn


class SampleLLMAgent(Agent):
    """Answers each part, or none."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if "fail" in envelope.text:
            raise ModelRefused("no")
        return envelope.reply(f"answer to {envelope.text}")


ROLES = (Role(ManagerAgent), Role(ResearchAgent, models=("x@y",), match="/research"), Role(SampleLLMAgent))


async def researched(text: str, *answers: str) -> tuple[Turn, FakeModel]:
    model = FakeModel(*answers)
    return await run_turn(ROLES, text, model=model), model


async def test_the_parts_are_answered_by_others_and_joined() -> None:
    turn, model = await researched("/research Why red?", "1. What is red?\n2. Why?\n- When?\n4. Too many?", "Because.")
    assert (turn.text, turn.trace.count("samplellm")) == ("Because.", 3)
    notes, asked = model.requests[1].messages
    assert "\n\nWhat is red?\nanswer to What is red?\n\nWhy?\nanswer to Why?" in notes.text
    assert asked.text == "In a few short sentences: Why red?"
    assert len(model.requests) == 2


async def test_what_no_part_can_answer_is_a_failure_with_its_reason() -> None:
    turn, _ = await researched("/research fail", "nothing useful", "never")
    assert turn.kind == "error"


async def test_without_a_question_it_says_how_to_ask() -> None:
    turn, model = await researched("/research")
    assert (turn.text, model.requests) == (USAGE, [])


@pytest.mark.parametrize("said", ["", "I cannot do that.", "x" * 300 + "?"])
def test_a_model_that_cannot_split_leaves_two_angles(said: str) -> None:
    assert parts_of(said, "Why?") == ["In short: Why?", "Explain the reasons: Why?"]
