"""One pipelined connection: no command waits for another's reply, and those issued in the same tick of the event loop
share a few writes. redis-py connects, authenticates, encrypts and parses."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeAlias

import hiredis
from redis.exceptions import AskError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.background import heeded
from rolecall.errors import RolecallError, ServerError, ServerUnavailable, cause_of
from rolecall.redis.outage import DEMOTED, REFUSES_WRITES, WRITES, Outage, server_error
from rolecall.redis.scripts import Arg, Script

CONNECT_SECONDS = 5.0
"""How long opening a connection may take in all: name, TCP, TLS, user and password, scripts. A peer that accepts and
then says nothing is given up like one that does not accept."""
BURST = 8
"""So many commands are written without waiting for more of the same tick: the server works on them while the rest of a
burst is still being made."""
SETTLED_SECONDS = 1.0
"""The age at which a connection to a replica is reopened: once a second while the address still leads there."""

Connection = Any
"""redis-py's asyncio connection, which is untyped."""
Command: TypeAlias = tuple[asyncio.Future[Any], bytes, int]
"""Who waits for the reply, the command as it is sent, and how often another node was named for it."""
REDIRECTIONS = 5
"""How often a command is sent on to the node that an answer names."""
ASKING = b"*1\r\n$6\r\nASKING\r\n"


class WireOwner(Protocol):
    """What a wire is for: a node, and what else is done about it."""

    def connection(self) -> Connection:
        """A new connection to the node."""
        ...

    def demoted(self) -> None:
        """The node turned out to be a replica; the wire reopens its connection, by name."""
        ...

    def lost(self) -> None:
        """The connection failed, or the node does not answer."""
        ...

    def silent(self) -> None:
        """The node has not answered for so long that the connection is given up: others to it may hang as well."""
        ...

    def redirected(self, error: AskError, command: Command) -> None:
        """The node answered that another one has the keys of ``command``, which it did not run: send it there."""
        ...


class Wire:
    """One connection, written and read by two tasks; replies are matched to commands by their order."""

    def __init__(self, owner: WireOwner, timeout: float, outage: Outage) -> None:
        self._owner = owner
        self._timeout = timeout
        self._outage = outage
        self._failing = False
        self._opened = 0.0
        self._connection: Connection = None
        self._opening: Connection = None
        self._writer: asyncio.StreamWriter | None = None
        self._queued: list[Command] = []
        self._waiting: deque[Command] = deque()
        self._loaded: set[str] = set()
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard_at = 0.0
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def connections(self) -> int:
        return int(self.connected)

    def send(self, args: Sequence[Arg]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.put((future, packed(args), 0))
        return future

    def _use(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve callers in ``loop``. Raises RolecallError while the connection is open in another one."""
        if self._task is not None and not self._task.done():
            raise RolecallError(
                "this was opened in another event loop: from a thread, use "
                "asyncio.run_coroutine_threadsafe(…, loop).result() with that loop"
            )
        self._loop = loop

    def run(self, command: str, script: Script, arguments: Sequence[Arg]) -> asyncio.Future[Any]:
        """Send ``command``, a kind of EVALSHA, and load the script before, once for each connection."""
        if script.sha not in self._loaded:
            self._loaded.add(script.sha)
            self.put((nobody(), packed(("SCRIPT", "LOAD", script.body)), REDIRECTIONS))
        return self.send((command, script.sha, *arguments))

    def put(self, command: Command, *, asking: bool = False) -> None:
        """Send ``command``; with ``asking``, to a node that is about to get its keys. Raises RolecallError in another
        event loop than that of the connection."""
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._use(loop)
        if self._task is None or self._task.done():
            if self._closed:
                return command[0].set_exception(ServerError("the connection to the server is closed"))
            self._task = asyncio.create_task(self._serve(), name="rolecall wire")
        if asking:
            self._queued.append((nobody(), ASKING, REDIRECTIONS))
        self._queued.append(command)
        enough = not self._waiting or len(self._queued) >= BURST
        if enough and self._writer is not None:
            self._flush(self._writer)
        else:
            self._something.set()

    def reconnect(self) -> None:
        """Reopen the connection; what waits for a reply fails."""
        for connection in (self._opening, self._connection):
            if connection is not None:
                cut(connection)

    async def aclose(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._fail(RedisConnectionError("the connection was closed"))
        self._outage.forget(self)

    async def _serve(self) -> None:
        """Connect, write and read until the connection fails and everything unanswered with it; then start over."""
        # On Python 3.11 a TaskGroup that fails while it is cancelled forgets the cancellation, but the task still
        # counts it. Without a look at the count, asyncio.run would wait for this task for ever.
        task = asyncio.current_task()
        while not self._closed and not (task is not None and task.cancelling()):
            await self._something.wait()
            try:
                connection = await self._connect()
                self._heard()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write(connection), name="rolecall wire writer")
                    group.create_task(self._read(connection), name="rolecall wire reader")
                    group.create_task(self._watch(connection), name="rolecall wire watch")
            except* Exception as failures:  # the boundary: every caller that waits for an answer gets one
                self._fail(cause_of(failures))
                self._owner.lost()
            finally:
                await self._disconnect()

    async def _connect(self) -> Connection:
        connection = self._opening = self._owner.connection()
        try:
            async with connecting(connection):
                pass
        except BaseException:
            await close(connection)
            raise
        finally:
            self._opening = None
        on_bytes(connection, self._heard)
        connection._writer.transport.set_write_buffer_limits(high=0)  # else uvloop writes only at the end of a tick
        self._connection = connection
        self._opened = time.monotonic()
        self._works()
        return connection

    async def _write(self, connection: Connection) -> None:
        # Kept, because redis-py forgets its own when a read fails, which is before this wire learns of it.
        writer: asyncio.StreamWriter = connection._writer
        self._writer = writer
        while True:
            await self._something.wait()
            self._something.clear()
            if self._queued:
                self._flush(writer)
                await writer.drain()

    def _flush(self, writer: asyncio.StreamWriter) -> None:
        """Write what is queued. What comes too late for the connection fails with it; uvloop would raise here."""
        batch, self._queued = self._queued, []
        if not self._waiting:
            self._heard()
        self._waiting.extend(batch)
        if not writer.is_closing():
            writer.write(b"".join([data for _, data, _ in batch]))

    async def _read(self, connection: Connection) -> None:
        while True:
            error: ResponseError | None = None
            try:
                reply = await connection.read_response(timeout=math.inf)
            except ResponseError as refused:
                error = refused
            command = self._waiting.popleft()
            if command[0].done():
                continue
            if error is not None:
                self._refuse(command, error)
                continue
            self._answer(command, reply)
            if self._failing and command[2] < REDIRECTIONS:  # SCRIPT LOAD and ASKING work while commands do not
                self._works()

    def _answer(self, command: Command, reply: Any) -> None:
        command[0].set_result(reply)

    def _refuse(self, command: Command, error: ResponseError) -> None:
        """Answer a command with the server's error, or send it on to the node that the error names. Raises the error
        when the server is a replica: then all else that waits fails with it, and is repeated where the address leads
        now."""
        future, data, redirections = command
        if isinstance(error, AskError) and redirections < REDIRECTIONS:
            return self._owner.redirected(error, (future, data, redirections + 1))
        found = server_error(error)
        future.set_exception(found)
        if isinstance(found, ServerUnavailable):
            self._note(found)
        if found.code in DEMOTED and time.monotonic() - self._opened > SETTLED_SECONDS:
            self._owner.demoted()
            raise error

    def _note(self, error: ServerUnavailable) -> None:
        if error.code in REFUSES_WRITES:
            return self._outage.begin(WRITES, error)
        self._failing = True
        self._outage.begin(self, error)

    def _works(self) -> None:
        self._failing = False
        self._outage.end(self)

    async def _watch(self, connection: Connection) -> None:
        """Fail when the server, asked, neither sends nor takes a byte for ``timeout``: large values may take longer."""
        unsent = 0
        while True:
            await asyncio.sleep(self._timeout / 4)
            before, unsent = unsent, unsent_bytes(connection)
            if unsent < before:
                self._heard()
            silent = time.monotonic() - self._heard_at if self._waiting else 0.0
            if silent > self._timeout:
                self._owner.silent()
                raise RedisTimeoutError(f"no answer within {self._timeout:g} s")
            if silent > self._timeout / 4:
                self._owner.lost()  # it may hang, and have a successor already

    def _heard(self) -> None:
        self._heard_at = time.monotonic()

    def _fail(self, error: BaseException) -> None:
        self._writer = None
        if isinstance(found := server_error(error), ServerUnavailable) and not self._closed:
            self._note(found)
        pending = [command[0] for command in (*self._waiting, *self._queued)]
        self._waiting.clear()
        self._queued.clear()
        self._loaded.clear()
        self._something.clear()
        for future in pending:
            if not future.done():
                future.set_exception(server_error(error))

    async def _disconnect(self) -> None:
        connection, self._connection, self._writer = self._connection, None, None
        if connection is not None:
            await close(connection)


@asynccontextmanager
async def connecting(connection: Connection) -> AsyncIterator[None]:
    """Open ``connection`` and do what it needs first, in the block, within CONNECT_SECONDS. Raises what redis-py
    raises."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.connect()
            yield
    except TimeoutError:
        raise RedisTimeoutError(f"no answer to a new connection within {CONNECT_SECONDS:g} s") from None


def on_bytes(connection: Connection, heard: Callable[[], None]) -> None:
    """Call ``heard`` whenever bytes arrive on ``connection``, which is open: a large reply is a sign of life before it
    is whole. (redis-py has no public way to its stream and transport.)"""
    stream = connection._reader
    feed = stream.feed_data

    def fed(data: bytes) -> None:
        heard()
        feed(data)

    stream.feed_data = fed


def unsent_bytes(connection: Connection) -> int:
    """How much of what was written the operating system has not taken yet."""
    writer = connection._writer
    return 0 if writer is None else writer.transport.get_write_buffer_size()


async def close(connection: Connection) -> None:
    """Close ``connection`` without waiting for its peer. A read in progress fails."""
    cut(connection)
    with suppress(RedisError, OSError, RuntimeError):
        await connection.disconnect(nowait=True)


def cut(connection: Connection) -> None:
    """End ``connection`` now, so that its reader fails and connects again. What is unsent is dropped: closing a
    transport would wait until a peer that may be gone has taken it."""
    writer = connection._writer
    if writer is not None:
        writer.transport.abort()


def nobody() -> asyncio.Future[Any]:
    """A future for a reply that nobody waits for."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(heeded)
    return future


def packed(args: Sequence[Arg]) -> bytes:
    try:
        command: bytes = hiredis.pack_command(tuple(args))  # type: ignore[arg-type]  # its stub wants one exact type
    except UnicodeEncodeError:  # half of a surrogate pair, as in a text cut in two or a file name that is no UTF-8
        return packed([arg.encode("utf-8", "replace") if isinstance(arg, str) else arg for arg in args])
    return command
