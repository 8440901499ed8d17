"""Answers that are data: any form pydantic knows, one repair, and a clear end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from rolecall import Agent, Context, Envelope, Role
from rolecall.agent.structured_output import SchemaMismatch, StructuredOutput, run_structured
from rolecall.errors import BadStructure, ConfigError
from rolecall.models.model import Answer, Message, Request
from rolecall.testing import FakeModel, Turn, run_turn

REQUEST = Request((Message("user", "Weather in Rome?"),))
GOOD = '{"city": "Rome", "degrees": 21, "day": "2026-11-21"}'


class Weather(BaseModel):
    """What the weather is."""

    city: str
    degrees: float
    day: date


@dataclass
class Point:
    x: int
    y: int = 0


class Named(TypedDict):
    name: str


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Weather, GOOD, Weather(city="Rome", degrees=21, day=date(2026, 11, 21))),
        (Point, '{"x": "3"}', Point(3)),
        (Named, '{"name": "Ann"}', {"name": "Ann"}),
        (Tree, '{"value": {"name": "a", "children": [{"name": "b"}]}}', Tree(name="a", children=[Tree(name="b")])),
        (list[Point], '{"value": [{"x": 1}]}', [Point(1)]),
        (list[Point], '[{"x": 1}]', [Point(1)]),
        (dict[str, int], '{"value": 3}', {"value": 3}),
        (set[int], "[1, 1, 2]", {1, 2}),
        (Literal["yes", "no"], '{"value": "yes"}', "yes"),
        (int, "42", 42),
    ],
)
def test_an_answer_becomes_a_value_of_its_form(kind: Any, text: str, value: object) -> None:
    output = StructuredOutput.of(kind)
    assert output.parse(text) == value
    assert output.schema["type"] == "object"


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{GOOD}\n```",
        f"Here you are:\n```\n{GOOD}\n```\nAnything else?",
        f"The weather is {GOOD}, I think.",
        f"  {GOOD}\n\n",
    ],
)
def test_fences_and_words_around_the_json_are_borne(text: str) -> None:
    assert StructuredOutput.of(Weather).parse(text).city == "Rome"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ("sunny", "it is not JSON"),
        ('{"city": "Rome"', "it is not JSON"),
        ('{"city": "Rome", "degrees": "warm"}', "degrees: Input should be a valid number"),
        ("[]", "valid dictionary or object|instance of Weather|object"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_what_is_not_of_the_form_is_said_in_words(text: str, why: str) -> None:
    with pytest.raises(SchemaMismatch, match=why):
        StructuredOutput.of(Weather).parse(text)


def test_a_type_without_a_schema_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be the type of an answer"):
        StructuredOutput.of(threading.Event)


class Answers:
    """Gives its answers in turn and keeps the requests."""

    def __init__(self, *texts: str) -> None:
        self.texts: Sequence[str] = texts
        self.requests: list[Request] = []

    async def ask(self, request: Request) -> Answer:
        self.requests.append(request)
        return Answer(self.texts[len(self.requests) - 1], "fake@test")


async def test_a_wrong_answer_is_told_what_is_wrong_once() -> None:
    answers, notes = Answers('{"city": "Rome"}', GOOD), list[str]()
    weather = await run_structured(StructuredOutput.of(Weather), REQUEST, answers.ask, notes.append)
    assert weather.degrees == 21
    assert [request.schema is not None for request in answers.requests] == [True, True]
    _, wrong, repair = answers.requests[1].messages
    assert (wrong.role, wrong.text, repair.role) == ("assistant", '{"city": "Rome"}', "user")
    assert "degrees: Field required" in repair.text
    assert notes == [
        "fake@test gave no valid Weather and is asked to correct it: degrees: Field required; day: Field required"
    ]


async def test_a_form_the_model_cannot_meet_ends_after_two_tries() -> None:
    answers = Answers("no", "never", "no more")
    with pytest.raises(BadStructure, match="fake@test twice gave no valid Weather: it is not JSON"):
        await run_structured(StructuredOutput.of(Weather), REQUEST, answers.ask, lambda text: None)
    assert len(answers.requests) == 2


# ── in a turn ───────────────────────────────────────────────────────────────────────────────────


class ManagerAgent(Agent):
    """Knows the weather as data."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        weather = await ctx.extract(Weather, ctx.model, [], envelope.text, system="You know the weather.")
        return envelope.reply(f"{weather.degrees:g} degrees in {weather.city}")


async def asked(model: FakeModel) -> Turn:
    return await run_turn([Role(ManagerAgent, models=("fake@test",))], "Weather in Rome?", model=model)


async def test_an_agent_works_with_the_value() -> None:
    model = FakeModel(GOOD)
    assert (await asked(model)).text == "21 degrees in Rome"
    request = model.requests[0]
    assert request.schema == StructuredOutput.of(Weather).schema
    assert request.messages[0].text.startswith("You know the weather.\n\nAnswer with JSON only")


async def test_the_user_hears_that_there_is_no_value_and_operators_why(caplog: pytest.LogCaptureFixture) -> None:
    turn = await asked(FakeModel("sunny"))
    assert turn.kind == "error"
    assert turn.text.startswith("Sorry, the model gave no usable answer. Please try again. (turn ")
    assert "fake@test twice gave no valid Weather" in caplog.text
