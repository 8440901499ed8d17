"""A process's connection for publish/subscribe, one per node of a cluster; it reconnects with all its channels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.background import cancel_and_wait
from rolecall.errors import ServerError, ServerUnavailable
from rolecall.redis.outage import Outage, translated
from rolecall.redis.pipeline import Connection, close, connecting, cut, on_bytes
from rolecall.redis.topology import SERVER, Place, Topology

PING_SECONDS = 10.0
"""After how long a silence the server is asked whether it is still there. A router that dropped the connection says
nothing, and a subscriber has nothing else to notice that by."""
ANSWER_SECONDS = 5.0
"""How long the server may take to answer a PING or a SUBSCRIBE."""
LISTEN_SECONDS = 30.0
AGAIN_SECONDS = 0.2
"""After how long channels are subscribed to again, where their node is then known to be."""


class Subscriber:
    """Receives what is published on ``channels``. One task calls ``get_message``, which opens the connection; any other
    may subscribe. A server that does not answer is noticed within PING_SECONDS + ANSWER_SECONDS. (redis-py's own class
    opens two connections when several tasks find it lost, and then listens to the wrong one.)"""

    def __init__(self, topology: Topology, outage: Outage, place: Place = SERVER) -> None:
        self.channels: dict[str, None] = {}
        self.place = place
        self._topology = topology
        self._connection: Connection = None
        self._outage = outage
        self._prefix = "S" if topology.sharded else ""
        self._up = False
        self._asked = 0.0
        """When the oldest command that is still unanswered was sent; 0 if there is none."""

    @property
    def connected(self) -> bool:
        """Whether the connection is open and usable."""
        return self._up and bool(self._connection.is_connected)

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return int(self.connected)

    async def subscribe(self, channel: str) -> None:
        """Receive from ``channel``; without a connection, from the next one on."""
        self.channels[channel] = None
        await self._send(f"{self._prefix}SUBSCRIBE", channel)

    async def unsubscribe(self, channel: str) -> None:
        """Stop receiving from ``channel``."""
        self.channels.pop(channel, None)
        await self._send(f"{self._prefix}UNSUBSCRIBE", channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:
        """The next ``type``, ``channel`` and ``data``, or None after ``timeout`` seconds: published messages, and the
        confirmation of each subscription, also after a reconnection. Raises ServerError; the next call reconnects."""
        give_up = time.monotonic() + timeout
        try:
            with translated():
                if not self.connected:
                    await self._connect()
                while (left := give_up - time.monotonic()) > 0:
                    reply = await self._read(left)
                    if isinstance(reply, list) and reply[0] != b"pong":
                        kind = reply[0].decode().removeprefix(self._prefix.lower())
                        return {"type": kind, "channel": reply[1], "data": reply[-1]}
        except ServerUnavailable as error:
            self._outage.begin(self, error)
            await self._disconnect()
            raise
        except (ServerError, asyncio.CancelledError):
            await self.aclose()
            raise
        return None

    def leave(self, places: Collection[Place]) -> None:
        """Reopen the connection, even while it is read, if it is to one of ``places``."""
        if self._connection is not None and self.place in places:
            cut(self._connection)

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        self._outage.forget(self)
        await self._disconnect()

    async def _read(self, seconds: float) -> Any:
        """The next reply, or None after ``seconds`` at the latest. Raises RedisTimeoutError when the server does not
        answer."""
        patience = ANSWER_SECONDS if self._asked else PING_SECONDS
        reply = await self._connection.read_response(timeout=min(seconds, patience), disconnect_on_error=False)
        if reply is None and self._asked and time.monotonic() - self._asked >= ANSWER_SECONDS:
            raise RedisTimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
        if reply is None and seconds > patience and not self._asked:
            await self._send("PING")
        return reply

    async def _connect(self) -> None:
        await self._disconnect()
        if self._connection is None:
            self._connection = self._topology.connection(self.place)
        async with connecting(self._connection):
            on_bytes(self._connection, self._heard)
        self._up = True  # subscribe at once, before any other task can send
        self._heard()
        if self._prefix:  # one by one: a command's channels must be of one slot
            for channel in list(self.channels):
                await self._send("SSUBSCRIBE", channel)
        elif self.channels:
            await self._send("SUBSCRIBE", *self.channels)
        self._outage.end(self)

    def _heard(self) -> None:
        self._asked = 0.0

    async def _disconnect(self) -> None:
        self._up = False
        if self._connection is not None:
            await close(self._connection)

    async def _send(self, *command: str) -> None:
        """Send if there is a connection; ``get_message`` notices a broken one and reconnects."""
        if not self.connected:
            return
        self._asked = self._asked or time.monotonic()
        with suppress(RedisError, OSError, TimeoutError, RuntimeError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._connection.send_command(*command, check_health=False)


class ShardedSubscriber(Subscriber):
    """Receives from channels of a cluster, where each is published on the node that has its slot: one connection per
    node. Channels follow their slots to other nodes."""

    def __init__(self, topology: Topology, outage: Outage) -> None:
        self.channels = {}
        self._topology = topology
        self._outage = outage
        self._nodes: dict[Place, Subscriber] = {}
        self._listening: dict[Place, asyncio.Task[None]] = {}
        self._received: asyncio.Queue[dict[str, Any] | ServerError] = asyncio.Queue()

    @property
    def connected(self) -> bool:
        """Whether all connections are open and usable."""
        return all(node.connected for node in self._nodes.values())

    @property
    def connections(self) -> int:
        """See Subscriber.connections."""
        return sum(node.connections for node in self._nodes.values())

    async def subscribe(self, channel: str) -> None:
        """See Subscriber.subscribe."""
        self.channels[channel] = None
        await self._node(channel).subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        """See Subscriber.unsubscribe."""
        self.channels.pop(channel, None)
        for node in list(self._nodes.values()):
            if channel in node.channels:
                await node.unsubscribe(channel)

    async def get_message(self, timeout: float) -> dict[str, Any] | None:
        """See Subscriber.get_message: what any node sends, or the error of one of them."""
        try:
            async with asyncio.timeout(timeout):
                found = await self._received.get()
        except TimeoutError:
            return None
        if isinstance(found, ServerError):
            raise found
        return found

    def leave(self, places: Collection[Place]) -> None:
        """See Subscriber.leave."""
        for node in self._nodes.values():
            node.leave(places)

    async def aclose(self) -> None:
        """See Subscriber.aclose."""
        await cancel_and_wait(*self._listening.values())
        for node in self._nodes.values():
            await node.aclose()

    def _node(self, channel: str) -> Subscriber:
        place = self._topology.place(("", channel))
        if place not in self._nodes:
            self._nodes[place] = Subscriber(self._topology, self._outage, place)
            listening = asyncio.create_task(self._listen(place), name="rolecall subscriber")
            self._listening[place] = listening
        return self._nodes[place]

    async def _listen(self, place: Place) -> None:
        """Receive from one node while it has channels that this process subscribed to."""
        node = self._nodes[place]
        while node.channels:
            try:
                message = await node.get_message(LISTEN_SECONDS)
            except ServerError as error:
                self._received.put_nowait(error)
                self._topology.lost(place)
                await asyncio.sleep(AGAIN_SECONDS)
                await self._follow()
                continue
            if message is not None and message["type"] == "unsubscribe":
                node.channels.pop(message["channel"].decode(), None)  # its slot has another node now
                await self._follow()
            elif message is not None:
                self._received.put_nowait(message)
        del self._nodes[place], self._listening[place]
        await node.aclose()

    async def _follow(self) -> None:
        """Subscribe where each channel's node is now."""
        for channel in list(self.channels):
            node = self._node(channel)
            if channel not in node.channels:
                for other in self._nodes.values():
                    other.channels.pop(channel, None)
                await node.subscribe(channel)
