"""Where each key lives. The only module that knows whether the server is a single one, a primary with Sentinels, or a
cluster; redis-py finds the primary and the slots."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from redis.asyncio import ConnectionPool
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.asyncio.connection import AbstractConnection, SSLConnection, parse_url
from redis.asyncio.connection import Connection as TcpConnection
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.crc import key_slot
from redis.exceptions import AskError, AuthenticationError, MovedError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from rolecall.background import cancel_and_wait
from rolecall.redis.address import ServerAddress
from rolecall.redis.keys import SLOTS
from rolecall.redis.outage import LOST
from rolecall.redis.pipeline import Connection
from rolecall.redis.scripts import Arg

logger = logging.getLogger(__name__)
WATCH_SECONDS = 1.0
"""How often the Sentinels are asked who the primary is: a primary that is cut off from them may live on, and take what
it will forget."""
SENTINEL_SECONDS = 1.0
"""How long a Sentinel may take to answer."""
REFRESH_SECONDS = 0.25
"""The slots of a cluster are read at most this often."""
FAILURES = (RedisError, *LOST)
"""What asking a node or a Sentinel may raise."""
TAG = re.compile(r"\{([^}]+)\}")

Place: TypeAlias = tuple[str, int]
"""Host and port of a node; SERVER where there is only one."""
SERVER: Place = ("", 0)
Left: TypeAlias = Callable[[Collection[Place]], None]


class Topology:
    """A single server. ``left`` is called with the places whose connections must be given up."""

    sharded = False
    """Whether keys are spread over several nodes, and channels with them."""

    def __init__(self, address: ServerAddress, options: dict[str, Any], left: Left) -> None:
        self._address = address
        self._options = options
        self._left = left

    @classmethod
    def of(cls, url: str, options: dict[str, Any], left: Left) -> Topology:
        """The topology of the server at ``url``; ``options`` are those of redis-py's connections."""
        address = ServerAddress.of(url)
        kinds = {"single": SingleServer, "sentinel": WithSentinels, "cluster": Cluster}
        return kinds[address.kind](address, options, left)

    def place(self, args: Sequence[Arg]) -> Place:
        """The place that a command belongs to."""
        return SERVER

    def places(self) -> tuple[Place, ...]:
        """The places that have keys."""
        return (SERVER,)

    def connection(self, place: Place) -> Connection:
        """A new connection, which is not open, to ``place``. Requires a running event loop."""
        raise NotImplementedError

    def redirected(self, error: AskError) -> Place:
        """The place that an answer MOVED or ASK names; the former is remembered."""
        raise NotImplementedError

    def lost(self, place: Place) -> None:
        """Note that a connection to ``place`` failed, or that it does not answer."""

    async def find(self) -> None:
        """Look for the server. Raises RedisError when it cannot be found, with a text for people."""

    async def judged(self) -> tuple[bool, str]:
        """Whether it would outlive the death of a node as far as the topology tells, and why; the text is empty for a
        single server. Raises RedisError."""
        return True, ""

    async def aclose(self) -> None:
        """Close what belongs to no command."""


class SingleServer(Topology):
    """One server, by host or unix socket."""

    def __init__(self, address: ServerAddress, options: dict[str, Any], left: Left) -> None:
        super().__init__(address, options, left)
        self._pool = ConnectionPool(**_options(address.single, options))

    def connection(self, place: Place) -> Connection:
        """See Topology.connection."""
        return self._pool.make_connection()  # type: ignore[no-untyped-call]  # untyped in redis-py


class WithSentinels(Topology):
    """A primary that Sentinels watch and replace. Every connection asks them where it is when it is opened; one that is
    open is given up as soon as they name another primary."""

    def __init__(self, address: ServerAddress, options: dict[str, Any], left: Left) -> None:
        super().__init__(address, options, left)
        each = _without_place(_options(address.single, options))
        secure = each.pop("connection_class", None) is _TlsConnection
        asking = {name: value for name, value in each.items() if name.startswith("ssl_")}
        asking |= {"ssl": secure, "username": address.sentinel_username, "password": address.sentinel_password}
        asking |= {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS}
        asking |= {"retry": options["retry"], "protocol": 2}
        self._sentinels = _Sentinels(address.hosts, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        for sentinel in self._sentinels.sentinels if secure else ():
            sentinel.connection_pool.connection_class = _TlsConnection
        kind = _SecurePrimary if secure else _Primary
        self._pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            address.name, self._sentinels, connection_class=kind, **each
        )
        self._watch: asyncio.Task[None] | None = None

    def connection(self, place: Place) -> Connection:
        """See Topology.connection."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._follow(), name="rolecall sentinels")
        return self._pool.make_connection()  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def find(self) -> None:
        """See Topology.find."""
        await self._sentinels.discover_master(self._address.name)

    async def judged(self) -> tuple[bool, str]:
        """See Topology.judged: what the Sentinels say of their quorum."""
        return await self._sentinels.quorum(self._address.name)

    async def aclose(self) -> None:
        """See Topology.aclose."""
        if self._watch is not None:
            await cancel_and_wait(self._watch)
        with suppress(*FAILURES):
            await self._sentinels.aclose()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            with suppress(*FAILURES):
                found = await self._sentinels.discover_master(self._address.name)
                if self._pool.master_address not in (None, found):
                    logger.warning("the Sentinels name another primary: %s:%s", *found)
                    self._pool.master_address = found
                    self._left([SERVER])


class _Sentinels(Sentinel):
    async def discover_master(self, service_name: str) -> Place:
        """The primary by the newest configuration that any Sentinel knows: one that was away may still name a primary
        of before, which is back and takes writes that it will forget."""
        found = await asyncio.gather(
            *(sentinel.sentinel_masters() for sentinel in self.sentinels), return_exceptions=True
        )
        states = [masters[service_name] for masters in found if isinstance(masters, dict) and service_name in masters]
        newest = max((int(state["config-epoch"]) for state in states), default=0)
        for state in states:
            if int(state["config-epoch"]) == newest and self.check_master_state(state, service_name):
                return state["ip"], int(state["port"])
        raise RedisConnectionError(await self._why(service_name))

    async def quorum(self, name: str) -> tuple[bool, str]:
        """Whether all Sentinels answer and would elect another primary; and what they say."""
        said = list[str]()
        for sentinel in self.sentinels:
            try:
                await sentinel.execute_command("SENTINEL", "CKQUORUM", name)  # type: ignore[no-untyped-call]
            except FAILURES as error:
                host = sentinel.connection_pool.connection_kwargs
                said.append(f"{host['host']}:{host['port']}: {error}")
        agree = len(self.sentinels) - len(said)
        text = f"{agree} of {len(self.sentinels)} Sentinels answer and see a quorum"
        return not said, "; ".join([text, *said])

    async def _why(self, name: str) -> str:
        """Why there is no primary."""
        known, answers, failures = set[Any](), 0, list[BaseException]()
        for sentinel in self.sentinels:
            try:
                known |= set(await sentinel.sentinel_masters())
                answers += 1
            except FAILURES as error:
                failures.append(error)
        if not answers:
            help_ = "set sentinel_username and sentinel_password in REDIS_URL"
            if any(isinstance(error, AuthenticationError) for error in failures):
                return f"its Sentinels do not accept our user and password; {help_}"
            why = failures[-1]
            if "unknown command" in str(why):
                return "no Sentinels are there; name them, with their ports, or use redis:// for a single server"
            closed = isinstance(why, RuntimeError)  # uvloop's
            return f"no Sentinel answers: {'connection closed by server' if closed else why}"
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            return f"its Sentinels know no primary named {name!r}; they know {names}"
        some = f"{answers} of {len(self.sentinels)} Sentinels answer"
        return f"its primary {name!r} is down; {some} and have not elected another"


class _Primary(SentinelManagedConnection):
    read_response = AbstractConnection.read_response  # type: ignore[assignment]
    """Without redis-py's own answer to READONLY, which hides it."""


class _TlsConnection(SSLConnection):
    """Reads its certificates whenever it is opened: their files are replaced while processes run. redis-py keeps what
    it read first."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        self.ssl_context.context = None
        return super()._connection_arguments()


class _SecurePrimary(_Primary, _TlsConnection):
    pass


class Cluster(Topology):
    """A cluster. Its slots are read from any node at the first command, after every failed connection, and when a node
    answers MOVED."""

    sharded = True

    def __init__(self, address: ServerAddress, options: dict[str, Any], left: Left) -> None:
        super().__init__(address, options, left)
        self._each = _without_place(_options(address.single, options))
        self._each.pop("db", None)
        seeds = [ClusterNode(host, port, **self._each) for host, port in address.hosts]
        self._nodes = NodesManager(seeds, require_full_coverage=False, connection_kwargs=self._each)
        self._slots: dict[str, int] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = 0.0
        self._closed = False

    def place(self, args: Sequence[Arg]) -> Place:
        """See Topology.place: that of the first key, which its hash tag tells; without one, that of the first slot."""
        tag = tag_of(args)
        slot = self._slots.get(tag)
        if slot is None:
            slot = self._slots[tag] = key_slot(tag.encode())
        try:
            node = self._nodes.slots_cache[slot][0]
        except (KeyError, IndexError):  # not covered, or not read yet; any node knows more
            self._refresh_soon()
            node = next(iter(self._nodes.startup_nodes.values()))
        return node.host, int(node.port)

    def places(self) -> tuple[Place, ...]:
        """See Topology.places."""
        found = {id(nodes): nodes[0] for nodes in self._nodes.slots_cache.values()}.values()
        return tuple(dict.fromkeys((node.host, int(node.port)) for node in found))

    def connection(self, place: Place) -> Connection:
        """See Topology.connection."""
        kind = self._each.get("connection_class", TcpConnection)
        each = {name: value for name, value in self._each.items() if name != "connection_class"}
        return kind(**each, host=place[0], port=place[1])

    def redirected(self, error: AskError) -> Place:
        """See Topology.redirected."""
        if isinstance(error, MovedError):
            host, port = error.host, int(error.port)
            node = self._nodes.get_node(host, port) or ClusterNode(host, port, "primary", **self._each)
            self._nodes.slots_cache[error.slot_id] = [node]
            self._refresh_soon()
        return error.host, int(error.port)

    def lost(self, place: Place) -> None:
        """See Topology.lost."""
        self._refresh_soon()

    async def find(self) -> None:
        """See Topology.find. Every slot must have a node."""
        await self._refresh()
        if (covered := len(self._nodes.slots_cache)) < SLOTS:
            raise RedisConnectionError(f"only {covered} of its {SLOTS} slots have a node: the cluster is incomplete")

    async def judged(self) -> tuple[bool, str]:
        """See Topology.judged."""
        await self.find()
        return True, f"all {SLOTS} slots have a node, {len(self.places())} in all"

    async def aclose(self) -> None:
        """See Topology.aclose."""
        self._closed = True
        if self._refreshing is not None:
            await cancel_and_wait(self._refreshing)

    def _refresh_soon(self) -> None:
        if self._refreshing is None and not self._closed:
            self._refreshing = asyncio.create_task(self._refresh_later(), name="rolecall slots")

    async def _refresh_later(self) -> None:
        await asyncio.sleep(max(0.0, self._refreshed + REFRESH_SECONDS - time.monotonic()))
        self._refreshing = None  # what fails from now on asks for another look
        with suppress(*FAILURES):
            await self._refresh()

    async def _refresh(self) -> None:
        before = set(self.places())
        try:
            await self._nodes.initialize()
        except RedisClusterException as error:
            raise RedisConnectionError(_no_cluster(error, self._address.hosts)) from None
        finally:
            self._refreshed = time.monotonic()
            await _disconnected((*self._nodes.startup_nodes.values(), *self._nodes.nodes_cache.values()))
        if (gone := before - set(self.places())) and not self._closed:
            self._left(gone)


async def _disconnected(nodes: Iterable[ClusterNode]) -> None:
    """Close what redis-py used to read the slots."""
    for node in nodes:
        with suppress(*FAILURES):
            await node.disconnect()


def _no_cluster(error: BaseException, hosts: Sequence[Place]) -> str:
    """Why there is no cluster, in a few words."""
    cause: BaseException | None = error.__cause__
    if "not enabled" in str(cause):
        return "it is not a cluster; use redis:// for a single server"
    reason = f": {cause}" if isinstance(cause, RedisError | OSError) else ""
    return f"none of the {len(hosts)} nodes in REDIS_URL answers{reason}"


def _options(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """redis-py's options of a connection."""
    found: dict[str, Any] = {**parse_url(url), **options}
    return found | ({"connection_class": _TlsConnection} if found.get("connection_class") is SSLConnection else {})


def _without_place(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("host", "port")}


def tag_of(args: Sequence[Arg]) -> str:
    """The hash tag of the first key of a command: every key of Rolecall's begins with one."""
    for arg in args[1:] if args and args[0] in ("XREADGROUP", "XREAD") else args[1:4]:
        if isinstance(arg, str | bytes) and arg[:1] in ("{", b"{"):
            found = TAG.match(arg if isinstance(arg, str) else arg.decode("utf-8", "replace"))
            if found is not None:
                return found[1]
    return ""
