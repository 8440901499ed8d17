"""Programs: connect to an assistant, ask it, stream an answer, notify a user, and run its agents yourself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import rolecall
from rolecall import Agent, Config, Context, Envelope, Role
from tests.waiting import wait_until


class ManagerAgent(Agent):
    """Answers with its model, and remembers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        turns = len(await ctx.memory.history()) // 2
        return envelope.reply(f"{envelope.text}, turn {turns + 1}")


CONFIG = Config(roles=(Role(ManagerAgent, instances=4),))


async def test_a_program_runs_the_agents_itself_and_asks_them(tmp_path: Path) -> None:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        reply = await assistant.ask("hello")

        assert reply.text == "hello, turn 1"


async def test_a_conversation_is_the_unit_of_order_and_memory(tmp_path: Path) -> None:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        first, second = await asyncio.gather(
            assistant.ask("a", conversation="crm:42"), assistant.ask("b", conversation="crm:42")
        )

        assert [first.text, second.text] == ["a, turn 1", "b, turn 2"]


async def test_another_program_connects_to_what_runs(tmp_path: Path) -> None:
    async with (
        rolecall.run(CONFIG, app=tmp_path) as running,
        rolecall.connect(running.session.server.url, app=tmp_path) as assistant,
    ):
        assert (await assistant.ask("hello", conversation="crm:42")).text == "hello, turn 1"


async def test_a_user_can_be_told_something_without_asking(tmp_path: Path) -> None:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        assert await assistant.notify("crm:42", "Your export is ready.", idempotency="export-7")
        assert not await assistant.notify("crm:42", "Your export is ready.", idempotency="export-7")

        # The model remembers what the user was told.
        reply = await assistant.ask("thanks", conversation="crm:42")
        assert reply.turn == "1"


async def test_every_conversation_has_a_transcript(tmp_path: Path) -> None:
    async with rolecall.run(CONFIG, app=tmp_path) as assistant:
        await assistant.ask("hello", conversation="crm:42")

        async def listed() -> bool:
            return [summary.conversation for summary in await assistant.conversations()] == ["crm:42"]

        await wait_until(listed)
