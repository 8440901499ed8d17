"""Load balancing over the servers of a model: the least busy for its weight, decided for all processes by one script.

A server that fails is left out with growing backoff, then probed by one process; calls go there again once a probe is
answered. While all servers are left out, only probes connect.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit

import msgspec

from rolecall.background import BackgroundTasks
from rolecall.errors import ConfigError, MissingExtra, ModelError, ModelUnavailable, NotNow, ServerError
from rolecall.redis import keys
from rolecall.redis.leader import Leader, extend
from rolecall.redis.scripts import Arg, script
from rolecall.redis.server import Server, server_ms, text_map
from rolecall.serving.directory import Directory
from rolecall.serving.spec import ModelServer

logger = logging.getLogger(__name__)
LEASE_SECONDS = 15.0
PROBE_SECONDS = 5.0
"""Timeout of a probe; after it another process may probe."""
LEFT_OUT_SECONDS = 2.0
"""Maximum backoff between two probes of a server."""
FULL_SECONDS = 0.15
"""How often to retry while all healthy servers are full."""
Outcome = Literal["OK", "ALIVE", "FAILED", "NOTHING"]
Probe = Callable[[str], Awaitable[None]]
"""Check the server with this id; raises ModelError if it does not answer."""
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 4.0
VARIABLE = re.compile(r"\$\{(\w+)\}")
LOOK_SECONDS = 1.0
WATCH_SECONDS = 4.0


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
class Picked:
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

    async def pick(self, candidates: Sequence[Candidate]) -> Picked:
        """Begin a call at one of ``candidates``; waits while all healthy ones are full.

        Raises NotNow with the seconds until the next probe while all of them are left out.
        """
        while True:
            call = secrets.token_hex(6)
            word, text, probe, *after = await self._picked(call, candidates)
            if word == b"GO":
                self._look_after(probe.decode())
                return self._place(text.decode(), call)
            if word == b"FULL":
                self._look_after(probe.decode())
                await asyncio.sleep(random.uniform(0.5, 1) * FULL_SECONDS)
            elif probe:
                await self._examined(probe.decode())
            else:
                raise NotNow(f"{self.name}: {text.decode() or 'no server'}", after[0] / 1000, (self.name,))

    async def left(self, place: Picked, outcome: Outcome, why: str = "", retry_after: float | None = None) -> None:
        """End a call. After FAILED its server is left out, for ``retry_after`` seconds if given."""
        place.holding.cancel()
        await self._tell(place.call, place.server, outcome, why, retry_after)

    def abandoned(self, place: Picked) -> None:
        """End a cancelled call, from code that cannot await."""
        place.holding.cancel()
        self._later(self._tell(place.call, place.server, "NOTHING"))

    async def examine(self, candidate: Candidate) -> str:
        """Probe one server; if it is left out, only when a probe is due and no other process probes. Returns why it is
        left out, "" if it is not."""
        word, _, probe, *_ = await self._picked("", [Candidate(candidate.id, 0)])
        if word != b"AWAY" or probe:
            await self._examined(candidate.id, broken=word == b"AWAY")
        return (await self.conditions([candidate.id]))[candidate.id].broken

    async def conditions(self, servers: Sequence[str]) -> dict[str, Condition]:
        """The condition of each of ``servers``, by id."""
        return await conditions(self._server, self.name, servers)

    async def aclose(self) -> None:
        """Wait for pending reports."""
        await self._tasks.drain()

    async def _picked(self, call: str, candidates: Sequence[Candidate]) -> list[Any]:
        flat: list[Arg] = []
        for one in candidates:
            flat += [one.id, one.slots, one.weight]
        lease, probe = round(LEASE_SECONDS * 1000), round(PROBE_SECONDS * 1000)
        return list(
            await self._server.run(PICK, _block(self.name), call=call, lease=lease, probe_ms=probe, servers=flat)
        )

    def _place(self, server: str, call: str) -> Picked:
        return Picked(server, call, asyncio.create_task(self._hold(f"{server} {call}"), name=f"hold {server}"))

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
        self, call: str, server: str, outcome: Outcome, why: str = "", retry_after: float | None = None
    ) -> None:
        wait = -1 if retry_after is None else round(retry_after * 1000)
        longest = round(LEFT_OUT_SECONDS * 1000)
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


@dataclass(frozen=True)
class ModelAt:
    """The address of a model server that speaks OpenAI's protocol, such as ``http://127.0.0.1:1234/v1``.

    It gets up to ``slots`` concurrent calls and, among several servers, a share by ``weight``. ``key`` is its API key;
    ``${NAME}`` in it is read from the environment or .env. ``alias`` is the server's own name for the model.
    """

    url: str
    slots: int = 4
    weight: float = 1.0
    key: str = field(default="", repr=False)
    alias: str = ""

    def resolved(self, name: str, environ: Mapping[str, str]) -> ModelAt:
        """A copy with the variables in ``key`` filled in. Raises ConfigError that names the model ``name``."""
        where = f"config.py, servers of {name}"
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in self.url or " " in self.url:
            raise ConfigError(f"{where}: url is invalid: expected an address such as http://127.0.0.1:1234/v1")
        if self.slots < 1 or not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"{where}: slots={self.slots}, weight={self.weight:g}: expected slots of at least 1 and a weight over 0"
            )
        missing = [variable for variable in VARIABLE.findall(self.key) if not environ.get(variable)]
        if missing:
            raise ConfigError(f"{where}: key names {missing[0]}, which neither the environment nor .env sets")
        return replace(self, url=self.url.rstrip("/"), key=VARIABLE.sub(lambda found: environ[found[1]], self.key))

    def candidate(self, name: str) -> Candidate:
        """This server as a candidate for the model ``name``; its id is the same in every process."""
        digest = hashlib.sha256(f"{name}\n{self.url}\n{self.alias}".encode()).hexdigest()
        return Candidate(digest[:16], self.slots, self.weight)


async def look(place: ModelAt, options: Mapping[str, object]) -> None:
    """Check that the server at ``place`` is ready. Raises ModelUnavailable. ``options`` are passed to the HTTP
    client."""
    try:
        import httpx2
    except ImportError:
        raise MissingExtra("openai", place.url) from None
    headers = {"Authorization": f"Bearer {place.key}"} if place.key else {}
    wait = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    host = urlsplit(place.url).netloc
    try:
        async with httpx2.AsyncClient(timeout=wait, headers=headers, **options) as http:  # type: ignore[arg-type]
            status = (await http.get(f"{place.url}/models")).status_code
    except (httpx2.HTTPError, ValueError) as error:
        raise ModelUnavailable(f"no connection to {host}: {str(error) or type(error).__name__}") from None
    if status >= 500:
        raise ModelUnavailable(f"{host} answers with status {status}")


class Watch:
    """Health checks of ``places`` (by model, with their ``balances``), reported to the directory of model servers by
    one process at a time."""

    def __init__(
        self,
        server: Server,
        process: str,
        places: Mapping[str, tuple[ModelAt, ...]],
        balances: Mapping[str, Balance],
    ) -> None:
        self._directory = Directory(server)
        self._leader = Leader(server, "model-servers", process, seconds=WATCH_SECONDS)
        self._watched = [(name, place) for name, several in places.items() for place in several if name in balances]
        self._balances = balances
        self._states: dict[str, str] = {}

    async def run(self) -> None:
        """Watch until cancelled. Returns at once if there is no server to watch."""
        if not self._watched:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leader.run(), name="watch leader")
            while True:
                await self._leader.wait()
                await asyncio.gather(*(self._look(name, place) for name, place in self._watched))
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, name: str, place: ModelAt) -> None:
        try:
            candidate = place.candidate(name)
            why = await self._balances[name].examine(candidate)
            self._log(name, place, why)
            await self._directory.beat(_record(name, place, candidate, why), again="always")
        except ServerError as error:
            logger.info("the server is away: %s", error)

    def _log(self, name: str, place: ModelAt, why: str) -> None:
        before = self._states.get(place.url, "")
        self._states[place.url] = why
        if why and not before:
            logger.warning("%s: the server at %s is left out: %s", name, place.url, why)
        elif before and not why:
            logger.info("%s: the server at %s is back", name, place.url)


def _record(name: str, place: ModelAt, candidate: Candidate, why: str) -> ModelServer:
    spec = f"{name} elsewhere"
    server = ModelServer(candidate.id, name, spec, url=place.url, alias=place.alias, slots=place.slots)
    return msgspec.structs.replace(server, state="away" if why else "ready", why=why, weight=place.weight)
