"""The watch over model servers of others: one process of the deployment looks after them and says how they do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec
from redis.exceptions import RedisError

from rolecall.errors import ServerUnavailable
from rolecall.lease import Lease
from rolecall.redis_client import Server
from rolecall.serving.balance import Balance, Candidate
from rolecall.serving.directory import Directory
from rolecall.serving.external import ModelAt
from rolecall.serving.server import ModelServer

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
LEASE_SECONDS = 4.0
AWAY = (RedisError, OSError, ServerUnavailable)


class Watch:
    """Looks after ``places``, by model, which calls reach through ``balances``, and keeps the directory of model
    servers told; in one process at a time."""

    def __init__(
        self,
        server: Server,
        process: str,
        places: Mapping[str, tuple[ModelAt, ...]],
        balances: Mapping[str, Balance],
    ) -> None:
        self._directory = Directory(server)
        self._lease = Lease(server, "model-servers", process, seconds=LEASE_SECONDS)
        self._watched = [(name, place) for name, several in places.items() for place in several if name in balances]
        self._balances = balances
        self._states: dict[str, str] = {}

    async def run(self) -> None:
        """Watch until cancelled; without any server to watch do nothing."""
        if not self._watched:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lease.run(), name="watch lease")
            while True:
                await self._lease.wait()
                await asyncio.gather(*(self._look(name, place) for name, place in self._watched))
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, name: str, place: ModelAt) -> None:
        try:
            candidate = place.candidate(name)
            why = await self._balances[name].examine(candidate)
            self._log(name, place, why)
            await self._directory.beat(_record(name, place, candidate, why), again="always")
        except AWAY as error:
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
