"""How many instances model servers can keep busy, and how many a machine has the memory for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolecall.serving.directory import Directory

MOST = 12
"""More instances are not worth their memory: the engines' slots are the limit long before."""
SAFETY_MB = 256
"""Memory kept free for the rest of the machine."""


def instances_for(slots: int, available: float, *, each: float) -> int:
    """The number for ``instances="auto"``: ``slots`` of the live servers, limited to the instances of ``each`` MB that
    fit into ``available`` MB; from 1 to MOST."""
    return max(1, min(slots, MOST, math.floor(min(available / each, MOST))))


def share(total: int, processes: int, place: int) -> int:
    """The share of ``total`` of the process at index ``place`` among ``processes``. Shares differ by at most one and
    are at least 1."""
    return max(1, total // processes + (place < total % processes))


@dataclass(frozen=True)
class Follower:
    """A role with ``instances="auto"`` in this process: its models, how many processes run it, the index of this
    process among them, and the instances running here now."""

    models: Sequence[str]
    processes: int = 1
    place: int = 0
    running: int = 1


async def auto_counts(directory: Directory, followers: Mapping[str, Follower], *, each: float) -> dict[str, int]:
    """The number of instances for each of ``followers`` in this process, at ``each`` MB an instance.

    Over all processes, a role gets one instance per slot of the ready servers of its models, limited by MOST and by
    the memory of this machine. Each process keeps at least one, so that a question can start a model.
    """
    slots: dict[str, int] = {}
    for one in await directory.servers():
        if one.state == "ready":
            slots[one.model] = slots.get(one.model, 0) + one.slots
    free = available_mb() - SAFETY_MB
    counts = {}
    for role, follower in followers.items():
        answering = sum(slots.get(model, 0) for model in dict.fromkeys(follower.models))
        total = instances_for(answering, free + follower.running * each, each=each)
        counts[role] = share(total, follower.processes, follower.place)
    return counts


def available_mb() -> float:
    """Memory available on this machine now; infinite without psutil, which the extra ``local`` installs."""
    try:
        import psutil
    except ImportError:
        return math.inf
    return float(psutil.virtual_memory().available) / 1_000_000
