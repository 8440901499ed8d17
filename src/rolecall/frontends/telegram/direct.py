"""Small requests to one server, with nothing between: a third of what they cost by way of a whole HTTP client."""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio
import h11
from anyio.abc import ByteStream, SocketAttribute
from h11 import Connection as Http

READ_BYTES = 65_536
IDLE_SECONDS = 15.0
"""A connection unused for longer may be just about to be closed by the other side."""
FAILURES = (OSError, ssl.SSLError, h11.ProtocolError, anyio.ClosedResourceError, anyio.BrokenResourceError,
            anyio.EndOfStream)  # fmt: skip
"""What ``Direct.post`` raises when the server cannot be reached, or breaks off; TimeoutError is one of them."""


@dataclass
class Kept:
    """A connection between two requests."""

    stream: ByteStream
    http: Http
    since: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it may be used once more: not too old, and the other side has said nothing meanwhile, not even that
        it closes."""
        if time.monotonic() - self.since > IDLE_SECONDS:
            return False
        readable, _, _ = select.select([self.stream.extra(SocketAttribute.raw_socket)], [], [], 0)
        return not readable


class Direct:
    """The server of ``url``; ``secure`` holds the authorities of its certificate, for https. Connections are kept for
    the next request."""

    def __init__(self, url: str, secure: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._host, self._secure = parts.hostname or "", secure
        self._port = parts.port or (443 if secure else 80)
        self._header = parts.netloc.encode("ascii")
        self.kept: deque[Kept] = deque()

    async def post(self, url: str, body: bytes, *, connect: float, answer: float) -> tuple[int, bytes]:
        """The status and the content of the answer to a form. Seconds: to ``connect``, and until the whole ``answer``
        is there. Raises one of FAILURES."""
        connection = await self._connection(connect)
        whole = False
        try:
            async with asyncio.timeout(answer):
                status, content = await self._exchange(connection, urlsplit(url).path, body)
            whole = True
        finally:
            if whole and connection.http.our_state is h11.DONE is connection.http.their_state:
                connection.http.start_next_cycle()
                connection.since = time.monotonic()
                self.kept.append(connection)
            else:
                await anyio.aclose_forcefully(connection.stream)
        return status, content

    async def aclose(self) -> None:
        """Close what is kept."""
        while self.kept:
            await anyio.aclose_forcefully(self.kept.pop().stream)

    async def _connection(self, seconds: float) -> Kept:
        while self.kept:
            kept = self.kept.pop()
            if kept.good:
                return kept
            await anyio.aclose_forcefully(kept.stream)
        async with asyncio.timeout(seconds):
            if self._secure is None:
                stream: ByteStream = await anyio.connect_tcp(self._host, self._port)
            else:
                stream = await anyio.connect_tcp(
                    self._host, self._port, ssl_context=self._secure, tls_standard_compatible=False
                )
        return Kept(stream, Http(h11.CLIENT))

    async def _exchange(self, connection: Kept, path: str, body: bytes) -> tuple[int, bytes]:
        http, stream = connection.http, connection.stream
        head = h11.Request(
            method=b"POST", target=path.encode("ascii"),
            headers=[
                (b"Host", self._header), (b"Content-Length", b"%d" % len(body)),
                (b"Content-Type", b"application/x-www-form-urlencoded"),
            ],
        )  # fmt: skip
        parts = [http.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        await stream.send(b"".join(part for part in parts if part))
        status, content = 0, bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await _received(stream))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(content)


async def _received(stream: ByteStream) -> bytes:
    """What comes next; nothing when the other side has closed."""
    try:
        return await stream.receive(READ_BYTES)
    except anyio.EndOfStream:
        return b""
