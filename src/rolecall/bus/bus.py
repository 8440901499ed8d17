"""The only speaker of the scripts and the work streams."""

from __future__ import annotations

import hashlib
import time

from rolecall.errors import ConfigError
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.server import Server
from rolecall.settings import Settings

SCHEMA = 1


class Bus:
    """The verbs of the message bus, over all shards. ``process`` names this process as a consumer; it must be
    unique per start, for it is what fences a predecessor of the same host and pid."""

    def __init__(self, server: Server, settings: Settings, process: str) -> None:
        self.server = server
        self.settings = settings
        self.process = process
        self.shards = tuple(ShardKeys(number) for number in range(settings.shards))

    def shard(self, conversation: str) -> ShardKeys:
        """The keys of the shard that ``conversation`` lives in."""
        return self.shards[keys.shard_of(conversation, len(self.shards))]

    async def prepare(self) -> None:
        """Note shard count and key schema at the first use; afterwards refuse (ConfigError) another one."""
        born = hashlib.sha256(f"{self.process}{time.time_ns()}".encode()).hexdigest()[:12]
        for name, value in (("shards", len(self.shards)), ("schema", SCHEMA), ("born", born)):
            await self.server.call("HSETNX", keys.META, name, value)
        shards, schema = await self.server.call("HMGET", keys.META, "shards", "schema")
        if int(shards) != len(self.shards):
            raise ConfigError(
                f"SHARDS={len(self.shards)}: this bus was made with {int(shards)} shards; set SHARDS={int(shards)}, "
                "or empty the server to change it"
            )
        if int(schema) != SCHEMA:
            raise ConfigError(f"this bus has key schema {int(schema)}, this version of rolecall speaks {SCHEMA}")
