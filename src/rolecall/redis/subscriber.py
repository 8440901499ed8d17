"""A process's only connection for publish/subscribe; it reconnects with all its channels."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from rolecall.errors import ServerError
from rolecall.redis.pipeline import translated


class Subscriber:
    """Receives what is published on ``channels``. One task calls ``get_message``, which opens the connection; any other
    may subscribe. (redis-py's own class opens two connections when several tasks find it lost, and then listens to the
    wrong one.)"""

    def __init__(self, connection: Any) -> None:
        self.channels: dict[str, None] = {}
        self._connection = connection
        self._up = False

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
        try:
            with translated():
                if not self.connected:
                    await self._connect()
                reply = await self._connection.read_response(timeout=timeout, disconnect_on_error=False)
        except (ServerError, asyncio.CancelledError):
            await self.aclose()
            raise
        return None if reply is None else {"type": reply[0].decode(), "channel": reply[1], "data": reply[-1]}

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        self._up = False
        with suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    async def _connect(self) -> None:
        await self.aclose()
        await self._connection.connect()
        self._up = True  # subscribe at once, before any other task can send
        if self.channels:
            await self._send("SUBSCRIBE", *self.channels)

    async def _send(self, *command: str) -> None:
        """Send if there is a connection; ``get_message`` notices a broken one and reconnects."""
        if self.connected:
            with suppress(RedisError, OSError):
                await self._connection.send_command(*command, check_health=False)
