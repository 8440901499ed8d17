"""A deployment behind HTTP servers for a whole test module, and the agents that play in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx2

from rolecall import Agent, Context, Envelope, Reject, Retry
from rolecall.agent.role import Role
from tests.deployment import Deployment, deployed


class ManagerAgent(Agent):
    """Sends everything to whom it is for."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via(str(envelope.payload.get("role") or "samplellm"))


class SampleLLMAgent(Agent):
    """Answers with its model, and cannot stand some texts."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "bury me":
            raise Reject("it was asked for")
        return envelope.reply(await ctx.stream(ctx.model, await ctx.memory.history(), envelope.text))


class SlowAgent(Agent):
    """Answers ``3 0.1`` with ``0 1 2 ``, a piece each tenth of a second."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        count, seconds = envelope.text.split()
        pieces = [f"{number} " for number in range(int(count))]
        for piece in pieces:
            await ctx.emit(piece)
            await asyncio.sleep(float(seconds))
        return envelope.reply("".join(pieces))


class GateAgent(Agent):
    """Says ``one `` and goes on with ``two`` when the test opens the gate."""

    gate: ClassVar[asyncio.Event]

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await ctx.emit("one ")
        await self.gate.wait()
        return envelope.reply("one two")


class CountAgent(Agent):
    """Counts until the test opens the gate."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        pieces: list[str] = []
        while not GateAgent.gate.is_set():
            pieces.append(f"{len(pieces)} ")
            await ctx.emit(pieces[-1])
            await asyncio.sleep(0.06)
        return envelope.reply("".join(pieces))


class AskAgent(Agent):
    """Asks which colour."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(str(await ctx.choose("Which colour?", ["red", "green"])))


class TellAgent(Agent):
    """Tells what it was given."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        came = await ctx.memory.history()
        history = [[message.role, message.text[:200]] for message in came]
        images = [len(image) for image in await ctx.images(envelope)]
        given: dict[str, object] = {
            name: envelope.payload.get(name) for name in ("model", "metadata") if name in envelope.payload
        }
        if seen := [len(image) for message in came for image in message.images]:
            given["seen"] = seen
        told: dict[str, object] = {
            "text": envelope.text,
            "history": history,
            "images": images,
            "priority": envelope.priority,
            **given,
        }
        return envelope.reply(json.dumps(told, ensure_ascii=False), remember=False)


class FickleAgent(Agent):
    """Begins with its text, has to begin again, and answers with its text and ``attempt 1``, or with other words."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        words = "Other words" if envelope.attempt and envelope.text == "other" else f"It is {envelope.text}"
        await ctx.emit(words)
        await asyncio.sleep(0.15)  # else the end would overtake what was emitted
        if not envelope.attempt:
            raise Retry(0.05)
        return envelope.reply(f"{words}, attempt {envelope.attempt}")


class LongAgent(Agent):
    """Says more than is stored of an answer: 100 kB."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        lines = [f"{number:09}\n" for number in range(10_000)]
        for first in range(0, len(lines), 1000):
            await ctx.emit("".join(lines[first : first + 1000]))
        await asyncio.sleep(0.15)  # else the end would overtake what was emitted
        return envelope.reply("".join(lines))


ROLES = (
    Role(FickleAgent),
    Role(LongAgent),
    Role(GateAgent, instances=4),
    Role(CountAgent),
    Role(ManagerAgent),
    Role(SampleLLMAgent, instances=4, models=("echo@test",)),
    Role(SlowAgent, instances=8),
    Role(TellAgent),
    Role(AskAgent),
)


@asynccontextmanager
async def stage(directory: Path, **settings: Any) -> AsyncIterator[Deployment]:
    """The agents at work."""
    GateAgent.gate = asyncio.Event()
    options: dict[str, Any] = {"echo_deltas": 4, **settings}
    async with deployed(directory, ROLES, **options) as running:
        yield running


class Events:
    """Reads server-sent events off a response: (id, name, data) each; comments are counted."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()
        self.comments = 0

    async def __aiter__(self) -> AsyncIterator[tuple[str, str, Any]]:
        fields: dict[str, str] = {}
        async for line in self._lines:
            name, _, value = line.partition(":")
            if line.startswith(":"):
                self.comments += 1
            elif line:
                fields[name] = value.removeprefix(" ")
            elif "data" in fields:
                yield fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])
                fields = {}
            else:
                fields = {}
