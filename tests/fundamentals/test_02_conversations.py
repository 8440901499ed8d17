"""A conversation: one turn at a time, in order; different conversations side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rolecall import Agent, Context, Envelope, Role
from tests.deployment import deployed


class ManagerAgent(Agent):
    """Takes a moment for each turn and notes when it began and ended."""

    handled: list[tuple[str, float, float]]

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        clock = asyncio.get_running_loop().time
        began = clock()
        await asyncio.sleep(0.05)
        self.handled.append((envelope.text, began, clock()))
        return envelope.reply(f"re: {envelope.text}", remember="forget" not in envelope.text)


async def test_two_messages_sent_at_once_are_answered_in_order_and_never_overlap(tmp_path: Path) -> None:
    ManagerAgent.handled = []
    async with deployed(tmp_path, (Role(ManagerAgent, instances=4),)) as app:
        first, second = await asyncio.gather(app.say("terminal:ann", "one"), app.say("terminal:ann", "two"))
        ordered = sorted((first, second), key=lambda received: int(received.turn))
        await asyncio.gather(*(app.answer(received) for received in ordered))

    (_, _, end), (_, begin, _) = sorted(ManagerAgent.handled, key=lambda row: row[1])
    assert begin >= end


async def test_a_message_to_a_busy_conversation_waits_and_knows_its_place(tmp_path: Path) -> None:
    ManagerAgent.handled = []
    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        received = [await app.say("terminal:ann", f"message {n}") for n in range(4)]
        answers = [(await app.answer(one)).text for one in received]

        assert [one.place for one in received] == [0, 1, 2, 3]
        assert answers == [f"re: message {n}" for n in range(4)]


async def test_fifty_conversations_are_handled_side_by_side(tmp_path: Path) -> None:
    ManagerAgent.handled = []
    async with deployed(tmp_path, (Role(ManagerAgent, instances=50),)) as app:
        received = await asyncio.gather(*(app.say(f"terminal:user{n}", f"hi {n}") for n in range(50)))
        await asyncio.gather(*(app.answer(one) for one in received))

    busiest = max(sum(a <= began < b for _, a, b in ManagerAgent.handled) for _, began, _ in ManagerAgent.handled)
    assert busiest > 10


async def test_a_conversation_remembers_and_a_clear_forgets(tmp_path: Path) -> None:
    ManagerAgent.handled = []
    seen: list[list[str]] = []

    class RecallAgent(Agent):
        role = "manager"

        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            seen.append([message.text for message in await ctx.memory.history()])
            return envelope.reply(f"re: {envelope.text}")

    async with deployed(tmp_path, (Role(RecallAgent),)) as app:
        await app.ask("terminal:ann", "one")
        await app.ask("terminal:ann", "two")
        await app.front.receive("terminal:ann", "/clear")
        await app.ask("terminal:ann", "three")

    assert seen == [[], ["one", "re: one"], []]


async def test_a_preference_set_in_one_turn_holds_from_the_next(tmp_path: Path) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            lang = (await ctx.memory.preferences()).get("lang", "none")
            ctx.memory.prefer(lang=envelope.text)
            return envelope.reply(lang)

    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        answers = [(await app.ask("terminal:ann", code)).text for code in ("de", "fr", "es")]

    assert answers == ["none", "de", "fr"]


async def test_a_full_mailbox_refuses_at_once_and_takes_nothing(tmp_path: Path) -> None:
    ManagerAgent.handled = []
    async with deployed(tmp_path, (Role(ManagerAgent),), mailbox_limit=1) as app:
        accepted = [await app.say("terminal:ann", f"{n}") for n in range(2)]
        refused = await app.front.receive("terminal:ann", "too many")
        for received in accepted:
            await app.answer(received)

    assert refused.refused and refused.outcome == "FULL" and "still working" in refused.reply
    assert [text for text, _, _ in ManagerAgent.handled] == ["0", "1"]


async def test_a_conversation_goes_on_where_it_was_after_everything_was_restarted(tmp_path: Path) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(f"{len(await ctx.memory.history())} remembered")

    async with deployed(tmp_path, (Role(ManagerAgent),), appendfsync="always") as app:
        assert (await app.ask("terminal:ann", "hello")).text == "0 remembered"
    async with deployed(tmp_path, (Role(ManagerAgent),), appendfsync="always") as app:
        received = await app.say("terminal:ann", "again")
        assert received.turn == "2"
        assert (await app.answer(received)).text == "2 remembered"
