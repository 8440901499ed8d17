"""Model servers that others run: their addresses, and how they are watched."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import msgspec

from rolecall.environment import filled
from rolecall.errors import ConfigError, MissingExtra, ModelUnavailable, ServerError
from rolecall.redis.leader import Leader
from rolecall.redis.server import Server
from rolecall.serving.balance import Balance, Candidate
from rolecall.serving.directory import Directory
from rolecall.serving.spec import ModelServer

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 4.0
LOOK_SECONDS = 1.0
"""How often the leader looks at each server."""
WATCH_SECONDS = 4.0
"""How long it leads after each renewal."""


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
        return replace(self, url=self.url.rstrip("/"), key=filled(self.key, environ, where))

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
