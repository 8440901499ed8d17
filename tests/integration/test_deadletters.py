"""Dead letters on the bus: found over all shards, replayed once, dropped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Reject, Role
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import dead_letters, drop, find_dead_letter, replay
from rolecall.errors import RolecallError
from tests.deployment import Deployment, deployed


class ManagerAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via(str(envelope.payload.get("role") or "moody"))


class MoodyAgent(Agent):
    mood = "bad"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if self.mood == "bad":
            raise Reject("bad mood")
        return envelope.reply(f"now {envelope.text}")


ROLES = (Role(ManagerAgent), Role(MoodyAgent))


@pytest.fixture(autouse=True)
def bad_mood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MoodyAgent, "mood", "bad")


async def only_letter_of(bus: Bus, conversation: str) -> str:
    (letter_id,) = [letter.id for letter in await dead_letters(bus) if letter.conversation == conversation]
    return letter_id


async def last_text(deployment: Deployment, conversation: str, turn: str) -> str:
    from rolecall.bus.events import follow

    bus, wakeups = deployment.session.bus, deployment.runtime.wakeups
    return [event async for event in follow(bus, wakeups, conversation, turn)][-1].text


async def test_letters_of_all_shards_are_found_and_named_apart(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, shards=4) as deployment:
        names = [f"test:{n}" for n in range(12)]
        await asyncio.gather(*(deployment.ask(name, "hello") for name in names))
        bus = deployment.session.bus
        letters = await dead_letters(bus)
        assert sorted(letter.conversation for letter in letters) == sorted(names)
        assert len({letter.id for letter in letters}) == len(names)
        assert {letter.id.partition("@")[2] for letter in letters} == {"", "1", "2", "3"}
        assert [letter.ms for letter in letters] == sorted(letter.ms for letter in letters)
        for letter in letters:
            assert await find_dead_letter(bus, letter.id) == letter
            assert (letter.role, letter.reason) == ("moody", "bad mood")


async def test_a_replayed_letter_is_answered_once_however_often_it_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deployed(tmp_path, ROLES) as deployment:
        await deployment.ask("test:a", "hello")
        bus = deployment.session.bus
        letter = await find_dead_letter(bus, await only_letter_of(bus, "test:a"))
        monkeypatch.setattr(MoodyAgent, "mood", "good")
        first, second = await asyncio.gather(replay(bus, letter, "operator"), replay(bus, letter, "operator"))
        assert sorted((first.outcome, second.outcome)) == ["DUP", "RUN"]
        assert first.turn == second.turn == "2"
        assert await last_text(deployment, "test:a", "2") == "now hello"
        assert await dead_letters(bus) == []


async def test_a_letter_that_fails_again_is_a_letter_again(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as deployment:
        await deployment.ask("test:a", "hello")
        bus = deployment.session.bus
        letter = await find_dead_letter(bus, await only_letter_of(bus, "test:a"))
        admission = await replay(bus, letter, "operator")
        await last_text(deployment, "test:a", admission.turn)
        assert await only_letter_of(bus, "test:a") != letter.id


async def test_a_refused_replay_keeps_the_letter(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as deployment:
        await deployment.ask("test:a", "hello")
        bus = deployment.session.bus
        letter = await find_dead_letter(bus, await only_letter_of(bus, "test:a"))
        full = Bus(bus.server, bus.settings.model_copy(update={"in_flight_limit": 0}), bus.process)
        assert (await replay(full, letter, "operator")).outcome == "BUSY"
        assert await find_dead_letter(bus, letter.id) == letter


async def test_what_belongs_to_no_conversation_can_only_be_dropped(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as deployment:
        bus = deployment.session.bus
        await bus.server.call("XADD", bus.shards[0].stream("moody", "n"), "*", "what", "rubbish")
        while not (letters := await dead_letters(bus)):
            await asyncio.sleep(0.005)
        with pytest.raises(RolecallError, match="belongs to no conversation and can only be dropped"):
            await replay(bus, letters[0], "operator")
        assert letters[0].role == ""
        assert await drop(bus, letters[0].id)
        assert not await drop(bus, letters[0].id)
