"""Running a verb: what other tasks do to the event loop does not end it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rolecall.cli.runner import run_loop, stop_requested


async def _exit() -> None:
    sys.exit(3)


async def _stop_the_loop() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize("does", [_exit, _stop_the_loop])
def test_a_task_that_ends_the_loop_does_not_end_the_verb(does: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def verb() -> int:
        async with stop_requested():
            other = asyncio.create_task(does())
            await asyncio.sleep(0.05)
            assert other.done()
            await asyncio.sleep(0.05)
        return 7

    assert run_loop(verb()) == 7


def test_an_error_of_the_verb_itself_is_raised() -> None:
    async def verb() -> int:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_loop(verb())
