"""Test your agents: a whole turn through the real bus scripts, without a server.

``run_turn`` runs on fakeredis (extra ``testing``). Nothing blocks on a server; everything else is real: admission,
routing, settling, history, preferences.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from rolecall.agent.agent_services import AgentServices
from rolecall.agent.memory import Memory
from rolecall.agent.prompts import PLACE, Prompts, load_prompts
from rolecall.agent.role import Role, role_infos
from rolecall.agent.tools import Offer, Tool, Toolbox
from rolecall.bus.admission import CONTROL_ROLE, admit
from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import HistoryEntry
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.envelope import Envelope, check_conversation
from rolecall.bus.events import progress
from rolecall.bus.leases import take
from rolecall.bus.maintenance import promote
from rolecall.bus.steps.answers import answer
from rolecall.bus.turn import FIRST_ROLE, parted, snapshot
from rolecall.config import Config
from rolecall.errors import ConfigError, MissingExtra, RolecallError, expect
from rolecall.models.model import Delta, Done, Model, ModelEvent, Request, ToolCall, Usage
from rolecall.redis.outage import translated
from rolecall.redis.scripts import Arg, Block, Script
from rolecall.redis.server import pairs
from rolecall.settings import Settings
from rolecall.worker.roster import Roster

MAX_STEPS = 200


class FakeModel:
    """A model that answers with ``answers`` in turn and repeats the last one; ``requests`` holds what it was asked. An
    answer that is an exception is raised; one that is a ``tool_call``, or a tuple of tool calls and texts, calls
    tools."""

    def __init__(
        self, *answers: str | Exception | ToolCall | tuple[str | ToolCall, ...], name: str = "fake@test"
    ) -> None:
        for one in answers:
            parts = one if isinstance(one, tuple) else (one,)
            fits = isinstance(one, Exception) or all(isinstance(part, str | ToolCall) for part in parts)
            expect(fits, "an answer of FakeModel", one, "a text, an exception or a tool_call(…)")
        self.name = name
        self.answers = answers or ("fake answer",)
        self.requests: list[Request] = []

    async def stream(self, request: Request) -> AsyncIterator[ModelEvent]:
        """Answer word by word."""
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        parts = answer if isinstance(answer, tuple) else (answer,)
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [part for part in parts if isinstance(part, ToolCall)]
        for number, word in enumerate(text.split(" ") if text else ()):
            yield Delta(word if number == 0 else f" {word}")
        for call in calls:
            yield call
        yield Usage(sum(len(message.text.split()) for message in request.messages), len(text.split()))
        yield Done("tool_calls" if calls else "stop")

    async def aclose(self) -> None:
        """Nothing to close."""


def tool_call(name: str, /, **arguments: Any) -> ToolCall:
    """What a FakeModel answers to have the tool ``name`` run with ``arguments``."""
    return ToolCall(f"call_{secrets.token_hex(4)}", name, msgspec.json.encode(arguments).decode())


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
        with translated():
            return await self._client.execute_command(*args)  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def fetch(self, *args: Arg) -> Any:
        """See Server.fetch."""
        return await self.call(*args)

    def start(self, script: Script, /, *blocks: Block, **values: Any) -> asyncio.Future[Any]:
        """See Server.start."""
        return self.send("EVAL", script.body, *script.arguments(blocks, values))

    async def run(self, script: Script, /, *blocks: Block, **values: Any) -> Any:
        """See Server.run."""
        return await self.start(script, *blocks, **values)

    async def aclose(self) -> None:
        """Forget everything."""
        await self._client.aclose()


@dataclass(frozen=True)
class Turn:
    """The outcome of a turn: its answer, the roles that handled it in order (``trace``), and what is remembered
    afterwards. ``reason`` is why a turn was given up, as operators read it."""

    kind: str
    text: str
    payload: Mapping[str, Any]
    trace: tuple[str, ...]
    preferences: Mapping[str, str] = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()
    reason: str = ""


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
    prompts: Prompts | None = None,
    tools: Mapping[str, Sequence[Offer]] | None = None,
    images: Sequence[bytes] = (),
    documents: Mapping[str, str] | None = None,
    answers: Sequence[int | str | bool] = (),
) -> Turn:
    """Send ``text`` through ``roles`` until it is answered.

    Every role that has models gets ``model`` (a FakeModel by default). ``preferences`` and ``history`` (pairs of "user"
    or "assistant" and a text) are what the conversation already remembers; ``payload`` goes with the text; ``tools``
    are functions in place of the tool servers, by the server's name. ``prompts`` replace those of the application,
    which are in agents/prompts next to or above the roles' modules; ``images`` and ``documents`` (texts by name) come
    with the text. ``control`` sends it as a command such as ``/help``, which runs outside the conversation's order.
    Raises RolecallError when no role answers within 200 steps.

    Nothing waits for ``ctx.sleep``, and calls between roles run like everything else. ``answers`` are what the user
    answers to ``ctx.confirm`` and ``ctx.choose``, one after the other: True or False, an option or its number. When
    they are used up, a question times out and its default counts.
    """
    roles = (roles if isinstance(roles, Config) else Config(roles=tuple(roles))).roles
    first = CONTROL_ROLE if control else FIRST_ROLE
    if first not in {role.name for role in roles}:
        raise ConfigError(f"there is no role {first!r} among the roles of run_turn: the turn begins there")
    expect(isinstance(text, str), "text", text)
    expect(model is None or hasattr(model, "name"), "model", model, "a model, such as FakeModel()")
    check_conversation(conversation)
    server = FakeServer()
    bus = Bus(server, Settings(), "test:1~fake")
    try:
        await bus.prepare()
        await _remember(bus, conversation, preferences or {}, history)
        attached = await _attached(bus, conversation, images, documents or {})
        envelope = Envelope(
            conversation=conversation, payload={**attached, **(payload or {}), "text": text}, meta={"asks": True}
        )
        turn = (await admit(bus, envelope, control=control, instance="test:test:1:0")).turn
        roster = _roster(bus, roles, model or FakeModel(), tools or {}, prompts)
        trace = await _until_answered(bus, roster, conversation, turn, deque(answers))
        return await _outcome(bus, conversation, turn, trace)
    finally:
        await server.aclose()


def _roster(
    bus: Bus,
    roles: Sequence[Role],
    model: Model,
    tools: Mapping[str, Sequence[Offer]],
    prompts: Prompts | None,
) -> Roster:
    async def tools_of(server: str) -> Sequence[Tool]:
        if server not in tools:
            known = ", ".join(tools) or "none"
            raise ConfigError(f"there is no tool server {server!r} in tools= of run_turn; there are: {known}")
        return tuple(Toolbox(tools[server]).tools.values())

    services = AgentServices(
        bus,
        roles=role_infos(roles),
        models={model.name: model},
        role_models={role.name: model for role in roles},
        prompts=prompts or _prompts_above(roles),
        tools=tools_of,
    )
    roster = Roster(services)
    roster.deploy(roles, services)
    for role in roles:
        roster.set_count(role.name, 1)
    return roster


def _prompts_above(roles: Sequence[Role]) -> Prompts:
    """Those in the first agents/prompts of a directory above the module of one of the roles."""
    files = [getattr(sys.modules.get(role.agent.__module__), "__file__", None) for role in roles]
    places = [parent / PLACE for file in files if file for parent in Path(file).absolute().parents]
    return load_prompts(next((place for place in places if place.is_dir()), Path(PLACE)))


async def _until_answered(
    bus: Bus, roster: Roster, conversation: str, turn: str, answers: deque[int | str | bool]
) -> tuple[str, ...]:
    trace: list[str] = []
    for _step in range(MAX_STEPS):
        if (await snapshot(bus, conversation, turn)).final is not None:
            return tuple(trace)
        taken = await take(bus, bus.shards[0], roster.demands())
        for delivery in taken:
            trace.append(delivery.role)
            if instance := roster.pick(delivery.role):
                instance.occupy(delivery)
                await instance.handle()
        if not taken and not (answers and await _answer_next(bus, conversation, turn, answers)):
            await _wake_next(bus, conversation, turn)
    raise RolecallError(f"no answer after {MAX_STEPS} steps; the turn went {' → '.join(trace[:10])} …")


async def _answer_next(bus: Bus, conversation: str, turn: str, answers: deque[int | str | bool]) -> bool:
    """Answer the oldest open question of ``turn``; False if there is none. Raises RolecallError for an answer that it
    does not offer."""
    asked = next(iter((await progress(bus, conversation, turn)).questions.values()), None)
    if asked is None:
        return False
    said, options = answers.popleft(), asked["options"]
    number = (0 if said else 1) if isinstance(said, bool) else options.index(said) if said in options else said
    if not isinstance(number, int) or await answer(bus, conversation, asked["id"], number) != "OK":
        raise RolecallError(f"{said!r} is no answer to {asked['text']!r}: expected one of {', '.join(options)}")
    return True


async def _wake_next(bus: Bus, conversation: str, turn: str) -> None:
    """Let the time come for which a turn or a call sleeps, the earliest first. Raises RolecallError when none does."""
    shard = bus.shards[0]
    sleeping = pairs(await bus.server.call("ZRANGE", shard.deferred, 0, -1, "WITHSCORES"))
    member = next((member.decode() for member, due in sleeping if float(due) < float("inf")), None)
    if member is None:
        waits = await bus.server.call("HGET", shard.journal(conversation), "defer:t") or b"nothing"
        raise RolecallError(f"turn {turn} has no answer and waits for {waits.decode()}")
    await promote(bus, shard, *parted(member), as_if_due=True)


async def _remember(
    bus: Bus, conversation: str, preferences: Mapping[str, str], history: Sequence[tuple[str, str]]
) -> None:
    shard, turn = bus.shard(conversation), count(1)
    for name, value in preferences.items():
        expect(isinstance(value, str), f"preference {name}", value)
        await bus.server.call("HSET", shard.preferences(conversation), name, value)
    for pair in history:
        fits = isinstance(pair, tuple | list) and len(pair) == 2 and pair[0] in ("user", "assistant")
        expect(fits, "an entry of history", pair, "a pair such as ('user', 'Hello')")
        role, text = pair
        entry = HistoryEntry("user" if role == "user" else "assistant", text, f"p{next(turn)}")
        await bus.server.call("RPUSH", shard.history(conversation), msgspec.json.encode(entry))


async def _attached(
    bus: Bus, conversation: str, images: Sequence[bytes], documents: Mapping[str, str]
) -> dict[str, Any]:
    blobs = Blobs(bus)
    for image in images:
        expect(isinstance(image, bytes), "an image", image, "the bytes of an image file")
    for name, content in documents.items():
        expect(isinstance(content, str), f"the document {name}", content)
    files = [
        {"blob": await blobs.put(conversation, text.encode(), "text/plain"), "name": name, "type": "text/plain"}
        for name, text in documents.items()
    ]
    shown = [await blobs.put(conversation, image, "image/png") for image in images]
    return {**({"images": shown} if shown else {}), **({"files": files} if files else {})}


async def _outcome(bus: Bus, conversation: str, turn: str, trace: tuple[str, ...]) -> Turn:
    final = (await snapshot(bus, conversation, turn)).final or {}
    memory = Memory(bus, conversation)
    entries = tuple((entry.role, entry.text) for entry in await memory.entries())
    reason = next((letter.reason for letter in await dead_letters(bus) if letter.turn == turn), "")
    return Turn(final["kind"], final.get("text", ""), final, trace, await memory.preferences(), entries, reason)
