"""Updates that Telegram brings: a small HTTP server behind whatever ends TLS."""

from __future__ import annotations

import asyncio
import hmac
import logging
from contextlib import suppress
from typing import Any

import h11
import msgspec
from h11 import Connection as Http
from telegram import Update

from rolecall.frontends.telegram.bot import QuietBot
from rolecall.frontends.telegram.poller import Receive

logger = logging.getLogger(__name__)
SECRET_HEADER = b"x-telegram-bot-api-secret-token"
READ_SECONDS = 10.0
LEAVE_SECONDS = 5.0
MOST_BYTES = 1024 * 1024
MOST_CONNECTIONS = 200


class Webhook:
    """Answers 200 only when ``receive`` returned; who does not know ``secret`` is answered 403 and costs nothing.

    It listens at ``host`` and ``port``, 0 for any. Paths are not looked at: what ends TLS may change them.
    """

    def __init__(self, bot: QuietBot, receive: Receive, *, secret: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.bot, self.receive, self.host, self.port = bot, receive, host, port
        self._secret = secret.encode()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._open: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Listen; ``port`` is then the one in use. Raises OSError when it is not free."""
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def run(self) -> None:
        """Serve until cancelled; what is being received is finished first."""
        if self._server is None:
            await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self._leave()

    async def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._open:
            await asyncio.wait(self._open.values(), timeout=LEAVE_SECONDS)
        for task in [*self._open.values(), *self._connections]:
            task.cancel()
        await asyncio.gather(*self._open.values(), *self._connections, return_exceptions=True)

    # ── one request ─────────────────────────────────────────────────────────────────────────────

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="telegram webhook request")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; there is no second one on a connection."""
        connection = Http(h11.SERVER)
        try:
            status = await self._status(connection, reader)
            head = h11.Response(status_code=status, headers=[("Content-Length", "0"), ("Connection", "close")])
            for event in (head, h11.EndOfMessage()):
                writer.write(connection.send(event) or b"")
            with suppress(OSError):
                await writer.drain()
        except h11.LocalProtocolError:  # what came was no HTTP: there is nothing to answer to
            pass
        finally:
            writer.close()

    async def _status(self, connection: Http, reader: asyncio.StreamReader) -> int:
        try:
            async with asyncio.timeout(READ_SECONDS):
                request = await _next(connection, reader)
                if not isinstance(request, h11.Request):
                    return 400
                refusal = self._refusal(request)
                if refusal:
                    return refusal
                update = self._read(await _body(connection, reader))
        except TimeoutError:
            return 408
        except TooMuch:
            return 413
        except (h11.RemoteProtocolError, OSError):
            return 400
        if update is None:
            return 400
        await self._received(update)
        return 200

    def _refusal(self, request: h11.Request) -> int:
        """The status for who is not Telegram, 0 for Telegram."""
        headers = dict(request.headers)
        if not hmac.compare_digest(headers.get(SECRET_HEADER, b""), self._secret):
            return 403
        return 0 if request.method == b"POST" else 405

    def _read(self, body: bytes) -> Update | None:
        try:
            return self.bot.read(msgspec.json.decode(body, type=dict[str, Any]))
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
            logger.warning("a request to the webhook was no update: %s", type(error).__name__)
            return None

    async def _received(self, update: Update) -> None:
        """Wait until it is received. Who hangs up ends nothing, and an update that is brought again while the first is
        in work is that one."""
        task = self._open.get(update.update_id)
        if task is None:
            task = asyncio.create_task(self._take(update), name="telegram update")
            self._open[update.update_id] = task
            task.add_done_callback(lambda _: self._open.pop(update.update_id, None))
        await asyncio.shield(task)

    async def _take(self, update: Update) -> None:
        await self.receive(update)


class TooMuch(Exception):
    """Raised for a body that no update has."""


async def _next(connection: Http, reader: asyncio.StreamReader) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(65_536))
    return event


async def _body(connection: Http, reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while isinstance(event := await _next(connection, reader), h11.Data):
        body += event.data
        if len(body) > MOST_BYTES:
            raise TooMuch
    return bytes(body)
