"""A process's connections to its server: for each node a pipelined one for commands, another one for the messages that
it takes in, and one for pub/sub; and one per blocking reader.

redis-py connects, authenticates, encrypts and parses; pipeline.py holds the pipelined connection, topology.py knows the
nodes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio.retry import Retry as RetryPolicy
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import AskError, AuthenticationError, MovedError, NoPermissionError

from rolecall.background import BackgroundTasks
from rolecall.errors import ConfigError, ServerError, ServerFull, ServerRefused, ServerUnavailable
from rolecall.redis.address import tls_advice, without_secrets
from rolecall.redis.outage import SECTIONS, WRITES, Outage, ServerCondition, translated
from rolecall.redis.pipeline import Command, Connection, Wire
from rolecall.redis.reader import BLOCK_MS as BLOCK_MS
from rolecall.redis.reader import BlockingReader, ShardedReader
from rolecall.redis.reader import Reader as Reader
from rolecall.redis.replication import ConfirmedWire
from rolecall.redis.scripts import Arg, Block, Script
from rolecall.redis.subscriber import ShardedSubscriber, Subscriber
from rolecall.redis.topology import Place, Topology

MINIMUM_VERSION = (7, 0)
DRIVER = DriverInfo()
"""What each connection tells the server about redis-py, whose version takes it a millisecond to find out."""
PATIENCE_SECONDS = 30.0
"""How long what may be repeated is repeated while the server is unavailable."""


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

    def start(self, script: Script, /, *blocks: Block, **values: Any) -> asyncio.Future[Any]:
        """Send ``script`` once, as ``send`` sends a command, with its keys and arguments by name. A server that has
        lost its scripts refuses it with NOSCRIPT. Raises ScriptError for a missing or unexpected name."""
        ...

    async def fetch(self, *args: Arg) -> Any:
        """The raw reply of a command that may be repeated, repeated as ``run`` repeats a script. Raises ServerError."""
        ...

    async def run(self, script: Script, /, *blocks: Block, **values: Any) -> Any:
        """The raw reply of ``script`` with its keys and arguments by name, repeated while the server is unavailable, up
        to a patience, but not while it is full. Scripts are idempotent by their guards, so a repeat is safe. Raises
        ServerError, and ScriptError for a missing or unexpected name."""
        ...


class RedisServer:
    """The connections of one process to a Redis or Valkey server at ``url``. ``outage`` tells what keeps the process
    from using it. Scripts that are ``confirmed`` are repeated until ``wait_replicas`` replicas have what they wrote."""

    def __init__(
        self, url: str, *, name: str = "rolecall", socket_timeout: float = 5.0,
        patience: float = PATIENCE_SECONDS,
        wait_replicas: int = 0, wait_seconds: float = 1.0,
    ) -> None:  # fmt: skip
        self.url = url
        self.patience = patience
        self.closed = False
        self._options: dict[str, Any] = {
            "decode_responses": False,
            "protocol": 2,
            "retry": RetryPolicy(NoBackoff(), 0),
            "socket_connect_timeout": 2,
            "client_name": name,
            "driver_info": DRIVER,
        }
        self.outage = Outage(self.address)
        # No socket timeout: with one, redis-py sends in a wait_for, which on Python 3.11 may swallow a cancellation.
        # Each kind of connection has limits of its own.
        self.topology = Topology.of(url, {"socket_timeout": None, **self._options}, self.leave)
        self._socket_timeout = socket_timeout
        self._wires: dict[Place, Wire] = {}
        # What takes messages in, the confirmed scripts, has connections of its own, also where no replica confirms: a
        # burst of messages does not go before the steps of the turns at work.
        self._incoming: dict[Place, Wire] = {}
        self._replicas, self._wait_seconds = wait_replicas, wait_seconds
        self._readers: list[BlockingReader | ShardedReader] = []
        self._subscribers: list[Subscriber] = []
        self._background = BackgroundTasks()

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        """See Server.send. On a cluster, PUBLISH reaches the node that has the channel's slot only."""
        if self.topology.sharded and args[0] == "PUBLISH":
            args = ("SPUBLISH", *args[1:])
        return self.wire(self.topology.place(args)).send(args)

    async def call(self, *args: Arg) -> Any:
        """See Server.call."""
        return await self.send(*args)

    def start(self, script: Script, /, *blocks: Block, **values: Any) -> asyncio.Future[Any]:
        """See Server.start."""
        return self._started(script, script.arguments(blocks, values))

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

    def reader(self) -> BlockingReader | ShardedReader:
        """A new connection for blocking reads, closed with this server; on a cluster, one per shard that is read."""
        self._readers.append(ShardedReader(self) if self.topology.sharded else BlockingReader(self))
        return self._readers[-1]

    def another(self, *, patience: float) -> RedisServer:
        """Connections of its own to the same server, for another event loop."""
        name = self._options["client_name"]
        return RedisServer(self.url, name=name, socket_timeout=self._socket_timeout, patience=patience)

    def pubsub(self) -> Subscriber:
        """A new connection for publish/subscribe, closed with this server; on a cluster, one per node."""
        kind = ShardedSubscriber if self.topology.sharded else Subscriber
        self._subscribers.append(kind(self.topology, self.outage))
        return self._subscribers[-1]

    def wire(self, place: Place) -> Wire:
        """The pipelined connection to ``place``."""
        return self._wire(self._wires, place)

    def _wire(self, wires: dict[Place, Wire], place: Place) -> Wire:
        wire = wires.get(place)
        if wire is None:
            node, confirming = _Node(self, wires, place), wires is self._incoming and self._replicas > 0
            wire = self._confirming(node) if confirming else Wire(node, self._socket_timeout, self.outage)
            wires[place] = wire
        return wire

    def _confirming(self, node: _Node) -> ConfirmedWire:
        return ConfirmedWire(
            node, self._socket_timeout, self.outage, replicas=self._replicas, seconds=self._wait_seconds
        )

    def leave(self, places: Collection[Place]) -> None:
        """Give up all connections to ``places``: what is sent from now on goes where the topology says."""
        for place in places:
            for wires in (self._wires, self._incoming):
                if (wire := wires.get(place)) is None:
                    continue
                if place in self.topology.places():
                    wire.reconnect()
                else:
                    self._background.start(wires.pop(place).aclose(), "rolecall node gone")
                    self.outage.end(wire)
        for part in (*self._readers, *self._subscribers):
            part.leave(places)

    async def check(self) -> str:
        """The server's name and version. Raises ServerUnavailable when it cannot be reached or is too old, ConfigError
        when it refuses user or password."""
        try:
            with translated():
                await self.topology.find()
        except ServerUnavailable as error:
            raise ServerUnavailable(f"the server at {self.address} cannot be used: {self._why(error)}") from error
        try:
            info = await self.info("server")
        except ServerError as error:
            if error.code == "NOPERM" and await self._lets_us_in():
                return "a server that does not tell its version"
            if error.code == "NOPERM":
                raise ConfigError(
                    f"the server at {self.address} does not give its user enough rights: {error}"
                ) from error
            if _is_unauthorised(error):
                raise ConfigError(
                    f"the server at {self.address} refuses the login: {error.__cause__}; check user and password in "
                    "REDIS_URL, or REDIS_USERNAME and REDIS_PASSWORD"
                ) from error
            raise ServerUnavailable(f"no server answers at {self.address}: {self._why(error)}") from error
        if self.topology.sharded:
            await self._ask_each_node()
        return self._judged(info)

    async def _ask_each_node(self) -> None:
        places = self.topology.places()
        found = await asyncio.gather(*(self.wire(place).send(("PING",)) for place in places), return_exceptions=True)
        for (host, port), answer in zip(places, found, strict=True):
            if isinstance(answer, ServerUnavailable):
                raise ServerUnavailable(
                    f"the cluster at {self.address} is incomplete: {host}:{port} does not answer, and no "
                    f"replica has taken its slots over: {answer.__cause__}"
                )

    async def _lets_us_in(self) -> bool:
        """Whether it accepts our user and password, who may not ask for INFO; managed services often forbid it."""
        try:
            await self.call("PING")
        except ServerError:
            return False
        return True

    def _why(self, error: ServerError) -> str:
        why = str(error.__cause__)
        return f"{why}{tls_advice(self.url, why)}"

    def _judged(self, info: Mapping[str, str]) -> str:
        """The server's name and version. Raises ServerUnavailable if it is too old, ConfigError if it is a Sentinel or
        a node of a cluster and the URL does not say so."""
        version = info.get("redis_version", "0")
        found = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {version}"
        if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
            raise ServerUnavailable(f"{found} at {self.address} is too old: Redis 7.0 or Valkey 7.2 is required")
        modes = (info.get("redis_mode"), info.get("server_mode"))
        if "sentinel" in modes:
            raise ConfigError(
                f"the server at {self.address} is a Sentinel: write redis+sentinel://host,host,host/name in REDIS_URL"
            )
        if not self.topology.sharded and "cluster" in modes:
            raise ConfigError(
                f"the server at {self.address} is a node of a cluster: write redis+cluster:// in REDIS_URL"
            )
        return found

    async def info(self, *sections: str) -> dict[str, str]:
        """The fields of INFO, of one node. Raises ServerError."""
        return _parse_info(await self.call("INFO", *sections))

    async def info_of_all(self, *sections: str) -> dict[str, dict[str, str]]:
        """The fields of INFO of each node that has keys, by its address, which is empty for the only one; nothing when
        this user may not ask. Raises ServerUnavailable."""
        places = self.topology.places()
        try:
            found = await asyncio.gather(*(self.wire(place).send(("INFO", *sections)) for place in places))
        except ServerRefused:
            return {}
        names = [f"{host}:{port}" if host else "" for host, port in places]
        return {name: _parse_info(raw) for name, raw in zip(names, found, strict=True)}

    async def condition(self) -> ServerCondition:
        """The condition of all nodes as far as this user may ask. Raises ServerUnavailable."""
        found = await self.info_of_all(*SECTIONS)
        return ServerCondition.of_all(found)

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
        """Whether a connection for commands is open; the first command opens it."""
        return any(wire.connected for wire in (*self._wires.values(), *self._incoming.values()))

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return sum(part.connections for part in self._parts())

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        self.closed = True
        for part in self._parts():
            await part.aclose()
        await self.topology.aclose()
        await self._background.drain(0)

    def _parts(self) -> list[Wire | BlockingReader | ShardedReader | Subscriber]:
        return [*self._readers, *self._subscribers, *self._wires.values(), *self._incoming.values()]

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
        try:
            return await self._started(script, arguments)
        except ServerRefused as error:
            if error.code != "NOSCRIPT":
                raise
            return await self._started(script, arguments, whole=True)

    def _started(self, script: Script, arguments: Sequence[Arg], *, whole: bool = False) -> asyncio.Future[Any]:
        """Send ``script`` by its digest, or as a ``whole`` to a server that does not have it."""
        if self.topology.sharded:
            script, arguments = script.sharded, script.with_absent(arguments)
        command = ("EVAL" if whole else "EVALSHA") + ("_RO" if script.reads else "")
        place = self.topology.place((command, script.sha, *arguments[:2]))
        wire = self._wire(self._incoming if script.confirmed else self._wires, place)
        return wire.send((command, script.body, *arguments)) if whole else wire.run(command, script, arguments)


@dataclass(frozen=True)
class _Node:
    """What the pipelined connection to one place of ``server`` needs of it."""

    server: RedisServer
    wires: dict[Place, Wire]
    place: Place

    def connection(self) -> Connection:
        return self.server.topology.connection(self.place)

    def demoted(self) -> None:
        self.server.leave([self.place])

    def lost(self) -> None:
        self.server.topology.lost(self.place)

    def silent(self) -> None:
        for reader in self.server._readers:
            reader.leave([self.place])

    def redirected(self, error: AskError, command: Command) -> None:
        place = self.server.topology.redirected(error)
        self.server.outage.move()
        self.server._wire(self.wires, place).put(command, asking=not isinstance(error, MovedError))


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
