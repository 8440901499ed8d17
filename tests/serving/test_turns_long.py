"""Turns on the real engine: overlap, limits, stopping. ``make serving-proof`` runs this and prints what it measured."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from agents.command import CommandAgent
from agents.manager import ManagerAgent
from rolecall import Agent, Context, Envelope
from rolecall.agent.role import Role
from rolecall.bus.events import Event
from rolecall.serving.directory import Directory
from rolecall.serving.spec import ModelServer
from tests.applications import run_rolecall, running
from tests.deployment import Deployment, deployed
from tests.serving.processes import LONG, weights
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not LONG, reason="long: make serving-proof")
STORY = "Write a long story about a dog and a cat."


class SampleLLMAgent(Agent):
    """Answers with ``most`` tokens, so that a run is long enough to see and not longer."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        most = int(envelope.payload.get("most", 24))
        return envelope.reply(await ctx.stream(ctx.model, (), envelope.text, max_tokens=most))


@asynccontextmanager
async def at_work(directory: Path, slots: int, **settings: Any) -> AsyncIterator[tuple[Deployment, ModelServer]]:
    """The application's own answering role on smollm2@local with so many slots, all of them loaded and manned."""
    await asyncio.to_thread(weights)
    roles = (Role(ManagerAgent, 4), Role(CommandAgent), Role(SampleLLMAgent, "auto", ("smollm2@local",)))
    shape: dict[str, Any] = {"local_slots": slots, "local_context": 512, "local_threads": 1}
    async with deployed(directory, roles, **shape, **settings) as deployment:
        await deployment.runtime.models.by_name["smollm2@local"].warm()  # type: ignore[attr-defined]
        (server,) = await Directory(deployment.session.server).servers()
        group = deployment.runtime.roster.instances["samplellm"]
        began = time.monotonic()
        await wait_until(lambda: len(group) == slots, what="as many instances as slots")
        print(f"\n{slots} slots: as many instances {time.monotonic() - began:.2f} s after the model was loaded")
        yield deployment, server


async def speaking(server: ModelServer) -> int:
    """The slots that the engine itself says are at work."""
    asked = Request(f"{server.url}/slots", headers={"Authorization": f"Bearer {server.key}"})
    raw = await asyncio.to_thread(lambda: urlopen(asked, timeout=10).read())
    return sum(slot["is_processing"] for slot in json.loads(raw))


def overlap(turns: list[list[Event]]) -> int:
    """The most answers whose words were coming at one time."""
    changes = []
    for events in turns:
        words = [int(event.id.partition("-")[0]) for event in events if event.kind in ("delta", "final")]
        changes += [(words[0], 1), (words[-1], -1)]
    at_once = most = 0
    for _, change in sorted(changes):
        at_once += change
        most = max(most, at_once)
    return most


@pytest.mark.parametrize(("slots", "verdict"), [(6, "CONCURRENT"), (1, "SEQUENTIAL")])
async def test_b1_six_answers_overlap_on_six_slots_and_are_sequential_on_one(
    tmp_path: Path, slots: int, verdict: str
) -> None:
    async with at_work(tmp_path, slots) as (deployment, _):
        said = [await deployment.say(f"a:{n}", "Count from one to ten.") for n in range(6)]
        turns = await asyncio.gather(*(deployment.events(one) for one in said))
    most = overlap(turns)
    print(f"B1: 6 messages on {slots} slots: {most} at once")
    assert all(events[-1].kind == "final" for events in turns)
    assert ("CONCURRENT" if most >= 2 else "SEQUENTIAL") == verdict
    assert most == slots


async def test_b2_twelve_messages_on_two_slots_are_all_answered_two_at_a_time(tmp_path: Path) -> None:
    most = 0
    async with at_work(tmp_path, 2) as (deployment, server):
        asked = [asyncio.create_task(deployment.ask(f"a:{n}", "Count from one to ten.")) for n in range(12)]
        while not all(task.done() for task in asked):
            known = [one.in_flight for one in await Directory(deployment.session.server).servers()]
            most = max(most, *known, await speaking(server))
            await asyncio.sleep(0.02)
    print(f"B2: 12 answered, at most {most} in flight, by the engine's own count too")
    assert [task.result().kind for task in asked] == ["final"] * 12
    assert most == 2


async def test_b10_a_stopped_answer_frees_its_slot(tmp_path: Path) -> None:
    async with at_work(tmp_path, 2) as (deployment, server):
        said = await deployment.say("a:1", STORY, payload={"most": 400})

        async def speaks() -> bool:
            return await speaking(server) == 1

        async def idle() -> bool:
            return await speaking(server) == 0

        await wait_until(speaks, what="the answer to begin")
        began = time.monotonic()
        await deployment.front.receive("a:1", "/stop")
        await wait_until(idle, what="the slot to be idle")
        took = time.monotonic() - began
        print(f"B10: the engine's slot is idle {took:.2f} s after /stop")
        assert (await deployment.answer(said)).kind == "cancelled"
        assert took <= 2, "0.5 s where nothing else runs"


def test_b11_a_new_application_answers_soon_when_the_weights_are_here(tmp_path: Path) -> None:
    weights()
    directory = tmp_path / "app"
    assert run_rolecall("new", directory).returncode == 0
    began = time.monotonic()
    with running(directory):
        asked = run_rolecall("ask", "What is the capital of France?", "--app", directory)
        took = time.monotonic() - began
    print(f"B11: started and answered within {took:.2f} s, the weights being here")
    assert (asked.returncode, "Paris" in asked.stdout) == (0, True), asked.stderr
    assert took <= 30, "10 s where nothing else runs"
