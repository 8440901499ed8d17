"""A deployment at work inside a test: real agents, the real server, real transcripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolecall.agent.mcp import ToolServer
from rolecall.agent.role import Role
from rolecall.background import cancel_and_wait
from rolecall.bus.events import Event
from rolecall.config import Application
from rolecall.frontends.front import Front, Received
from rolecall.serving.external import ModelAt
from rolecall.session import Session, open_session
from rolecall.settings import Settings, Terms
from rolecall.transcripts.scribe import Scribe
from rolecall.worker.runtime import Runtime
from rolecall.worker.worker import END_SECONDS


@dataclass
class Deployment:
    """What a test drives: a front end, and one runtime per process it plays."""

    session: Session
    runtimes: list[Runtime] = field(default_factory=list)

    @property
    def runtime(self) -> Runtime:
        """The first process."""
        return self.runtimes[0]

    @property
    def front(self) -> Front:
        """A front end beside it."""
        return Front(self.session.bus, self.runtime.wakeups, "test")

    @property
    def log_dir(self) -> Path:
        """Where its transcripts lie."""
        return self.session.application.log_dir

    async def say(self, conversation: str, text: str, **options: Any) -> Received:
        """Send ``text``; it has to be taken."""
        received = await self.front.receive(conversation, text, **options)
        assert not received.refused, received.reply
        return received

    async def events(self, received: Received) -> list[Event]:
        """All events of a turn, its final one last."""
        return [event async for event in self.front.follow(received)]

    async def answer(self, received: Received) -> Event:
        """The final event of a turn."""
        return (await self.events(received))[-1]

    async def ask(self, conversation: str, text: str, **options: Any) -> Event:
        """Send ``text`` and wait for its final event."""
        return await self.answer(await self.say(conversation, text, **options))


@asynccontextmanager
async def deployed(
    directory: Path,
    roles: Sequence[Role],
    *,
    processes: int = 1,
    scribe: bool = False,
    tool_servers: Mapping[str, ToolServer] | None = None,
    servers: Mapping[str, tuple[ModelAt, ...]] | None = None,
    terms: Mapping[str, Terms] | None = None,
    **settings: Any,
) -> AsyncIterator[Deployment]:
    """``roles`` at work in ``processes`` runtimes on the bundled server of ``directory``; drained at the end."""
    given = Settings(**{"appendfsync": "everysec", **settings})
    more: dict[str, Any] = {"tool_servers": tool_servers or {}, "servers": servers or {}, "terms": terms or {}}
    application = Application(directory, tuple(roles), given, {}, **more)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        session = await stack.enter_async_context(open_session(application, "host:1~aaaaaa", start=True))
        deployment = Deployment(session)
        for number in range(processes):
            deployment.runtimes.append(Runtime(application, session.server, f"host:{number + 1}~aaaaaa"))
        working = [group.create_task(runtime.run()) for runtime in deployment.runtimes]
        for runtime in deployment.runtimes:
            await runtime.ready()
        writer = Scribe(session.server, application.settings.shards, application.log_dir, process="host:1~aaaaaa")
        writing = group.create_task(writer.run()) if scribe else None
        try:
            yield deployment
        finally:
            for runtime in deployment.runtimes:
                await runtime.stop()
            await asyncio.wait(working)
            if writing is not None:
                await writer.stop()
                await asyncio.wait([writing], timeout=END_SECONDS)
                await cancel_and_wait(writing)  # the server may be gone
