"""Background tasks: alive until they end, and never failing in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from rolecall.background import BackgroundTasks
from rolecall.errors import ServerRefused, ServerUnavailable


async def raising(error: Exception) -> None:
    raise error


async def test_an_outage_is_left_to_the_connections_to_log_and_a_refusal_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tasks = BackgroundTasks()
    for error in (ServerUnavailable("away"), ServerUnavailable("away"), ServerRefused("no permission", "NOPERM")):
        await tasks.attempt(raising(error), "registry")
    assert caplog.messages == ["registry: no permission"]
    assert not any(record.exc_info for record in caplog.records)


async def test_a_defect_is_logged_with_its_traceback_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks()
    broken = tasks.start(raising(ValueError("a defect")), "menu")
    other = tasks.start(asyncio.sleep(0.01), "other")
    await tasks.drain()
    assert broken.done() and other.done() and not other.cancelled() and len(tasks) == 0
    assert caplog.messages == ["menu failed"] and caplog.records[0].exc_info is not None


async def test_draining_waits_as_long_as_it_may_and_then_cancels(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks()
    quick, endless = tasks.start(asyncio.sleep(0.01), "quick"), tasks.start(asyncio.sleep(600), "endless")
    await tasks.drain(0.1)
    assert quick.done() and not quick.cancelled() and endless.cancelled()
    assert not caplog.messages


async def test_a_step_is_repeated_whatever_happens_to_it() -> None:
    tasks, steps = BackgroundTasks(), iter((raising(ValueError("once")), asyncio.sleep(0)))
    again = asyncio.Event()

    def step() -> Coroutine[Any, Any, object]:
        work = next(steps, None)
        if work is None:
            again.set()
        return work or asyncio.sleep(0)

    repeating = asyncio.create_task(tasks.repeat(step, 0.001, "duty"))
    async with asyncio.timeout(5):
        await again.wait()
    repeating.cancel()
