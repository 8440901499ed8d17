"""A proxy before a server, on loopback: it can be pointed elsewhere, fall silent as a router does that has forgotten a
connection: nothing is closed, nothing comes through; and lose the reply to one command."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hiredis

from tests.listening import Listener

KINDS = {"commands": b"SCRIPT", "subscriber": b"SUBSCRIBE", "reader": b"XREAD"}
"""What a connection is used for → a word it sends, the first of these that it does."""
UNCOUNTED = frozenset((b"AUTH", b"CLIENT", b"HELLO", b"SCRIPT", b"SELECT", b"SUBSCRIBE", b"XREAD", b"XREADGROUP"))
"""Commands that open a connection, and blocking reads."""


class Link:
    """One connection through the proxy. ``silent`` is whether nothing comes through any more, ``losing`` whether it is
    closed in place of the next reply."""

    def __init__(self, writer: asyncio.StreamWriter, beyond: asyncio.StreamWriter) -> None:
        self.silent = False
        self.losing = False
        self.kind = ""
        self.commands = hiredis.Reader()
        self._writers = (writer, beyond)

    def sent(self, data: bytes) -> None:
        """Learn from what the client sends what it is for."""
        self.kind = self.kind or next((kind for kind, word in KINDS.items() if word in data.upper()), "")

    def close(self) -> None:
        """Close both ends at once."""
        for writer in self._writers:
            writer.transport.abort()


class Proxy:
    """Carries connections to a unix socket. With ``deaf`` it accepts new connections and says nothing on them."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.deaf = False
        self.pieces = (65_536, 0.0)
        """The size of the pieces in which data is carried, and the seconds between two of them."""
        self.accepted = 0
        self.carried = 0
        """How many commands were carried since ``lose``; not those of UNCOUNTED."""
        self.lost: list[bytes] = []
        """The command whose reply was lost."""
        self._losing = -1
        self.links: list[Link] = []
        self._stopped = asyncio.Event()
        self._carrying: set[asyncio.Task[None]] = set()
        self._listener = Listener(self._accept)

    async def start(self, port: int = 0) -> None:
        """Listen on loopback."""
        await self._listener.start(port)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.port

    @property
    def url(self) -> str:
        """The server's address through the proxy."""
        return f"redis://127.0.0.1:{self.port}"

    def of(self, kind: str) -> list[Link]:
        """The connections of that kind that come through."""
        return [link for link in self.links if link.kind == kind and not link.silent]

    def silence(self, kind: str = "") -> int:
        """Let nothing more through on the connections of that kind, or on all; how many there were."""
        found = self.of(kind) if kind else [link for link in self.links if not link.silent]
        for link in found:
            link.silent = True
        return len(found)

    def lose(self, number: int) -> None:
        """Count commands from now on, and carry that ``number`` of them, from 0, without its reply: the connection is
        closed instead."""
        self.carried, self.lost, self._losing = 0, [], number

    async def stop(self) -> None:
        """Close everything."""
        self._stopped.set()
        for link in self.links:
            link.close()
        await self._listener.stop()
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=1)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.deaf:
            await self._stopped.wait()
            return
        try:
            answers, beyond = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            return writer.transport.abort()
        link = Link(writer, beyond)
        self.links.append(link)
        both = [
            asyncio.create_task(self._carry(link, reader, beyond, self._count), name="proxy out"),
            asyncio.create_task(self._carry(link, answers, writer), name="proxy back"),
        ]
        self._carrying.update(both)
        await asyncio.wait(both)
        self._carrying.difference_update(both)
        if not link.silent:
            link.close()
            self.links.remove(link)

    def _count(self, link: Link, data: bytes) -> None:
        link.sent(data)
        link.commands.feed(data)
        while command := link.commands.gets():
            if command[0].upper() not in UNCOUNTED:
                if self.carried == self._losing:
                    self.lost, link.losing = command, True
                self.carried += 1

    async def _carry(
        self,
        link: Link,
        source: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        seen: Callable[[Link, bytes], None] | None = None,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(self.pieces[0]):
                if seen is not None:
                    seen(link, data)
                elif link.losing:
                    return link.close()
                if link.silent:
                    await self._stopped.wait()
                to.write(data)
                await to.drain()
                await asyncio.sleep(self.pieces[1])
        if not link.silent:
            to.transport.abort()


def free_port() -> int:
    """A port that nobody listens on now, low enough for a cluster node, which needs the port 10,000 above as well."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) < 55_000:
                return port
