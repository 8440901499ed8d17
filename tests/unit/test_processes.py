"""The registry of live processes, and the counts that operators set."""

from __future__ import annotations

from rolecall.bus.bus import Bus
from rolecall.bus.process.processes import (
    InstanceState,
    ProcessState,
    instances_of,
    live_counts,
    live_processes,
    register,
    scale,
    unregister,
)
from rolecall.redis import keys


def state(process: str, *instances: InstanceState) -> ProcessState:
    return ProcessState(process, uptime=10, instances=instances, connections=3, max_connections=64)


async def test_a_process_that_registers_is_seen_with_its_instances(bus: Bus) -> None:
    mine = state(bus.process, InstanceState("echo:host:1:0", "echo", busy=True, conversation="a", turn="1"))
    await register(bus, mine)
    assert await live_processes(bus) == [mine]
    assert (await instances_of(bus, "echo"), await instances_of(bus, "manager")) == (1, 0)


async def test_a_process_that_leaves_or_falls_silent_is_not_seen(bus: Bus) -> None:
    await register(bus, state("silent"))
    await register(bus, state(bus.process))
    assert 0 < await bus.server.call("PTTL", keys.worker("silent")) <= 12_000
    await bus.server.call("DEL", keys.worker("silent"))
    assert [found.process for found in await live_processes(bus)] == [bus.process]
    await unregister(bus)
    assert await live_processes(bus) == []


async def test_a_count_set_by_scale_counts_until_the_configuration_changes(bus: Bus) -> None:
    await scale(bus, "manager", 2, 5)
    assert await live_counts(bus, {"manager": 2, "echo": 1}) == {"manager": 5}
    assert await live_counts(bus, {"manager": 3}) == {}
    assert await live_counts(bus, {"echo": 2}) == {}
