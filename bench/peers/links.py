"""What the program of each peer has in common: two links that pass messages of about 1 kB to each other, and a driver.

``PROGRAM work URL COUNT`` serves the links ``a`` and ``b``; it prints ``ready``, then ``done`` whenever COUNT messages
have come to their end. ``PROGRAM drive URL COUNT`` prints ``ready`` and reads commands: ``send`` sends COUNT messages
to ``a``; ``call N`` sends N messages one at a time, each with two links to pass, waits for each to come back, and
prints the milliseconds that they took as JSON. Both end when their input closes.

Only uses the standard library and uvloop, because each peer has a Python environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

PASSES = 40
"""How often a message is passed on: it is handled once more than that."""
FILLER = "x" * 800
ANSWERS = "answers"
WORKED = ("a", "b")
CALL_SECONDS = 30.0

Body = dict[str, Any]
Next = tuple[str, Body] | None
Follow = Callable[[str, Body], Next]


@dataclass
class Connection:
    """How a driver sends: messages to ``a``, all in one go where the peer can, and one message that it waits for."""

    send: Callable[[list[Body]], Awaitable[Any]]
    call: Callable[[Body], Awaitable[Any]] | None = None
    """Where the peer has its own way of waiting for an answer; otherwise the driver serves the link ``answers``."""


Connect = Callable[[str, tuple[str, ...], Follow], AbstractAsyncContextManager[Connection]]
"""Serve these links of the server at this URL: each message goes to ``Follow``, which says where it goes next."""


@dataclass
class Tally:
    """Counts the messages that have come to their end."""

    count: int
    ended: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def follow(self, link: str, body: Body) -> Next:
        """The link that ``body`` goes to next, and what it is then."""
        if body["left"]:
            return WORKED[link == "a"], {**body, "left": body["left"] - 1}
        if body["call"]:
            return ANSWERS, body
        self.end()
        return None

    def end(self) -> None:
        """A message has come to its end."""
        with self.lock:  # Celery's handlers are threads
            self.ended += 1
            if self.ended % self.count == 0:
                print("done", flush=True)


def message(number: int, left: int = PASSES, call: str = "") -> Body:
    """About 1 kB of JSON."""
    return {
        "id": number, "conversation": f"bench:{number}", "payload": {"text": FILLER}, "created": time.time(),
        "left": left, "call": call,
    }  # fmt: skip


async def _drive(url: str, count: int, connect: Connect) -> None:
    waiting: dict[str, asyncio.Future[Body]] = {}

    def answered(link: str, body: Body) -> None:
        if (future := waiting.pop(body["call"], None)) and not future.done():
            future.get_loop().call_soon_threadsafe(future.set_result, body)

    async with connect(url, (ANSWERS,), answered) as connection:

        async def call(body: Body) -> Body:
            future: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
            waiting[body["call"]] = future
            await connection.send([body])
            return await future

        print("ready", flush=True)
        while command := (await asyncio.to_thread(sys.stdin.readline)).split():
            if command[0] == "send":
                await connection.send([message(number) for number in range(count)])
                continue
            took = []
            for number in range(int(command[1])):
                began = time.perf_counter()
                body = message(number, left=1, call=f"{os.getpid()}-{began}")
                await asyncio.wait_for((connection.call or call)(body), CALL_SECONDS)
                took.append(round((time.perf_counter() - began) * 1000, 3))
            print(json.dumps(took), flush=True)


async def _work(url: str, count: int, connect: Connect) -> None:
    async with connect(url, WORKED, Tally(count).follow):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        os._exit(0)  # peers may take long to stop; the server is emptied afterwards


def main(connect: Connect, loop: bool = True) -> None:
    """Run as the command line says; with ``loop`` on uvloop, where the peer allows it."""
    what, url, count = sys.argv[1:4]
    factory: Any = asyncio.new_event_loop
    if loop:
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run((_work if what == "work" else _drive)(url, int(count), connect))
        os._exit(0)
