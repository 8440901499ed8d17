"""What the server's user has to be allowed, and what of it is missing. deploy/valkey/users.acl.template grants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolecall.errors import ServerRefused
from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys
from rolecall.redis.outage import rights
from rolecall.redis.scripts import script
from rolecall.redis.server import Server

MOST_RULES = 8
KEYLESS = "ping time script|load client|id client|unblock client|setname"
ON_CHANNELS = "publish subscribe unsubscribe"
ON_KEYS = """
get set del exists expire pexpire pexpireat persist pttl incr
hget hset hsetnx hdel hgetall hmget hvals hkeys hexists hincrby
llen lpop lpos lrange lrem ltrim rpush
zadd zcard zcount zpopmin zrange zrangebyscore zrem zremrangebyscore zscore zmscore
xack xadd xautoclaim xclaim xdel xgroup|create xgroup|delconsumer xlen xpending xrange xrevrange xtrim
"""
"""The commands whose first argument is a key, as an ACL names them."""
CALLS = {
    **dict.fromkeys(KEYLESS.split(), ()),
    **dict.fromkeys(ON_CHANNELS.split(), ("#", "#")),
    **dict.fromkeys(("eval", "evalsha", "eval_ro", "evalsha_ro"), ("-", "1", "$")),
    **dict.fromkeys(ON_KEYS.split(), ("$", "$", "$", "$", "$")),
    "xread": ("STREAMS", "$", "0"),
    "xreadgroup": ("GROUP", "g", "c", "STREAMS", "$", ">"),
}
"""The commands that Rolecall sends, with arguments as in rights.lua."""
CALLS_OF_CLUSTERS = {"cluster|slots": (), **dict.fromkeys(("spublish", "ssubscribe", "sunsubscribe"), ("#", "#"))}
WELCOME = ("info", "client|setinfo")
"""Commands that a process does without."""
MISSING = script("rolecall.redis", "rights", names="meta written read channels commands")


@dataclass(frozen=True)
class Need:
    """Keys that a process writes and keys that it only reads."""

    written: tuple[str, ...]
    read: tuple[str, ...] = ()


def needs() -> Mapping[str, Need]:
    """What each verb needs beyond the keys of the shards; a ``*`` in a key stands for any text."""
    models, spent, series = keys.model("*", "state"), keys.spent("*"), (keys.SERIES, keys.SERIES_DAY)
    served = (keys.SERVED, keys.SERVED_CALLS, keys.SERVED_USERS, keys.SERVED_FAILED)
    members, leases = keys.front("telegram", "members"), (keys.lease("scribe"), keys.lease("model-servers"))
    return {
        "worker": Need((models, spent, *served, *leases), (keys.SCALE,)),
        "http": Need((keys.login("*"), *series), (keys.API_KEYS, members, models, spent, keys.SCALE, *served)),
        "telegram": Need((keys.front("telegram", "*"), keys.lease("telegram"), keys.bot_lease(1)), (models, spent)),
        "key": Need((keys.API_KEYS,)),
        "scale": Need((keys.SCALE,)),
    }


async def missing_rights(server: Server, shards: Sequence[ShardKeys], *, clustered: bool) -> dict[str, list[str]]:
    """The rules of an ACL that the server's user lacks, by the verb that needs them; under "" what all need. Raises
    ServerError, also when the user may not run scripts."""
    written, channels = [keys.META, keys.METRICS, keys.PROCESS_LOG], [keys.CONTROL]
    for shard in shards:
        written += (shard.conversation("*"), shard.log, shard.planned, shard.clock, shard.alive("*"))
        channels.append(shard.channel("*"))
    calls = CALLS | CALLS_OF_CLUSTERS if clustered else CALLS
    found = {"": await _missing(server, Need(tuple(written)), calls, channels)}
    for verb, need in needs().items():
        found[verb] = await _missing(server, need)
    return found


async def check_rights(server: Server, shards: Sequence[ShardKeys], *, clustered: bool) -> None:
    """Raise ServerRefused with what is missing if the server's user lacks what every process needs."""
    lacking = (await missing_rights(server, shards, clustered=clustered))[""]
    if lacking:
        raise ServerRefused(f"the server's user lacks {in_short(lacking)}; its ACL must allow {rights()}", "NOPERM")


def in_short(rules: Sequence[str]) -> str:
    """The first of ``rules``, and how many more there are."""
    more = f" and {len(rules) - MOST_RULES} more" if len(rules) > MOST_RULES else ""
    return f"{' '.join(rules[:MOST_RULES])}{more}"


async def _missing(
    server: Server, need: Need, calls: Mapping[str, Sequence[str]] = {}, channels: Sequence[str] = ()
) -> list[str]:
    """The rules for ``need`` and the others that the server's user lacks."""
    commands = [" ".join((name, *arguments)) for name, arguments in calls.items()]
    raw = await server.run(
        MISSING, meta=keys.META, written=list(need.written), read=list(need.read), channels=list(channels),
        commands=commands,
    )  # fmt: skip
    return [rule.decode() for rule in raw]
