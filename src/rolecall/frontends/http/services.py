"""What the routes of one process work with: the bus, the front end, the API keys."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sized
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Annotated, cast

from fastapi import Depends, Request

from rolecall.background import BackgroundTasks
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import erase_conversation
from rolecall.bus.wakeups import Wakeups
from rolecall.config import Application
from rolecall.frontends.front import Front
from rolecall.frontends.http.auth import Authenticator
from rolecall.frontends.sockets import is_local
from rolecall.session import Session
from rolecall.settings import Settings
from rolecall.stats import FLUSH_SECONDS, Metrics
from rolecall.transcripts.conversation_index import Summaries, index_path
from rolecall.transcripts.record import conversation_dir


@dataclass
class Services:
    """The services of one process. ``tz`` is the time zone of the transcripts, None for the system's; ``stopping`` is
    set when the process is to end, which ends its streams; ``streams`` counts the open ones by API key. ``tasks`` go on
    after the request that started them. ``readers`` limits the documents that are read at a time, ``reading`` those of
    a key among them, ``checkers`` the requests whose schemas are checked. ``storing`` has the files of a key stored one
    after the other: each is in memory meanwhile, and counts for the next.
    """

    session: Session
    wakeups: Wakeups
    auth: Authenticator
    tz: tzinfo | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    streams: Counter[str] = field(default_factory=Counter)
    tasks: BackgroundTasks = field(default_factory=BackgroundTasks)
    readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS))
    reading: defaultdict[str, asyncio.Semaphore] = field(default_factory=lambda: defaultdict(_readers_of_one))
    storing: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    checkers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHECKERS))

    def __post_init__(self) -> None:
        self.summaries = Summaries(self.log_dir, self.tz, index_path(self.application.state_dir))

    @property
    def application(self) -> Application:
        """The application that is served."""
        return self.session.application

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return self.session.application.settings

    @property
    def bus(self) -> Bus:
        """Its bus."""
        return self.session.bus

    @property
    def front(self) -> Front:
        """The front end ``http``."""
        return Front(self.bus, self.wakeups, "http")

    def storing_of(self, key_id: str, uploads: Sized) -> AbstractAsyncContextManager[None]:
        """``storing`` of a key, for a request with ``uploads``."""
        return self.storing[key_id] if uploads else nullcontext()

    @asynccontextmanager
    async def counting(self, metrics: Metrics) -> AsyncIterator[None]:
        """Add ``metrics`` to those of the deployment, every second until the block is left, which ends ``tasks``."""
        tasks = self.tasks
        tasks.start(tasks.repeat(lambda: metrics.flush(self.bus.server), FLUSH_SECONDS, "http metrics"), "http metrics")
        try:
            yield
        finally:
            await tasks.drain(0)
            await asyncio.to_thread(self.summaries.close)

    async def erase(self, conversation: str) -> int:
        """Erase ``conversation``, also from the index once its transcripts are gone. Returns how many turns that ended.
        See erase_conversation."""
        ended = await erase_conversation(self.bus, conversation, instance=self.front.instance)
        self.tasks.start(self._forget(conversation), "index")
        return ended

    async def _forget(self, conversation: str) -> None:
        directory = self.log_dir / "conversations" / conversation_dir(conversation)
        until = time.monotonic() + ERASE_SECONDS
        while directory.exists() and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.to_thread(self.summaries.forget, directory.name)

    @property
    def log_dir(self) -> Path:
        """The directory of the transcripts."""
        return self.application.log_dir


ERASE_SECONDS = 60.0
"""How long the scribe may take to remove the transcripts of an erased conversation; it may restart in the meantime."""
LOOK_SECONDS = 0.2
READERS = 4
READERS_OF_ONE = 2
CHECKERS = 2
KEYS_REQUIRED = "http-keys-required"
"""A file of the state directory: there was an API key once, so requests need one even if the server lost its data."""
OpenServices = Callable[[], AbstractAsyncContextManager[Services]]
"""Opens the services of a process for as long as its server runs."""


def _readers_of_one() -> asyncio.Semaphore:
    return asyncio.Semaphore(READERS_OF_ONE)


def get_services(request: Request) -> Services:
    """The services of the process that handles ``request``."""
    return cast(Services, request.app.state.services)


ServicesDep = Annotated[Services, Depends(get_services)]


def services_for(session: Session, wakeups: Wakeups, host: str) -> Services:
    """The services of this process, for a server that listens on ``host``."""
    settings = session.application.settings
    given = settings.http_key.get_secret_value() if settings.http_key else ""
    auth = Authenticator(
        session.bus, open_locally=is_local(host), login_seconds=settings.login_hours * 3600, given=given,
        memory=session.application.state_dir / KEYS_REQUIRED,
    )  # fmt: skip
    return Services(session, wakeups, auth, session.application.tz)
