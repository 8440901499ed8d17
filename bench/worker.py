"""Another process of a run: ``python -m bench.worker bus|streams|raw|calls ADDRESS``, until its input closes."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise

from bench.bus import FULL, STREAMING, running
from bench.loop import on_fastest_loop
from bench.raw import CHAIN, pass_on
from bench.steps import CALLS


async def serve_bus(url: str) -> None:
    """Work until the parent goes."""
    async with running(url, FULL):
        await _until_parent_goes()


async def serve_streams(url: str) -> None:
    """Tell the time until the parent goes."""
    async with running(url, STREAMING):
        await _until_parent_goes()


async def serve_calls(url: str) -> None:
    """Call and be called, ten instances, until the parent goes."""
    async with running(url, CALLS, emptied=False):
        await _until_parent_goes()


async def serve_raw(url: str) -> None:
    """Pass messages on along the chain until the parent goes."""
    stopped = asyncio.Event()
    async with asyncio.TaskGroup() as links:
        for pair in pairwise(CHAIN):
            links.create_task(pass_on(url, *pair, stopped), name="bench link")
        await _until_parent_goes()
        stopped.set()


async def _until_parent_goes() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    what, address = sys.argv[1:]
    serve = {"raw": serve_raw, "bus": serve_bus, "streams": serve_streams, "calls": serve_calls}
    on_fastest_loop(serve[what](address))
