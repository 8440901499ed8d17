"""A front end of the chaos run, in a process of its own: it asks, follows, and writes down what it was answered.

Killed and started again it reads its own file and asks whatever is not answered yet anew, under the same idempotency
keys, as a front end does whose users are still waiting.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolecall.bus.events import Event
from rolecall.bus.process.processes import process_name
from rolecall.bus.steps.answers import answer
from rolecall.bus.wakeups import Wakeups
from rolecall.config import load
from rolecall.errors import ServerUnavailable
from rolecall.frontends.front import Front, Received
from rolecall.session import open_session
from tests.chaos.application import conversation_name, question

FRONT = "chaos"


@dataclass
class Producer:
    """Asks ``turns`` questions in each of ``conversations``, beginning within ``spread`` seconds."""

    front: Front
    results: Path
    conversations: range
    turns: int
    spread: float
    answered: set[tuple[int, int]] = field(default_factory=set)
    again: bool = False

    async def run(self) -> None:
        """Until everything is answered."""
        self._remember()
        async with asyncio.TaskGroup() as group:
            for conversation in self.conversations:
                group.create_task(self._converse(conversation), name=conversation_name(conversation))

    def _remember(self) -> None:
        self.again = self.results.exists()
        lines = self.results.read_text().splitlines() if self.again else []
        for entry in map(json.loads, lines):
            if entry["what"] == "answered":
                self.answered.add((entry["conversation"], entry["number"]))

    async def _converse(self, conversation: int) -> None:
        if not self.again:
            await asyncio.sleep(random.uniform(0, self.spread))
        async with asyncio.TaskGroup() as group:
            for number in range(1, self.turns + 1):
                if (conversation, number) not in self.answered:
                    received = await self._ask(conversation, number)
                    group.create_task(self._listen(conversation, number, received), name=f"{conversation}.{number}")
                    await asyncio.sleep(random.uniform(0, 0.4))

    async def _ask(self, conversation: int, number: int) -> Received:
        key = f"{conversation}.{number}"
        while True:
            try:
                received = await self.front.receive(
                    conversation_name(conversation), question(conversation, number), idempotency=key,
                    meta={"asks": True},
                )  # fmt: skip
            except ServerUnavailable:
                received = None
            if received is not None and received.turn:
                self._write("admitted", conversation, number, turn=received.turn)
                return received
            await asyncio.sleep(random.uniform(0.05, 0.3))

    async def _listen(self, conversation: int, number: int, received: Received) -> None:
        while True:
            try:
                final, streamed = await self._followed(received)
            except ServerUnavailable:
                await asyncio.sleep(0.2)
                continue
            told = {"turn": received.turn, "kind": final.kind, "text": final.text, "streamed": streamed}
            self._write("answered", conversation, number, **told)
            return

    async def _followed(self, received: Received) -> tuple[Event, str]:
        """The final event, and the text streamed before it since the handler last began."""
        streamed = ""
        async for event in self.front.follow(received):
            if event.kind == "started":
                streamed = ""
            elif event.kind == "delta" and event.position == len(streamed):
                streamed += event.text
            elif event.kind == "asked":
                await answer(
                    self.front.bus, received.conversation, event.payload["id"], 0, user=received.conversation
                )  # fmt: skip
            elif event.last:
                return event, streamed
        raise AssertionError("a follow ended without a final event")

    def _write(self, what: str, conversation: int, number: int, **more: Any) -> None:
        line = json.dumps({"what": what, "conversation": conversation, "number": number, "at": time.time(), **more})
        file = os.open(self.results, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{line}\n".encode())  # one write: a kill leaves the line whole or none
        os.close(file)


async def main(directory: Path, results: Path, first: int, beyond: int, turns: int, spread: float) -> None:
    async with open_session(load(directory), process_name(), start=False) as session:
        wakeups = Wakeups(session.server.pubsub())
        listening = asyncio.create_task(wakeups.run(), name="wake-ups")
        front = Front(session.bus, wakeups, FRONT, outbox=True)
        await Producer(front, results, range(first, beyond), turns, spread).run()
        listening.cancel()
        await asyncio.wait([listening])
        await wakeups.aclose()


if __name__ == "__main__":
    app, file, *numbers = sys.argv[1:]
    asyncio.run(main(Path(app), Path(file), *map(int, numbers[:3]), float(numbers[3])))  # type: ignore[call-arg]
