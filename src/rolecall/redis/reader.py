"""Connections for reads that block: one of them, or on a cluster one for each shard that is read."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import AskError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.background import cancel_and_wait
from rolecall.errors import ServerError, ServerUnavailable
from rolecall.redis.outage import MOVING, translated
from rolecall.redis.pipeline import Connection, close, connecting, cut, on_bytes, packed
from rolecall.redis.scripts import Arg
from rolecall.redis.topology import SERVER, Place, tag_of

if TYPE_CHECKING:
    from rolecall.redis.server import RedisServer

BLOCK_MS = 12_000
"""How long a blocking read waits at the server, at most."""
PROBE_MS = 100
"""How long the first read after a failure waits, and how long a reader waits for a slot that is on its way."""
UNBLOCKED = "UNBLOCKED"
"""The code for a read that waited while its node became a replica or its slot was moved: the next one goes where the
streams are now."""
SILENCE_SECONDS = 4.5
"""After this much silence a reader takes its server to be away, unless the server was told to wait longer."""
ANSWER_SECONDS = 1.5
"""How long the answer may take that a read was told to wait for."""


class Reader(Protocol):
    """A connection for reads that block."""

    async def read(self, *args: Arg) -> Any:
        """The raw reply of a blocking command, or None. Do not cancel it: call ``wake``. Raises ServerError."""
        ...

    async def wake(self) -> None:
        """Make a read in progress return None now; without one, do nothing."""
        ...

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        ...


class BlockingReader:
    """One connection for reads that block up to BLOCK_MS, to the node that has the first stream."""

    def __init__(self, server: RedisServer) -> None:
        self._connection: Connection = None
        self.place = SERVER
        self._server = server
        self._id = 0
        self._failing = False
        self._limit: asyncio.Timeout | None = None
        self._reads = 0
        self._reading = 0

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return int(self._connection is not None and self._connection.is_connected)

    async def read(self, *args: Arg) -> Any:
        """See Reader.read. Raises ServerError; the next read connects again."""
        self._reads += 1
        self._reading = self._reads
        if self._failing and "BLOCK" in args:  # whether it works again is known before anything comes
            at = args.index("BLOCK") + 1
            args = (*args[:at], PROBE_MS, *args[at + 1 :])
        try:
            with translated():
                reply = await self._read(args)
        except ServerUnavailable as error:
            self._server.topology.lost(self.place)
            await self._disconnect()  # a replica is left, and what is half open would wait once more
            if error.code == UNBLOCKED:
                return None
            self._server.outage.begin(self, error)
            if error.code in MOVING and "BLOCK" in args:
                await asyncio.sleep(PROBE_MS / 1000)
                return None
            self._failing = True
            raise
        finally:
            self._reading = 0
        self._failing = False
        self._server.outage.end(self)
        return reply

    async def _read(self, args: Sequence[Arg]) -> Any:
        waits = float(args[args.index("BLOCK") + 1]) / 1000 if "BLOCK" in args else 0.0
        silence = max(SILENCE_SECONDS, waits + ANSWER_SECONDS)
        if not self.connections:
            await self._connect(args)
        try:
            async with asyncio.timeout(silence) as self._limit:
                await self._connection.send_packed_command(packed(args))
                return await self._connection.read_response()
        except TimeoutError:
            raise RedisTimeoutError(f"no answer within {silence:g} s") from None
        except AskError as moved:
            self._server.topology.redirected(moved)
            raise
        finally:
            self._limit = None

    async def _connect(self, args: Sequence[Arg]) -> None:
        place = self._server.topology.place(args)
        if self._connection is None or place != self.place:
            self.place, self._connection = place, self._server.topology.connection(place)
        async with connecting(self._connection):
            await self._connection.send_command("CLIENT", "ID")
            self._id = int(await self._connection.read_response())
            on_bytes(self._connection, self._heard)

    def _heard(self) -> None:
        """A large reply may take its time, as long as bytes arrive."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)

    def leave(self, places: Collection[Place]) -> None:
        """Give up the connection if it is to one of ``places``, even while it is read."""
        if self._connection is not None and self.place in places:
            cut(self._connection)

    async def wake(self) -> None:
        """See Reader.wake. Repeats CLIENT UNBLOCK, because the read may not have reached the server yet."""
        read = self._reading
        with suppress(ServerError):
            while read and self._reading == read:
                if self._id and await self._server.wire(self.place).send(("CLIENT", "UNBLOCK", self._id)):
                    return
                await asyncio.sleep(0.001)

    async def aclose(self) -> None:
        """See Reader.aclose."""
        self._server.outage.forget(self)
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await close(self._connection)


class ShardedReader:
    """Reads streams of several shards of a cluster, where a command's keys are all of one slot: one connection per
    shard. What one shard brings is the answer; the reads of the others go on until the next call. What was read and is
    lost to an error belongs to the consumer, as with one reader."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._readers: dict[str, BlockingReader] = {}
        self._reading: dict[str, asyncio.Task[Any]] = {}

    async def read(self, *args: Arg) -> Any:
        """See Reader.read: XREADGROUP or XREAD. One that does not block is complete."""
        first = args.index("STREAMS") + 1
        half = (len(args) - first) // 2
        streams: dict[str, list[tuple[Arg, Arg]]] = {}
        for stream, start in zip(args[first : first + half], args[first + half :], strict=True):
            streams.setdefault(tag_of(("", stream)), []).append((stream, start))
        for tag, of_shard in streams.items():
            if tag not in self._reading:
                names, starts = zip(*of_shard, strict=True)
                reading = self._reader(tag).read(*args[:first], *names, *starts)
                self._reading[tag] = asyncio.create_task(reading, name="rolecall reader")
        enough = asyncio.FIRST_COMPLETED if "BLOCK" in args else asyncio.ALL_COMPLETED
        await asyncio.wait(self._reading.values(), return_when=enough)
        found: list[Any] = []
        for tag in [tag for tag, task in self._reading.items() if task.done()]:
            found += self._reading.pop(tag).result() or ()
        return found or None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return sum(reader.connections for reader in self._readers.values())

    def leave(self, places: Collection[Place]) -> None:
        """Give up the connections to ``places``, even while they are read."""
        for reader in self._readers.values():
            reader.leave(places)

    async def wake(self) -> None:
        """See Reader.wake."""
        await asyncio.gather(*(reader.wake() for reader in self._readers.values()))

    async def aclose(self) -> None:
        """See Reader.aclose."""
        for reader in self._readers.values():
            await reader.aclose()
        await cancel_and_wait(*self._reading.values())
        self._reading.clear()

    def _reader(self, tag: str) -> BlockingReader:
        if tag not in self._readers:
            self._readers[tag] = BlockingReader(self._server)
        return self._readers[tag]
