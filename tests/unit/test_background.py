"""Background tasks: alive until they end, and never failing in silence."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from rolecall.background import Attempt, BackgroundTasks, Boundary, Rarely
from rolecall.errors import ServerRefused, ServerUnavailable, cause_of


async def raising(error: BaseException) -> None:
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


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a defect"), RecursionError(), MemoryError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(),
        asyncio.CancelledError(), TimeoutError(), ExceptionGroup("many", [ExceptionGroup("inner", [KeyError("x")])]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_a_loop_survives_whatever_an_item_raises_counts_it_and_is_told_the_last_try(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counter[str]()
    boundary = Boundary("updates", tries=3, count=lambda name: counts.update([name]))
    outcomes = [await boundary.attempt("update 7", raising(error)) for _ in range(3)]
    assert outcomes == [Attempt.FAILED, Attempt.FAILED, Attempt.EXHAUSTED]
    assert counts == {"updates": 3}
    assert all("update 7" in message for message in caplog.messages) and len(caplog.messages) == 3
    assert boundary.error is cause_of(error)
    assert await boundary.attempt("update 7", asyncio.sleep(0)) is Attempt.DONE


async def test_an_unavailable_server_is_not_the_fault_of_the_item_even_within_a_group() -> None:
    boundary = Boundary("updates")
    hidden = ExceptionGroup("many", [ValueError("its consequence"), ExceptionGroup("", [ServerUnavailable("away")])])
    for error in (ServerUnavailable("away"), hidden):
        with pytest.raises(ServerUnavailable):
            await boundary.attempt("update 7", raising(error))


async def test_a_loop_that_is_cancelled_ends_although_its_items_cannot_end_it() -> None:
    boundary = Boundary("updates")
    loop = asyncio.create_task(boundary.attempt("update 7", asyncio.sleep(600)))
    await asyncio.sleep(0)
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


def test_a_flood_of_one_warning_is_one_line_that_later_says_how_many_there_were(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely, clock = Rarely(60), iter([*range(100, 110), 200])
    monkeypatch.setattr("rolecall.background.time.monotonic", lambda: next(clock))
    for number in range(11):
        rarely.warn(logging.getLogger("test"), "entry %d", number)
    assert caplog.messages == ["entry 0", "entry 10 (and 9 more like it)"]
