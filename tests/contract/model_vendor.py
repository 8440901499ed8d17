"""A provider on loopback that does what a test tells it, byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.contract.model_wires import Wire
from tests.listening import Listener

Script = Callable[["Connection"], Awaitable[None]]


@dataclass
class Connection:
    """One request as it came, and the way to answer it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    wire: Wire
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, status: int, body: bytes, **headers: str) -> None:
        """A whole answer that is no stream."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self._send(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **named})
        await self._write(body)

    async def begin(self) -> None:
        """The head of a streamed answer."""
        await self._send(200, {"Content-Type": self.wire.content_type, "Transfer-Encoding": "chunked"})

    async def say(self, *parts: bytes) -> None:
        """Parts of a streamed body, each as its own HTTP chunk."""
        for part in parts:
            await self._write(b"%x\r\n%s\r\n" % (len(part), part))

    async def close(self) -> None:
        """The proper end of a streamed body."""
        await self._write(b"0\r\n\r\n")

    async def cut(self) -> None:
        """Break the connection off."""
        self.writer.transport.abort()

    async def _send(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
        await self._write("\r\n".join([*lines, "Connection: close", "", ""]).encode())

    async def _write(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()


class Vendor:
    """Answers every request by the ``script`` of the moment and keeps what came."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.script: Script = silence
        self.connections: list[Connection] = []
        self.arrived = asyncio.Event()
        self._listener = Listener(self._serve)

    @property
    def url(self) -> str:
        return self._listener.url

    async def start(self) -> None:
        await self._listener.start()

    async def stop(self) -> None:
        await self._listener.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = await self._read(reader, writer)
        if (beside := self.wire.beside(connection.path)) is not None:
            return await connection.answer(200, beside)
        self.connections.append(connection)
        self.arrived.set()
        speaking = asyncio.create_task(self._speak(connection), name="vendor speaks")
        try:
            while not reader.at_eof():  # nothing more comes from a client but the end of its connection
                await reader.read(1024)
        finally:
            connection.gone.set()
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Connection:
        first, *head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        return Connection(first.split(" ")[1], headers, json.loads(raw) if raw else {}, writer, self.wire)

    async def _speak(self, connection: Connection) -> None:
        await self.script(connection)
        connection.writer.close()


def saying(*parts: bytes) -> Script:
    """Streams ``parts``, each as its own HTTP chunk, and ends properly."""

    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.say(*parts)
        await connection.close()

    return script


def refusing(status: int, body: bytes, **headers: str) -> Script:
    """Answers with an error."""

    async def script(connection: Connection) -> None:
        await connection.answer(status, body, **headers)

    return script


def stalling(*parts: bytes) -> Script:
    """Begins a stream with ``parts`` and says no more."""

    async def script(connection: Connection) -> None:
        await connection.begin()
        await connection.say(*parts)
        await connection.gone.wait()

    return script


async def silence(connection: Connection) -> None:
    """Takes the request, and that is all."""
    await connection.gone.wait()
