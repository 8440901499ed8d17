"""For tests of one's own agents: a whole turn through the real bus scripts, without a server.

``run_turn`` runs on fakeredis (extra ``testing``); what blocks on a server is left out, everything else is the real
thing: admission, routing, settling, history, preferences.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from rolecall.bus import Bus
from rolecall.config import Config, Role
from rolecall.envelope import Envelope
from rolecall.errors import MissingExtra, RolecallError
from rolecall.memory import Memory, Remembered
from rolecall.models.model import Delta, Done, Model, ModelEvent, Request, Usage
from rolecall.redis_client import Arg
from rolecall.roster import Roster
from rolecall.scripts import all_scripts, script
from rolecall.settings import Settings
from rolecall.upkeep import promote

MAX_STEPS = 200


class FakeModel:
    """A model that answers with ``answers`` in turn, the last one again and again; ``requests`` holds what it was
    asked. An answer that is an exception is raised."""

    def __init__(self, *answers: str | Exception, name: str = "fake@test") -> None:
        self.name = name
        self.answers = answers or ("fake answer",)
        self.requests: list[Request] = []

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """Answer word by word."""
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        for number, word in enumerate(answer.split(" ")):
            yield Delta(word if number == 0 else f" {word}")
        yield Usage(sum(len(message.text.split()) for message in request.messages), len(answer.split()))
        yield Done("stop")

    async def aclose(self) -> None:
        """Nothing to close."""


class FakeServer:
    """A server in memory, for what does not block."""

    def __init__(self) -> None:
        try:
            from fakeredis import FakeAsyncRedis
        except ImportError:
            raise MissingExtra("testing", "run_turn") from None
        self._client = FakeAsyncRedis(decode_responses=False, protocol=2)
        self._client.response_callbacks.clear()

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        """See Server.send."""
        return asyncio.ensure_future(self.call(*args))

    async def call(self, *args: Arg) -> Any:
        """See Server.call."""
        if args[0] == "EVALSHA":
            args = ("EVAL", next(s.body for s in all_scripts() if s.sha == args[1]), *args[2:])
        return await self._client.execute_command(*args)  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def fetch(self, *args: Arg) -> Any:
        """See Server.fetch."""
        return await self.call(*args)

    async def run(self, name: str, keys: Sequence[Arg], args: Sequence[Arg]) -> Any:
        """See Server.run."""
        return await self.call("EVAL", script(name).body, len(keys), *keys, *args)

    async def aclose(self) -> None:
        """Forget everything."""
        await self._client.aclose()


@dataclass(frozen=True)
class Turn:
    """What became of a turn: its answer, the roles it passed in order, and what is remembered afterwards."""

    kind: str
    text: str
    payload: Mapping[str, Any]
    trace: tuple[str, ...]
    preferences: Mapping[str, str] = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()


async def run_turn(
    roles: Sequence[Role] | Config,
    text: str,
    *,
    model: Model | None = None,
    conversation: str = "test:1",
    preferences: Mapping[str, str] | None = None,
    history: Sequence[tuple[str, str]] = (),
    payload: Mapping[str, Any] | None = None,
    control: bool = False,
) -> Turn:
    """Send ``text`` through ``roles`` until it is answered.

    Every role that has models gets ``model`` (a FakeModel by default). ``preferences`` and ``history`` (pairs of
    "user" or "assistant" and a text) are what the conversation remembers beforehand; ``payload`` joins the text's.
    Raises RolecallError when no role answers within 200 steps.
    """
    roles = tuple(roles.roles if isinstance(roles, Config) else roles)
    server = FakeServer()
    bus = Bus(server, Settings(), "test:1~fake")
    try:
        await bus.prepare()
        await _remember(bus, conversation, preferences or {}, history)
        envelope = Envelope(conversation=conversation, payload={**(payload or {}), "text": text})
        turn = (await bus.admit(envelope, control=control, instance="test:test:1:0")).turn
        trace = await _until_answered(bus, roles, model or FakeModel(), conversation, turn)
        return await _outcome(bus, conversation, turn, trace)
    finally:
        await server.aclose()


async def _until_answered(
    bus: Bus, roles: Sequence[Role], model: Model, conversation: str, turn: str
) -> tuple[str, ...]:
    roster = Roster(bus, lambda role: model, {model.name: model})
    roster.deploy(roles, roles)
    for role in roles:
        roster.set_count(role.name, 1)
    trace: list[str] = []
    for _step in range(MAX_STEPS):
        if (await bus.snapshot(conversation, turn)).final is not None:
            return tuple(trace)
        taken = await bus.take(bus.shards[0], roster.demands())
        for delivery in taken:
            trace.append(delivery.role)
            if instance := roster.pick(delivery.role):
                instance.occupy(delivery)
                await instance.handle()
        if not taken:
            await _wake_deferred(bus, conversation)
    raise RolecallError(f"no answer after {MAX_STEPS} steps; the turn went {' → '.join(trace[:10])} …")


async def _wake_deferred(bus: Bus, conversation: str) -> None:
    await promote(bus, bus.shards[0], conversation, early=True)


async def _remember(
    bus: Bus, conversation: str, preferences: Mapping[str, str], history: Sequence[tuple[str, str]]
) -> None:
    shard, turn = bus.shard(conversation), count(1)
    for name, value in preferences.items():
        await bus.server.call("HSET", shard.preferences(conversation), name, value)
    for role, text in history:
        entry = Remembered("user" if role == "user" else "assistant", text, f"p{next(turn)}")
        await bus.server.call("RPUSH", shard.history(conversation), msgspec.json.encode(entry))


async def _outcome(bus: Bus, conversation: str, turn: str, trace: tuple[str, ...]) -> Turn:
    final = (await bus.snapshot(conversation, turn)).final or {}
    memory = Memory(bus.server, bus.shard(conversation), conversation)
    entries = tuple((entry.role, entry.text) for entry in await memory.entries())
    return Turn(final["kind"], final.get("text", ""), final, trace, await memory.preferences(), entries)
