"""The dice agent, asked as a user asks it."""

from config import config
from rolecall.testing import run_turn


async def test_it_rolls_the_dice_it_was_asked_for() -> None:
    turn = await run_turn(config, "/roll 3d6")
    assert turn.trace == ("manager", "dice")
    rolls, total = turn.text.split(" = ")
    dice = [int(roll) for roll in rolls.split(" + ")]
    assert len(dice) == 3
    assert all(1 <= one <= 6 for one in dice)
    assert sum(dice) == int(total)


async def test_what_are_no_dice_is_answered_with_the_usage() -> None:
    turn = await run_turn(config, "/roll the drums")
    assert "/roll 2d6" in turn.text
    assert turn.history == ()
