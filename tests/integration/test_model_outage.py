"""Providers that are away, ask to wait or are used up, seen from the conversations: the official SDK, a provider on
loopback, the whole bus between. Outages and minutes are scaled; ``make proof`` runs them at full length."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall.agent.prompts import PLACE
from rolecall.agent.role import Role
from rolecall.bus.dead_letters import dead_letters
from rolecall.bus.events import Event
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.transcripts.record import Record, records
from tests.command_line import open_module
from tests.contract.model_vendor import Connection, Vendor
from tests.contract.model_wires import OpenAIWire
from tests.deployment import Deployment, deployed
from tests.waiting import wait_until

OUTAGE_SECONDS = float(os.environ.get("ROLECALL_OUTAGE_SECONDS", "3"))
MINUTE_SECONDS = float(os.environ.get("ROLECALL_MINUTE_SECONDS", "2"))
FLOCK = 20
MODEL = "m@openai"


class Provider:
    """OpenAI's wire on loopback: answers, or fails with what it is told; counts, and knows how many asked at once."""

    def __init__(self) -> None:
        self.vendor = Vendor(OpenAIWire())
        self.vendor.script = self._serve
        self.status = 0
        self.headers: dict[str, str] = {}
        self.asked = self.now = self.most = 0

    async def _serve(self, connection: Connection) -> None:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.02)  # as long as a provider may take
            if self.status:
                await connection.answer(self.status, connection.wire.refusal(self.status, "not now"), **self.headers)
                return
            wire, words = connection.wire, connection.body["messages"][-1]["content"]
            await connection.begin()
            await connection.say(wire.delta(f"so: {words}"), wire.end("stop", (3, 2)))
            await connection.close()
        finally:
            self.now -= 1


@asynccontextmanager
async def provided(tmp_path: Path, *more: str, **settings: Any) -> AsyncIterator[tuple[Provider, Deployment]]:
    """Two processes with two instances each, on one provider and ``more`` models."""
    provider = Provider()
    await provider.vendor.start()
    (tmp_path / PLACE).parent.mkdir(parents=True)
    (tmp_path / PLACE).symlink_to(Path(__file__).parents[2] / PLACE)
    roles = (Role(ManagerAgent), Role(SampleLLMAgent, 2, (MODEL, *more)))
    settings = {"openai_api_key": "sk-x", "openai_base_url": f"{provider.vendor.url}/v1", **settings}
    try:
        async with deployed(tmp_path, roles, processes=2, scribe=True, **settings) as deployment:
            yield provider, deployment
    finally:
        await provider.vendor.stop()


async def all_asleep(deployment: Deployment) -> bool:
    busy = sum(i.delivery is not None for r in deployment.runtimes for i in r.roster.everyone())
    asleep = await deployment.session.server.call("ZCARD", keys.ShardKeys(0).deferred)
    return not busy and bool(asleep == FLOCK)


async def transcript(deployment: Deployment, conversation: str, word: str) -> list[Record]:
    """The conversation's transcript, once it holds ``word``."""

    def written() -> list[Record]:
        try:
            return records(deployment.log_dir, conversation, UTC)
        except Exception:  # there is no file yet
            return []

    await wait_until(lambda: any(record.word == word for record in written()), what=f"{word} in the transcript")
    return written()


async def test_turns_outlive_an_outage_without_a_slot_or_a_storm_and_all_move_when_it_ends(tmp_path: Path) -> None:
    async with provided(tmp_path) as (provider, deployment):
        provider.status = 503
        flock = [await deployment.say(f"a:{n}", f"question {n}") for n in range(FLOCK)]
        following = [asyncio.create_task(deployment.events(one)) for one in flock]
        await wait_until(lambda: all_asleep(deployment), seconds=20, what="all turns to sleep")
        provider.asked, provider.most = 0, 0

        await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself
        probes, at_once = provider.asked, provider.most
        provider.status, back = 0, time.monotonic()
        heard = await asyncio.gather(*following)
        gone = time.monotonic() - back

        assert at_once <= 1, "one probe at a time"
        assert 1 <= probes <= 2 * OUTAGE_SECONDS + 2
        assert gone < 3
        assert [events[-1].text for events in heard] == [f"so: question {n}" for n in range(FLOCK)]
        assert [sum(event.last for event in events) for events in heard] == [1] * FLOCK
        told = [[event for event in events if event.kind == "queued" and "m@openai" in str(event)] for events in heard]
        assert max(len(each) for each in told) <= 1, "the user is told once"
        words = [record.word for record in await transcript(deployment, "a:7", "PROCESSING_COMPLETE")]
        assert words.count("DEFERRED") <= 2
        print(f"\noutage {OUTAGE_SECONDS:g} s, {FLOCK} conversations: {probes} probes, all answered {gone:.2f} s after")


async def test_with_a_fallback_every_turn_is_answered_at_once_and_says_who_spoke_and_why(tmp_path: Path) -> None:
    async with provided(tmp_path, "echo@test") as (provider, deployment):
        provider.status = 503
        began = time.monotonic()
        flock = [await deployment.say(f"a:{n}", f"question {n}") for n in range(FLOCK)]
        answers: list[Event] = await asyncio.gather(*(deployment.answer(one) for one in flock))
        took = time.monotonic() - began

        assert [answer.text for answer in answers] == [f"echo: question {n}" for n in range(FLOCK)]
        assert {answer.payload["model"] for answer in answers} == {"echo@test"}
        assert all("m@openai" in answer.payload["why"] for answer in answers)
        notes = [r.text for r in await transcript(deployment, "a:7", "PROCESSING_COMPLETE") if r.word == "NOTE"]
        assert any(note.startswith("echo@test answers: m@openai") for note in notes)
        assert took < 10


async def test_a_provider_that_asks_to_wait_costs_that_wait_and_no_instance(tmp_path: Path) -> None:
    async with provided(tmp_path) as (provider, deployment):
        provider.status, provider.headers = 429, {"Retry_After": "1"}
        flock = [await deployment.say(f"a:{n}", "Hello") for n in range(FLOCK)]
        began = time.monotonic()
        await wait_until(lambda: all_asleep(deployment), what="all turns to sleep")
        assert provider.asked <= 4, "what was under way when it said so, and no more"

        provider.status = 0
        answers = await asyncio.gather(*(deployment.answer(one) for one in flock))

        assert {answer.text for answer in answers} == {"so: Hello"}
        assert time.monotonic() - began > 0.9


async def test_a_key_or_a_name_the_provider_refuses_is_told_and_not_tried_again(tmp_path: Path) -> None:
    async with provided(tmp_path) as (provider, deployment):
        provider.status = 401
        answer = await deployment.ask("a:1", "Hello")
        assert answer.kind == "error" and "the model can't be used right now" in answer.text
        provider.status = 404
        answer = await deployment.ask("a:1", "Hello")
        assert answer.kind == "error" and "the model can't be used right now" in answer.text
        reasons = [letter.reason for letter in await dead_letters(deployment.session.bus)]
        assert ["refuses the key" in reasons[0], "no such model" in reasons[1]] == [True, True]
        assert provider.asked == 2


async def test_who_is_over_his_budget_is_told_so_as_an_answer(tmp_path: Path) -> None:
    async with provided(tmp_path, user_tokens_per_day=5) as (provider, deployment):
        assert (await deployment.ask("a:1", "Hello", principal="ann")).text == "so: Hello"
        answer = await deployment.ask("a:1", "Hello", principal="ann")
        assert answer.kind == "final" and answer.text.startswith("You've reached today's limit (5 tokens).")
        assert (await deployment.ask("a:2", "Hello", principal="bob")).text == "so: Hello"
        assert provider.asked == 2


async def test_tokens_per_minute_are_kept_within_five_percent_by_four_processes(
    server: RedisServer, server_url: str
) -> None:
    minutes = 3.2
    users = [
        open_module("tests.integration.quota_user", server_url, str(MINUTE_SECONDS), str(minutes), f"p{number}")
        for number in range(4)
    ]
    said = [(await asyncio.to_thread(user.communicate))[0] for user in users]
    assert [user.returncode for user in users] == [0] * 4
    used = [line.split() for lines in said for line in lines.splitlines()]
    calls = sorted((int(slice), float(at), int(tokens)) for at, slice, tokens in used)
    # By the slice that counts a call: how late a busy machine begins it is no matter of the quota.
    assert all(at >= slice * MINUTE_SECONDS / 60 for slice, at, _ in calls), "none begins before its slice"
    ends = sorted({slice for slice, _, _ in calls})
    windows = {end: sum(n for slice, _, n in calls if end - 60 < slice <= end) for end in ends}
    whole = [windows[end] for end in ends if end - ends[0] > 66]
    most = max(windows.values())
    print(f"\n10,000 tokens per minute of {MINUTE_SECONDS:g} s, 4 processes: at most {most} in any minute")
    assert max(whole) >= 9_500 and most <= 10_500
