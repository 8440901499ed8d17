"""A turn: a user's message, the roles it passes, and its one answer."""

from __future__ import annotations

from pathlib import Path

from rolecall import Agent, Context, Envelope, Role
from tests.deployment import deployed


class ManagerAgent(Agent):
    """Decides the route, once."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("shout", "polite")


class ShoutAgent(Agent):
    """Adds to the payload and passes on."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.forward(loud=envelope.text.upper())


class PoliteAgent(Agent):
    """Ends the turn."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(f"{envelope.payload['loud']}, please")


ROLES = (Role(ManagerAgent), Role(ShoutAgent), Role(PoliteAgent))


async def test_a_message_goes_to_the_manager_along_its_route_and_back_as_one_answer(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        events = await app.events(await app.say("terminal:ann", "tea"))

        assert events[-1].text == "TEA, please"
        assert [event.role for event in events if event.kind == "started"] == ["manager", "shout", "polite"]
        assert [event.last for event in events].count(True) == 1


async def test_the_answer_can_be_asked_for_again_after_it_was_given(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = await app.say("terminal:ann", "tea")
        first = await app.answer(received)

        assert await app.answer(received) == first


def test_a_role_is_named_after_its_class() -> None:
    class SampleLLMAgent(Agent):
        pass

    assert SampleLLMAgent.role == "samplellm"


async def test_a_message_sent_twice_with_one_key_is_answered_once(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        first = await app.say("terminal:ann", "tea", idempotency="update-7")
        again = await app.say("terminal:ann", "tea", idempotency="update-7")

        assert (again.outcome, again.turn) == ("DUP", first.turn)
        assert (await app.answer(first)).text == "TEA, please"


async def test_an_answer_streams_in_pieces_that_make_up_the_whole(tmp_path: Path) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            answer = await ctx.stream(ctx.model, [], envelope.text)
            return envelope.reply(answer)

    roles = (Role(ManagerAgent, models=("echo@test",)),)
    async with deployed(tmp_path, roles, echo_delay=0.5, echo_deltas=5) as app:
        events = await app.events(await app.say("terminal:ann", "one two three four five six"))

        deltas = [event for event in events if event.kind == "delta"]
        assert len(deltas) > 1
        text = ""
        for delta in deltas:
            assert delta.position == len(text)
            text += delta.text
        assert events[-1].text.startswith(text)
        assert events[-1].payload["model"] == "echo@test"
