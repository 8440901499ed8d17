"""`rolecall demo --http URL`: simultaneous users of a running HTTP server, each seen to begin and to end."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rich.console import Console

from rolecall.cli.columns import print_lines
from rolecall.cli.demo import HandledTurn, draw, verdict
from rolecall.cli.loop import stop_requested
from rolecall.errors import ConfigError, RolecallError

CONNECT_SECONDS = 10.0
LINE_BYTES = 1 << 20
ENDS = ("done", "failed", "cancelled")
Say = Callable[[str], None]


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
            raise ConfigError(f"--http {self.url}: an address such as http://127.0.0.1:10007 is allowed")
        return parts

    def request(self, question: dict[str, Any]) -> bytes:
        """A question as it is sent. HTTP/1.0, for its answer ends with the connection and is in no chunks."""
        body = json.dumps(question).encode()
        fields = {"Host": self.parts.netloc.rpartition("@")[2], "Content-Type": "application/json"}
        fields |= {"Content-Length": str(len(body)), **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.parts.path.rstrip('/')}/chat/stream HTTP/1.0\r\n{head}\r\n".encode() + body


async def demo(target: Target, users: int, messages: int, console: Console) -> int:
    """Send everything at once and judge what was seen. Raises RolecallError when a request is refused or fails."""
    _ = target.parts
    name, began = secrets.token_hex(4), time.monotonic()
    print_lines(console, [f"{users} users at once to {target.url}{_each(messages)} …"])

    def say(what: str) -> None:
        print_lines(console, [f"{time.monotonic() - began:7.2f} s  {what}"])

    async with stop_requested() as wanted:
        asking = asyncio.create_task(_ask_all(target, users, messages, name, say), name="rolecall demo users")
        stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
        await asyncio.wait([asking, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not asking.done():
            asking.cancel()
            await asyncio.wait([asking])
            return 130
        turns = _turns(asking)
    total = time.monotonic() - began
    print_lines(console, draw(turns, console.width))
    print_lines(console, [f"total {total:.2f} s: {verdict(turns)}"], style="bold")
    return 0


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
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raised = first
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
