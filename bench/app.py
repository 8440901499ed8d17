"""The deployments that are measured, made in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.config import Application
from rolecall.models import Delta, Done, ModelEvent, Request
from rolecall.settings import Settings

HOPS = 40
"""Deliveries of one turn of the plain run: so many that its beginning and its end do not count."""
WAIT_SECONDS = 0.1
FILLER = "x" * 800
"""Makes an envelope about 1 kB of JSON."""


class ManagerAgent(Agent):
    """Where every turn begins: sends it on along the role its payload names, or answers at once."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if "to" not in envelope.payload:
            return envelope.reply("done")
        return envelope.via(envelope.payload["to"])


class PingAgent(Agent):
    """One end of the plain run."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("done") if envelope.hops >= HOPS else envelope.via("pong")


class PongAgent(Agent):
    """The other end of the plain run."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("done") if envelope.hops >= HOPS else envelope.via("ping")


class SampleLLMAgent(Agent):
    """Answers with its model, as the assistant's agent of this name does."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        history = await ctx.memory.history()
        return envelope.reply(await ctx.stream(ctx.model, history, envelope.text))


class WaitAgent(Agent):
    """Works for a tenth of a second without needing the processor."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await asyncio.sleep(WAIT_SECONDS)
        return envelope.reply("done")


class ClockModel:
    """Answers in two pieces, of which the first is when it came, in seconds of this machine's monotonic clock."""

    name = "clock@bench"

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """See Model.stream."""
        yield Delta(repr(time.monotonic()))
        await asyncio.sleep(0.02)
        yield Delta(" it was")
        yield Done("stop")

    async def aclose(self) -> None:
        """Nothing to close."""


class ClockAgent(Agent):
    """Answers with the model that tells the time."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.stream(ClockModel(), (), envelope.text))


def application(roles: Iterable[Role], shards: int = 1) -> Application:
    """A deployment of ``roles``."""
    return Application(Path.cwd(), tuple(roles), settings(shards), {})


def settings(shards: int = 1) -> Settings:
    """The settings as they come, but for the hops of the plain run and the numbers of turns that wait."""
    return Settings(shards=shards, hop_limit=100, in_flight_limit=1_000_000, mailbox_limit=1000)
