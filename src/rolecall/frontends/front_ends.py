"""The front ends there are: the built-in ones by name, and those of an application or a package, which run here."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from rolecall.background import cancel_and_wait
from rolecall.bus.envelope import ROLE_NAME
from rolecall.bus.outbox import Outbox, OutboxEntry, Whole
from rolecall.bus.turn import Records
from rolecall.bus.wakeups import Wakeups
from rolecall.config import Application
from rolecall.errors import ConfigError, ServerError
from rolecall.frontends.front import Front, FrontEnd
from rolecall.session import Session
from rolecall.version import plugins

BUILT_IN = ("telegram", "http", "terminal", "program")
DRAIN_SECONDS = 5.0
logger = logging.getLogger(__name__)

MakeFrontEnd = Callable[[Front], FrontEnd]


def front_ends(application: Application) -> dict[str, MakeFrontEnd]:
    """The front ends of installed packages and of the application, by name. Raises ConfigError, in one line, for one
    that is not a FrontEnd or a name that is used twice."""
    found: dict[str, MakeFrontEnd] = {}
    given = [*plugins("rolecall.frontends", "front end").values(), *application.frontends]
    for kind in given:
        where = f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', repr(kind))}"
        name = getattr(kind, "name", None)
        if not isinstance(name, str) or not ROLE_NAME.fullmatch(name) or name in BUILT_IN:
            expected = "expected a class attribute `name` of a-z 0-9 _ -, not one of the built-in ones"
            raise ConfigError(f"front end {where} is invalid: its name is {name!r}; {expected}")
        for method, call in (("run", "run()"), ("deliver", "deliver(entry)"), ("drain", "drain()")):
            if not inspect.iscoroutinefunction(getattr(kind, method, None)):
                raise ConfigError(f"front end {name!r} ({where}) is invalid: expected an async method {call}")
        if name in found:
            raise ConfigError(f"front end {name!r} is configured twice; each name is used once")
        found[name] = kind
    return found


@asynccontextmanager
async def serving(session: Session, wakeups: Wakeups) -> AsyncIterator[None]:
    """The application's front ends at work in this process until the block is left; then they drain. Raises ConfigError
    for one that is invalid."""
    made = front_ends(session.application)
    tasks = [
        asyncio.create_task(serve(make, name, session, wakeups), name=f"rolecall front end {name}")
        for name, make in made.items()
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve(make: MakeFrontEnd, name: str, session: Session, wakeups: Wakeups) -> None:
    """Run a front end in this process whenever it leads, until cancelled: then it drains, and what is ready is
    delivered for at most DRAIN_SECONDS."""
    leader = session.leader(name)
    front = Front(session.bus, wakeups, name, outbox=True)
    outbox = Outbox(session.bus, session.server, name, shares=Whole(lambda: leader.held))
    electing = asyncio.create_task(leader.run(), name=f"rolecall leader {name}")
    try:
        while True:
            await leader.wait()
            losing = asyncio.create_task(leader.wait(held=False), name=f"rolecall leader {name} lost")
            await _lead(make(front), front, outbox, losing)
    finally:
        await cancel_and_wait(electing)


async def _lead(front_end: FrontEnd, front: Front, outbox: Outbox, losing: asyncio.Task[None]) -> None:
    async def deliver(entry: OutboxEntry) -> bool:
        if not outbox.holds(entry.conversation):
            return False
        await front_end.deliver(entry)
        records = Records(front.instance)
        if entry.turn:
            records.add("DELIVERED", "")
        await outbox.delivered(entry, records)
        return True

    receiving = asyncio.create_task(_receive(front_end), name=f"rolecall front end {front.name}")
    delivering = asyncio.create_task(outbox.run(deliver), name=f"rolecall outbox {front.name}")
    try:
        await asyncio.wait([delivering, losing], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await front_end.drain()
        await asyncio.wait([receiving], timeout=DRAIN_SECONDS)
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while await outbox.waiting():
                    await asyncio.sleep(0.05)
        raise
    finally:
        await cancel_and_wait(receiving, losing, delivering)


async def _receive(front_end: FrontEnd) -> None:
    pause = 1.0
    while True:
        try:
            return await front_end.run()
        except Exception:  # the boundary: a front end's fault must not keep its users unserved for good
            logger.exception("front end %s failed; it starts again in %g s", front_end.name, pause)
            await asyncio.sleep(pause)
            pause = min(30.0, pause * 2)
