"""Waiting for what is about to become true, in place of sleeping."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable


async def wait_until(
    condition: Callable[[], object] | Callable[[], Awaitable[object]], *, seconds: float = 30.0, what: str = ""
) -> None:
    """Return once ``condition`` (plain or async) is true. Raises AssertionError after ``seconds``."""
    give_up = time.monotonic() + seconds
    while not await _value(condition()):
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process with this id runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _value(found: object) -> object:
    return await found if isinstance(found, Awaitable) else found
