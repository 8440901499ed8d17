"""Front ends: a class with a name and three methods connects another chat system."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.conversation import notify
from rolecall.bus.outbox import OutboxEntry
from rolecall.frontends.front import Front
from rolecall.frontends.front_ends import serve
from tests.deployment import deployed
from tests.waiting import wait_until


class ManagerAgent(Agent):
    """Echoes."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(f"echo: {envelope.text}")


class PigeonFrontEnd:
    """Receives from a queue of letters, and delivers by writing to a list."""

    name = "pigeon"
    letters: ClassVar[asyncio.Queue[tuple[str, str, str] | None]]
    delivered: ClassVar[list[tuple[str, str]]]

    def __init__(self, front: Front) -> None:
        self.front = front

    async def run(self) -> None:
        while (letter := await self.letters.get()) is not None:
            number, loft, text = letter
            await self.front.receive(f"pigeon:{loft}", text, idempotency=number)

    async def deliver(self, entry: OutboxEntry) -> None:
        self.delivered.append((entry.conversation, (entry.payload or {})["text"]))

    async def drain(self) -> None:
        self.letters.put_nowait(None)


async def test_messages_go_in_and_answers_come_out_once_each_in_order(tmp_path: Path) -> None:
    PigeonFrontEnd.letters, PigeonFrontEnd.delivered = asyncio.Queue(), []
    async with deployed(tmp_path, (Role(ManagerAgent, instances=2),)) as app:
        running = asyncio.create_task(serve(PigeonFrontEnd, "pigeon", app.session, app.runtime.wakeups))
        for number, text in (("1", "coo"), ("2", "fly"), ("1", "coo")):  # the first letter comes twice
            PigeonFrontEnd.letters.put_nowait((number, "north", text))

        wanted = [("pigeon:north", "echo: coo"), ("pigeon:north", "echo: fly")]
        await wait_until(lambda: PigeonFrontEnd.delivered == wanted)
        running.cancel()
        await asyncio.wait([running])


async def test_an_answer_waits_until_a_process_delivers_it(tmp_path: Path) -> None:
    PigeonFrontEnd.letters, PigeonFrontEnd.delivered = asyncio.Queue(), []
    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        # Nobody delivers for this front end yet.
        await notify(app.session.bus, "pigeon:north", "The hawk is gone.")

        running = asyncio.create_task(serve(PigeonFrontEnd, "pigeon", app.session, app.runtime.wakeups))
        await wait_until(lambda: PigeonFrontEnd.delivered == [("pigeon:north", "The hawk is gone.")])
        running.cancel()
        await asyncio.wait([running])
