"""How many instances model servers can keep busy, and how many a machine has the memory for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rolecall.errors import ConfigError
from rolecall.serving.directory import Directory

MOST = 12
"""More than these are not worth their memory: the slots of the engines are the limit long before."""
SAFETY_MB = 256
"""Memory that is left alone."""


@dataclass(frozen=True)
class Sizes:
    """What things take, in GB: each model loaded, each worker, and the system with all else on it."""

    model: float = 15
    worker: float = 3
    system: float = 8


def workers_for(ram: float, models: int, *, slots: int = 1, sizes: Sizes = Sizes()) -> int:
    """The workers for ``models`` loaded models in ``ram`` GB: as many as the models answer at once (``slots`` each),
    as there is memory for beside them, and no more than MOST.

    Raises ConfigError, with the sum, when not even one fits.
    """
    if models < 1 or slots < 1:
        raise ConfigError(f"{models} models with {slots} slots each: 1 or more is allowed")
    room = math.floor((ram - taken(0, models, sizes)) / sizes.worker)
    if room < 1:
        raise ConfigError(f"{_sum(1, models, sizes)}; there are {ram:g} GB")
    return min(models * slots, room, MOST)


def check_workers(workers: int, ram: float, models: int, *, sizes: Sizes = Sizes()) -> str:
    """What is doubtful about so many workers beside so many models, or "".

    Raises ConfigError for none, and with the sum for more than there is memory for.
    """
    if workers < 1:
        raise ConfigError(f"{workers} workers: 1 or more is allowed")
    if taken(workers, models, sizes) > ram:
        raise ConfigError(f"{_sum(workers, models, sizes)}; there are {ram:g} GB")
    return f"{workers} workers: above {MOST} more of them seldom answer more" if workers > MOST else ""


def taken(workers: int, models: int, sizes: Sizes) -> float:
    """GB that so many workers and models take, the system included."""
    return models * sizes.model + workers * sizes.worker + sizes.system


def instances_for(slots: int, available: float, *, each: float) -> int:
    """What ``instances="auto"`` comes to: the ``slots`` of the live servers, as far as ``available`` memory has room
    for so many instances of ``each``, from 1 to MOST."""
    return max(1, min(slots, MOST, math.floor(min(available / each, MOST))))


def share(total: int, processes: int, place: int) -> int:
    """The part of ``total`` that the process at ``place`` (from 0) of so many has: all parts differ by one at most and
    are 1 at least."""
    return max(1, total // processes + (place < total % processes))


def _sum(workers: int, models: int, sizes: Sizes) -> str:
    return (
        f"{models} models of {sizes.model:g} GB, {workers} workers of {sizes.worker:g} GB and {sizes.system:g} GB for "
        f"the system are {taken(workers, models, sizes):g} GB"
    )


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
