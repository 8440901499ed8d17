"""How many instances ``instances="auto"`` comes to: what the live model servers answer at once, parted fairly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolecall.serving.directory import Directory
from rolecall.serving.workers_for import instances_for, share

SAFETY_MB = 256
"""Memory that is left alone."""


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
