"""Model servers of others, seen from the conversations: capacity, balance, and outages. ``make serving-proof`` runs the
outage at full length."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall.agent.prompts import PLACE
from rolecall.agent.role import Instances, Role
from rolecall.bus.events import Event
from rolecall.serving.directory import Directory
from rolecall.serving.external import ModelAt
from tests.deployment import Deployment, deployed
from tests.serving.processes import LONG
from tests.serving.stub_server import Offline, StubServer
from tests.waiting import wait_until

OUTAGE_SECONDS = float(os.environ.get("ROLECALL_OUTAGE_SECONDS", "1.5"))
FLOCK = 20


@asynccontextmanager
async def served(
    directory: Path, servers: dict[str, Sequence[tuple[StubServer, int]]], instances: Instances, *, processes: int = 2
) -> AsyncIterator[Deployment]:
    """A deployment whose models are at ``servers``, each with its slots."""
    (directory / PLACE).parent.mkdir(parents=True)
    (directory / PLACE).symlink_to(Path(__file__).parents[2] / PLACE)
    async with AsyncExitStack() as stack:
        places: dict[str, tuple[ModelAt, ...]] = {}
        for name, several in servers.items():
            for stub, _ in several:
                await stub.start()
                stack.push_async_callback(stub.stop)
            places[name] = tuple(ModelAt(stub.url, slots) for stub, slots in several)
        roles = (Role(ManagerAgent, 4), Role(SampleLLMAgent, instances, tuple(servers)))
        async with deployed(directory, roles, processes=processes, servers=places) as deployment:
            yield deployment


def counts(deployment: Deployment) -> int:
    return sum(not i.retiring for r in deployment.runtimes for i in r.roster.instances["samplellm"])


async def batch(deployment: Deployment, model: str, name: str) -> list[Event]:
    """The answers to six messages sent at once."""
    payload = {"model": model}
    asked = (deployment.ask(f"{name}:{n}", f"question {n}", payload=payload) for n in range(6))
    return await asyncio.gather(*asked)


async def test_six_messages_overlap_on_six_slots_and_are_sequential_on_one(tmp_path: Path) -> None:
    seconds = 1.0 if LONG else 0.15
    six, one = StubServer(seconds), StubServer(seconds)
    async with served(tmp_path, {"six@served": [(six, 6)], "one@served": [(one, 1)]}, "auto") as deployment:
        began = time.monotonic()
        await wait_until(lambda: counts(deployment) == 6 + 1, seconds=30, what="as many instances as slots")
        grown = time.monotonic() - began
        took = {}
        for model, stub, slots in (("six", six, 6), ("one", one, 1)):
            await deployment.ask(f"first:{model}", "Hello", payload={"model": f"{model}@served"})
            began = time.monotonic()
            stub.going.clear()
            answering = asyncio.create_task(batch(deployment, f"{model}@served", model))
            await wait_until(lambda stub=stub, slots=slots: stub.now == slots, seconds=30)
            stub.going.set()
            answers = await answering
            took[model] = time.monotonic() - began
            assert [answer.text for answer in answers] == [f"so: question {n}" for n in range(6)]
        print(f"\n6 answers of {seconds:g} s: {took['six']:.2f} s on 6 slots, {took['one']:.2f} s on 1")
        assert not LONG or took["six"] <= max(1.5, took["one"] / 3), "1.5 s where nothing else runs"
        assert (six.most, one.most) == (6, 1), "CONCURRENT and SEQUENTIAL"
        records = await Directory(deployment.session.server).servers()
        assert {(server.model, server.state, server.slots, server.owned) for server in records} == {
            ("six@served", "ready", 6, False),
            ("one@served", "ready", 1, False),
        }

        await six.stop()
        began = time.monotonic()
        await wait_until(lambda: counts(deployment) == 2, seconds=30, what="one instance in each process")
        print(f"slots gained after {grown:.2f} s, lost after {time.monotonic() - began:.2f} s")
        records = await Directory(deployment.session.server).servers()
        assert {server.model: (server.state, bool(server.why)) for server in records} == {
            "six@served": ("away", True),
            "one@served": ("ready", False),
        }


async def test_the_faster_of_two_servers_answers_most_and_one_that_breaks_costs_nobody_anything(tmp_path: Path) -> None:
    fast, slow = StubServer(0.05), StubServer(0.15)
    async with served(tmp_path, {"two@served": [(fast, 4), (slow, 4)]}, 4, processes=1) as deployment:
        answers = await asyncio.gather(*(deployment.ask(f"a:{n}", "Hello") for n in range(20)))
        assert {answer.text for answer in answers} == {"so: Hello"}
        assert fast.answered + slow.answered == 20
        assert fast.answered >= (12 if LONG else 10), "test_balance.py knows it exactly"

        slow.fails = 503
        answers = await asyncio.gather(*(deployment.ask(f"b:{n}", "Hello") for n in range(20)))
        assert {answer.text for answer in answers} == {"so: Hello"}


async def test_turns_outlive_an_outage_of_their_server_without_a_storm_and_move_when_it_is_back(tmp_path: Path) -> None:
    stub = StubServer(0.02)
    async with served(tmp_path, {"flock@served": [(stub, 4)]}, FLOCK // 2) as deployment:
        assert (await deployment.ask("a:0", "Hello")).text == "so: Hello"
        async with Offline(stub) as offline:
            flock = [await deployment.say(f"a:{n}", f"question {n}") for n in range(FLOCK)]
            following = [asyncio.create_task(deployment.events(one)) for one in flock]
            await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself
            assert not any(task.done() for task in following)
            busy = sum(i.delivery is not None for r in deployment.runtimes for i in r.roster.everyone())
        back = time.monotonic()
        await wait_until(lambda: any(task.done() for task in following), seconds=30, what="the first answer")
        first = time.monotonic() - back
        heard = await asyncio.gather(*following)
        took = time.monotonic() - back

    print(f"\noffline {OUTAGE_SECONDS:g} s, {FLOCK} instances: {offline.connections} connections, {busy} of them held")
    print(f"first answer {first:.2f} s, all {took:.2f} s after the return")
    assert offline.connections <= 10
    assert took < 3 + 5 * (OUTAGE_SECONDS < 8), "3 s where nothing else runs"
    assert [events[-1].text for events in heard] == [f"so: question {n}" for n in range(FLOCK)]
    assert [sum(event.last for event in events) for events in heard] == [1] * FLOCK
