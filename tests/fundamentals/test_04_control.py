"""Control: commands pass a running turn, /stop passes every queue, counts change live, processes can be addressed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rolecall import Agent, Context, Envelope, Role
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.process.processes import live_processes, scale
from tests.deployment import deployed


class ManagerAgent(Agent):
    """Answers at once, or never."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text.startswith("long"):
            await ctx.emit("half an ans")
            await asyncio.sleep(60)
        return envelope.reply(f"{envelope.text} by {ctx.instance}")


class CommandAgent(Agent):
    """Answers the commands."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("these are the commands", remember=False)


ROLES = (Role(ManagerAgent, instances=2), Role(CommandAgent))


async def test_a_command_is_answered_beside_the_turn_it_may_be_about(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        long = await app.say("terminal:ann", "long question")
        assert (await app.ask("terminal:ann", "/help")).text == "these are the commands"

        await app.front.stop("terminal:ann")
        assert (await app.answer(long)).kind == "cancelled"


async def test_stop_ends_the_running_turn_and_everything_that_waits(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES) as app:
        received = [await app.say("terminal:ann", f"long {n}") for n in range(3)]
        stopped = await app.front.receive("terminal:ann", "/stop")

        assert stopped.reply == "Stopped."
        assert [(await app.answer(one)).kind for one in received] == ["cancelled"] * 3
        assert (await app.ask("terminal:ann", "hello")).text.startswith("hello by")


async def test_a_stopped_handler_is_cancelled_and_its_instance_free_again(tmp_path: Path) -> None:
    async with deployed(tmp_path, (Role(ManagerAgent, instances=1),)) as app:
        long = await app.say("terminal:ann", "long question")
        async for event in app.front.follow(long):
            if event.kind == "started":
                break
        assert await cancel_turn(app.session.bus, "terminal:ann", long.turn)

        assert (await app.ask("terminal:bob", "hello")).text.startswith("hello by")


async def test_the_number_of_instances_changes_live_in_every_process(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, processes=2) as app:
        await scale(app.session.bus, ROLES[0].name, 2, 5)

        async with asyncio.timeout(2):
            while [len(runtime.roster.instances["manager"]) for runtime in app.runtimes] != [5, 5]:
                await asyncio.sleep(0.01)


async def test_two_processes_share_the_work_and_each_is_in_the_registry(tmp_path: Path) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            await asyncio.sleep(0.05)
            return envelope.reply(ctx.instance)

    async with deployed(tmp_path, (Role(ManagerAgent, instances=2),), processes=2) as app:
        received = [await app.say(f"terminal:user{n}", "who?") for n in range(12)]
        instances = {(await app.answer(one)).text.rpartition(":")[0] for one in received}
        assert instances == {"manager:host:1", "manager:host:2"}
        assert {state.process for state in await live_processes(app.session.bus)} == {"host:1~aaaaaa", "host:2~aaaaaa"}


async def test_an_envelope_can_be_addressed_to_one_process_and_falls_to_its_role_when_that_is_gone(
    tmp_path: Path,
) -> None:
    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.via(f"desk@{envelope.text}")

    class DeskAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            return envelope.reply(ctx.instance)

    async with deployed(tmp_path, (Role(ManagerAgent), Role(DeskAgent)), processes=2) as app:
        for _ in range(5):
            assert (await app.ask("terminal:ann", "host:2~aaaaaa")).text == "desk:host:2:0"
        assert (await app.ask("terminal:ann", "host:3~cccccc")).text.startswith("desk:host:")


async def test_higher_priority_is_served_first_and_lower_still_gets_its_share(tmp_path: Path) -> None:
    order: list[int] = []

    class ManagerAgent(Agent):
        async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
            if envelope.text == "block":
                await asyncio.sleep(0.3)
            else:
                order.append(envelope.priority)
            return envelope.reply("ok")

    async with deployed(tmp_path, (Role(ManagerAgent),)) as app:
        blocker = await app.say("terminal:first", "block")
        received = []
        for n in range(20):
            for priority in (10, 50, 90):
                received.append(await app.say(f"terminal:{n}-{priority}", "go", priority=priority))
        for one in (blocker, *received):
            await app.answer(one)

    assert order.count(90) == 20
    first_half = order[:30]
    assert first_half.count(90) > first_half.count(50) > 0
    assert first_half.count(10) > 0
