"""The name of every key, and no other module has any. All keys of a shard share the hash tag ``{bus:N}``,
with a prefix ``{<prefix>.bus:N}``, on a cluster ``{bus:N.K}``."""

from __future__ import annotations

import time
from binascii import crc_hqx
from functools import lru_cache
from itertools import count
from zlib import crc32

from rolecall.errors import ConfigError

GROUP = "g"
SLOTS = 16_384
"""Hash slots of a cluster."""
BANDS = ("h", "n", "l")
"""High, normal and low priority: each role has one stream per band."""
_prefix: str | None = None
"""None until it is chosen."""
_spread = 0
GLOBAL = "{bus:0}"
META = f"{GLOBAL}:meta"
SCALE = f"{GLOBAL}:scale"
WORKERS = f"{GLOBAL}:w"
CONTROL = f"{GLOBAL}:control"
API_KEYS = f"{GLOBAL}:api-keys"
"""Hash: id → an API key as JSON: its SHA-256, name, rights and time of creation."""
METRICS = f"{GLOBAL}:metrics"
"""Hash of counters, never reset."""
SERVED = f"{GLOBAL}:served"
"""Hash: id → model server as JSON."""
SERVED_CALLS = f"{GLOBAL}:served:calls"
"""Sorted set: ``<server> <call>`` → ms at which the call expires unless it is renewed."""
SERVED_USERS = f"{GLOBAL}:served:users"
"""Sorted set: process that may need model servers → ms at which it expires unless it is renewed."""
SERVED_FAILED = f"{GLOBAL}:served:failed"
"""Hash: spec → ``ms|reason`` of models that recently failed to start."""
SERIES = f"{GLOBAL}:series"
"""Capped stream of samples of the deployment, one every few seconds, for the last minutes."""
SERIES_DAY = f"{GLOBAL}:series:day"
"""Capped stream of samples of the deployment, one every minute, for the last 24 hours."""
PROCESS_LOG = f"{GLOBAL}:process-log"
"""Capped stream of the lines that processes logged in the last 24 hours."""


def use(prefix: str, *, spread: int = 0) -> None:
    """Put ``prefix`` into the hash tags of all keys and channels of this process: ``{<prefix>.bus:N}``, or ``{bus:N}``
    without one. Takes effect for what is made afterwards; a process keeps its first prefix. On a cluster of ``spread``
    shards, the keys of models are with the shards, one by one. Raises ConfigError."""
    global _prefix, _spread  # process-wide: two applications in one process would need two sets of keys
    _spread = spread
    if prefix == _prefix:
        return
    if _prefix is not None:
        used = f"with KEY_PREFIX={_prefix}" if _prefix else "without a prefix"
        raise ConfigError(f"KEY_PREFIX={prefix} cannot be used: this process works {used} already")
    before, _prefix = GLOBAL, prefix
    for name, value in list(globals().items()):
        if name.isupper() and isinstance(value, str) and value.startswith(before):
            globals()[name] = _tag(0) + value.removeprefix(before)


def prefix() -> str:
    """The prefix that ``use`` put into the keys of this process; empty without one."""
    return _prefix or ""


def pattern() -> str:
    """The pattern of all keys and channels, as a server's ACL has it."""
    return f"{_tag(0).partition(':')[0]}:*"


def _tag(number: int) -> str:
    return f"{{{_prefix}.bus:{number}}}" if _prefix else f"{{bus:{number}}}"


def _spread_tag(number: int, shards: int) -> str:
    """The tag of a shard of a cluster: with the first suffix that puts its slot into its own part of all slots, so that
    each of the nodes gets as many shards as it has slots."""
    name = _tag(number)[1:-1]
    tried = (f"{name}.{suffix}" for suffix in count())
    return next(f"{{{tag}}}" for tag in tried if crc_hqx(tag.encode(), 0) % SLOTS * shards // SLOTS == number)


def absent(key: str | bytes) -> str:
    """A key with the hash tag of ``key`` that is never written (see scripts.ABSENT)."""
    name = key if isinstance(key, str) else key.decode()
    return f"{name.partition('}')[0]}}}:-"


def all_shards(shards: int, *, clustered: bool = False) -> tuple[ShardKeys, ...]:
    """The keys of each of the ``shards``."""
    return tuple(ShardKeys(number, shards if clustered else 0) for number in range(shards))


def shard_of(conversation: str, shards: int) -> int:
    """The shard that a conversation lives in: crc32 of its id in UTF-8, modulo the number of shards."""
    return crc32(conversation.encode()) % shards


def band(priority: int) -> str:
    """The band of a priority: ``h`` from 67, ``l`` up to 33, else ``n``."""
    return "h" if priority >= 67 else "l" if priority <= 33 else "n"


def worker(process: str) -> str:
    """String: a process's entry in the registry, as JSON."""
    return f"{GLOBAL}:w:{process}"


def model(name: str, part: str) -> str:
    """What all processes share about the model ``name@provider``: the hashes ``state``, ``use`` (of its quota) and
    ``booked``, and the sorted sets ``busy`` and ``waiting``; for a model on several servers also the hash
    ``servers``, which stands with the calls of all servers. On a cluster, each model is in the slot of a shard."""
    tag = _model_tag(name, _spread, prefix()) if _spread and part != "servers" else GLOBAL
    return f"{tag}:model:{name}:{part}"


@lru_cache(1024)
def _model_tag(name: str, spread: int, prefix: str) -> str:
    return _spread_tag(crc32(name.encode()) % spread, spread)


def spent(day: str) -> str:
    """Hash of tokens and money spent on models on a UTC day, ``YYYYMMDD``."""
    return f"{GLOBAL}:spent:{day}"


def login(digest: str) -> str:
    """String with a TTL: a login to the web page, named by the SHA-256 of its cookie."""
    return f"{GLOBAL}:login:{digest}"


def lease(name: str) -> str:
    """String with a TTL: the token of the leader of the election ``name``."""
    return f"{GLOBAL}:lease:{name}"


def partitions(name: str, part: str) -> str:
    """How processes share the work ``name``: the sorted set ``processes`` (member → ms at which it expires unless it is
    renewed) and the hash ``owners`` (part → member)."""
    return f"{lease(name)}:{part}"


def bot_lease(number: int) -> str:
    """String with a TTL: the token of the one process that serves the Telegram bot with that id. The same under every
    prefix: two applications must not serve one bot."""
    return f"{{bus:0}}:lease:telegram-bot:{number}"


def front(name: str, part: str) -> str:
    """What the processes of the front end ``name`` share about its users: the hashes ``members`` and ``moved`` (chat →
    the id it had before), the sorted set ``visitors`` (user → seconds since 1970), the strings ``bot`` (``<id> <name>``
    of the bot served last), ``code:<sha256>`` and ``applicant:<user>``, and counters such as ``pace:<user>``,
    ``refused:<user>``, ``asked:<user>``, ``tries:<user>``.
    """
    return f"{GLOBAL}:front:{name}:{part}"


class ShardKeys:
    """The keys of shard ``number``; ``spread`` is the number of shards of a cluster, else 0."""

    def __init__(self, number: int, spread: int = 0) -> None:
        self.number = number
        self.prefix = _spread_tag(number, spread) if spread else _tag(number)
        self.log = f"{self.prefix}:l"
        self.dead = f"{self.prefix}:d"
        self.deferred = f"{self.prefix}:z"
        self.planned = f"{self.prefix}:zs"
        self.suspended = f"{self.deferred}:w"
        self.active = f"{self.prefix}:a"
        self.clock = f"{self.prefix}:clock"
        self.principals = f"{self.prefix}:u"

    def aside(self, kind: str) -> str:
        """Stream of the items of ``kind`` that loops gave up on and that are no turn's envelope."""
        return f"{self.dead}:{kind}"

    def conversation(self, conversation: str) -> str:
        """Hash ``seq cseq cur done at session last title ctl told``; see bus/scripts/lib and docs/data-model.md."""
        return f"{self.prefix}:c:{conversation}"

    def mailbox(self, conversation: str) -> str:
        """List of the waiting turns, next first."""
        return f"{self.prefix}:m:{conversation}"

    def journal(self, conversation: str) -> str:
        """Hash ``<turn>:<field>`` of every unfinished turn."""
        return f"{self.prefix}:j:{conversation}"

    def steps(self, conversation: str, turn: str) -> str:
        """Hash of the recorded steps of an unfinished turn's handler, by their keys."""
        return f"{self.prefix}:x:{conversation}:{turn}"

    def schedules(self, conversation: str) -> str:
        """Hash: id → a schedule as JSON, ``<id>:t`` → the last turn that it began."""
        return f"{self.prefix}:S:{conversation}"

    def history(self, conversation: str) -> str:
        """List of remembered messages as JSON, oldest first."""
        return f"{self.prefix}:h:{conversation}"

    def preferences(self, conversation: str) -> str:
        """Hash of a conversation's preferences."""
        return f"{self.prefix}:p:{conversation}"

    def events(self, conversation: str) -> str:
        """Stream of turn events."""
        return f"{self.prefix}:e:{conversation}"

    def channel(self, conversation: str) -> str:
        """Pub/sub channel that wakes the followers of a conversation."""
        return f"{self.prefix}:ev:{conversation}"

    def result(self, conversation: str, turn: str) -> str:
        """String: the id of a finished turn's final event, a blank, and the event as JSON."""
        return f"{self.prefix}:t:{conversation}:{turn}"

    def response(self, conversation: str, turn: str) -> str:
        """String with a TTL: a turn of the Responses API as JSON, for its client to come back to."""
        return f"{self.prefix}:g:{conversation}:{turn}"

    def idempotency(self, conversation: str, idem: str) -> str:
        """String ``turn|digest`` for a message that was admitted. Both names may contain colons, so they are separated
        by a character that no conversation may contain."""
        return f"{self.prefix}:k:{conversation}\x1f{idem}"

    def outbox(self, front: str) -> str:
        """Stream of what the front end ``front`` still has to deliver."""
        return f"{self.prefix}:o:{front}"

    def shown(self, conversation: str, turn: str) -> str:
        """Hash: part of the turn's answer → id of the outside message that shows it."""
        return f"{self.prefix}:v:{conversation}:{turn}"

    def shows(self, conversation: str, message: str) -> str:
        """String: the turn that an outside message shows."""
        return f"{self.prefix}:y:{conversation}\x1f{message}"

    def votes(self, conversation: str, turn: str) -> str:
        """Hash: user → ``up|day`` or ``down|day``, the feedback on the turn's answer."""
        return f"{self.prefix}:f:{conversation}:{turn}"

    def question(self, conversation: str, turn: str) -> str:
        """Hash: idempotency key → payload of each message that became the turn."""
        return f"{self.prefix}:q:{conversation}:{turn}"

    def pressed(self, conversation: str, turn: str) -> str:
        """String with a TTL: the last press of the button that asks the turn's question again."""
        return f"{self.prefix}:i:{conversation}:{turn}"

    def offer(self, conversation: str, turn: str) -> str:
        """String with a TTL: the edit for which a new answer to the turn is offered; exists while the offer is open."""
        return f"{self.prefix}:n:{conversation}:{turn}"

    def fingerprint(self, conversation: str, message: str) -> str:
        """String with a TTL: a digest of what a message says as it stands, after its edits."""
        return f"{self.prefix}:w:{conversation}\x1f{message}"

    def blob(self, blob: str) -> str:
        """String with a TTL: the media type, a line end, and the bytes of an image or a file."""
        return f"{self.prefix}:b:{blob}"

    def files(self, owner: str) -> str:
        """Hash: id of a blob → JSON of what its owner, a conversation's name, uploaded to use it again."""
        return f"{self.prefix}:F:{owner}"

    def statistics(self, day: str) -> str:
        """Hash of counters of a UTC day, ``YYYYMMDD``."""
        return f"{self.prefix}:s:{day}"

    def stream(self, role: str, band: str) -> str:
        """Work stream of a role in one band."""
        return f"{self.prefix}:r:{role}:{band}"

    def direct(self, role: str, process: str) -> str:
        """Work stream of a role for one process."""
        return f"{self.prefix}:r:{role}:@{process}"

    def alive(self, process: str) -> str:
        """String with a TTL: exists while the process renews its leases in this shard."""
        return f"{self.prefix}:up:{process}"


def today(at: float | None = None) -> str:
    """The current UTC day, or that of ``at`` in seconds since the epoch, as ``YYYYMMDD``."""
    return _name_of_day(int(time.time() if at is None else at) // 86_400)


@lru_cache(8)
def _name_of_day(number: int) -> str:
    return time.strftime("%Y%m%d", time.gmtime(number * 86_400))
