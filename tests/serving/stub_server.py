"""A model server of others, on loopback: speaks OpenAI's protocol, takes a set time, can be away and come back."""

from __future__ import annotations

import asyncio
import json

from tests.contract.model_wires import OpenAIWire
from tests.listening import Listener


class StubServer:
    """Answers after ``seconds``, and not before ``going`` is set; counts connections, answers, and how many it gave at
    once. ``fails`` is a status that it answers with instead."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.fails = 0
        self.going = asyncio.Event()
        self.going.set()
        self.connections = self.answered = self.now = self.most = 0
        self.listener = Listener(self._serve)

    @property
    def url(self) -> str:
        return f"{self.listener.url}/v1"

    async def start(self) -> None:
        await self.listener.start()

    async def stop(self) -> None:
        """Be away: what runs breaks off, and nobody can connect."""
        await self.listener.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._answer(reader, writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(line[15:]) for line in head.splitlines() if line.startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        if self.fails and body:
            said = OpenAIWire().refusal(self.fails, "broken")
            writer.write(f"HTTP/1.1 {self.fails} X\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said)
        elif body:
            await self._speak(writer, body["messages"][-1]["content"])
        else:
            writer.write(b'HTTP/1.1 200 X\r\nContent-Length: 11\r\n\r\n{"data":[]}')
        await writer.drain()

    async def _speak(self, writer: asyncio.StreamWriter, words: str) -> None:
        wire = OpenAIWire()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            writer.write(wire.delta("so: "))
            await writer.drain()
            await self.going.wait()
            await asyncio.sleep(self.seconds)
            writer.write(wire.delta(words) + wire.end("stop", (3, 2)))
            self.answered += 1
        finally:
            self.now -= 1


class Offline:
    """Holds the port of a server that is away, and counts who connects: each is cut off at once."""

    def __init__(self, away: StubServer) -> None:
        self._away = away
        self._listener = Listener(self._cut)
        self.connections = 0

    async def __aenter__(self) -> Offline:
        await self._away.stop()
        await self._listener.start(self._away.listener.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listener.stop()
        await self._away.start()

    async def _cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.transport.abort()
