"""The calculator and the tools it has: what is arithmetic, and what is not run."""

from __future__ import annotations

import pytest

from agents.calculator import CalculatorAgent
from agents.manager import ManagerAgent
from agents.tools import calculate, now
from rolecall import Role, ToolError
from rolecall.testing import FakeModel, Turn, run_turn, tool_call


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 2", "14"),
        ("0.1 + 0.2", "0.3"),
        ("12 × 7 = ?", "84"),
        ("2^10", "1024"),
        ("`6 * 7`", "42"),
        ("-5 % 3", "-2"),
        ("1/3", "0.3333333333333333333333333333"),
        ("sqrt(144) + abs(-1)", "13"),
        ("round(2.567, 2)", "2.57"),
        ("10**29", "100000000000000000000000000000"),
        ("10**40", "1E+40"),
    ],
)
def test_arithmetic_is_worked_out(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(("asked", "said"), [("2*3*4", "2 * 3 * 4 = 24"), ("2**3**2", "2 ** 3 ** 2 = 512")])
async def test_a_sum_is_repeated_without_marks_of_emphasis(asked: str, said: str) -> None:
    assert (await run_turn((Role(ManagerAgent), Role(CalculatorAgent)), asked)).text == said


@pytest.mark.parametrize(
    "expression",
    [
        *("", "a", "'a' * 9", "True", "1, 2", "[1]", "1 if 1 else 2", "(1).real", "__import__('os')", "\x00", "1j"),
        *("sqrt()", "round(1, 2, 3)", "abs(x=1)", "print(1)", "x := 1", "lambda: 1", "1e999", "1 << 9"),
    ],
)
def test_anything_else_is_not(expression: str) -> None:
    with pytest.raises(ToolError, match="is not arithmetic"):
        calculate(expression)


@pytest.mark.parametrize("expression", ["1/0", "0/0", "1 % 0", "sqrt(-1)", "9**9**9**9", "round(1, 10**30)"])
def test_what_has_no_value_says_so_at_once(expression: str) -> None:
    with pytest.raises(ToolError, match="has no value, or one too large"):
        calculate(expression)


def test_an_endless_expression_is_not_read() -> None:
    with pytest.raises(ToolError, match="more than 200 characters"):
        calculate("(" * 5000)


def test_the_time_is_that_of_the_zone() -> None:
    assert now("Asia/Tokyo").endswith("(Asia/Tokyo)")
    with pytest.raises(ToolError, match="unknown time zone"):
        now("../etc/passwd")


async def asked(text: str, model: FakeModel) -> Turn:
    roles = [Role(ManagerAgent), Role(CalculatorAgent, models=("fake@test",), match="/calc")]
    return await run_turn(roles, text, model=model)


async def test_an_expression_needs_no_model() -> None:
    model = FakeModel()
    assert (await asked("/calc 6 * 7", model)).text == "6 * 7 = 42"
    assert model.requests == []


async def test_in_words_the_model_has_to_call_the_tool_and_its_sums_are_shown() -> None:
    model = FakeModel(tool_call("calculate", expression="15 / 100 * 80"), "It is 12.")
    turn = await asked("/calc How much is 15 percent of 80?", model)
    assert turn.text == "It is 12.\n(15 / 100 * 80 = 12)"
    assert model.requests[0].must_call
    assert model.requests[1].messages[-1].text == "12"


async def test_a_sum_that_cannot_be_worked_out_is_told_to_the_model() -> None:
    model = FakeModel(tool_call("calculate", expression="1 / 0"), "That cannot be done.")
    assert (await asked("/calc one by zero", model)).text == "That cannot be done."
    assert model.requests[1].messages[-1].text == "error: '1 / 0' has no value, or one too large"


async def test_without_a_question_it_says_how_to_ask() -> None:
    assert "/calc How much" in (await asked("/calc", FakeModel())).text
