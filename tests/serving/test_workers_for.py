"""The formula for workers, with the worked examples of the rule of thumb it comes from. Those that contradict the rule
stand here too, with what the rule gives."""

from __future__ import annotations

import pytest

from rolecall.errors import ConfigError
from rolecall.serving.capacity import MOST, Sizes, check_workers, instances_for, share, workers_for

F32, Q8_0 = Sizes(model=30), Sizes(model=8)


def test_six_models_of_15_gb_in_128_gb_keep_six_workers_busy() -> None:
    assert workers_for(128, 6) == 6


def test_twenty_workers_there_would_take_158_gb_and_are_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"6 models of 15 GB, 20 workers of 3 GB and 8 GB .* are 158 GB; .* 128 GB"):
        check_workers(20, 128, 6)


@pytest.mark.parametrize(
    ("ram", "models", "sizes", "workers"),
    [
        (64, 2, Sizes(), 2),
        (64, 3, Sizes(), 3),
        (192, 8, Sizes(), 8),
        (192, 10, Sizes(), 10),
        (256, 12, Sizes(), 12),
        (256, 14, Sizes(), MOST),
        (128, 3, F32, 3),
        (128, 10, Q8_0, 10),
    ],
)
def test_the_table_of_machines_and_models(ram: float, models: int, sizes: Sizes, workers: int) -> None:
    assert workers_for(ram, models, sizes=sizes) == workers


def test_the_table_contradicts_its_own_rule_at_four_models_of_30_gb_which_leave_no_worker_any_room() -> None:
    with pytest.raises(ConfigError, match="4 models of 30 GB, 1 workers of 3 GB and 8 GB for the system are 131 GB"):
        workers_for(128, 4, sizes=F32)
    assert workers_for(132, 4, sizes=F32) == 1
    assert workers_for(140, 4, sizes=F32) == 4, "12 GB more, and the table is right"


@pytest.mark.parametrize(("models", "by_the_rule"), [(11, 10), (12, 8)])
def test_the_table_contradicts_its_own_rule_above_ten_models_of_8_gb(models: int, by_the_rule: int) -> None:
    assert workers_for(128, models, sizes=Q8_0) == by_the_rule
    assert workers_for(128, models, sizes=Sizes(model=8, worker=2)) == models, "right with workers of 2 GB"


@pytest.mark.parametrize("slots", [4, 5, 6])
def test_mostly_one_model_keeps_as_many_workers_busy_as_it_has_slots(slots: int) -> None:
    assert workers_for(128, 1, slots=slots) == slots
    assert workers_for(128, 1) == 1, "one worker per model would leave the other slots idle"


def test_above_twelve_is_a_warning_and_below_one_an_error() -> None:
    assert check_workers(12, 256, 12) == ""
    assert "above 12" in check_workers(13, 256, 12)
    for workers in (0, -1):
        with pytest.raises(ConfigError, match="1 or more is allowed"):
            check_workers(workers, 256, 12)
    with pytest.raises(ConfigError, match="1 or more is allowed"):
        workers_for(64, 0)


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
