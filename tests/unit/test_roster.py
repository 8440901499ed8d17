"""The instances of a process: counts, ids, choice, and what they ask the bus for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.role import role_infos
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Demand
from rolecall.worker.roster import Roster
from tests.bus.steps import ask, take_role


class ManagerAgent(Agent):
    """Says hello."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("hello")


MANAGER = Role(ManagerAgent, 2)


@pytest.fixture
def roster(bus: Bus) -> Roster:
    services = AgentServices(bus, roles=role_infos([MANAGER]))
    roster = Roster(services)
    roster.deploy([MANAGER], services)
    return roster


def ids(roster: Roster) -> list[str]:
    return [instance.id for instance in roster.everyone()]


def test_a_role_is_described_by_the_first_line_of_its_docstring() -> None:
    assert role_infos([MANAGER])["manager"].description == "Says hello."


async def test_counts_go_up_and_down_and_a_busy_instance_ends_after_its_envelope(roster: Roster, bus: Bus) -> None:
    roster.set_count("manager", 3)
    assert ids(roster) == [f"manager:host:1:{n}" for n in range(3)]
    await ask(bus)
    (delivery,) = await take_role(bus)
    busy = roster.everyone()[2]
    busy.occupy(delivery)
    roster.set_count("manager", 1)
    assert ids(roster) == ["manager:host:1:0", "manager:host:1:2"] and busy.retiring and not busy.free
    await busy.handle()
    roster.set_count("manager", 1)
    assert ids(roster) == ["manager:host:1:0"]
    roster.set_count("manager", 2)
    assert ids(roster) == ["manager:host:1:0", "manager:host:1:1"]


def test_the_instance_that_handled_least_is_picked(roster: Roster) -> None:
    roster.set_count("manager", 2)
    first, second = roster.everyone()
    first.handled = 3
    assert roster.pick("manager") is second
    second.retiring = True
    assert roster.pick("manager") is first
    assert roster.pick("nobody") is None


async def test_what_is_on_its_last_delivery_is_handled_alone_and_then_without_another_such_entry(
    roster: Roster, bus: Bus
) -> None:
    roster.set_count("manager", 2)
    assert roster.demands() == [Demand("manager", 2, instances=tuple(instance.id for instance in roster.everyone()))]
    await ask(bus)
    (delivery,) = await take_role(bus)
    suspect = roster.everyone()[0]
    suspect.occupy(replace(delivery, count=bus.settings.max_deliveries))
    assert (roster.demands(), roster.pick("manager")) == ([], None)
    suspect.since -= bus.settings.lease_seconds
    assert roster.demands() == [Demand("manager", 1, last_ok=False, instances=(roster.everyone()[1].id,))]
