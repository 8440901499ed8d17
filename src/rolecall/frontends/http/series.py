"""How the deployment did in the last minutes: one sample every few seconds, whatever the number of replicas."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI
from redis.exceptions import RedisError, ResponseError

from rolecall import keys, registry
from rolecall.frontends.http.operators import list_queues
from rolecall.frontends.http.services import Services
from rolecall.frontends.presence import AWAY

logger = logging.getLogger(__name__)
EVERY_MS = 5000
KEPT = 192
"""Sixteen minutes."""


class Sample(msgspec.Struct, frozen=True):
    """What was at ``ms`` since 1970: entries in each role's queues, those being handled included; instances and the
    busy ones; turns in flight; turns and errors since the day began (UTC)."""

    ms: int
    queues: dict[str, int]
    busy: int
    instances: int
    in_flight: int
    turns: int
    errors: int


@asynccontextmanager
async def sampling(app: FastAPI) -> AsyncIterator[None]:
    """Samples are taken for as long."""
    task = asyncio.create_task(_keep_taking(app.state.services), name="http samples")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def read(here: Services) -> list[Sample]:
    """The samples there are, oldest first."""
    entries = await here.bus.server.fetch("XRANGE", keys.SERIES, "-", "+")
    return [msgspec.json.decode(flat[1], type=Sample) for _, flat in entries]


async def newest(here: Services) -> Sample | None:
    """The last sample."""
    for _, flat in await here.bus.server.fetch("XREVRANGE", keys.SERIES, "+", "-", "COUNT", 1):
        return msgspec.json.decode(flat[1], type=Sample)
    return None


async def take(here: Services) -> int:
    """Take the sample of this time unless another process has; returns ms until the next is due."""
    (seconds, micros), last = await asyncio.gather(here.bus.server.fetch("TIME"), newest(here))
    now = int(seconds) * 1000 + int(micros) // 1000
    due = now - now % EVERY_MS
    if last is None or last.ms < due:
        sample = msgspec.json.encode(await _measure(here, due))
        try:
            await here.bus.server.call("XADD", keys.SERIES, "MAXLEN", KEPT, f"{due}-1", "s", sample)
        except ResponseError:
            logger.debug("another process took the sample of %d", due)  # in the same moment
    return due + EVERY_MS - now


async def _keep_taking(here: Services) -> None:
    while True:
        wait = EVERY_MS
        try:
            wait = await take(here)
        except (*AWAY, RedisError) as error:
            logger.info("no sample: the server is away: %s", error)
        # Not all at the same moment: then one finds what another took, and is done.
        await asyncio.sleep(wait / 1000 + random.uniform(0, 0.4))


async def _measure(here: Services, due: int) -> Sample:
    day, shards, fetch = time.strftime("%Y%m%d", time.gmtime(due / 1000)), here.bus.shards, here.bus.server.fetch
    alive, counts, active = await asyncio.gather(
        registry.processes(here.bus),
        asyncio.gather(*(fetch("HMGET", shard.statistics(day), "turns", "error") for shard in shards)),
        asyncio.gather(*(fetch("ZCARD", shard.active) for shard in shards)),
    )
    instances = [instance for state in alive for instance in state.instances]
    turns, errors = (sum(int(count[n] or 0) for count in counts) for n in (0, 1))
    return Sample(
        ms=due,
        queues=await _queues(here) if sum(active) else {role.name: 0 for role in here.application.roles},
        busy=sum(instance.busy for instance in instances),
        instances=len(instances),
        in_flight=sum(active),
        turns=turns,
        errors=errors,
    )


async def _queues(here: Services) -> dict[str, int]:
    """Not asked for where nothing is in flight: the queues are empty then."""
    queues = await list_queues(here)
    return {role: sum(depths.values()) for role, depths in queues["roles"].items()}
