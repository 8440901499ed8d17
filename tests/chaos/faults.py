"""The faults of ``--faults``: the server moves, refuses writes, cannot save, and connections fall silent.

All of it really happens, behind a proxy, while everyone is at work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from rolecall.redis.server import RedisServer
from tests.chaos.cast import ChaosServer
from tests.outages import CASES, fail_over, follow
from tests.proxy import KINDS, Proxy, free_port

SECONDS = (1.5, 3.0)
"""How long the server refuses writes: about a lease."""
PAUSE = 2.0
KINDS_OF_FAULTS = ("failover", "READONLY", "MISCONF", "half-open")


class Faults:
    """Two servers, the primary behind a proxy that lives in a thread of its own. ``struck`` counts what was done."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.struck: Counter[str] = Counter()
        self.nodes = [ChaosServer(directory / name, free_port()) for name in ("data", "data2")]
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos faults", daemon=True)
        self._ended = asyncio.Event()
        self._calm = asyncio.Event()
        self._calm.set()
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._next = list[str]()

    @property
    def primary(self) -> ChaosServer:
        """The server that everyone writes to now."""
        return self.nodes[0]

    def start(self) -> str:
        """Start both servers and the proxy; the address for everyone."""
        logging.getLogger("rolecall.redis.outage").setLevel(logging.ERROR)
        for node in self.nodes:
            node.directory.mkdir(exist_ok=True)
            node.start()
        self._thread.start()
        self._wait(self._prepare())
        return self._proxy.url

    def begin(self) -> None:
        """Begin with the faults."""
        self._task = asyncio.run_coroutine_threadsafe(self._strike(), self._loop)

    def restart(self, *, gently: bool) -> None:
        """Restart the primary, between two faults."""
        self._wait(self._hold())
        try:
            self.primary.restart(gently=gently)
        finally:
            self._loop.call_soon_threadsafe(self._allowed.set)

    def end(self) -> None:
        """Finish the fault that is under way; no more of them."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._task.result(60)

    def kill(self) -> None:
        """End proxy and servers at once."""
        if self._thread.is_alive():
            self._wait(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        for node in self.nodes:
            node.kill()

    def _wait(self, work: Awaitable[object]) -> None:
        async def awaited() -> None:
            await work

        asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(60)

    async def _prepare(self) -> None:
        self._admins = {node: RedisServer(node.url) for node in self.nodes}
        self._proxy = Proxy(self.primary.socket)
        await self._proxy.start()
        primary, replica = self.nodes
        await follow(self._admins[replica], primary, self._admins[primary])

    async def _stop(self) -> None:
        for admin in self._admins.values():
            await admin.aclose()
        await self._proxy.stop()

    async def _hold(self) -> None:
        self._allowed.clear()
        await self._calm.wait()

    async def _strike(self) -> None:
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "failover": self._fail_over, "READONLY": lambda: self._refuse("READONLY"),
            "MISCONF": lambda: self._refuse("MISCONF"), "half-open": self._silence,
        }  # fmt: skip
        while not self._ended.is_set():
            await self._allowed.wait()
            await asyncio.sleep(PAUSE)
            if not self._allowed.is_set():
                continue
            self._calm.clear()
            if not self._next:
                self._next = [*KINDS_OF_FAULTS, "half-open", "half-open"]
                self._dice.shuffle(self._next)
            name = self._next.pop()
            try:
                await faults[name]()
            finally:
                self._calm.set()
            self.struck[name] += 1

    async def _fail_over(self) -> None:
        old, new = self.nodes
        await fail_over(self._admins[old], self._admins[new], self._proxy, old, new)
        self.nodes.reverse()

    async def _refuse(self, code: str) -> None:
        case = next(case for case in CASES if case.code == code)
        admin, directory = self._admins[self.primary], self.primary.directory
        await case.spoil(admin, directory)
        await asyncio.sleep(self._dice.uniform(*SECONDS))
        await case.mend(admin, directory)

    async def _silence(self) -> None:
        """Nothing more comes through on the connections of one kind, which stay open; new ones work."""
        self._proxy.silence(self._dice.choice(list(KINDS)))
