"""Models: a role's models are its fallback order, a turn waits for a model that is away, and you can add a provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import rolecall
from rolecall import Agent, Config, Context, Envelope, Role
from rolecall.errors import ModelUnavailable
from rolecall.models import Delta, Done, ModelEvent, Request, Usage
from rolecall.settings import Settings


class ManagerAgent(Agent):
    """Answers with this role's model."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.stream(ctx.model, await ctx.memory.history(), envelope.text))


class AcmeModel:
    """A provider of the application's own: it answers in capitals, unless it is away."""

    away: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def open(cls, model: str, settings: Settings, state_dir: Path) -> AcmeModel:
        return cls(f"{model}@acme")

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        if self.away:
            raise ModelUnavailable(f"{self.name}: no connection")
        yield Delta(request.messages[-1].text.upper())
        yield Usage(1, 1)
        yield Done("stop")

    async def aclose(self) -> None:
        """Nothing to close."""


PROVIDERS = {"acme": AcmeModel}


async def test_a_model_is_name_at_provider_and_an_application_can_add_a_provider(tmp_path: Path) -> None:
    config = Config(roles=(Role(ManagerAgent, models=("big@acme",)),), providers=PROVIDERS)
    async with rolecall.run(config, app=tmp_path) as assistant:
        reply = await assistant.ask("hello")

        assert (reply.text, reply.model) == ("HELLO", "big@acme")


async def test_the_next_model_answers_when_the_first_is_away(tmp_path: Path) -> None:
    AcmeModel.away = True
    config = Config(roles=(Role(ManagerAgent, models=("big@acme", "echo@test")),), providers=PROVIDERS)
    try:
        async with rolecall.run(config, app=tmp_path) as assistant:
            reply = await assistant.ask("hello")

            assert (reply.text, reply.model) == ("echo: hello", "echo@test")
    finally:
        AcmeModel.away = False


async def test_a_turn_waits_for_a_model_that_is_away_and_is_answered_when_it_is_back(tmp_path: Path) -> None:
    AcmeModel.away = True
    config = Config(roles=(Role(ManagerAgent, models=("big@acme",)),), providers=PROVIDERS, probe_seconds=0.2)
    try:
        async with rolecall.run(config, app=tmp_path) as assistant:
            reply = None
            async for event in assistant.stream("hello"):
                if event.kind == "queued" and event.text:  # the turn sleeps, without an instance
                    AcmeModel.away = False
                if event.last:
                    reply = event

            assert reply is not None and reply.text == "HELLO"
    finally:
        AcmeModel.away = False


async def test_a_message_can_choose_its_model(tmp_path: Path) -> None:
    config = Config(roles=(Role(ManagerAgent, models=("big@acme", "echo@test")),), providers=PROVIDERS)
    async with rolecall.run(config, app=tmp_path) as assistant:
        assert (await assistant.ask("hello", model="echo@test")).text == "echo: hello"
