"""The API for programs: ask the assistant, follow its turns, and run its agents inside another program.

async with rolecall.connect() as assistant:
    reply = await assistant.ask("What is the capital of France?", conversation="crm:42")
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rolecall.background import cancel_and_wait
from rolecall.bus.admission import REFUSALS, Admission, admit
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn, stop_conversation
from rolecall.bus.commands import find_command
from rolecall.bus.conversation import notify
from rolecall.bus.envelope import Envelope, check_conversation, short_turn_id
from rolecall.bus.events import AnswerText, Event, follow, follow_notices
from rolecall.bus.process.processes import Deployment, check_running, deployment, process_name
from rolecall.bus.schedule.schedules import Schedule, schedule, schedules_of, unschedule
from rolecall.bus.steps.answers import answer, find_question
from rolecall.bus.turn import Records, note
from rolecall.bus.wakeups import Wakeups
from rolecall.config import Config, load, resolve, standalone
from rolecall.environment import application_directory
from rolecall.errors import (
    Refused,
    RolecallError,
    ServerError,
    ServerUnavailable,
    TurnFailed,
    cause_of,
    expect,
    expect_texts,
)
from rolecall.session import Session, open_session
from rolecall.tracing.traceparent import carried

if TYPE_CHECKING:
    from rolecall.transcripts.reading import Summary
    from rolecall.worker.runtime import Runtime

FRONT = "program"
"""The first part of the conversations that a program starts without a name of its own, and its name in transcripts."""
Told = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a turn. ``payload`` holds everything the answering role replied with besides the text."""

    text: str
    conversation: str
    turn: str
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The turn as ``rolecall logs`` opens it."""
        return short_turn_id(self.conversation, self.turn)


@dataclass(frozen=True, slots=True)
class TurnRef:
    """A turn that was accepted. ``place`` counts from 1 while it waits behind others of its conversation; ``after`` is
    the event ID that all its events come after."""

    conversation: str
    turn: str
    place: int = 0
    after: str = "0-0"
    received: int = 0
    """When it was received, in ms of the server's clock."""

    @property
    def id(self) -> str:
        """The turn as ``rolecall logs`` opens it."""
        return short_turn_id(self.conversation, self.turn)


class Assistant:
    """A running assistant, as a program uses it. Open one with ``rolecall.connect`` or ``rolecall.run``; any number of
    tasks may use it at once."""

    def __init__(self, session: Session, wakeups: Wakeups, name: str = FRONT) -> None:
        self.session = session
        self.name = name
        self.wakeups = wakeups
        self._instance = session.bus.instance(name)

    @property
    def _bus(self) -> Bus:
        if self.session.server.closed:
            raise RolecallError("this assistant is closed: use it inside the `async with` block that opened it")
        return self.session.bus

    async def ask(
        self,
        text: str,
        *,
        conversation: str = "",
        role: str = "",
        model: str = "",
        user: str = "",
        payload: Mapping[str, Any] | None = None,
        idempotency: str | None = None,
        priority: int | None = None,
        language: str = "",
        asks: bool = False,
        timeout: float | None = None,
        on_event: Told | None = None,
    ) -> Reply:
        """Send a message and wait for its answer; see ``send`` for the arguments.

        Turns of one conversation are answered in order. ``timeout`` in seconds cancels the turn when it expires, as
        does cancelling this call. ``on_event`` is awaited with each event of the turn; what it raises cancels the turn
        too. Raises Refused if the message is not accepted, TurnFailed if the turn is given up or cancelled,
        TimeoutError, and ServerUnavailable.
        """
        expect(isinstance(timeout, int | float | None), "timeout", timeout, "a number of seconds")
        expect(on_event is None or callable(on_event), "on_event", on_event, "an async function")
        sending = asyncio.create_task(
            self.send(
                text, conversation=conversation, role=role, model=model, user=user, payload=payload,
                idempotency=idempotency, priority=priority, language=language, asks=asks,
            ),
            name="rolecall send",
        )  # fmt: skip
        try:
            ref = await asyncio.shield(sending)
            async with asyncio.timeout(timeout):
                return await self.reply(ref, on_event)
        except (TurnFailed, Refused, ServerError):
            raise
        except BaseException:
            await asyncio.shield(self._take_back(sending))
            raise

    async def _take_back(self, sending: asyncio.Task[TurnRef]) -> None:
        """Cancel a turn that may only just be accepted."""
        with suppress(RolecallError):
            ref = await sending
            await self.cancel(ref.conversation, ref.turn)

    async def stream(self, text: str, **options: Any) -> AsyncGenerator[Event]:
        """Send a message and yield the events of its turn; takes the arguments of ``send``.

        The pieces in the ``text`` of ``delta`` events add up to the answer; the last event (``event.last``) has the
        whole answer, or why there is none. A ``started`` event after deltas means that the answer starts over.
        """
        ref = await self.send(text, **options)
        answer, seen = AnswerText(), ref.after
        async with aclosing(self.follow(ref.conversation, ref.turn, ref.after)) as events:
            async for event in events:
                position = len(answer.text)
                if event.kind == "final" and (rest := answer.rest(event.text)):
                    yield Event("delta", seen, event.turn, rest, position)  # what no delta brought
                added, seen = answer.apply(event), event.id
                if event.kind != "delta":
                    yield event
                elif added:
                    yield replace(event, text=added, position=position)

    async def send(
        self,
        text: str,
        *,
        conversation: str = "",
        role: str = "",
        model: str = "",
        user: str = "",
        payload: Mapping[str, Any] | None = None,
        idempotency: str | None = None,
        priority: int | None = None,
        language: str = "",
        asks: bool = False,
    ) -> TurnRef:
        """Send a message without waiting for the answer.

        ``conversation`` is the unit of order and memory, such as ``crm:42``; without one, a new conversation starts.
        ``role`` and ``model`` ask the manager for these rather than its own choice; ``user`` is the one whose limits
        apply (default: the conversation); ``priority`` is 0 to 100, high first. Commands such as ``/stats`` run outside
        the conversation's order, and are answered in ``language`` unless the conversation prefers another one. With
        ``asks`` agents may ask something meanwhile: an event ``asked``, which ``answer`` answers.

        The same ``idempotency`` key within IDEMPOTENCY_SECONDS gives the same turn. Atomic: a message is accepted, or
        Refused is raised and nothing is written. Raises ServerUnavailable and EnvelopeTooLarge.
        """
        expect(isinstance(text, str), "the text of a message", text)
        expect_texts(role=role, model=model, user=user, language=language, idempotency=idempotency or "")
        expect(isinstance(payload, Mapping | None), "payload", payload, "a dict")
        whole = isinstance(priority, int | None) and not isinstance(priority, bool)
        expect(whole, "priority", priority, "an integer from 0 to 100")
        conversation = conversation or f"{self.name}:{secrets.token_hex(6)}"
        chosen = {name: value for name, value in (("role", role), ("model", model)) if value}
        envelope = Envelope(
            conversation=conversation, payload={**(payload or {}), **chosen, "text": text}, reply_to=self.name,
            priority=self._bus.settings.default_priority if priority is None else priority,
            meta={**carried(), **({"language": language} if language else {}), **({"asks": True} if asks else {})},
        )  # fmt: skip
        command = find_command(text)
        admission = await admit(
            self._bus, envelope, idempotency=idempotency, principal=user or conversation, instance=self._instance,
            control=command is not None and command.lane == "control",
        )  # fmt: skip
        return _accepted(conversation, admission)

    async def reply(self, ref: TurnRef, on_event: Told | None = None) -> Reply:
        """Wait for the answer of a turn; ``on_event`` is awaited with each of its events. Raises TurnFailed and
        ServerUnavailable."""
        _check_ref(ref)
        async with aclosing(self.follow(ref.conversation, ref.turn, ref.after)) as events:
            async for event in events:
                if on_event is not None:
                    told = on_event(event)
                    expect(inspect.isawaitable(told), "what on_event returned", told, "an awaitable")
                    await told
                if event.last:
                    return await self._replied(ref, event)
        raise ServerUnavailable(f"the events of turn {ref.turn} of {ref.conversation} ended early")

    async def follow(self, conversation: str, turn: str, after: str = "0-0") -> AsyncGenerator[Event]:
        """The events of a turn after the event ID ``after``, its last one included. Resumes across lost connections;
        a turn that has ended yields its last event only."""
        check_conversation(conversation)
        expect_texts(turn=turn, after=after)
        async for event in follow(self._bus, self.wakeups, conversation, turn, after):
            yield event

    async def answer(self, conversation: str, question: str, option: str, *, user: str = "") -> bool:
        """Answer a question that an agent asks in ``conversation``, in place of its user: the event ``asked`` has the
        ``id`` and the ``options`` of the question in its payload. ``user`` is who answers, as ``send`` was told
        (default: the conversation). The first answer counts: False if there is one, or the question is closed. Raises
        RolecallError for an option that the question does not have, and for a user who is not asked."""
        expect_texts(question=question, option=option, user=user)
        asked = await find_question(self._bus, check_conversation(conversation), question)
        if asked is not None and option not in asked.options:
            raise RolecallError(f"{option!r} is not an option of this question: expected {' or '.join(asked.options)}")
        if asked is None:
            return False
        verdict = await answer(
            self._bus, conversation, question, asked.options.index(option), user=user or conversation,
            instance=self._instance,
        )  # fmt: skip
        if verdict == "FORBIDDEN":
            raise RolecallError(f"this question is not for {user or conversation}: pass the user who is asked")
        return verdict == "OK"

    async def notify(self, conversation: str, text: str, *, idempotency: str = "") -> bool:
        """Tell the user of ``conversation`` (such as ``telegram:42``) something they did not ask for. It is delivered,
        remembered and logged once; with an ``idempotency`` key a repeat returns False and does nothing. Raises Refused
        if the key was used for another text or the server is full."""
        expect(isinstance(text, str), "the text of a notice", text)
        expect_texts(idempotency=idempotency)
        front = self._front_of(conversation, await self._deployment())
        verdict = await notify(
            self._bus, conversation, text, idempotency=idempotency, front=front, instance=self._instance
        )
        if verdict in REFUSALS:
            raise Refused(REFUSALS[verdict], verdict)
        return verdict == "OK"

    async def schedule(
        self, text: str, *, conversation: str, at: datetime | timedelta | None = None, every: timedelta | None = None,
        cron: str = "", when: str = "", zone: str = "", role: str = "", user: str = "", idempotency: str = "",
    ) -> Schedule:  # fmt: skip
        """Have a turn of ``conversation`` (such as ``telegram:42``) with the message ``text`` begin by itself: once
        ``at`` a time or after a duration, ``every`` so often (a minute at least), or whenever the ``cron`` line says;
        or ``when`` says one of these as people do, such as "tomorrow at 9".

        The answer is delivered as those of the conversation are; in a conversation of this program, ``notices`` yields
        it. A naive ``at`` and a cron line are meant in ``zone``, by default the conversation's time zone. ``role``
        answers (default: as the manager decides); ``user`` is the one whose limits apply (default: the conversation).
        The same ``idempotency`` key within IDEMPOTENCY_SECONDS gives the same schedule. Raises BadSchedule.
        """
        known = await self._deployment()
        return await schedule(
            self._bus, conversation, text, at=at, every=every, cron=cron, when=when, zone=zone, role=role,
            roles=known.roles, user=user, front=self._front_of(conversation, known), idempotency=idempotency,
            instance=self._instance,
        )  # fmt: skip

    async def schedules(self, conversation: str) -> list[Schedule]:
        """The schedules of ``conversation``, the next one first."""
        return await schedules_of(self._bus, check_conversation(conversation))

    async def unschedule(self, conversation: str, *ids: str) -> int:
        """Remove schedules of ``conversation`` by their ids, all of them without ``ids``; returns how many there were.
        Idempotent."""
        for one in ids:
            expect(isinstance(one, str), "the id of a schedule", one)
        return await unschedule(self._bus, check_conversation(conversation), *ids, instance=self._instance)

    async def notices(self, conversation: str, after: str = "") -> AsyncGenerator[Event]:
        """What the user of ``conversation`` is told without having asked: notices, and the answers to its schedules,
        after the event ID ``after``, by default those from now on, without an end. Only of conversations without a
        front end that delivers, such as those of programs."""
        check_conversation(conversation)
        expect_texts(after=after)
        async for event in follow_notices(self._bus, self.wakeups, conversation, after):
            yield event

    async def cancel(self, conversation: str, turn: str, *, reason: str = "by the user") -> bool:
        """Cancel one turn, wherever it is; ``reason`` goes into the transcript. False if it had already ended.
        Idempotent."""
        expect_texts(turn=turn, reason=reason)
        return await cancel_turn(
            self._bus, check_conversation(conversation), turn, instance=self._instance, reason=reason
        )

    async def stop(self, conversation: str) -> int:
        """Cancel the running turn and every waiting one of a conversation; returns how many there were."""
        return await stop_conversation(self._bus, check_conversation(conversation), instance=self._instance)

    async def conversations(self, *, user: str = "", grep: str = "") -> list[Summary]:
        """The conversations with transcripts on this host, least recently active first. ``user`` is a part of the ID or
        title, ``grep`` a regular expression that one of the records matches. Raises ConfigError if that is invalid."""
        from rolecall.transcripts.reading import Filters, conversations

        expect_texts(user=user, grep=grep)
        application = self.session.application
        filters = Filters(user=user, grep=grep)
        return await asyncio.to_thread(conversations, application.log_dir, filters, application.tz)

    async def delivered(self, ref: TurnRef) -> None:
        """Note in the transcript that the user has the answer; ``ask`` and ``reply`` do so themselves."""
        _check_ref(ref)
        records = Records(self._instance)
        records.add("DELIVERED", "")
        shard = self._bus.shard(ref.conversation)
        await note(self._bus, shard, ref.conversation, ref.turn, records, ref.received)

    async def check_running(self) -> None:
        """Raise NothingRunning unless a worker is there to answer."""
        await check_running(self._bus)

    async def _deployment(self) -> Deployment:
        """What the application says of itself; one that only knows its server asks the workers there."""
        application = self.session.application
        if not application.roles:
            return await deployment(self._bus)
        return Deployment(frozenset(role.name for role in application.roles), application.front_names)

    def _front_of(self, conversation: str, known: Deployment) -> str:
        return self.session.application.front_of(check_conversation(conversation), known.fronts) or FRONT

    async def _replied(self, ref: TurnRef, event: Event) -> Reply:
        if event.kind != "final":
            raise TurnFailed(event.text, ref.conversation, ref.turn, cancelled=event.kind == "cancelled")
        await self.delivered(ref)
        payload = event.payload
        return Reply(
            event.text, ref.conversation, ref.turn, str(payload.get("model") or ""), payload.get("tokens_in", 0),
            payload.get("tokens_out", 0), payload,
        )  # fmt: skip


@asynccontextmanager
async def connect(url: str | None = None, app: str | os.PathLike[str] | None = None) -> AsyncIterator[Assistant]:
    """Connect to a running assistant.

    ``app`` is its application directory (default: ROLECALL_APP, else the current directory), which says where the
    server is. ``url``, such as ``redis://host:6379/0``, overrides that and needs no application directory: roles and
    front ends are then those that the running workers know, and settings those of the environment and ``.env``. Raises
    NothingRunning if no server or no worker runs, ServerUnavailable, and ConfigError.
    """
    application = load(app) if url is None else standalone(url, app)
    async with open_session(application, process_name(), start=False) as session, session.listening() as wakeups:
        assistant = Assistant(session, wakeups)
        await assistant.check_running()
        yield assistant


@asynccontextmanager
async def run(
    config: Config | None = None,
    *,
    app: str | os.PathLike[str] | None = None,
    roles: Sequence[str] | None = None,
    scribe: bool = True,
) -> AsyncIterator[Assistant]:
    """Run a worker inside this program, such as in the lifespan of a FastAPI application.

    ``config`` is the deployment; without one, ``config.py`` of the application directory ``app`` is used, which also
    holds ``log/`` and ``.rolecall/`` (default: ROLECALL_APP, else the current directory). ``roles`` limits the worker
    to some roles; ``scribe`` says whether it may write transcripts. The bundled server is started unless
    REDIS_URL is set.

    Installs no signal handlers. On exit the worker drains: it finishes its turns within DRAIN_SECONDS or hands them
    over. Raises ConfigError and ServerUnavailable.
    """
    application = load(app) if config is None else resolve(config, application_directory(app))
    async with (
        open_session(application, process_name(), start=True) as session,
        work(session, roles=roles, scribe=scribe) as runtime,
    ):
        yield Assistant(session, runtime.wakeups)


@asynccontextmanager
async def work(session: Session, *, roles: Sequence[str] | None, scribe: bool) -> AsyncIterator[Runtime]:
    """A worker, and a scribe if wanted, on ``session`` until the block is left; then both drain."""
    from rolecall.transcripts.scribe import Scribe  # what a program that only asks does not need
    from rolecall.transcripts.targets import open_targets
    from rolecall.worker.runtime import Runtime
    from rolecall.worker.worker import END_SECONDS

    application = session.application
    runtime = Runtime(application, session.server, session.bus.process, roles=roles)
    writer = Scribe(
        session.server, application.settings.shards, application.log_dir, process=session.bus.process,
        tz=application.tz, lease_seconds=application.settings.lease_seconds,
        targets=open_targets(application.settings, application.log_dir, application.tz),
    )  # fmt: skip
    runtime.scribe = scribe
    runtime.problems.append(lambda: writer.problem)
    raised: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            working = group.create_task(runtime.run(), name="rolecall runtime")
            await runtime.ready()
            writing = group.create_task(writer.run(), name="rolecall scribe") if scribe else None
            try:
                yield runtime
            except Exception as error:  # raised below: a group is what no caller expects
                raised = error
            finally:
                await runtime.stop()
                await working
                if writing is not None:
                    await writer.stop()
                    await asyncio.wait([writing], timeout=END_SECONDS)
                    await cancel_and_wait(writing)  # what it did not write is written by the next scribe
    except BaseExceptionGroup as failures:
        raise cause_of(failures) from failures
    if raised is not None:
        raise raised


def _check_ref(ref: object) -> None:
    expect(isinstance(ref, TurnRef), "ref", ref, "a TurnRef, as send() returns it")


def _accepted(conversation: str, admission: Admission) -> TurnRef:
    if not admission.accepted:
        raise Refused(REFUSALS[admission.outcome], admission.outcome)
    return TurnRef(conversation, admission.turn, admission.place, admission.before, admission.at)
