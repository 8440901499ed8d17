"""Every key name, nowhere else. A shard's keys share the hash tag ``{bus:N}``."""

from __future__ import annotations

import time
from zlib import crc32

GROUP = "g"
BANDS = ("h", "n", "l")
"""High, normal, low: one stream of a role for each."""
GLOBAL = "{bus:0}"
META = f"{GLOBAL}:meta"
SCALE = f"{GLOBAL}:scale"
WORKERS = f"{GLOBAL}:w"
CONTROL = f"{GLOBAL}:control"
API_KEYS = f"{GLOBAL}:api-keys"
"""Hash id → JSON with the SHA-256 of an API key, its name, whether it is an operator's, and when it was made."""
METRICS = f"{GLOBAL}:metrics"
"""Hash of counters since the server was first used."""
SERVED = f"{GLOBAL}:served"
"""Hash id → model server as JSON."""
SERVED_CALLS = f"{GLOBAL}:served:calls"
"""Sorted set ``<server> <call>`` → the ms at which it is over without a sign of life."""
SERVED_USERS = f"{GLOBAL}:served:users"
"""Sorted set of the processes that may need model servers → the ms until which."""
SERVED_FAILED = f"{GLOBAL}:served:failed"
"""Hash spec → ``ms|why`` of models that could not be started just now."""
SERIES = f"{GLOBAL}:series"
"""Capped stream: how the deployment did, one entry every few seconds of the last minutes."""


def shard_of(conversation: str, shards: int) -> int:
    """The shard a conversation lives in: crc32 of its UTF-8 id, modulo the shard count."""
    return crc32(conversation.encode()) % shards


def band(priority: int) -> str:
    """``h`` for 67 and above, ``l`` for 33 and below, else ``n``."""
    return "h" if priority >= 67 else "l" if priority <= 33 else "n"


def worker(process: str) -> str:
    """Hash of one process's registry entry."""
    return f"{GLOBAL}:w:{process}"


def model(name: str, part: str) -> str:
    """What all processes know of the model ``name@provider``: hash ``state``, hash ``use`` of its quota, hash
    ``booked``, sorted sets ``busy`` and ``waiting``; where several servers serve it, sorted set ``calls`` in flight
    and hash ``servers``."""
    return f"{GLOBAL}:model:{name}:{part}"


def spent(day: str) -> str:
    """Hash of tokens and money spent on models in one UTC day, ``YYYYMMDD``."""
    return f"{GLOBAL}:spent:{day}"


def login(digest: str) -> str:
    """String with a TTL: a login to the web page, by the SHA-256 of its cookie."""
    return f"{GLOBAL}:login:{digest}"


def lease(name: str) -> str:
    """String: the token of whoever holds the named lease."""
    return f"{GLOBAL}:lease:{name}"


def front(name: str, part: str) -> str:
    """What the processes of the front end ``name`` share of its users: hash ``members``, strings ``code:<sha256>``,
    counters ``pace:<user>``, ``refused:<user>``, ``tries:<user>``."""
    return f"{GLOBAL}:front:{name}:{part}"


class ShardKeys:
    """The key names of shard ``number``."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.prefix = f"{{bus:{number}}}"
        self.log = f"{self.prefix}:l"
        self.dead = f"{self.prefix}:d"
        self.deferred = f"{self.prefix}:z"
        self.active = f"{self.prefix}:a"
        self.principals = f"{self.prefix}:u"

    def conversation(self, conversation: str) -> str:
        """Hash ``seq cseq cur done at session last title ctl``."""
        return f"{self.prefix}:c:{conversation}"

    def mailbox(self, conversation: str) -> str:
        """List of the ids of waiting turns."""
        return f"{self.prefix}:m:{conversation}"

    def journal(self, conversation: str) -> str:
        """Hash of every unfinished turn: ``<turn>:<field>``."""
        return f"{self.prefix}:j:{conversation}"

    def history(self, conversation: str) -> str:
        """List of remembered messages as JSON, oldest first."""
        return f"{self.prefix}:h:{conversation}"

    def preferences(self, conversation: str) -> str:
        """Hash of a conversation's preferences."""
        return f"{self.prefix}:p:{conversation}"

    def events(self, conversation: str) -> str:
        """Stream of turn events, also the name of its wake-up channel's subject."""
        return f"{self.prefix}:e:{conversation}"

    def channel(self, conversation: str) -> str:
        """Pub/sub channel that wakes the followers of a conversation."""
        return f"{self.prefix}:ev:{conversation}"

    def result(self, conversation: str, turn: str) -> str:
        """String: the final event of a finished turn as JSON."""
        return f"{self.prefix}:t:{conversation}:{turn}"

    def idempotency(self, conversation: str, idem: str) -> str:
        """String ``turn|digest`` for a message already admitted. Both names may hold colons, so what parts them is a
        character that no conversation may have."""
        return f"{self.prefix}:k:{conversation}\x1f{idem}"

    def outbox(self, front: str) -> str:
        """Stream of what the named front end still has to deliver."""
        return f"{self.prefix}:o:{front}"

    def shown(self, conversation: str, turn: str) -> str:
        """Hash part → id of the outside message that shows this part of the turn's answer."""
        return f"{self.prefix}:v:{conversation}:{turn}"

    def shows(self, conversation: str, message: str) -> str:
        """String: the turn that an outside message shows."""
        return f"{self.prefix}:y:{conversation}\x1f{message}"

    def votes(self, conversation: str, turn: str) -> str:
        """Hash user → ``up|day`` or ``down|day``: what they think of the turn's answer."""
        return f"{self.prefix}:f:{conversation}:{turn}"

    def question(self, conversation: str, turn: str) -> str:
        """Hash: the payload of each message that became the turn, by the message's idempotency key."""
        return f"{self.prefix}:q:{conversation}:{turn}"

    def pressed(self, conversation: str, turn: str) -> str:
        """String: the last press of the button that asks a turn's question once more."""
        return f"{self.prefix}:i:{conversation}:{turn}"

    def blob(self, blob: str) -> str:
        """String: the media type, a line end, and the bytes of an image or a file."""
        return f"{self.prefix}:b:{blob}"

    def statistics(self, day: str) -> str:
        """Hash of counters of one UTC day, ``YYYYMMDD``."""
        return f"{self.prefix}:s:{day}"

    def stream(self, role: str, band: str) -> str:
        """Work stream of a role, one band."""
        return f"{self.prefix}:r:{role}:{band}"

    def direct(self, role: str, process: str) -> str:
        """Work stream of a role for one process."""
        return f"{self.prefix}:r:{role}:@{process}"

    def alive(self, process: str) -> str:
        """String with a TTL: this process renewed its leases in this shard lately."""
        return f"{self.prefix}:up:{process}"


def today(at: float | None = None) -> str:
    """The day in UTC, as the statistics name it; ``at`` is another time in seconds since the epoch."""
    return time.strftime("%Y%m%d", time.gmtime(at))
