"""A local Telegram: an HTTP server on loopback that speaks the Bot API with its rules, and people who write to the bot.

    async with TelegramApi() as api:
        bot = Bot(api.token, base_url=f"{api.url}/bot", base_file_url=f"{api.url}/file/bot")
        ada = api.user(7, name="Ada", language_code="es")
        ada.write("Hello")
        …
        assert api.chat(7).answers[-1].text == "Hello, Ada"

What Telegram would do and this does too: confirm updates by offset, answer 409 to the poll that waits when another
comes, count UTF-16 units, check entities, clean and trim texts, refuse what is not modified, too long, gone, blocked.
What it does on demand: ``flood`` and ``rate`` (429), ``fail`` (5xx), ``lose`` (done, but no answer), ``delay`` and
``down``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote

from tests.listening import Listener
from tests.telegram.chats import Chat, Message, User, World
from tests.telegram.entities import Refused
from tests.telegram.methods import Methods, Params
from tests.waiting import wait_until

Condition = Callable[[], object] | Callable[[], Awaitable[object]]
Outcome = tuple[int, dict[str, Any], str]
"""An answer's status and body, and the method's name as Telegram spells it."""

__all__ = ["Chat", "Message", "TelegramApi", "User"]

LARGE = -1_000_000_000_000
COUNTED = {"sendmessage", "editmessagetext", "editmessagereplymarkup", "editmessagemedia", "sendphoto", "senddocument"}
"""The methods that the rates count; the others are free."""


@dataclass(frozen=True)
class Call:
    """One request: monotonic seconds, the method, its chat (0 without one), its fields, and the answer's status."""

    at: float
    method: str
    chat: int
    fields: dict[str, str]
    status: int
    lost: bool = False


class TelegramApi:
    """The server with its world. Everything random comes from ``seed``."""

    def __init__(self, token: str = "4242:local-telegram", seed: int = 0) -> None:
        self.token = token
        self.world = World()
        self.log: list[Call] = []
        self.calls: Counter[str] = Counter()
        """Answered requests by method, as PTB spells it."""
        self.begun: Counter[str] = Counter()
        """Requests by method whose answer may still be delayed."""
        self._methods = Methods(self.world)
        self._random = random.Random(seed)
        self._listener = Listener(self._serve)
        self._floods: dict[int, float] = {}
        self._rate: Rate | None = None
        self._lost: Callable[[str], bool] = lambda method: False
        self._delays: dict[str, float] = {}
        self._delayed: Callable[[dict[str, str]], bool] = lambda fields: True
        self._failing: tuple[int, str, Callable[[dict[str, str]], bool]] | None = None
        self._down = False

    async def __aenter__(self) -> TelegramApi:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._listener.url

    async def start(self, port: int = 0) -> None:
        """Listen on loopback."""
        await self._listener.start(port)

    async def stop(self) -> None:
        """End all connections and stop listening."""
        await self.world.updates.stop()
        await self._listener.stop()

    # People and places

    def user(self, id: int, *, language_code: str = "en", name: str = "", username: str = "") -> User:
        """The user of this id; who is new is made."""
        if id not in self.world.users:
            self.world.users[id] = User(self.world, id, name or f"User {id}", language_code, username)
        return self.world.users[id]

    def group(self, id: int, *, title: str = "Group", topics: dict[int, str] | None = None) -> Chat:
        """A new group that the bot is in (its id is negative, a large group's below LARGE); with ``topics`` a forum."""
        ids = self.world.ids if id > LARGE else itertools.count(1)
        return self.world.chats.setdefault(id, Chat(id, title, topics is not None, topics=dict(topics or {}), ids=ids))

    def chat(self, id: int) -> Chat:
        """A chat as it looks now. Raises KeyError when nobody has opened it."""
        return self.world.chats[id]

    @property
    def polling(self) -> bool:
        """Whether a poll waits for updates."""
        return self.world.updates.polling

    async def wait_for(self, condition: Condition, *, seconds: float = 30.0, what: str = "") -> None:
        """Return once ``condition`` is true; AssertionError with the last calls after ``seconds``."""
        try:
            await wait_until(condition, seconds=seconds, what=what)
        except AssertionError as error:
            last = [f"{one.method} {one.chat} {one.status} {str(one.fields)[:120]}" for one in self.log[-12:]]
            raise AssertionError("\n".join([str(error), "the last calls:", *last])) from None

    # What can go wrong

    def flood(self, chat_id: int, seconds: float) -> None:
        """Answer 429 for this chat from now on for so long."""
        self._floods[chat_id] = time.monotonic() + seconds

    def rate(self, per_second: float = 1.0, burst: int = 3, group_per_minute: int = 20) -> None:
        """Answer 429 to whoever sends or edits faster than that in a chat."""
        self._rate = Rate(per_second, burst, group_per_minute)

    def lose(self, fraction: float, *methods: str, times: int | None = None) -> None:
        """Do what is asked but break the connection in place of an answer, for this share of the requests (of these
        methods; all but getUpdates by default), ``times`` times at most."""
        left = [math.inf if times is None else times]

        def lost(method: str) -> bool:
            meant = method in methods if methods else method != "getUpdates"
            if not meant or left[0] < 1 or self._random.random() >= fraction:
                return False
            left[0] -= 1
            return True

        self._lost = lost

    def fail(self, status: int, method: str = "", when: Callable[[dict[str, str]], bool] = lambda fields: True) -> None:
        """Answer this server error to requests of a method (of all by default) ``when`` their fields are so."""
        self._failing = (status, method, when)

    def delay(
        self, seconds: float, *methods: str, when: Callable[[dict[str, str]], bool] = lambda fields: True
    ) -> None:
        """Let each request of these methods (all but getUpdates by default) take so long before it is done, ``when``
        its fields are so."""
        self._delays, self._delayed = dict.fromkeys(methods or ("",), seconds), when

    def down(self) -> None:
        """Break all connections and take no new ones until ``up``; nothing that is asked is done."""
        self._down = True
        self._listener.cut()

    def up(self) -> None:
        self._down = False

    # The server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down:
            return writer.transport.abort()
        while await self._exchange(reader, writer):
            pass

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is over."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        verb, target, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if verb == "GET" and target.startswith("/file/"):
            await _answer(writer, *self._download(unquote(target)))
            return True
        path, _, query = target.partition("?")
        token, _, method = unquote(path).removeprefix("/bot").partition("/")
        params = parsed(headers.get("content-type", ""), body)
        params.fields.update(parse_qsl(query, keep_blank_values=True))
        status, out, method = await self._finished(reader, method, self._call(token, method, params))
        lost = not status or self._down or self._lost(method)
        self._note(Call(time.monotonic(), method, params.chat, params.fields, status, lost))
        if lost:
            writer.transport.abort()
            return False
        await _answer(writer, status, json.dumps(out).encode(), "application/json")
        return True

    async def _finished(self, reader: asyncio.StreamReader, method: str, call: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The outcome of ``call``. A poll ends, with status 0, when its client has gone; all else is done anyway."""
        if method.lower() != "getupdates":
            return await call
        calling = asyncio.create_task(call, name="telegram poll")
        leaving = asyncio.create_task(reader.read(1), name="telegram client leaves")
        try:
            await asyncio.wait((calling, leaving), return_when=asyncio.FIRST_COMPLETED)
            return calling.result() if calling.done() else (0, {}, "getUpdates")
        finally:
            calling.cancel()
            leaving.cancel()
            await asyncio.gather(calling, leaving, return_exceptions=True)

    async def _call(self, token: str, name: str, params: Params) -> Outcome:
        method = name
        try:
            if token != self.token:
                raise Refused(401, "Unauthorized")
            run = self._methods.find(name)
            method = run.__name__
            self.begun[method] += 1
            seconds = self._delays.get(method, self._delays.get("", 0) if method != "getUpdates" else 0)
            if seconds and self._delayed(params.fields):
                await asyncio.sleep(seconds)
            self._check_flood(method, params)
            if self._failing and self._failing[1] in ("", method) and self._failing[2](params.fields):
                raise Refused(self._failing[0], "Internal Server Error")
            return 200, {"ok": True, "result": await run(params)}, method
        except Refused as refused:
            return refused.code, refused.as_json(), method

    def _check_flood(self, method: str, params: Params) -> None:
        chat = params.chat
        wait = self._floods.get(chat, 0) - time.monotonic()
        if self._rate and method.lower() in COUNTED and wait <= 0:
            wait = self._rate.wait(chat, time.monotonic())
        if chat and wait > 0:
            seconds = math.ceil(wait)
            raise Refused(429, f"Too Many Requests: retry after {seconds}", retry_after=seconds)

    def _note(self, call: Call) -> None:
        self.log.append(call)
        self.calls[call.method] += 1

    def _download(self, target: str) -> tuple[int, bytes, str]:
        match = re.fullmatch(r"/file/bot([^/]+)/([^/]+)/.*", target)
        if not match or match[1] != self.token or match[2] not in self.world.files:
            return 404, b'{"ok":false,"error_code":404,"description":"Not Found"}', "application/json"
        return 200, self.world.files[match[2]][1], "application/octet-stream"


class Rate:
    """How fast a bot may write: a bucket per private chat, a window of a minute per group."""

    def __init__(self, per_second: float, burst: int, group_per_minute: int) -> None:
        self.per_second, self.burst, self.group_per_minute = per_second, burst, group_per_minute
        self._private: dict[int, tuple[float, float]] = {}
        self._groups: dict[int, deque[float]] = {}

    def wait(self, chat: int, now: float) -> float:
        """Seconds until the chat takes one more; 0 counts it."""
        return self._wait_private(chat, now) if chat > 0 else self._wait_group(chat, now)

    def _wait_private(self, chat: int, now: float) -> float:
        tokens, since = self._private.get(chat, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - since) * self.per_second)
        fits = tokens >= 1
        self._private[chat] = (tokens - fits, now)
        return 0.0 if fits else (1 - tokens) / self.per_second

    def _wait_group(self, chat: int, now: float) -> float:
        sent = self._groups.setdefault(chat, deque())
        while sent and sent[0] < now - 60:
            sent.popleft()
        if len(sent) >= self.group_per_minute:
            return sent[0] + 60 - now
        sent.append(now)
        return 0.0


def parsed(kind: str, body: bytes) -> Params:
    """A request's body: a form, a form with files, or JSON."""
    if kind.startswith("application/json"):
        given = json.loads(body or b"{}")
        return Params({key: one if isinstance(one, str) else json.dumps(one) for key, one in given.items()})
    if kind.startswith("multipart/form-data"):
        return _multipart(kind, body)
    return Params(dict(parse_qsl(body.decode(), keep_blank_values=True)))


def _multipart(kind: str, body: bytes) -> Params:
    boundary = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    params = Params()
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        named = dict(re.findall(r'\b(name|filename)="([^"]*)"', head.decode()))
        content = content.removesuffix(b"\r\n")
        if "filename" in named:
            params.files[named["name"]] = (named["filename"], content)
        else:
            params.fields[named["name"]] = content.decode()
    return params


async def _answer(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
