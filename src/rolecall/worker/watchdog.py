"""The watchdog of a worker: a thread that notices when a handler blocks the event loop, says which one and where, and
keeps the other turns of its process from harm."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery, give_up_suspect, hand_back, pending_of, renew
from rolecall.bus.process.process_log import WHO
from rolecall.bus.process.processes import live_processes
from rolecall.bus.turn import Records, note
from rolecall.errors import ServerError
from rolecall.redis.server import RedisServer
from rolecall.worker.instance import Instance
from rolecall.worker.worker import Worker

logger = logging.getLogger(__name__)
LEASE_SHARE = 3
"""A loop that is silent for this part of the lease is blocked."""
STEPS = 12
"""How often the watchdog looks in the time of a lease."""
NOT_THE_APPLICATION = (
    str(Path(__file__).parents[1]), *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")), "<",
)  # fmt: skip


@dataclass
class _Block:
    """One time that the loop is blocked: the instance whose handler does it, if it is one, and where it is."""

    suspect: Instance | None
    delivery: Delivery | None
    who: str
    where: str
    seconds: float
    handed_back: set[tuple[str, str]] = field(default_factory=set)

    @property
    def place(self) -> tuple[str, str]:
        """Stream and id of the entry whose handler it is."""
        return (self.delivery.stream, self.delivery.id) if self.delivery else ("", "")


class Watchdog:
    """Watches the event loop of ``worker``. ``another`` opens a connection for the watchdog's own event loop.

    When the loop is silent for a third of the lease, the blocking handler is named in the log, its lease is kept, and
    what its neighbours hold is handed back without counting a delivery, as far as other processes can take it. After
    BLOCK_SECONDS the blocking turn is given up as a suspect, see ``give_up_suspect``, and ``restart`` is called.
    """

    def __init__(self, worker: Worker, another: Callable[[], RedisServer]) -> None:
        self.restart: Callable[[str], object] | None = None
        """Starts this process again for the reason it is given, and does not return. Without it, the blocking turn is
        left to other processes."""
        self._worker = worker
        self._settings = worker.bus.settings
        self._another = another
        self._step = self._settings.lease_seconds / STEPS
        self._pulse = 0
        self._ended = threading.Event()

    async def run(self) -> None:
        """Watch the current event loop until cancelled."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        watching = threading.Thread(target=self._watch, args=(loop, thread), name="rolecall watchdog", daemon=True)
        watching.start()
        try:
            while True:
                self._pulse += 1
                await asyncio.sleep(self._step / 2)
        finally:
            self._ended.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        silent, seen = 0.0, -1
        # Counted in steps of its own: a process that was suspended has not blocked.
        while not self._ended.wait(self._step):
            silent, seen = (silent + self._step, seen) if seen == self._pulse else (0.0, self._pulse)
            if silent < self._settings.lease_seconds / LEASE_SHARE:
                continue
            try:
                self._blocked(loop, thread, silent)
            except Exception:  # the boundary: this thread must not end
                logger.exception("the watchdog failed")
            silent = 0.0

    def _blocked(self, loop: asyncio.AbstractEventLoop, thread: int, seconds: float) -> None:
        frame = sys._current_frames().get(thread)
        who, where = _instance_of(asyncio.current_task(loop)), _place(frame)
        suspect = next((one for one in self._worker.roster.everyone() if one.id == who), None)
        block = _Block(suspect, suspect.delivery if suspect else None, who or "something", where, seconds)
        help_text = "await asyncio.to_thread(...) runs blocking code"
        logger.error("%s has blocked the event loop for %.1f s at %s: %s", block.who, seconds, where, help_text)
        asyncio.run(self._stand_in(block, loop))
        logger.warning("the event loop is free again, after %.1f s", block.seconds)

    async def _stand_in(self, block: _Block, loop: asyncio.AbstractEventLoop) -> None:
        """Do for the blocked loop what its leases need, until it is free."""
        seen, given_up, server = self._pulse, False, self._another()
        bus = Bus(server, self._settings, self._worker.bus.process)
        try:
            while seen == self._pulse and not self._ended.is_set():
                if not given_up:
                    try:
                        await self._keep(bus, block, loop)
                    except ServerError as error:
                        logger.warning("while the event loop is blocked: %s", error)
                    if block.seconds >= self._settings.block_seconds:
                        await self._give_up(bus, block, loop)
                        given_up = True
                await asyncio.sleep(self._step)
                block.seconds += self._step
        finally:
            await server.aclose()

    async def _keep(self, bus: Bus, block: _Block, loop: asyncio.AbstractEventLoop) -> None:
        """Renew the lease of the blocking turn; hand back what else other processes can handle, else renew it."""
        roles = list(self._worker.roster.instances)
        elsewhere = {
            instance.role
            for state in await live_processes(bus)
            if state.process != bus.process
            for instance in state.instances
        }
        for shard in bus.shards:
            kept = []
            for held in await pending_of(bus, shard, roles):
                place = (held.stream, held.id)
                if place in block.handed_back:
                    continue
                if held.role not in elsewhere or place == block.place:
                    kept.append(held)
                    continue
                await hand_back(bus, held)
                block.handed_back.add(place)
                logger.info("handed back an entry of %s, which waited behind %s", held.conversation, block.who)
                loop.call_soon_threadsafe(self._surrender, place)
            await renew(bus, shard, kept)

    def _surrender(self, place: tuple[str, str]) -> None:
        """On the watched loop, as soon as it is free: forget an entry that was handed back meanwhile."""
        for instance in self._worker.roster.everyone():
            if instance.following is not None and place == (instance.following.stream, instance.following.id):
                instance.following = None
            if instance.delivery is not None and place == (instance.delivery.stream, instance.delivery.id):
                instance.cancel("HANDED_BACK")

    async def _give_up(self, bus: Bus, block: _Block, loop: asyncio.AbstractEventLoop) -> None:
        text = f"it blocked the event loop for {block.seconds:.0f} s at {block.where}"
        if block.suspect is not None and block.delivery is not None:
            loop.call_soon_threadsafe(block.suspect.cancel, "BLOCKED")
            records = Records(block.who, self._settings.redacted)
            records.add("NOTE", text)
            shard, delivery = bus.shards[block.delivery.shard], block.delivery
            try:
                await give_up_suspect(bus, delivery)
                await note(bus, shard, delivery.conversation, delivery.turn, records, delivery.received)
            except ServerError as error:
                logger.warning("while the event loop is blocked: %s", error)
        if self.restart is None or self._worker.draining:
            logger.error("%s: %s; other processes take over", block.who, text)
            return
        logger.error("%s: %s; this process starts again", block.who, text)
        self.restart(f"{block.who}: {text}; this process starts again")


def _instance_of(task: asyncio.Task[Any] | None) -> str:
    """The id of the instance whose work ``task`` is, which a handler's own tasks inherit; empty for other work."""
    if task is None:
        return ""
    get_context = getattr(task, "get_context", None)  # new in Python 3.12
    contexts = [get_context()] if get_context else gc.get_referents(task)
    return next((found.get(WHO, "") for found in contexts if isinstance(found, Context)), "")


def _place(frame: FrameType | None) -> str:
    """Where the code of ``frame`` is: the innermost line of the application's own code, else the innermost line."""
    if frame is None:
        return "an unknown place"
    stack = list(traceback.walk_stack(frame))
    found, line = next(
        ((f, number) for f, number in stack if not f.f_code.co_filename.startswith(NOT_THE_APPLICATION)), stack[0]
    )
    path = found.f_code.co_filename
    inside = os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path
    return f"{inside}:{line} in {found.f_code.co_name}"
