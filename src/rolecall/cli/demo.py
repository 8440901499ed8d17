"""`rolecall demo`: simultaneous users through the real bus, drawn as bars: who waited, and who was handled by whom."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rich.console import Console

from rolecall.agent.agent import Agent
from rolecall.agent.context import Context
from rolecall.agent.role import Role
from rolecall.bus.envelope import Envelope
from rolecall.bus.events import Event
from rolecall.bus.process.processes import process_name
from rolecall.cli import STOPPED
from rolecall.cli.output import columns, print_lines
from rolecall.cli.runner import stop_requested
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.config import Application
from rolecall.errors import ConfigError, RolecallError, cause_of
from rolecall.frontends.front import Front, Received
from rolecall.session import open_session
from rolecall.settings import Settings
from rolecall.worker.runtime import Runtime

WAITING, HANDLING = "░", "█"
LEAST_COLUMNS = 12
OVERLAPPING_MS = 100
"""Answers that take less may follow each other only because their questions do."""
TURN_SECONDS = 86_400
CONNECT_SECONDS = 10.0
LINE_BYTES = 1 << 20
ENDS = ("done", "failed", "cancelled")
Say = Callable[[str], None]


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
        async with stop_requested(status=STOPPED) as wanted, _deployed(Path(directory), load, settings) as front:
            print_lines(console, [_plan(load)])
            sending = asyncio.create_task(_send_all(front, load), name="rolecall demo users")
            stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
            await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
                return STOPPED
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
    return f"{load.users} users at once{_each(load.messages)}, {load.instances} instances, {load.delay:g} s an answer …"


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
    follows = [_watch(front, received, _label(user, n, load.messages)) for n, received in enumerate(sent, 1)]
    return list(await asyncio.gather(*follows))


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


@dataclass(frozen=True)
class Target:
    """The server that is asked, with what key, and which role is to answer: the manager decides when it is empty."""

    url: str
    key: str = ""
    role: str = ""

    @property
    def parts(self) -> SplitResult:
        """The address, taken apart. Raises ConfigError for what is none."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--http {self.url} is invalid: expected an address such as http://127.0.0.1:10007")
        return parts

    def request(self, question: dict[str, Any]) -> bytes:
        """A question as it is sent. HTTP/1.0, for its answer ends with the connection and is in no chunks."""
        body = json.dumps(question).encode()
        fields = {"Host": self.parts.netloc.rpartition("@")[2], "Content-Type": "application/json"}
        fields |= {"Content-Length": str(len(body)), **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.parts.path.rstrip('/')}/chat/stream HTTP/1.0\r\n{head}\r\n".encode() + body


async def demo_http(target: Target, users: int, messages: int, console: Console) -> int:
    """Send everything at once and judge what was seen. Raises RolecallError when a request is refused or fails."""
    _ = target.parts
    name, began = secrets.token_hex(4), time.monotonic()
    print_lines(console, [f"{users} users at once to {target.url}{_each(messages)} …"])

    def say(what: str) -> None:
        print_lines(console, [f"{time.monotonic() - began:7.2f} s  {what}"])

    async with stop_requested(status=STOPPED) as wanted:
        asking = asyncio.create_task(_ask_all(target, users, messages, name, say), name="rolecall demo users")
        stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
        await asyncio.wait([asking, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not asking.done():
            asking.cancel()
            await asyncio.wait([asking])
            return STOPPED
        turns = _turns(asking)
    total = time.monotonic() - began
    print_lines(console, draw(turns, console.width))
    print_lines(console, [f"total {total:.2f} s: {verdict(turns)}{reservation(turns, users)}"], style="bold")
    return 0


def reservation(turns: Sequence[HandledTurn], users: int) -> str:
    """Why ``SEQUENTIAL`` says little about the server, if it does."""
    brief = max(turn.ended - turn.started for turn in turns) < OVERLAPPING_MS
    return "; the answers were too quick to overlap" if brief and users > 1 and verdict(turns) == "SEQUENTIAL" else ""


async def _ask_all(target: Target, users: int, messages: int, name: str, say: Say) -> list[HandledTurn]:
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(_ask(target, f"demo-{name}-{user}", _label(user, number, messages), say))
            for user in range(1, users + 1)
            for number in range(1, messages + 1)
        ]
    return [task.result() for task in asked]


def _turns(asking: asyncio.Task[list[HandledTurn]]) -> list[HandledTurn]:
    try:
        return asking.result()
    except* RolecallError as group:
        raised = cause_of(group)
    raise raised


async def _ask(target: Target, conversation: str, label: str, say: Say) -> HandledTurn:
    question = {"text": f"Hello, this is {label}.", "conversation_id": conversation, "role": target.role}
    say(f"{label} starts")
    began, started, instance, accepted = time.monotonic(), 0, "", 0
    async for event_id, name, data in _events(target, question, label):
        at = int(event_id.partition("-")[0] or 0)
        accepted = accepted or at
        if name == "started":
            started, instance = at, str(data["instance"])
        elif name in ENDS:
            if name != "done":
                raise RolecallError(f"{label} got no answer: {(data['error'] or {}).get('text') or name}")
            say(f"{label} finishes after {time.monotonic() - began:.2f} s")
            return HandledTurn(label, instance, accepted, started, at)
    raise RolecallError(f"{label}: the stream ended before the answer")


async def _events(target: Target, question: dict[str, Any], label: str) -> AsyncIterator[tuple[str, str, Any]]:
    reader, writer = await _connected(target)
    try:
        writer.write(target.request(question))
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        if status != 200:
            raise RolecallError(f"{label} was refused: {_detail(await reader.read(LINE_BYTES), status)}")
        fields: dict[str, str] = {}
        async for raw in reader:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            fields[name] = value
            if not name and "data" in fields:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
                fields = {}
    except (OSError, ValueError, IndexError) as error:
        raise RolecallError(f"{label}: {target.url} does not answer as expected: {error}") from None
    finally:
        writer.close()


async def _connected(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = target.parts
    secure = parts.scheme == "https"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            port = parts.port or (443 if secure else 80)
            return await asyncio.open_connection(parts.hostname, port, ssl=secure or None, limit=LINE_BYTES)
    except (OSError, TimeoutError) as error:
        raise RolecallError(
            f"no server answers at {target.url}: {error or 'no answer in time'}; `rolecall up` starts one"
        ) from None


def _detail(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


def _label(user: int, number: int, messages: int) -> str:
    return f"user {user}" if messages == 1 else f"user {user}, {number}"


def _each(messages: int) -> str:
    return "" if messages == 1 else f", {messages} messages each"
