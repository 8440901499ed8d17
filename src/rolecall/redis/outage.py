"""Outages of the server: which of its answers mean "not now", what is said while it cannot be used, and what its
condition is before it refuses anything.

The only module that tells a passing failure from a final one. It goes by the code of the answer, which redis-py cuts
off the text of most errors and keeps in ``status_code``.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rolecall.errors import ServerError, ServerFull, ServerRefused, ServerUnavailable
from rolecall.redis import keys
from rolecall.redis.address import tls_advice

logger = logging.getLogger(__name__)
TRANSIENT = {
    "ASK": "its cluster is moving our keys",
    "BUSY": "it is busy running a script",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is still loading its data",
    "MASTERDOWN": "it is a replica without its primary",
    "MISCONF": "it cannot save its data to disk",
    "MOVED": "another node has our keys now",
    "NOAUTH": "it does not accept our user and password",
    "NOREPLICAS": "it has too few replicas to accept writes",
    "OOM": "it is out of memory",
    "READONLY": "it is a read-only replica",
    "TLS": "one of the certificates, its own or ours, is not accepted",
    "TRYAGAIN": "its cluster is moving our keys",
    "UNBLOCKED": "it has become a replica",
    "WRONGPASS": "it does not accept our user and password",
}
"""Code of an answer that will change without our doing → what it says about the server. All other codes are final. TLS
is the code of a connection that was not opened for a certificate."""
DEMOTED = frozenset({"MASTERDOWN", "READONLY", "UNBLOCKED"})
"""The answers of a replica: another server is the primary now, and the configured address may lead to it already."""
MOVING = frozenset({"ASK", "MOVED", "TRYAGAIN"})
"""The answers of a cluster while a slot moves: its shard pauses until the move is complete, the others go on."""
REFUSES_WRITES = frozenset({"MISCONF", "NOREPLICAS", "OOM", "READONLY"})
"""The answers of a server that still serves reads, so that an answered read does not end the outage."""
NEEDS_HELP = frozenset({"MISCONF", "NOAUTH", "NOREPLICAS", "OOM", "TLS", "WRONGPASS"})
"""The answers that somebody has to do something about: logged also where the outage began otherwise."""
LOST = (RedisConnectionError, RedisTimeoutError, OSError, RuntimeError)
"""How a connection fails; uvloop raises RuntimeError for one that is closed already."""
CERTIFICATE = re.compile("CERTIFICATE_VERIFY_FAILED|ALERT_")
"""How OpenSSL says that a certificate was refused, by us or by the server."""
UNAVAILABLE = "the server is unavailable: "
UNREACHABLE = "it cannot be reached"
WRITES = "writes"
MOVE_SECONDS = 60.0
"""Slots that move within so long of each other are one change of the cluster."""
QUIET_SECONDS = 10.0
"""A successful write ends an outage of writes once none was refused for this long: not all scripts write each time."""

SECTIONS = ("memory", "persistence", "replication")
"""The sections of INFO that a condition is read from."""
NEARLY_FULL = 0.9
ENDING_BADLY = {
    "rdb_last_bgsave_status": "last snapshot",
    "aof_last_write_status": "last write to its append-only file",
}


class Outage:
    """Why a process cannot use its server at the moment, over all its connections. Logged once when the outage begins,
    once for each reason that NEEDS_HELP, and once when it ends, however many commands fail in between."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._failing: dict[object, str] = {}
        self._told = set[str]()
        """The codes of this outage that were logged."""
        self._began = 0.0
        self._refused = 0.0
        self._moved = float("-inf")
        self._level = logging.INFO
        """WARNING once the server was reached; before that, the start of the process reports it."""

    @property
    def reason(self) -> str:
        """What is wrong, such as "it is a read-only replica (READONLY)"; empty while the server can be used. Names no
        address."""
        return next(iter(self._failing.values()), "")

    @property
    def quiet(self) -> bool:
        """Whether nothing was refused for QUIET_SECONDS."""
        return time.monotonic() - self._refused > QUIET_SECONDS

    def begin(self, part: object, error: ServerUnavailable) -> None:
        """Note that ``part``, a connection or WRITES, does not work. That keys move is no outage."""
        if error.code in MOVING:
            return self.move()
        self._refused = time.monotonic()
        begins = not self._failing
        if begins:
            self._began = self._refused
            self._told.clear()
        if begins or error.code in NEEDS_HELP - self._told:
            self._told.add(error.code)
            why = str(error).removeprefix(UNAVAILABLE)
            why += tls_advice(self._address, why) if error.code == "TLS" else ""
            logger.log(self._level, "the server at %s is unavailable, waiting: %s", self._address, why)
        self._failing[part] = _reason(error.code)

    def move(self) -> None:
        """Note that a slot of the cluster moves. Logged once for each change of the cluster."""
        now = time.monotonic()
        if now - self._moved > MOVE_SECONDS:
            text = "slots of the cluster at %s are moving: turns in them wait until that is done"
            logger.log(self._level, text, self._address)
        self._moved = now

    def forget(self, part: object) -> None:
        """Note that ``part`` is closed."""
        self._failing.pop(part, None)

    def end(self, part: object) -> None:
        """Note that ``part`` works."""
        if self._failing.pop(part, None) and not self._failing:
            lasted = time.monotonic() - self._began
            logger.log(self._level, "the server at %s is available again after %.1f s", self._address, lasted)
        self._level = logging.WARNING


def server_error(error: BaseException) -> ServerError:
    """The ServerError for an error of redis-py or the operating system, which becomes its cause."""
    text, code = str(error) or type(error).__name__, _code(error)
    found: ServerError
    if code == "OOM":
        found = ServerFull(f"the server is out of memory: {text}", code)
    elif code in TRANSIENT:
        found = ServerUnavailable(f"{UNAVAILABLE}{_reason(code)}", code)
    elif isinstance(error, LOST):
        found = ServerUnavailable(f"{UNAVAILABLE}{text}", "TLS" if CERTIFICATE.search(text) else "")
    elif code == "NOPERM":
        found = ServerRefused(f"{text}; its ACL must allow {rights()}", code)
    else:
        found = ServerRefused(text, code)
    found.__cause__ = error
    return found


def rights() -> str:
    """What the user on the server has to be allowed, for messages."""
    place = keys.pattern()
    return f"the keys ~{place}, the channels &{place} and the commands in deploy/valkey/users.acl.template"


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of redis-py and the operating system as ServerError."""
    try:
        yield
    except (RedisError, *LOST) as error:
        raise server_error(error) from error


def _code(error: BaseException) -> str:
    """The first word of the server's answer: redis-py leaves it in the text only where it has no class for it. While
    connecting it may wrap the answer in a ConnectionError."""
    for found in (error, error.__cause__):
        if code := getattr(found, "status_code", None):
            return str(code)
    first = str(error).partition(" ")[0]
    return first if isinstance(error, ResponseError) or first in TRANSIENT else ""


def _reason(code: str) -> str:
    return f"{TRANSIENT[code]} ({code})" if code in TRANSIENT else UNREACHABLE


@dataclass(frozen=True)
class ServerCondition:
    """The condition of a server. ``refuses`` is why it refuses new messages at the moment, or empty; ``warnings`` are
    what to look after, one sentence each."""

    refuses: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of_all(cls, nodes: Mapping[str, Mapping[str, str]]) -> ServerCondition:
        """The condition of several nodes by their addresses: what one refuses is refused, and each is named."""
        found = {name: cls.of(info) for name, info in nodes.items()}
        refuses = next((condition.refuses for condition in found.values() if condition.refuses), "")
        warnings = [
            f"{name}: {warning}" if name else warning
            for name, condition in found.items()
            for warning in condition.warnings
        ]
        return cls(refuses, tuple(warnings))

    @classmethod
    def of(cls, info: Mapping[str, str]) -> ServerCondition:
        """What the fields of INFO tell; nothing from fields that are not there."""
        used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        policy = info.get("maxmemory_policy", "noeviction")
        evicts = limit > 0 and policy != "noeviction"
        warnings = [f"its {what} failed" for field, what in ENDING_BADLY.items() if info.get(field) == "err"]
        if evicts:
            warnings.append(f"it deletes keys when it is full (maxmemory-policy {policy}): turns would be lost")
        elif limit and used >= limit * NEARLY_FULL:
            warnings.append(f"it uses over {NEARLY_FULL:.0%} of its memory limit; at 100% new messages are refused")
        return cls(_refusal(info, full=bool(limit) and used >= limit and not evicts), tuple(warnings))


def _refusal(info: Mapping[str, str], *, full: bool) -> str:
    for code, refuses in (
        ("LOADING", info.get("loading") == "1"), ("READONLY", info.get("role") == "slave"), ("OOM", full),
        ("NOREPLICAS", info.get("min_slaves_good_slaves") == "0"),
    ):  # fmt: skip
        if refuses:
            return _reason(code)
    return ""
