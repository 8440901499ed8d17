"""One pipelined connection: commands issued in the same tick of the event loop are sent in one write, and no command
waits for another's reply. redis-py connects, authenticates, encrypts and parses."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import (
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.errors import ServerError, ServerFull, ServerRefused, ServerUnavailable
from rolecall.redis.scripts import Arg, loaded_scripts

OUTAGES = (
    RedisConnectionError, RedisTimeoutError, OSError, ReadOnlyError, TryAgainError, ClusterDownError,
)  # fmt: skip
"""Lost connections, and replies of a server on its way back. redis-py makes a ConnectionError of LOADING and a
ClusterDownError of MASTERDOWN."""
OUTAGE_CODES = ("NOREPLICAS", "BUSY", "UNBLOCKED")
"""More such replies, which redis-py has no class for."""
CODES: dict[type[BaseException], str] = {
    OutOfMemoryError: "OOM",
    NoScriptError: "NOSCRIPT",
    NoPermissionError: "NOPERM",
}
"""The codes that redis-py removes from the text of these errors."""

Connection = Any
"""redis-py's asyncio connection, which is untyped."""


class Wire:
    """One connection, written and read by two tasks; replies are matched to commands by their order."""

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._connection: Connection = None
        self._outgoing: list[bytes] = []
        self._queued: list[asyncio.Future[Any]] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._answered = 0.0
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def send(self, args: Sequence[Arg]) -> asyncio.Future[Any]:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve(), name="rolecall wire")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._outgoing.append(packed(args))
        self._queued.append(future)
        self._something.set()
        return future

    async def aclose(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._fail(RedisConnectionError("the connection was closed"))

    async def _serve(self) -> None:
        """Connect, write and read until the connection fails and everything unanswered with it; then start over."""
        # On Python 3.11 a TaskGroup that fails while it is cancelled forgets the cancellation: hence the flag.
        while not self._closed:
            await self._something.wait()
            try:
                connection = await self._connect()
                self._answered = time.monotonic()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write(connection), name="rolecall wire writer")
                    group.create_task(self._read(connection), name="rolecall wire reader")
                    group.create_task(self._watch(), name="rolecall wire watch")
            except* (RedisError, OSError) as failures:
                self._fail(_first(failures))
            finally:
                await self._disconnect()

    async def _connect(self) -> Connection:
        connection = new_connection(self._pool)
        await connection.connect()
        self._connection = connection
        for known in loaded_scripts():
            await connection.send_command("SCRIPT", "LOAD", known.body)
            await connection.read_response()
        return connection

    async def _write(self, connection: Connection) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            batch, self._outgoing = self._outgoing, []
            if not self._waiting:
                self._answered = time.monotonic()
            self._waiting.extend(self._queued)
            self._queued.clear()
            await connection.send_packed_command(b"".join(batch), check_health=False)

    async def _read(self, connection: Connection) -> None:
        while True:
            error: ResponseError | None = None
            try:
                reply = await connection.read_response(timeout=math.inf)
            except ResponseError as refused:
                error = refused
            self._answered = time.monotonic()
            future = self._waiting.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(reply)
            else:
                future.set_exception(server_error(error))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._timeout / 4)
            if self._waiting and time.monotonic() - self._answered > self._timeout:
                raise RedisTimeoutError(f"no answer within {self._timeout:g} s")

    def _fail(self, error: BaseException) -> None:
        pending = [*self._waiting, *self._queued]
        self._waiting.clear()
        self._queued.clear()
        self._outgoing.clear()
        self._something.clear()
        for future in pending:
            if not future.done():
                future.set_exception(server_error(error))

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


def server_error(error: BaseException) -> ServerError:
    """The ServerError for an error of redis-py or the operating system, which becomes its cause."""
    text = str(error) or type(error).__name__
    code = CODES.get(type(error), "") or (text.split()[0] if isinstance(error, ResponseError) else "")
    found: ServerError
    if isinstance(error, OUTAGES) or code in OUTAGE_CODES:
        found = ServerUnavailable(f"the server is unavailable: {text}")
    elif isinstance(error, OutOfMemoryError):
        found = ServerFull(f"the server is out of memory: {text}", code)
    else:
        found = ServerRefused(text, code)
    found.__cause__ = error
    return found


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of redis-py and the operating system as ServerError."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise server_error(error) from error


def new_connection(pool: ConnectionPool) -> Connection:
    return pool.make_connection()  # type: ignore[no-untyped-call]  # untyped in redis-py


def packed(args: Sequence[Arg]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(args))  # type: ignore[arg-type]  # its stub wants one exact type
    return packed


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
