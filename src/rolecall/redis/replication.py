"""A pipelined connection whose commands count only once replicas have them, too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rolecall.errors import ServerUnavailable
from rolecall.redis.outage import WRITES, Outage, server_error
from rolecall.redis.pipeline import REDIRECTIONS, Command, Connection, Wire, WireOwner, nobody, packed
from rolecall.redis.scripts import Arg, milliseconds
from rolecall.redis.topology import tag_of


class ConfirmedWire(Wire):
    """Answers a command once ``replicas`` replicas have everything that its server had written by then; fails it when
    they do not within ``seconds``, although it was run. One WAIT serves all commands that are sent together, and the
    next ones are sent when it is answered. The command and its WAIT share a connection, so that no successor of the
    server can confirm what it never had."""

    def __init__(self, owner: WireOwner, timeout: float, outage: Outage, *, replicas: int, seconds: float) -> None:
        super().__init__(owner, timeout, outage)
        self._replicas = replicas
        self._seconds = min(seconds, timeout / 2)
        self._wait = packed(("WAIT", replicas, milliseconds(self._seconds)))
        self._channel = ""
        self._answered: list[tuple[asyncio.Future[Any], Any]] = []
        self._confirming: asyncio.Future[Any] | None = None

    def send(self, args: Sequence[Arg]) -> asyncio.Future[Any]:
        self._channel = f"{{{tag_of(args)}}}:ev:"
        return super().send(args)

    async def _write(self, connection: Connection) -> None:
        writer: asyncio.StreamWriter = connection._writer
        while True:
            await self._something.wait()
            self._something.clear()
            # WAIT waits for this connection's writes only, and the commands may have written nothing: a message that
            # nobody receives is replicated after all that came before it.
            self._confirming = asyncio.get_running_loop().create_future()
            self._queued.append((nobody(), packed(("SPUBLISH", self._channel, "")), REDIRECTIONS))
            self._queued.append((self._confirming, self._wait, REDIRECTIONS))
            self._flush(writer)
            await writer.drain()
            self._confirmed(await self._confirming)

    def _answer(self, command: Command, reply: Any) -> None:
        if command[0] is self._confirming:
            command[0].set_result(reply)
        else:
            self._answered.append((command[0], reply))

    def _confirmed(self, count: int) -> None:
        answered, self._answered = self._answered, []
        if count >= self._replicas:
            for future, reply in answered:
                if not future.done():
                    future.set_result(reply)
            return
        error = ServerUnavailable(
            f"the server is unavailable: {count} of {self._replicas} replicas confirmed within {self._seconds:g} s",
            "NOREPLICAS",
        )
        self._outage.begin(WRITES, error)
        self._fail_each(answered, error)

    def _fail(self, error: BaseException) -> None:
        answered, self._answered = self._answered, []
        super()._fail(error)
        self._fail_each(answered, server_error(error))

    def _fail_each(self, answered: Sequence[tuple[asyncio.Future[Any], Any]], error: BaseException) -> None:
        for future, _ in answered:
            if not future.done():
                future.set_exception(error)
