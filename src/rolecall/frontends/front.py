"""What all front ends share: a text comes in and becomes a turn, a command or a clear refusal."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from rolecall.background import log_level
from rolecall.bus.admission import Admission, Mode, admit, answer_of_front, mark_answered
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import stop_conversation
from rolecall.bus.commands import find_command, parse_command
from rolecall.bus.conversation import preference
from rolecall.bus.envelope import Envelope, short_turn_id
from rolecall.bus.events import Event, follow, follow_notices
from rolecall.bus.outbox import OutboxEntry
from rolecall.bus.process.processes import ProcessState, check_running, register, unregister
from rolecall.bus.steps.answers import Answered, answer
from rolecall.bus.turn import CLEARED, Records, note
from rolecall.bus.wakeups import Wakeups
from rolecall.errors import EnvelopeTooLarge, RolecallError, ServerError
from rolecall.frontends.reminders import reminders_reply
from rolecall.frontends.texts import meta_of, say, spoken
from rolecall.session import Session
from rolecall.tracing.traceparent import carried
from rolecall.version import __version__

logger = logging.getLogger(__name__)
LEAVING_SECONDS = 3.0
"""How long an end waits for a server that is away."""


@dataclass(frozen=True)
class Received:
    """What became of a text: a turn to follow (``turn``), or an answer at once (``reply``; ``refused`` when nothing
    was taken). ``place`` counts from 1 while the turn waits behind others of its conversation; ``at`` is when it was
    received, in ms of the server's clock, ``before`` the event id that all its events come after."""

    conversation: str
    turn: str = ""
    reply: str = ""
    refused: bool = False
    outcome: str = ""
    place: int = 0
    at: int = 0
    before: str = "0-0"

    @classmethod
    def of(cls, conversation: str, admission: Admission, language: str) -> Received:
        """What the bus said, as front ends tell it."""
        outcome = admission.outcome
        if not admission.accepted:
            return cls(conversation, reply=say(language, outcome.lower()), refused=True, outcome=outcome)
        return cls(
            conversation, admission.turn, outcome=outcome, place=admission.place, at=admission.at,
            before=admission.before,
        )  # fmt: skip

    @property
    def short_id(self) -> str:
        """The turn as ``rolecall logs`` opens it."""
        return short_turn_id(self.conversation, self.turn)


class FrontEnd(Protocol):
    """Where users are: receives their messages and delivers the answers.

    A class that an application lists in ``Config(frontends=…)``, or a package under the entry point group
    ``rolecall.frontends``, is called with its ``Front``. ``serve`` runs it: of all processes with a front end of this
    name one runs at a time, the others stand by. It keeps no state that a restart may lose: messages are handed over
    with an idempotency key, and answers wait in the outbox until they are delivered.
    """

    name: str
    """The first part of the conversations it starts (``discord:42``), and the name of its outbox: a-z 0-9 _ -."""

    async def run(self) -> None:
        """Receive messages and hand each to ``Front.receive`` without waiting for its answer, until drained or
        cancelled."""
        ...

    async def deliver(self, entry: OutboxEntry) -> None:
        """Deliver one answer, apology or notice. Entries of a conversation come one after the other, conversations side
        by side. Called again with the same entry after OSError (the network; as often as it takes), after any other
        exception (five times), and after a crash before the entry was acknowledged."""
        ...

    async def drain(self) -> None:
        """Stop receiving; what is being delivered is finished afterwards."""
        ...


@dataclass
class Front:
    """One front end process at the bus. ``name`` is the kind, such as ``terminal``."""

    bus: Bus
    wakeups: Wakeups
    name: str
    outbox: bool = False

    @property
    def instance(self) -> str:
        """How transcripts show this front end."""
        return self.bus.instance(self.name)

    async def check_running(self) -> None:
        """Raise NothingRunning when no worker is there to answer."""
        await check_running(self.bus)

    async def receive(
        self,
        conversation: str,
        text: str,
        *,
        payload: Mapping[str, Any] | None = None,
        idempotency: str | None = None,
        principal: str = "",
        title: str = "",
        priority: int | None = None,
        meta: Mapping[str, Any] | None = None,
        mode: Mode = "queue",
        hold: float = 0.0,
        group: str = "",
        commands: bool = True,
        language: str = "",
    ) -> Received:
        """Take ``text`` of ``conversation``. Commands of the front lane are carried out here; nothing waits for a
        model. Without ``commands`` there are none. ``mode``, ``hold`` and ``group`` are those of Bus.admit. The answers
        to commands and refusals are in the language that the conversation prefers, else in ``language``, that of the
        user's app. Raises ServerUnavailable; whatever the text itself is, is answered."""
        command = find_command(text) if commands else None
        if command is not None and command.lane == "front":
            return await self._carry_out_once(conversation, text, idempotency, language)
        meta = {**meta_of(language), **(meta or {})}
        try:
            admission = await admit(
                self.bus,
                self._envelope(conversation, {**(payload or {}), "text": text}, priority, meta),
                idempotency=idempotency,
                principal=principal or conversation,
                instance=self.instance,
                title=title,
                outbox=self.outbox,
                control=command is not None and command.lane == "control",
                mode=mode,
                hold=hold,
                group=group,
            )
        except RolecallError as error:
            if type(error) not in (RolecallError, EnvelopeTooLarge):
                raise
            outcome = "TOO_LARGE" if isinstance(error, EnvelopeTooLarge) else ""
            reply = say(language, "not_taken", why=f"{error}.")
            return Received(conversation, reply=reply, refused=True, outcome=outcome)
        return Received.of(conversation, admission, language)

    def follow(self, received: Received, after: str = "") -> AsyncIterator[Event]:
        """The events of a received turn, or those after the event id ``after``; the final one last."""
        return follow(self.bus, self.wakeups, received.conversation, received.turn, after or received.before)

    def notices(self, conversation: str, after: str = "", *, messages: bool = False) -> AsyncGenerator[Event, None]:
        """The notices of ``conversation`` from now on, or after the event id ``after``, and with ``messages`` that
        a message was accepted or the conversation cleared; for front ends without an outbox."""
        return follow_notices(self.bus, self.wakeups, conversation, after, messages=messages)

    async def answer(self, conversation: str, question: str, choice: int, *, principal: str = "") -> Answered:
        """Answer a question that an agent asks in ``conversation`` with the option number ``choice``. A front end that
        shows the events ``asked``, or delivers them from its outbox, says so with ``meta={"asks": True}`` of
        ``receive``."""
        user = principal or conversation
        return await answer(self.bus, conversation, question, choice, user=user, instance=self.instance)

    async def stop(self, conversation: str) -> int:
        """End what runs and waits in ``conversation``; returns how many turns."""
        return await stop_conversation(self.bus, conversation, instance=self.instance)

    async def delivered(self, received: Received) -> None:
        """Note in the transcript that the user has the answer."""
        records = Records(self.instance)
        records.add("DELIVERED", "")
        shard = self.bus.shard(received.conversation)
        await note(self.bus, shard, received.conversation, received.turn, records, received.at)

    def _envelope(
        self, conversation: str, payload: Mapping[str, Any], priority: int | None, meta: Mapping[str, Any] | None
    ) -> Envelope:
        priority = self.bus.settings.default_priority if priority is None else priority
        return Envelope(
            conversation=conversation, payload=dict(payload), reply_to=self.name, priority=priority,
            meta={**carried(), **(meta or {})},
        )  # fmt: skip

    async def _spoken(self, conversation: str, language: str) -> str:
        """The language of this front end's own answers in ``conversation``."""
        chosen = await preference(self.bus, conversation, "lang")
        return language if not chosen or spoken(language).startswith(f"{chosen}-") else chosen

    async def _carry_out_once(self, conversation: str, text: str, idempotency: str | None, language: str) -> Received:
        """A repeat gets the same reply and does nothing: it would stop newer turns, or delete another reminder."""
        if idempotency:
            known, reply = await answer_of_front(self.bus, conversation, idempotency, text)
            if known and not reply:
                return Received(conversation, reply=say(language, "conflict"), refused=True, outcome="CONFLICT")
            if known:
                return Received(conversation, reply=reply, outcome="REPEATED")
        received = await self._carry_out(conversation, text, await self._spoken(conversation, language))
        if idempotency:
            await mark_answered(self.bus, conversation, idempotency, text, received.reply)
        return received

    async def _carry_out(self, conversation: str, text: str, language: str) -> Received:
        name, argument = parse_command(text) or ("", "")
        if name == "reminders":
            reply = await reminders_reply(self.bus, conversation, argument, instance=self.instance, language=language)
            return Received(conversation, reply=reply, outcome="LISTED")
        if name == "stop":
            ended = await self.stop(conversation)
            if ended:
                return Received(conversation, reply=say(language, "stopped"), outcome="STOPPED")
            return Received(conversation, reply=say(language, "nothing_to_stop"), outcome="IDLE")
        await stop_conversation(self.bus, conversation, instance=self.instance, forget=True)
        records = Records(self.instance)
        records.add("NOTE", CLEARED)
        await note(self.bus, self.bus.shard(conversation), conversation, "", records)
        return Received(conversation, reply=say(language, "forgotten"), outcome="FORGOTTEN")


@asynccontextmanager
async def registered(session: Session, kind: str) -> AsyncIterator[None]:
    """In the registry as a process of this ``kind`` for as long."""
    task = asyncio.create_task(_register(session, kind, time.monotonic()), name="rolecall registry")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(LEAVING_SECONDS):
                await unregister(session.bus)


async def _register(session: Session, kind: str, began: float) -> None:
    while True:
        state = ProcessState(
            process=session.bus.process,
            kind=kind,
            uptime=round(time.monotonic() - began, 1),
            connections=session.server.connections,
            max_connections=session.application.settings.redis_max_connections,
            version=__version__,
        )
        try:
            await register(session.bus, state)
        except ServerError as error:
            logger.log(log_level(error), "not registered: %s", error)
        await asyncio.sleep(session.application.settings.heartbeat_seconds)
