"""``instances="auto"`` as a number: the slots of model servers, as far as memory allows, shared by processes."""

from __future__ import annotations

import pytest

from rolecall.serving.capacity import MOST, instances_for, share


@pytest.mark.parametrize(
    ("slots", "available", "instances"),
    [(0, 100, 1), (4, 100, 4), (6, 5, 5), (6, 0.5, 1), (6, -3, 1), (40, 100, MOST)],
)
def test_auto_follows_the_slots_as_far_as_there_is_memory_from_one_to_twelve(
    slots: int, available: float, instances: int
) -> None:
    assert instances_for(slots, available, each=1) == instances


@pytest.mark.parametrize(("total", "processes"), [(12, 5), (4, 2), (5, 2), (1, 3), (12, 1)])
def test_processes_share_the_instances_evenly_and_each_has_one(total: int, processes: int) -> None:
    parts = [share(total, processes, place) for place in range(processes)]
    assert sum(parts) == max(total, processes)
    assert max(parts) - min(parts) <= 1
