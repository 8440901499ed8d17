"""How many instances model servers can keep busy, and how many a machine has the memory for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolecall.serving.directory import Directory

MOST = 12
"""More than these are not worth their memory: the slots of the engines are the limit long before."""
SAFETY_MB = 256
"""Memory that is left alone."""


def instances_for(slots: int, available: float, *, each: float) -> int:
    """What ``instances="auto"`` comes to: the ``slots`` of the live servers, as far as ``available`` memory has room
    for so many instances of ``each``, from 1 to MOST."""
    return max(1, min(slots, MOST, math.floor(min(available / each, MOST))))


def share(total: int, processes: int, place: int) -> int:
    """The part of ``total`` that the process at ``place`` (from 0) of so many has: all parts differ by one at most and
    are 1 at least."""
    return max(1, total // processes + (place < total % processes))


@dataclass(frozen=True)
class Follower:
    """A role that follows its model servers, in this process: its models, the processes that run it and the place of
    this one among them, and the instances it has here now."""

    models: Sequence[str]
    processes: int = 1
    place: int = 0
    running: int = 1


async def auto_counts(directory: Directory, followers: Mapping[str, Follower], *, each: float) -> dict[str, int]:
    """The instances that each of ``followers`` is to have in this process, reckoned with ``each`` MB for one.

    Over all processes a role has as many as there are slots of ready servers of its models, no more than MOST and
    than this machine has memory for; a process has one at least, so that there is somebody to wake a model.
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
    """Memory of this machine that can be had now; without psutil, which comes with the extra ``local``, no limit."""
    try:
        import psutil
    except ImportError:
        return math.inf
    return float(psutil.virtual_memory().available) / 1_000_000
