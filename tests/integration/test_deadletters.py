"""Dead letters on the bus: found over all shards, replayed once, dropped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Reject, Role
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import (
    count_dead_letters,
    dead_letters,
    deliver_again,
    drop,
    find_dead_letter,
    replay,
    set_aside,
)
from rolecall.errors import RolecallError
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
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


async def test_what_front_ends_give_up_on_is_listed_by_kind_without_secrets(server: RedisServer) -> None:
    settings = Settings(redis_password="sesame-open", shards=2)
    bus = Bus(server, settings, "host:1~aaaaaa")
    first = await set_aside(bus, "update", {"update_id": 7}, "KeyError: sesame-open", source="telegram", tries=5)
    second = await set_aside(bus, "delivery", b"{}", "no", source="telegram", conversation="a:1", turn="3")
    # Both may be of the same millisecond.
    update, delivery = sorted(await dead_letters(bus), key=lambda letter: letter.kind, reverse=True)
    assert [update.id, delivery.id] == [first, second]
    assert (update.kind, update.source, update.deliveries) == ("update", "telegram", 5)
    assert update.envelope == '{"update_id":7}'
    assert "sesame" not in update.reason
    assert (delivery.kind, delivery.conversation, delivery.turn, delivery.role) == ("delivery", "a:1", "3", "")
    assert await find_dead_letter(bus, second) == delivery
    assert await count_dead_letters(bus) == 2
    with pytest.raises(RolecallError, match="is an update and can only be dropped"):
        await replay(bus, update, "operator")
    assert await drop(bus, first)
    assert await dead_letters(bus) == [delivery]


async def test_a_delivery_that_was_given_up_on_can_be_delivered_again(bus: Bus) -> None:
    letter_id = await set_aside(bus, "delivery", b'{"text":"hi"}', "no", source="shop", conversation="shop:1", turn="3")
    assert await deliver_again(bus, await find_dead_letter(bus, letter_id))
    ((_, flat),) = await bus.server.call("XRANGE", bus.shard("shop:1").outbox("shop"), "-", "+")
    assert flat == [b"c", b"shop:1", b"t", b"3", b"e", b'{"text":"hi"}']
    assert await dead_letters(bus) == []


async def test_whatever_else_is_in_the_list_hides_no_letter(bus: Bus) -> None:
    await bus.server.call("XADD", bus.shards[0].dead, "*", "n", "many", "e", b"\xff[[[[")
    letter_id = await set_aside(bus, "update", "x", "why", source="telegram")
    assert letter_id in [letter.id for letter in await dead_letters(bus)]
