"""A proxy before a server, on loopback: it can be pointed elsewhere, and fall silent as a router does that has
forgotten a connection: nothing is closed, nothing comes through."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.listening import Listener

KINDS = {"commands": b"SCRIPT", "subscriber": b"SUBSCRIBE", "reader": b"XREAD"}
"""What a connection is used for → a word it sends, the first of these that it does."""


class Link:
    """One connection through the proxy. ``silent`` is whether nothing comes through any more."""

    def __init__(self, writer: asyncio.StreamWriter, beyond: asyncio.StreamWriter) -> None:
        self.silent = False
        self.kind = ""
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
            asyncio.create_task(self._carry(link, reader, beyond, link.sent), name="proxy out"),
            asyncio.create_task(self._carry(link, answers, writer), name="proxy back"),
        ]
        self._carrying.update(both)
        await asyncio.wait(both)
        self._carrying.difference_update(both)
        if not link.silent:
            link.close()
            self.links.remove(link)

    async def _carry(
        self,
        link: Link,
        source: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        seen: Callable[[bytes], None] | None = None,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(self.pieces[0]):
                if seen is not None:
                    seen(data)
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
