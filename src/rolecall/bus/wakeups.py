"""Wake-ups: the pub/sub connection of a process. It tells those who listen to a channel what comes there, or that
something may have been missed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.background import Boundary, log_level
from rolecall.errors import ServerError
from rolecall.redis import keys
from rolecall.redis.subscriber import Subscriber

logger = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS = 5.0
"""Poll interval of a follower whose wake-ups fail."""
MAX_HEARD = 1000
"""How many messages wait for a follower. It reads the stream when there are more."""
LINGERING = 256
"""Subscriptions kept without a follower."""


@dataclass(slots=True)
class Listener:
    """What a channel has brought. ``woken`` is set by every message. ``behind`` is set when a message may be missing,
    so that only a read of the stream tells what happened; without it, ``heard`` holds all messages since that read."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    heard: deque[bytes] = field(default_factory=deque)
    behind: bool = True

    def hear(self, data: bytes) -> None:
        """Take a message in."""
        if not self.behind:
            self.heard.append(data)
            self.behind = len(self.heard) > MAX_HEARD
        self.woken.set()

    def lose(self) -> None:
        """Messages may have been lost."""
        self.behind = True
        self.woken.set()

    async def doze(self, seconds: float) -> bool:
        """Whether a message came before ``seconds`` were over, after which the stream is read in any case."""
        came = True

        def rouse() -> None:
            nonlocal came
            came = False
            self.lose()

        timer = asyncio.get_running_loop().call_later(seconds, rouse)
        try:
            await self.woken.wait()
        finally:
            timer.cancel()
        return came

    def begin(self) -> None:
        """Called right before a read of the stream, which has all that was told up to now."""
        self.behind = False
        self.heard.clear()


class Wakeups:
    """The pub/sub connection of a process: wakes followers of conversations and receives control broadcasts."""

    def __init__(self, pubsub: Subscriber, control: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._pubsub = pubsub
        self._control = control
        self._boundary = Boundary("wake-ups")
        self._listeners: dict[str, list[Listener]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._lingering: dict[str, None] = {}
        self._closed = False
        self.listening = asyncio.Event()
        """Set once control broadcasts are received."""

    async def run(self) -> None:
        """Listen until cancelled. After a lost connection all followers are woken to read what they missed, at once and
        when their subscription is confirmed again."""
        await self._pubsub.subscribe(keys.CONTROL)
        while True:
            try:
                message = await self._pubsub.get_message(timeout=30)
                if message is not None:
                    await self._boundary.attempt("a message", self._received(message))
            except ServerError as error:
                logger.log(log_level(error), "wake-ups: %s", error)
                await asyncio.sleep(0.2)
                self._wake_everyone()

    async def aclose(self) -> None:
        """Close the connection. Those who still follow a conversation get a ServerError."""
        self._closed = True
        self._wake_everyone()
        await self._pubsub.aclose()

    def check_open(self) -> None:
        """Raise ServerError once the connection is closed."""
        if self._closed:
            raise ServerError("the connection to the server was closed before this had ended")

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Listener]:
        """What ``channel`` brings from now on. On entry the subscription is confirmed, unless the server is
        unavailable; followers poll as well."""
        listener = Listener()
        self._listeners.setdefault(channel, []).append(listener)
        try:
            self.check_open()
            await self._subscribed(channel)
            yield listener
        finally:
            self._listeners[channel] = [one for one in self._listeners[channel] if one is not listener]
            if not self._listeners[channel]:
                del self._listeners[channel]
                await self._linger(channel)

    async def _subscribed(self, channel: str) -> None:
        self._lingering.pop(channel, None)
        if channel not in self._confirmed:
            self._confirmed[channel] = asyncio.Event()
            await self._pubsub.subscribe(channel)
        if not self._confirmed[channel].is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                    await self._confirmed[channel].wait()

    async def _linger(self, channel: str) -> None:
        """Keep the subscription for a while: the conversation's next turn often follows soon."""
        self._lingering[channel] = None
        if len(self._lingering) > LINGERING:
            oldest = next(iter(self._lingering))
            del self._lingering[oldest], self._confirmed[oldest]
            await self._pubsub.unsubscribe(oldest)

    async def _received(self, message: dict[str, Any]) -> None:
        channel = message["channel"].decode()
        if channel == keys.CONTROL:
            self.listening.set()
        if message["type"] == "subscribe" and channel in self._confirmed:
            self._confirmed[channel].set()
        elif message["type"] == "message" and channel == keys.CONTROL:
            self._control_received(message["data"])
        for listener in self._listeners.get(channel, ()):
            listener.hear(message["data"]) if message["type"] == "message" else listener.lose()

    def _control_received(self, data: bytes) -> None:
        with suppress(msgspec.DecodeError):
            order = msgspec.json.decode(data)
            if self._control is not None and isinstance(order, dict):
                self._control(order)

    def _wake_everyone(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.lose()
