"""`rolecall demo`: simultaneous users through the real bus, drawn as bars: who waited, and who was handled by whom."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rolecall.agent import Agent, Context
from rolecall.cli.columns import columns, print_lines
from rolecall.cli.loop import stop_requested
from rolecall.cli.process_log import log_to_stderr
from rolecall.config import Application, Role
from rolecall.envelope import Envelope
from rolecall.errors import RolecallError
from rolecall.follow import Event
from rolecall.frontends.front import Front, Received
from rolecall.runtime import Runtime, process_name
from rolecall.session import open_session
from rolecall.settings import Settings

WAITING, HANDLING = "░", "█"
LEAST_COLUMNS = 12
TURN_SECONDS = 86_400


class DemoManagerAgent(Agent):
    """Sends everything to the model's role."""

    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """On to samplellm."""
        return envelope.via("samplellm")


class SampleLLMAgent(Agent):
    """Answers with a model that takes its time."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """The model's answer."""
        return envelope.reply(await ctx.stream(ctx.model, (), envelope.text))


@dataclass(frozen=True)
class Load:
    """What the demo puts on the bus: ``users`` who each send ``messages`` at once; an answer takes ``delay`` s."""

    users: int
    messages: int
    instances: int
    delay: float

    @property
    def ideal(self) -> float:
        """Seconds it takes if no instance ever idles; a user's own messages are answered one after the other."""
        return max(math.ceil(self.users * self.messages / self.instances), self.messages) * self.delay


@dataclass(frozen=True)
class HandledTurn:
    """One turn by the server's clock, in ms: accepted, handled from ``started`` to ``ended`` by ``instance``."""

    name: str
    instance: str
    accepted: int
    started: int
    ended: int


async def demo(load: Load, console: Console) -> int:
    """Run it on a server and in a directory of its own, both removed afterwards, and judge what was seen."""
    settings = _settings(load)
    log_to_stderr(settings.model_copy(update={"log_level": "WARNING"}))
    with tempfile.TemporaryDirectory(prefix="rolecall-demo-") as directory:
        async with stop_requested() as wanted, _deployed(Path(directory), load, settings) as front:
            print_lines(console, [_plan(load)])
            sending = asyncio.create_task(_send_all(front, load), name="rolecall demo users")
            stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
            await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
                return 130
            wall, turns = sending.result()
    print_lines(console, draw(turns, console.width))
    print_lines(console, [f"wall {wall:.2f} s, ideal {load.ideal:.2f} s: {verdict(turns)}"], style="bold")
    return 0


def draw(turns: Sequence[HandledTurn], width: int) -> list[str]:
    """A bar per turn over a common time axis, ``width`` columns in all, in the order in which they were handled."""
    begin, end = min(turn.accepted for turn in turns), max(turn.ended for turn in turns)
    ordered = sorted(turns, key=lambda turn: (turn.started, turn.ended))
    labels = columns([(turn.name, turn.instance, "") for turn in ordered])
    figures = [f"waited {_seconds(t.started - t.accepted)}, handled {_seconds(t.ended - t.started)}" for t in ordered]
    room = max(LEAST_COLUMNS, width - max(map(len, labels)) - max(map(len, figures)) - 4)
    scale = room / max(1, end - begin)
    names = max(map(len, labels))
    lines = [
        f"{label.ljust(names)}  {_bar(turn, begin, scale).ljust(room)}  {figure}"
        for turn, label, figure in zip(ordered, labels, figures, strict=True)
    ]
    return [*lines, f"{WAITING} waiting  {HANDLING} handling, over {_seconds(end - begin)}"]


def verdict(turns: Sequence[HandledTurn]) -> str:
    """CONCURRENT if at some moment two turns were being handled, else SEQUENTIAL."""
    changes = sorted([(turn.started, 1) for turn in turns] + [(turn.ended, -1) for turn in turns])
    at_once = most = 0
    for _, change in changes:
        at_once += change
        most = max(most, at_once)
    return "CONCURRENT" if most >= 2 else "SEQUENTIAL"


def _settings(load: Load) -> Settings:
    patient = max(120.0, 2 * load.delay)
    return Settings(
        echo_delay=load.delay,
        assistant_timeout=patient,
        handling_seconds=max(900.0, patient),
        turn_seconds=TURN_SECONDS,
        mailbox_limit=max(8, load.messages),
        user_limit=max(32, load.messages),
        user_soft_limit=max(4, load.messages),
        total_instances=load.instances + 1,
        drain_seconds=0.5,
    )


def _plan(load: Load) -> str:
    each = "" if load.messages == 1 else f", {load.messages} messages each"
    return f"{load.users} users at once{each}, {load.instances} instances, {load.delay:g} s an answer …"


@asynccontextmanager
async def _deployed(directory: Path, load: Load, settings: Settings) -> AsyncIterator[Front]:
    """The way in to a deployment at work in ``directory``; on leaving it drains and its server ends."""
    roles = (Role(DemoManagerAgent), Role(SampleLLMAgent, load.instances, models=("echo@test",)))
    application, process = Application(directory, roles, settings, {}), process_name()
    async with open_session(application, process, start=True) as session, asyncio.TaskGroup() as group:
        runtime = Runtime(application, session.server, process)
        group.create_task(runtime.run(), name="rolecall demo")
        await runtime.ready()
        try:
            yield Front(session.bus, runtime.wakeups, "demo")
        finally:
            await runtime.stop()


async def _send_all(front: Front, load: Load) -> tuple[float, list[HandledTurn]]:
    """All turns as they were handled, and the seconds from the first one sent to the last one answered."""
    began = time.monotonic()
    turns = await asyncio.gather(*(_send(front, load, user) for user in range(1, load.users + 1)))
    return time.monotonic() - began, [turn for own in turns for turn in own]


async def _send(front: Front, load: Load, user: int) -> list[HandledTurn]:
    sent = [await front.receive(f"demo:{user}", f"message {n}") for n in range(1, load.messages + 1)]
    follows = [_watch(front, received, _name(load, user, n)) for n, received in enumerate(sent, 1)]
    return list(await asyncio.gather(*follows))


def _name(load: Load, user: int, message: int) -> str:
    return f"user {user}" if load.messages == 1 else f"user {user}, {message}"


async def _watch(front: Front, received: Received, name: str) -> HandledTurn:
    if received.refused:
        raise RolecallError(f"{name} was refused: {received.reply}")
    events = [event async for event in front.follow(received)]
    if events[-1].kind != "final":
        raise RolecallError(f"{name} got no answer: {events[-1].text}")
    started = [event for event in events if event.kind == "started" and event.role == SampleLLMAgent.role][-1]
    return HandledTurn(name, started.instance, _ms(events[0]), _ms(started), _ms(events[-1]))


def _ms(event: Event) -> int:
    return int(event.id.partition("-")[0])


def _bar(turn: HandledTurn, begin: int, scale: float) -> str:
    accepted, started, ended = (round((ms - begin) * scale) for ms in (turn.accepted, turn.started, turn.ended))
    return " " * accepted + WAITING * (started - accepted) + HANDLING * max(1, ended - started)


def _seconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s"
