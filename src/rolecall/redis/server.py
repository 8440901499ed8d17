"""A process's connections to its server: a pipelined one for commands, one per blocking reader, one for pub/sub.

redis-py connects, authenticates, encrypts and parses; pipeline.py holds the pipelined connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry as RetryPolicy
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.errors import ConfigError, ServerError, ServerFull, ServerRefused, ServerUnavailable
from rolecall.redis.address import without_secrets
from rolecall.redis.outage import SECTIONS, WRITES, Outage, ServerCondition, translated
from rolecall.redis.pipeline import Connection, Wire, close, connecting, cut, new_connection, on_bytes, packed
from rolecall.redis.scripts import Arg, Block, Script
from rolecall.redis.subscriber import Subscriber

BLOCK_MS = 2000
"""How long a blocking read waits at the server, at most."""
SILENCE_SECONDS = BLOCK_MS / 1000 + 2
"""A reader's server that says nothing for so long is taken to be away."""
MINIMUM_VERSION = (7, 0)


class Server(Protocol):
    """Raw commands in bytes mode, and scripts by name. Every failure is a ServerError: ServerUnavailable while the
    server cannot be reached, ServerRefused when it answers with an error."""

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        """Send one command now; commands reach the server in the order of these calls. The future holds the raw
        reply or a ServerError."""
        ...

    async def call(self, *args: Arg) -> Any:
        """The raw reply of one command, which is sent once. Raises ServerError."""
        ...

    async def fetch(self, *args: Arg) -> Any:
        """The raw reply of a command that may be repeated, repeated as ``run`` repeats a script. Raises ServerError."""
        ...

    async def run(self, script: Script, /, *blocks: Block, **values: Any) -> Any:
        """The raw reply of ``script`` with its keys and arguments by name, repeated while the server is unavailable, up
        to a patience, but not while it is full. Scripts are idempotent by their guards, so a repeat is safe. Raises
        ServerError, and ScriptError for a missing or unexpected name."""
        ...


class Reader(Protocol):
    """A connection for reads that block."""

    async def read(self, *args: Arg) -> Any:
        """The raw reply of a blocking command, or None. Do not cancel it: call ``wake``. Raises ServerError."""
        ...

    async def wake(self) -> None:
        """Make a read in progress return None now; without one, do nothing."""
        ...


class RedisServer:
    """The connections of one process to a Redis or Valkey server at ``url``. ``outage`` tells what keeps the process
    from using it."""

    def __init__(
        self, url: str, *, name: str = "rolecall", socket_timeout: float = 5.0, patience: float = 30.0
    ) -> None:
        self.url = url
        self.patience = patience
        self._socket_timeout = socket_timeout
        self._options: dict[str, Any] = {
            "decode_responses": False,
            "protocol": 2,
            "retry": RetryPolicy(NoBackoff(), 0),
            "socket_connect_timeout": 2,
            "client_name": name,
        }
        self.outage = Outage(self.address)
        # No socket timeout: with one, redis-py sends in a wait_for, which on Python 3.11 may swallow a cancellation.
        # Each kind of connection has limits of its own.
        self._pool = ConnectionPool.from_url(url, socket_timeout=None, **self._options)
        self._wire = Wire(self._pool, socket_timeout, self.outage, self._reconnect)
        self._readers: list[BlockingReader] = []
        self._subscribers: list[Subscriber] = []

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        """See Server.send."""
        return self._wire.send(args)

    async def call(self, *args: Arg) -> Any:
        """See Server.call."""
        return await self._wire.send(args)

    async def fetch(self, *args: Arg) -> Any:
        """See Server.fetch."""
        return await self._patiently(lambda: self.call(*args))

    async def run(self, script: Script, /, *blocks: Block, **values: Any) -> Any:
        """See Server.run."""
        arguments = script.arguments(blocks, values)
        try:
            reply = await self._patiently(lambda: self._evaluate(script, arguments))
            if self.outage.reason and self.outage.quiet and not script.reads:
                self.outage.end(WRITES)
            return reply
        except TypeError as error:  # an argument that cannot be written to a connection
            raise script.mistake(blocks, values) from error

    def reader(self) -> BlockingReader:
        """A new connection for blocking reads, closed with this server."""
        reader = BlockingReader(new_connection(self._pool), self)
        self._readers.append(reader)
        return reader

    def another(self, *, patience: float) -> RedisServer:
        """Connections of its own to the same server, for another event loop."""
        name = self._options["client_name"]
        return RedisServer(self.url, name=name, socket_timeout=self._socket_timeout, patience=patience)

    def pubsub(self) -> Subscriber:
        """A new connection for publish/subscribe, closed with this server."""
        self._subscribers.append(Subscriber(new_connection(self._pool), self.outage))
        return self._subscribers[-1]

    async def check(self) -> str:
        """The server's name and version. Raises ServerUnavailable when it cannot be reached or is too old, ConfigError
        when it refuses user or password."""
        try:
            info = await self.info("server")
        except ServerError as error:
            if _is_unauthorised(error):
                raise ConfigError(
                    f"the server at {self.address} does not let us in: {error.__cause__}; check user and password in "
                    "REDIS_URL, or REDIS_USERNAME and REDIS_PASSWORD"
                ) from error
            raise ServerUnavailable(f"no server answers at {self.address}: {error.__cause__}") from error
        version = info.get("redis_version", "0")
        found = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            raise ServerUnavailable(f"{found} at {self.address} is too old: Redis 7.0 or Valkey 7.2 is required")
        return found

    async def info(self, *sections: str) -> dict[str, str]:
        """The fields of INFO. Raises ServerError."""
        return _parse_info(await self.call("INFO", *sections))

    async def condition(self) -> ServerCondition:
        """The server's condition as far as this user may ask. Raises ServerUnavailable."""
        try:
            return ServerCondition.of(await self.info(*SECTIONS))
        except ServerRefused:
            return ServerCondition()

    async def ping(self) -> float:
        """The seconds that one round trip takes; opens the connection. Raises ServerError."""
        began = time.perf_counter()
        await self.call("PING")
        return time.perf_counter() - began

    async def append_only(self) -> str:
        """How often the server syncs its append-only file (``always``, ``everysec`` or ``no``); empty without one.
        Raises ServerRefused if this user may not read the configuration."""
        found = field_map(await self.call("CONFIG", "GET", "append*"))
        return str(found[b"appendfsync"].decode()) if found.get(b"appendonly") == b"yes" else ""

    @property
    def address(self) -> str:
        """The server's URL without user and password."""
        return without_secrets(self.url)

    @property
    def connected(self) -> bool:
        """Whether the command connection is open; the first command opens it."""
        return self._wire.connected

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return sum(part.connected for part in self._parts())

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        for part in self._parts():
            await part.aclose()

    def _parts(self) -> list[Wire | BlockingReader | Subscriber]:
        return [*self._readers, *self._subscribers, self._wire]

    def _reconnect(self) -> None:
        """Leave a server that has become a replica with all connections; the command connection does so itself."""
        parts: list[BlockingReader | Subscriber] = [*self._readers, *self._subscribers]
        for part in parts:
            part.reconnect()

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        give_up, refused = time.monotonic() + self.patience, False
        while True:
            try:
                reply = await ask()
            except ServerFull:
                raise
            except ServerUnavailable as error:
                if time.monotonic() > give_up:
                    text = f"the server did not answer for {self.patience:g} s"
                    if error.code:
                        text = f"{error}, for {self.patience:g} s"
                    raise ServerUnavailable(text, error.code) from error.__cause__
                refused = True
                await asyncio.sleep(random.uniform(0.05, 0.5))
            else:
                if refused:
                    self.outage.end(WRITES)
                return reply

    async def _evaluate(self, script: Script, arguments: Sequence[Arg]) -> Any:
        known, whole = ("EVALSHA_RO", "EVAL_RO") if script.reads else ("EVALSHA", "EVAL")
        try:
            return await self.call(known, script.sha, *arguments)
        except ServerRefused as error:
            if error.code != "NOSCRIPT":
                raise
            return await self.call(whole, script.body, *arguments)


class BlockingReader:
    """One connection for reads that block up to two seconds."""

    def __init__(self, connection: Connection, server: RedisServer) -> None:
        self._connection = connection
        self._server = server
        self._id = 0
        self._limit: asyncio.Timeout | None = None
        self._reads = 0
        self._reading = 0

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return bool(self._connection.is_connected)

    async def read(self, *args: Arg) -> Any:
        """See Reader.read. Raises ServerError; the next read connects again."""
        self._reads += 1
        self._reading = self._reads
        try:
            with translated():
                reply = await self._read(packed(args))
        except ServerUnavailable as error:
            self._server.outage.begin(self, error)
            await close(self._connection)  # a replica is left, and what is half open would wait once more
            raise
        finally:
            self._reading = 0
        self._server.outage.end(self)
        return reply

    async def _read(self, command: bytes) -> Any:
        if not self._connection.is_connected:
            async with connecting(self._connection):
                await self._connection.send_command("CLIENT", "ID")
                self._id = int(await self._connection.read_response())
                on_bytes(self._connection, self._heard)
        try:
            async with asyncio.timeout(SILENCE_SECONDS) as self._limit:
                await self._connection.send_packed_command(command)
                return await self._connection.read_response()
        except TimeoutError:
            raise RedisTimeoutError(f"no answer within {SILENCE_SECONDS:g} s") from None
        finally:
            self._limit = None

    def _heard(self) -> None:
        """A large reply may take its time, as long as bytes arrive."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)

    def reconnect(self) -> None:
        """Open the connection anew, even while it is read."""
        cut(self._connection)

    async def wake(self) -> None:
        """See Reader.wake. Repeats CLIENT UNBLOCK, because the read may not have reached the server yet."""
        read = self._reading
        with suppress(ServerError):
            while read and self._reading == read:
                if self._id and await self._server.call("CLIENT", "UNBLOCK", self._id):
                    return
                await asyncio.sleep(0.001)

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        self._server.outage.forget(self)
        await close(self._connection)


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[RedisServer]:
    """A RedisServer, checked at the start and closed at the end."""
    server = RedisServer(url, **options)
    try:
        await server.check()
        yield server
    finally:
        await server.aclose()


def pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The fields and values of a flat reply such as HGETALL's."""
    return zip(flat[::2], flat[1::2], strict=True)


def field_map(flat: Sequence[Any] | None) -> dict[bytes, Any]:
    """A flat reply as a dict; empty for an entry that was deleted."""
    return dict(pairs(flat or ()))


def text_map(flat: Sequence[bytes]) -> dict[str, str]:
    """A flat reply of texts as a dict."""
    return {name.decode(): value.decode() for name, value in pairs(flat)}


async def server_ms(server: Server) -> float:
    """The server's clock in ms since the epoch."""
    seconds, micros = await server.fetch("TIME")
    return int(seconds) * 1000 + int(micros) / 1000


def _parse_info(raw: bytes) -> dict[str, str]:
    lines = raw.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _is_unauthorised(error: BaseException | None) -> bool:
    """Whether the server refused user or password, or a first command; redis-py may wrap the error once more."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return True
    return error is not None and _is_unauthorised(error.__cause__ or error.__context__)
