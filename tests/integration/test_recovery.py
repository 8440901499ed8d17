"""Worker processes that are killed, stopped, held up and poisoned: what becomes of the turns they had."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC
from pathlib import Path

import pytest

from rolecall import Agent
from rolecall.bus.bus import Bus
from rolecall.bus.events import Event
from rolecall.bus.leases import Demand, take
from rolecall.bus.process.processes import instances_of, live_processes, scale
from rolecall.bus.turn import turns_in_flight
from rolecall.bus.wakeups import Wakeups
from rolecall.errors import RolecallError
from rolecall.frontends.front import Front, Received
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from rolecall.transcripts.record import records
from tests.chaos.application import write_application
from tests.chaos.cast import ChaosServer, Player, environment
from tests.waiting import wait_until

LEASE = 1.0
AGENT = '''\
import asyncio
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from rolecall import Agent, Context, Envelope

BEGUN = Path(__file__).parents[1] / "begun"


async def exits() -> None:
    sys.exit(3)


class ManagerAgent(Agent):
    """Sends every turn on."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("worker")


class WorkerAgent(Agent):
    """Does as it is told, and notes when it begins, for whom and in which process."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        what, _, seconds = envelope.text.partition(" ")
        first = f"{envelope.conversation} " not in (BEGUN.read_text() if BEGUN.exists() else "")
        with BEGUN.open("a") as file:
            file.write(f"{envelope.conversation} {os.getpid()}\\n")
        if what == "block" and first or what == "hang":
            time.sleep(float(seconds))
        elif what == "sleep":
            await asyncio.sleep(float(seconds))
        elif what == "recall":
            await asyncio.sleep(float(seconds))
            await ctx.memory.history()
            await ctx.memory.preferences()
        elif what == "die":
            await asyncio.sleep(float(seconds))
            os._exit(1)
        elif what == "exit":
            sys.exit(3)
        elif what == "exit-in-a-task":
            await asyncio.gather(asyncio.create_task(exits()), return_exceptions=True)
        elif what == "deaf":
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(600)
        return envelope.reply(f"done {envelope.text}")
'''


class WorkerAgent(Agent):
    """Names the role to this process."""


class Stage:
    """A server, worker processes by the real command line, and a front end in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        write_application(directory / "app")
        (directory / "app" / "agents" / "chaos.py").write_text(AGENT)
        (directory / "data").mkdir()
        self.server = ChaosServer(directory / "data")
        self.players: list[Player] = []
        self.clocks = {"LEASE_SECONDS": str(LEASE), "HEARTBEAT_SECONDS": "0.25", "SCAN_SECONDS": "0.25"}
        self.connection = RedisServer(self.server.url)
        self.bus = Bus(self.connection, Settings(), "host:1~aaaaaa")
        self.wakeups = Wakeups(self.connection.pubsub())
        self.front = Front(self.bus, self.wakeups, "test")

    async def start(self, count: int = 1, **settings: str) -> list[Player]:
        """Start worker processes and wait until they work; the first one of a stage has the scribe."""
        before = len(await live_processes(self.bus))
        started = []
        for _ in range(count):
            number, roles = len(self.players), ["manager", "worker"]
            argv = ["tests.chaos.worker", "none", "worker", "--app", str(self.directory / "app")]
            argv += [part for role in [*roles, *(["scribe"] if number == 0 else [])] for part in ("--role", role)]
            variables = environment(self.server.url, {**self.clocks, **settings})
            player = Player(f"worker{number}", argv, variables, self.directory / f"worker{number}.log")
            player.start()
            self.players.append(player)
            started.append(player)
        await wait_until(lambda: self._alive(before + count), seconds=30, what="the workers to be there")
        return started

    async def _alive(self, count: int) -> bool:
        return len(await live_processes(self.bus)) >= count

    async def _at_work(self) -> bool:
        """Whether a process has given its second sign of life, so that its start is over."""
        return any(process.uptime > 0.2 for process in await live_processes(self.bus))

    async def say(self, conversation: str, text: str) -> Received:
        """Send ``text``, which is taken."""
        received = await self.front.receive(conversation, text)
        assert received.turn, received.reply
        return received

    async def answer(self, received: Received, seconds: float = 20) -> Event:
        """The final event of a turn."""
        async with asyncio.timeout(seconds):
            return [event async for event in self.front.follow(received)][-1]

    def begun(self, conversation: str) -> list[int]:
        """The processes in which the conversation's turns were begun, one for each time."""
        path = self.directory / "app" / "begun"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == conversation]

    async def begins(self, conversation: str, times: int = 1) -> Player:
        """Wait until a turn of the conversation was begun so often; the player that has it."""
        await wait_until(lambda: len(self.begun(conversation)) >= times, seconds=20, what=f"{conversation} to begin")
        return self.player(self.begun(conversation)[times - 1])

    def player(self, pid: int) -> Player:
        """The one of that process id."""
        return next(player for player in self.players if player.process is not None and player.process.pid == pid)

    async def finals(self, conversation: str) -> list[str]:
        """The kinds of all final events of a conversation, in order."""
        events = await self.connection.call("XRANGE", keys.ShardKeys(0).events(conversation), "-", "+")
        kinds = [dict(zip(flat[::2], flat[1::2], strict=True))[b"k"].decode() for _, flat in events]
        return [kind for kind in kinds if kind in ("final", "error", "cancelled")]

    def words(self, conversation: str) -> list[str]:
        """The events in the conversation's transcript."""
        with suppress(RolecallError):
            return [record.word for record in records(self.directory / "app" / "log", conversation, UTC)]
        return []

    def text(self, conversation: str) -> str:
        """What the conversation's transcript says."""
        with suppress(RolecallError):
            return " ".join(record.text for record in records(self.directory / "app" / "log", conversation, UTC))
        return ""

    def send(self, number: int) -> None:
        """Send the server a signal."""
        assert self.server._process is not None
        self.server._process.send_signal(number)


@pytest.fixture
async def stage(directory: Path) -> AsyncIterator[Stage]:
    built = Stage(directory)
    built.server.start()
    listening = asyncio.create_task(built.wakeups.run(), name="wake-ups")
    try:
        yield built
    finally:
        for player in built.players:
            player.kill()
        listening.cancel()
        await asyncio.wait([listening])
        await built.wakeups.aclose()
        await built.connection.aclose()
        built.server.kill()


async def test_a_killed_workers_turn_is_answered_by_another_in_order_and_the_transcript_says_so(stage: Stage) -> None:
    await stage.start(3)  # two are left, of which one may be the scribe's successor
    first, second = await stage.say("a:1", "sleep 3"), await stage.say("a:1", "sleep 0")
    holder = await stage.begins("a:1")
    holder.kill()
    killed = time.monotonic()
    assert (await stage.answer(first)).text == "done sleep 3"
    assert time.monotonic() - killed < LEASE + 3 + 3
    assert (await stage.answer(second)).text == "done sleep 0"
    assert await stage.finals("a:1") == ["final", "final"]
    if holder is stage.players[0]:
        holder.start()
    await wait_until(lambda: stage.words("a:1").count("PROCESSING_COMPLETE") == 2, what="the transcript")
    assert "TAKEN_OVER" in stage.words("a:1")


async def test_neighbours_take_the_turns_of_a_killed_process_over_at_once_and_leave_those_of_a_frozen_one(
    stage: Stage,
) -> None:
    await stage.start(2, LEASE_SECONDS="60", HEARTBEAT_SECONDS="20")
    await stage.say("a:1", "sleep 30")
    holder = await stage.begins("a:1")
    other = next(player for player in stage.players if player is not holder)
    holder.send(signal.SIGSTOP)
    await asyncio.sleep(1.2)  # two looks
    assert len(stage.begun("a:1")) == 1
    holder.send(signal.SIGCONT)
    holder.kill()
    killed = time.monotonic()
    assert await stage.begins("a:1", times=2) is other
    took = time.monotonic() - killed
    other.kill()
    killed = time.monotonic()
    await stage.start(1, LEASE_SECONDS="60", HEARTBEAT_SECONDS="20")  # it may not take expired leases over yet
    assert await stage.begins("a:1", times=3) is stage.players[-1]
    print(f"taken over after {took:.2f} s")
    assert took < 3  # LOOK_SECONDS = 0.5, and other tests run beside


async def test_a_stopping_worker_finishes_what_runs_keeping_its_lease_and_exits_0(stage: Stage) -> None:
    (old,) = await stage.start(1, DRAIN_SECONDS="10")
    received = await stage.say("a:1", f"sleep {LEASE * 2}")
    await stage.begins("a:1")
    await stage.start(1)
    old.send(signal.SIGTERM)
    assert (await stage.answer(received)).kind == "final"
    assert await exit_status(old) == 0
    assert len(stage.begun("a:1")) == 1


async def test_a_stopping_worker_hands_over_at_once_what_takes_too_long(stage: Stage) -> None:
    stage.clocks |= {"LEASE_SECONDS": "15", "HEARTBEAT_SECONDS": "4"}
    workers = await stage.start(2, DRAIN_SECONDS="0.2")
    received = await stage.say("a:1", "sleep 3")
    old = await stage.begins("a:1")
    (new,) = [worker for worker in workers if worker is not old]
    old.send(signal.SIGTERM)
    stopped = time.monotonic()
    assert await stage.begins("a:1", times=2) is new
    assert time.monotonic() - stopped < 5, "it waited for the lease"
    assert await exit_status(old) == 0
    assert (await stage.answer(received)).kind == "final"
    assert await stage.finals("a:1") == ["final"]


@pytest.mark.parametrize(("what", "kind"), [("exit", "error"), ("exit-in-a-task", "final")])
async def test_a_handler_that_calls_sys_exit_does_not_end_its_worker(stage: Stage, what: str, kind: str) -> None:
    await stage.start(1)
    assert (await stage.answer(await stage.say("a:1", what))).kind == kind
    assert (await stage.answer(await stage.say("a:1", "hello"))).text == "done hello"
    assert len(set(stage.begun("a:1"))) == 1, "another process had to take over"


async def test_a_handler_that_swallows_its_cancellation_cannot_keep_a_worker_from_stopping(stage: Stage) -> None:
    (worker,) = await stage.start(1, DRAIN_SECONDS="0.2")
    await stage.say("a:1", "deaf")
    await stage.begins("a:1")
    worker.send(signal.SIGTERM)
    assert await exit_status(worker, within=10) == 0


@pytest.mark.parametrize("busy", [False, True])
async def test_a_worker_stops_in_time_while_the_server_is_silent(stage: Stage, busy: bool) -> None:
    (worker,) = await stage.start(1, DRAIN_SECONDS="0.2")
    if busy:
        await stage.say("a:1", "sleep 30")
        await stage.begins("a:1")
    stage.send(signal.SIGSTOP)
    worker.send(signal.SIGTERM)
    await exit_status(worker, within=10)


async def test_a_process_without_work_to_wait_for_ends_on_sigterm(stage: Stage) -> None:
    stage.players.append(scribe := Player(
        "scribe", ["tests.chaos.worker", "none", "worker", "--app", str(stage.directory / "app"), "--role", "scribe"],
        environment(stage.server.url, stage.clocks), stage.directory / "scribe.log",
    ))  # fmt: skip
    scribe.start()
    await wait_until(stage._at_work, seconds=30)
    scribe.send(signal.SIGTERM)
    assert await exit_status(scribe) == 0


async def test_a_call_of_thirty_leases_is_not_stolen_by_four_claimers(stage: Stage) -> None:
    lease = 0.4
    stage.clocks |= {"LEASE_SECONDS": str(lease), "HEARTBEAT_SECONDS": "0.1"}
    await stage.start(1)
    received = await stage.say("a:1", f"sleep {30 * lease}")
    await stage.begins("a:1")
    claimers = [Bus(stage.connection, Settings(lease_seconds=lease, heartbeat_seconds=0.1), f"c:{n}~0") for n in "1234"]
    waiting = asyncio.create_task(stage.answer(received, 40))
    stolen = 0
    while not waiting.done():
        for claimer in claimers:
            stolen += len(await take(claimer, claimer.shards[0], [Demand("worker", 1)], 0, claim=True))
        await asyncio.wait([waiting], timeout=0.05)
    assert (waiting.result().kind, stolen, len(stage.begun("a:1"))) == ("final", 0, 1)


async def test_poison_dies_three_times_and_takes_no_innocent_along(stage: Stage) -> None:
    await stage.start(2)
    innocent = [await stage.say(f"good:{number}", "sleep 0.8") for number in range(4)]
    poison = await stage.say("bad:1", "die 0.3")
    supervising = asyncio.create_task(supervise(stage))
    assert (await stage.answer(poison, 60)).kind == "error"
    answers = [await stage.answer(received, 60) for received in innocent]
    deaths = supervising.cancel() and len(stage.begun("bad:1"))
    assert [answer.kind for answer in answers] == ["final"] * 4
    assert deaths == 3
    assert await stage.finals("bad:1") == ["error"]
    assert await stage.connection.call("XLEN", keys.ShardKeys(0).dead) == 1


@pytest.mark.parametrize("restarted", [False, True], ids=["frozen", "restarted"])
async def test_a_server_away_for_longer_than_the_lease_makes_nothing_run_twice(stage: Stage, restarted: bool) -> None:
    stage.clocks["HEARTBEAT_SECONDS"] = str(LEASE / 2)
    await stage.start(2)
    received = [await stage.say(f"a:{number}", "sleep 3.5") for number in range(6)]
    for number in range(6):
        await stage.begins(f"a:{number}")
    stage.send(signal.SIGKILL if restarted else signal.SIGSTOP)
    await asyncio.sleep(2 * LEASE)  # the time it is away is what is tested
    if restarted:
        stage.server.kill()
        stage.server.start()
    else:
        stage.send(signal.SIGCONT)
    assert [(await stage.answer(turn)).kind for turn in received] == ["final"] * 6
    assert [len(stage.begun(f"a:{number}")) for number in range(6)] == [1] * 6


async def test_a_handler_that_looks_something_up_while_the_server_is_away_waits_for_it(stage: Stage) -> None:
    await stage.start(1)
    received = await stage.say("a:1", "recall 0.4")
    await stage.begins("a:1")
    stage.server.kill()
    await asyncio.sleep(0.8)  # the handler asks in this time: that is what is tested
    stage.server.start()
    answer = await stage.answer(received)
    assert (answer.kind, answer.text) == ("final", "done recall 0.4")
    assert len(stage.begun("a:1")) == 1


async def test_a_worker_frozen_for_three_leases_doubles_no_reply_and_its_delivery_does_not_count(stage: Stage) -> None:
    await stage.start(2)
    received = await stage.say("a:1", f"sleep {6 * LEASE}")
    holder = await stage.begins("a:1")
    holder.freeze(3 * LEASE)
    other = await stage.begins("a:1", times=2)
    assert other is not holder
    holder.thaw()
    await wait_until(lambda: " FENCED" in holder.log.read_text(), seconds=15, what="the frozen one to hear of it")
    stream = stage.bus.shards[0].stream("worker", "n")

    async def counted_once() -> bool:
        rows = await stage.connection.call("XPENDING", stream, keys.GROUP, "-", "+", 10)
        return [count for *_, count in rows] == [1]

    await wait_until(counted_once, what="its delivery not to count")
    assert (await stage.answer(received)).kind == "final"
    assert await stage.finals("a:1") == ["final"]


async def test_a_handler_that_blocks_keeps_its_turn_and_others_go_on_in_another_process(stage: Stage) -> None:
    await stage.start(2)
    neighbours = [await stage.say(f"a:{number}", "sleep 1") for number in range(8)]
    for number in range(8):
        await stage.begins(f"a:{number}")
    blocking = await stage.say("b:1", f"block {6 * LEASE}")
    holder, began = await stage.begins("b:1"), time.monotonic()
    assert [(await stage.answer(turn)).kind for turn in neighbours] == ["final"] * 8
    assert (await stage.answer(await stage.say("c:1", "sleep 0"))).kind == "final"
    assert time.monotonic() - began < 5 * LEASE, "they waited for the one that blocks"
    assert (await stage.answer(blocking)).kind == "final"
    assert len(stage.begun("b:1")) == 1
    log = holder.log.read_text()
    assert "worker:" in log and "chaos.py:" in log and "in handle: await asyncio.to_thread" in log
    assert await stage.connection.call("XLEN", keys.ShardKeys(0).dead) == 0


async def test_a_handler_that_blocks_for_ever_is_given_up_after_two_workers_restarted_themselves(stage: Stage) -> None:
    workers = await stage.start(2, BLOCK_SECONDS=str(LEASE))
    pids = {worker.process.pid for worker in workers if worker.process}
    innocent = [await stage.say(f"good:{number}", "sleep 1") for number in range(6)]
    hanging = await stage.say("bad:1", "hang 600")
    assert (await stage.answer(hanging, 60)).kind == "error"
    assert [(await stage.answer(turn, 60)).kind for turn in innocent] == ["final"] * 6
    assert len(stage.begun("bad:1")) == 2
    assert set(stage.begun("bad:1")) <= pids and all(worker.alive for worker in workers), "a process was lost"
    assert await stage.finals("bad:1") == ["error"]
    assert await stage.connection.call("XLEN", keys.ShardKeys(0).dead) == 1
    await wait_until(lambda: "blocked the event loop" in stage.text("bad:1"), what="the transcript to say why")


async def test_a_worker_whose_loop_is_blocked_stops_in_time(stage: Stage) -> None:
    (worker,) = await stage.start(1, DRAIN_SECONDS="0.2")
    await stage.say("a:1", "hang 600")
    await stage.begins("a:1")
    worker.send(signal.SIGTERM)
    await exit_status(worker, within=10)


async def test_a_lone_worker_that_was_blocked_goes_on_with_what_it_has(stage: Stage) -> None:
    await stage.start(1)
    held = await stage.say("a:1", f"sleep {4 * LEASE}")
    await stage.begins("a:1")
    blocking = await stage.say("b:1", f"block {2 * LEASE}")
    assert (await stage.answer(blocking)).kind == "final"
    assert (await stage.answer(held)).kind == "final"
    assert len(stage.begun("a:1")) == 1


async def test_a_change_of_scale_reaches_both_processes_within_two_seconds(stage: Stage) -> None:
    await stage.start(2)
    began = time.monotonic()
    await scale(stage.bus, "worker", 8, 11)
    await wait_until(counted(stage.bus, "worker", 22), what="22 instances")
    await scale(stage.bus, "worker", 8, 2)
    await wait_until(counted(stage.bus, "worker", 4), what="4 instances")
    assert time.monotonic() - began < 4


async def test_a_dead_workers_turns_are_taken_over_though_all_slots_are_always_wanted(stage: Stage) -> None:
    (doomed,) = await stage.start(1)
    held = [await stage.say(f"a:{number}", "sleep 2") for number in range(8)]
    for number in range(8):
        await stage.begins(f"a:{number}")
    await stage.start(1)
    backlog = [await stage.say(f"b:{number}", "sleep 0.3") for number in range(300)]
    doomed.kill()
    killed = time.monotonic()
    assert [(await stage.answer(turn)).kind for turn in held] == ["final"] * 8
    assert time.monotonic() - killed < LEASE + 2 + 3
    assert await turns_in_flight(stage.bus, stage.bus.shards[0]) > 0, (
        f"the backlog of {len(backlog)} was too short to prove it"
    )


async def exit_status(player: Player, within: float = 20) -> int:
    """How it ended by itself."""
    assert player.process is not None
    return await asyncio.to_thread(player.process.wait, within)


async def supervise(stage: Stage) -> None:
    """Start again whoever dies."""
    while True:
        for player in stage.players:
            if not player.alive:
                player.start()
        await asyncio.sleep(0.05)


def counted(bus: Bus, role: str, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether there are so many instances of ``role``."""

    async def found() -> bool:
        return await instances_of(bus, role) == count

    return found
