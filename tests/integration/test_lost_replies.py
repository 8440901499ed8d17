"""The server carries a command out and the connection breaks before the reply: what users do is done all the same, and
once. Each command of each deed loses its reply in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rolecall import Agent, Context, Envelope, Reject, Role
from rolecall.bus.admission import edit_message
from rolecall.bus.blobs import Blobs, Files
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_by_user, cancel_turn
from rolecall.bus.chat_messages import keep_question, question_of
from rolecall.bus.conversation import forget_turn, history, notify, prefer, preference, replace_turns, toggle_feedback
from rolecall.bus.dead_letters import dead_letters, replay
from rolecall.bus.schedule.schedules import schedule, schedules_of, unschedule
from rolecall.bus.turn import snapshot
from rolecall.errors import RolecallError
from rolecall.frontends.front import Front, Received
from rolecall.redis.server import RedisServer
from tests.deployment import Deployment, deployed
from tests.proxy import Proxy
from tests.valkey import ValkeyProcess


class ManagerAgent(Agent):
    """Does what it is told."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text.startswith("hang"):
            await asyncio.sleep(600)
        if envelope.text == "reject" and "replayed" not in envelope.meta:
            raise Reject("I was asked to")
        if envelope.text == "ask":
            return envelope.reply("yes" if await ctx.confirm("Sure?") else "no")
        return envelope.reply(f"{envelope.text}!")


ROLES = (Role(ManagerAgent, instances=100),)


@dataclass
class Stage:
    """A front end on ``bus``, whose replies are lost, and ``app``, whose are not: what a deed is not about is done by
    way of ``app``."""

    app: Deployment
    bus: Bus
    conversation: str

    @property
    def front(self) -> Front:
        return Front(self.bus, self.app.runtime.wakeups, "test")

    async def began(self, text: str = "hang") -> Received:
        """A turn that runs or waits."""
        return await self.app.say(self.conversation, text)

    async def kinds(self, *turns: Received) -> list[str]:
        """How turns have ended."""
        bus = self.app.session.bus
        return [str(((await snapshot(bus, one.conversation, one.turn)).final or {}).get("kind")) for one in turns]

    async def remembers(self) -> list[tuple[str, str]]:
        """The history of the conversation."""
        return [(one.role, one.text) for one in await history(self.app.session.bus, self.conversation, 50)]


async def a_question(on: Stage) -> object:
    received = await on.front.receive(on.conversation, "hello")
    return received.turn, (await on.app.answer(received)).text, await on.remembers()


async def a_message_that_waits(on: Stage) -> object:
    await on.began()
    received = await on.front.receive(on.conversation, "hello")
    return received.turn, await on.kinds(received)


async def a_message_that_interrupts(on: Stage) -> object:
    before = await on.began()
    received = await on.front.receive(on.conversation, "hello", mode="interrupt")
    return received.turn, await on.kinds(before), (await on.app.answer(received)).text


async def an_edit(on: Stage) -> object:
    await on.began()
    waiting = await on.app.say(on.conversation, "hello", idempotency="m")
    envelope = Envelope(conversation=on.conversation, payload={"text": "bye"}, reply_to="test")
    edited = await edit_message(on.bus, envelope, idempotency="m", version=1)
    await on.app.front.stop(on.conversation)
    return edited, await on.kinds(waiting)


async def a_cancelled_turn(on: Stage) -> object:
    running, waiting = await on.began(), await on.began()
    await cancel_turn(on.bus, on.conversation, waiting.turn)
    await cancel_by_user(on.bus, on.conversation, running.turn)
    return await on.kinds(running, waiting), await on.remembers()


async def a_stop(on: Stage) -> object:
    turns = [await on.began() for _ in range(3)]
    await on.front.receive(on.conversation, "/stop", idempotency="stop")
    newer = await on.app.say(on.conversation, "hello")
    repeated = await on.app.front.receive(on.conversation, "/stop", idempotency="stop")
    return await on.kinds(*turns), repeated.outcome, (await on.app.answer(newer)).text


async def a_clear(on: Stage) -> object:
    await on.app.ask(on.conversation, "hello")
    received = await on.front.receive(on.conversation, "/clear")
    return received.outcome, await on.remembers()


async def a_notice(on: Stage) -> object:
    return await notify(on.bus, on.conversation, "ready"), await on.remembers()


async def a_preference(on: Stage) -> object:
    await prefer(on.bus, on.conversation, "lang", "de")
    return await preference(on.bus, on.conversation, "lang")


async def a_schedule(on: Stage) -> object:
    at = timedelta(hours=1)
    made = await schedule(on.bus, on.conversation, "hello", at=at, idempotency="s")
    return made.id, len(await schedules_of(on.bus, on.conversation))


async def a_reminder_that_is_deleted(on: Stage) -> object:
    await schedule(on.app.session.bus, on.conversation, "hello", at=timedelta(hours=1))
    received = await on.front.receive(on.conversation, "/reminders delete 1", idempotency="r")
    left = len(await schedules_of(on.bus, on.conversation))
    await unschedule(on.bus, on.conversation)
    return received.reply, left


async def a_question_that_is_kept(on: Stage) -> object:
    await keep_question(on.bus, on.conversation, "1", "m", {"text": "hello"})
    expires = await on.bus.server.fetch("PTTL", on.bus.shard(on.conversation).question(on.conversation, "1"))
    return await question_of(on.bus, on.conversation, "1"), expires > 0


async def a_turn_that_is_asked_again(on: Stage) -> object:
    for text in ("one", "two", "three"):
        await on.app.ask(on.conversation, text)
    await forget_turn(on.bus, on.conversation, "1")
    await replace_turns(on.bus, on.conversation, "3", "4", "i")
    return await on.remembers()


async def an_answer_to_an_agent(on: Stage) -> object:
    received = await on.app.say(on.conversation, "ask", meta={"asks": True})
    async for event in on.app.front.follow(received):
        if event.kind == "asked":
            question = event.payload["id"]
            await on.front.answer(on.conversation, question, 0)
    return (await on.app.answer(received)).text


async def a_vote(on: Stage) -> object:
    votes = [await toggle_feedback(on.bus, on.conversation, "1", "ann", vote) for vote in ("up", "down", "down")]
    return votes, await on.bus.server.fetch("HGETALL", on.bus.shard(on.conversation).votes(on.conversation, "1"))


async def a_file(on: Stage) -> object:
    blob = await Blobs(on.bus).put(on.conversation, b"data", "text/plain")
    await Files(on.bus, on.conversation, 10_000).store(b"more", "a.txt", "text/plain", "user_data", 60)
    files = await Files(on.bus, on.conversation, 10_000).list()
    return await Blobs(on.bus).get(on.conversation, blob) is not None, [file.name for file in files]


async def a_replay(on: Stage) -> object:
    await on.app.ask(on.conversation, "reject")
    (letter,) = [one for one in await dead_letters(on.bus) if one.conversation == on.conversation]
    await replay(on.bus, letter, "i")
    shard = on.bus.shard(on.conversation)
    return int(await on.bus.server.fetch("HGET", shard.conversation(on.conversation), "seq"))


Deed = Callable[[Stage], Awaitable[object]]
DEEDS: tuple[Deed, ...] = (
    a_question, a_message_that_waits, a_message_that_interrupts, an_edit, a_cancelled_turn, a_stop, a_clear, a_notice,
    a_preference, a_schedule, a_reminder_that_is_deleted, a_question_that_is_kept, a_turn_that_is_asked_again,
    an_answer_to_an_agent, a_vote, a_file, a_replay,
)  # fmt: skip


async def test_what_is_done_while_a_reply_is_lost_is_done_once_and_told(tmp_path: Path) -> None:
    valkey = ValkeyProcess(tmp_path)
    valkey.start()
    try:
        async with deployed(tmp_path, ROLES, redis_url=valkey.url, drain_seconds=0.1) as app:
            wrong = await asyncio.gather(*(each_lost(app, valkey, deed) for deed in DEEDS))
    finally:
        valkey.kill()
    assert [line for lines in wrong for line in lines if line] == []


async def each_lost(app: Deployment, valkey: ValkeyProcess, deed: Deed) -> list[str]:
    """Do ``deed`` once, and once for each command that it takes, whose reply is lost. What came out otherwise."""
    facts, carried, _ = await done(app, valkey, deed)
    assert not isinstance(facts, RolecallError)
    found = await asyncio.gather(*(done(app, valkey, deed, number) for number in range(carried)))
    return [
        f"{deed.__name__}, {b' '.join(lost[:2])!r}: {outcome!r} in place of {facts}"
        for outcome, _, lost in found
        if outcome != facts
    ]


async def done(
    app: Deployment, valkey: ValkeyProcess, deed: Deed, number: int = -1
) -> tuple[object, int, list[bytes]]:  # fmt: skip
    """What comes of ``deed`` when the reply to that ``number`` of its commands is lost; how many commands it takes; and
    the one that was lost."""
    proxy = Proxy(valkey.socket)
    await proxy.start()
    server = RedisServer(proxy.url)
    on = Stage(app, Bus(server, app.session.bus.settings, "host:9~ffffff"), f"test:{deed.__name__}-{number}")
    try:
        proxy.lose(number)
        return await deed(on), proxy.carried, proxy.lost
    except RolecallError as error:
        return error, proxy.carried, proxy.lost
    finally:
        await server.aclose()
        await proxy.stop()
