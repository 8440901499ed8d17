"""What a server says about itself that its users should know before it refuses or loses anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rolecall.redis.outage import TRANSIENT

SECTIONS = ("memory", "persistence", "replication")
"""The sections of INFO that a condition is read from."""
NEARLY_FULL = 0.9
ENDING_BADLY = {
    "rdb_last_bgsave_status": "last snapshot",
    "aof_last_write_status": "last write to its append-only file",
}


@dataclass(frozen=True)
class ServerCondition:
    """The condition of a server. ``refuses`` is why it refuses new messages at the moment, or empty; ``warnings`` are
    what to look after, one sentence each."""

    refuses: str = ""
    warnings: tuple[str, ...] = ()

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
            warnings.append(f"it uses {used / limit:.0%} of its memory limit; at 100% new messages are refused")
        return cls(_refusal(info, full=bool(limit) and used >= limit and not evicts), tuple(warnings))


def _refusal(info: Mapping[str, str], *, full: bool) -> str:
    for code, refuses in (
        ("LOADING", info.get("loading") == "1"), ("READONLY", info.get("role") == "slave"), ("OOM", full),
        ("NOREPLICAS", info.get("min_slaves_good_slaves") == "0"),
    ):  # fmt: skip
        if refuses:
            return f"{TRANSIENT[code]} ({code})"
    return ""
