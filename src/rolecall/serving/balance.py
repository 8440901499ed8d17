"""Load balancing over the servers of a model: the least busy for its weight, decided for all processes by one script.

A server that fails is left out with growing backoff, then probed by one process; calls go there again once a probe is
answered. While all servers are left out, only probes connect.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from rolecall.background import BackgroundTasks
from rolecall.errors import ModelError, NotNow
from rolecall.redis import keys
from rolecall.redis.leader import extend
from rolecall.redis.scripts import Arg, milliseconds, script
from rolecall.redis.server import Server, server_ms, text_map

LEASE_SECONDS = 15.0
PROBE_SECONDS = 5.0
"""Timeout of a probe; after it another process may probe."""
LEFT_OUT_SECONDS = 2.0
"""Maximum backoff between two probes of a server."""
FULL_SECONDS = 0.15
"""How often to retry while all healthy servers are full."""
PlaceOutcome = Literal["OK", "ALIVE", "FAILED", "NOTHING"]
Probe = Callable[[str], Awaitable[None]]
"""Check the server with this id; raises ModelError if it does not answer."""


class BalanceBlock(TypedDict):
    """The keys of the scripts in ``scripts/balance``."""

    calls: str
    known: str


PACKAGE = "rolecall.serving"
PICK = script(PACKAGE, "scripts/balance/pick", BalanceBlock, names="call lease probe_ms servers")
LEFT = script(PACKAGE, "scripts/balance/left", BalanceBlock, names="call server outcome why wait longest")


@dataclass(frozen=True)
class Candidate:
    """A server of a model: its id (no spaces), its maximum of concurrent calls, and its share of the work."""

    id: str
    slots: int
    weight: float = 1.0


@dataclass
class HeldCall:
    """A call in flight at ``server``, held until ``Balance.left`` or ``Balance.abandoned``."""

    server: str
    call: str
    holding: asyncio.Task[None]


@dataclass(frozen=True)
class Condition:
    """State of a server: calls in flight, and why it is left out ("" if it is not)."""

    in_flight: int
    broken: str


class Balance:
    """Distributes calls of the model ``name`` over its servers. ``probe`` checks a server that failed."""

    def __init__(self, server: Server, name: str, probe: Probe) -> None:
        self.name = name
        self._server = server
        self._probe = probe
        self._tasks = BackgroundTasks()

    async def pick(self, candidates: Sequence[Candidate]) -> HeldCall:
        """Begin a call at one of ``candidates``; waits while all healthy ones are full.

        Raises NotNow with the seconds until the next probe while all of them are left out.
        """
        while True:
            call = secrets.token_hex(6)
            try:
                word, text, probe, *after = await self._picked(call, candidates)
            except asyncio.CancelledError:  # it may have begun at any of them
                for one in candidates:
                    self._later(self._tell(call, one.id, "NOTHING"))
                raise
            if word == b"GO":
                self._look_after(probe.decode())
                place = text.decode()
                holding = asyncio.create_task(self._hold(f"{place} {call}"), name=f"hold {place}")
                return HeldCall(place, call, holding)
            if word == b"FULL":
                self._look_after(probe.decode())
                await asyncio.sleep(random.uniform(0.5, 1) * FULL_SECONDS)
            elif probe:
                await self._examined(probe.decode())
            else:
                raise NotNow(f"{self.name}: {text.decode() or 'no server'}", after[0] / 1000, (self.name,))

    async def left(
        self, place: HeldCall, outcome: PlaceOutcome, why: str = "", retry_after: float | None = None
    ) -> None:
        """End a call. After FAILED its server is left out, for ``retry_after`` seconds if given."""
        place.holding.cancel()
        await self._tell(place.call, place.server, outcome, why, retry_after)

    def abandoned(self, place: HeldCall) -> None:
        """End a cancelled call, from code that cannot await."""
        place.holding.cancel()
        self._later(self._tell(place.call, place.server, "NOTHING"))

    async def examine(self, candidate: Candidate) -> str:
        """Probe one server; if it is left out, only when a probe is due and no other process probes. Returns why it is
        left out, "" if it is not."""
        word, _, probe, *_ = await self._picked("", [Candidate(candidate.id, 0)])
        if word != b"AWAY" or probe:
            await self._examined(candidate.id, broken=word == b"AWAY")
        return (await conditions(self._server, self.name, [candidate.id]))[candidate.id].broken

    async def aclose(self) -> None:
        """Wait for pending reports."""
        await self._tasks.drain()

    async def _picked(self, call: str, candidates: Sequence[Candidate]) -> list[Any]:
        flat: list[Arg] = []
        for one in candidates:
            flat += [one.id, one.slots, one.weight]
        lease, probe = milliseconds(LEASE_SECONDS), milliseconds(PROBE_SECONDS)
        return list(
            await self._server.run(PICK, _block(self.name), call=call, lease=lease, probe_ms=probe, servers=flat)
        )

    def _look_after(self, server: str) -> None:
        """Probe a failed server in the background; the current call goes to another one."""
        if server:
            self._later(self._examined(server))

    async def _examined(self, server: str, *, broken: bool = True) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._probe(server)
        except (ModelError, TimeoutError) as error:
            await self._tell("", server, "FAILED", str(error) or f"it does not answer within {PROBE_SECONDS:g} s")
        else:
            if broken:
                await self._tell("", server, "ALIVE")

    async def _tell(
        self, call: str, server: str, outcome: PlaceOutcome, why: str = "", retry_after: float | None = None
    ) -> None:
        wait = -1 if retry_after is None else milliseconds(retry_after)
        longest = milliseconds(LEFT_OUT_SECONDS)
        await self._server.run(
            LEFT, _block(self.name), call=call, server=server, outcome=outcome, why=why[:300], wait=wait,
            longest=longest,
        )  # fmt: skip

    async def _hold(self, member: str) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            holding = extend(self._server, keys.SERVED_CALLS, member, LEASE_SECONDS)
            await self._tasks.attempt(holding, f"balance {self.name}")

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.start(work, f"balance {self.name}")


async def conditions(server: Server, name: str, servers: Sequence[str]) -> dict[str, Condition]:
    """The condition of each of ``servers`` of the model ``name``, by id."""
    block = _block(name)
    now = round(await server_ms(server))
    members = [
        member.decode().partition(" ")[0] for member in await server.fetch("ZRANGEBYSCORE", block["calls"], now, "+inf")
    ]
    fields = text_map(await server.fetch("HGETALL", block["known"]))
    return {
        one: Condition(members.count(one), fields.get(f"{one} why", "left out") if f"{one} until" in fields else "")
        for one in servers
    }


def _block(name: str) -> BalanceBlock:
    return {"calls": keys.SERVED_CALLS, "known": keys.model(name, "servers")}
