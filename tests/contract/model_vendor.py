"""A provider on loopback that does what a test tells it, byte by byte, and the wires it can speak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

Script = Callable[["Connection"], Awaitable[None]]


class Wire(Protocol):
    """How one provider's protocol puts things into bytes of a streamed body."""

    content_type: str

    def delta(self, text: str) -> bytes: ...
    def finish(self, reason: str) -> bytes: ...
    def usage(self, tokens_in: int, tokens_out: int) -> bytes: ...
    def end(self) -> bytes: ...
    def failure(self, message: str) -> bytes: ...
    def refusal(self, message: str, code: str) -> bytes: ...


class OpenAIWire:
    """Chat completions as server-sent events."""

    content_type = "text/event-stream"

    def delta(self, text: str) -> bytes:
        return self._chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])

    def finish(self, reason: str) -> bytes:
        return self._chunk(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])

    def usage(self, tokens_in: int, tokens_out: int) -> bytes:
        total = tokens_in + tokens_out
        counts = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": total}
        return self._chunk(choices=[], usage=counts)

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def failure(self, message: str) -> bytes:
        return self._event({"error": {"message": message, "type": "server_error", "code": None}})

    def refusal(self, message: str, code: str) -> bytes:
        return json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()

    def _chunk(self, **rest: Any) -> bytes:
        return self._event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **rest})

    def _event(self, data: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(data).encode() + b"\n\n"


@dataclass
class Connection:
    """One request as it came, and the way to answer it."""

    body: dict[str, Any]
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    wire: Wire
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def refuse(self, status: int, body: bytes, **headers: str) -> None:
        """A whole answer with an error status."""
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
        self.script: Script = _nothing
        self.connections: list[Connection] = []
        self.arrived = asyncio.Event()
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for connection in self.connections:
            connection.writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[1:-1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        connection = Connection(body, headers, writer, self.wire)
        self.connections.append(connection)
        self.arrived.set()
        speaking = asyncio.create_task(self._speak(connection), name="vendor speaks")
        # Nothing more comes from a client but the end of its connection.
        while not reader.at_eof():
            try:
                await reader.read(1024)
            except ConnectionError:
                break
        connection.gone.set()
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        writer.close()

    async def _speak(self, connection: Connection) -> None:
        await self.script(connection)
        connection.writer.close()


async def _nothing(connection: Connection) -> None:
    await connection.gone.wait()
