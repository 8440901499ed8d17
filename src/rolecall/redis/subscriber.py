"""A process's only connection for publish/subscribe; it reconnects with all its channels."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.errors import ServerError, ServerUnavailable
from rolecall.redis.outage import Outage, translated
from rolecall.redis.pipeline import close, connecting, cut, on_bytes

PING_SECONDS = 10.0
"""After how long a silence the server is asked whether it is still there. A router that dropped the connection says
nothing, and a subscriber has nothing else to notice that by."""
ANSWER_SECONDS = 5.0
"""How long the server may take to answer a PING or a SUBSCRIBE."""


class Subscriber:
    """Receives what is published on ``channels``. One task calls ``get_message``, which opens the connection; any other
    may subscribe. A server that does not answer is noticed within PING_SECONDS + ANSWER_SECONDS. (redis-py's own class
    opens two connections when several tasks find it lost, and then listens to the wrong one.)"""

    def __init__(self, connection: Any, outage: Outage) -> None:
        self.channels: dict[str, None] = {}
        self._connection = connection
        self._outage = outage
        self._up = False
        self._asked = 0.0
        """When the oldest command that is still unanswered was sent; 0 if there is none."""

    @property
    def connected(self) -> bool:
        """Whether the connection is open and usable."""
        return self._up and bool(self._connection.is_connected)

    async def subscribe(self, channel: str) -> None:
        """Receive from ``channel``; without a connection, from the next one on."""
        self.channels[channel] = None
        await self._send("SUBSCRIBE", channel)

    async def unsubscribe(self, channel: str) -> None:
        """Stop receiving from ``channel``."""
        self.channels.pop(channel, None)
        await self._send("UNSUBSCRIBE", channel)

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
                        return {"type": reply[0].decode(), "channel": reply[1], "data": reply[-1]}
        except ServerUnavailable as error:
            self._outage.begin(self, error)
            await self._disconnect()
            raise
        except (ServerError, asyncio.CancelledError):
            await self.aclose()
            raise
        return None

    def reconnect(self) -> None:
        """Open the connection anew, even while it is read."""
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
        async with connecting(self._connection):
            on_bytes(self._connection, self._heard)
        self._up = True  # subscribe at once, before any other task can send
        self._heard()
        if self.channels:
            await self._send("SUBSCRIBE", *self.channels)
        self._outage.end(self)

    def _heard(self) -> None:
        self._asked = 0.0

    async def _disconnect(self) -> None:
        self._up = False
        await close(self._connection)

    async def _send(self, *command: str) -> None:
        """Send if there is a connection; ``get_message`` notices a broken one and reconnects."""
        if not self.connected:
            return
        self._asked = self._asked or time.monotonic()
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._connection.send_command(*command, check_health=False)
