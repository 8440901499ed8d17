"""How many instances model servers can keep busy, and how many a machine has the memory for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rolecall.errors import ConfigError

MOST = 12
"""More than these are not worth their memory: the slots of the engines are the limit long before."""


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
