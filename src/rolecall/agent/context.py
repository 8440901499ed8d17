"""What a handler may use besides its envelope: a Context."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal, ParamSpec, TypeVar, overload

import msgspec

from rolecall.agent.agent_services import AgentServices, RoleInfo
from rolecall.agent.attachments import Attachments, Document, payload_of, spoken
from rolecall.agent.calls import CallReply, Calls, RoleCall, replies
from rolecall.agent.client_extras import ClientExtras
from rolecall.agent.completion import Emit, HopUsage, ModelCompletion, discard, request_of
from rolecall.agent.memory import Memory
from rolecall.agent.once import run_once
from rolecall.agent.people import People
from rolecall.agent.recorder import Recorder
from rolecall.agent.structured_output import StructuredOutput, instruction_for, run_structured
from rolecall.agent.tools import Offer, Tool, Toolbox, ToolLimits
from rolecall.agent.waits import Waits
from rolecall.bus.blobs import Blobs, sound_type
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import Delivery
from rolecall.bus.schedule.schedules import Schedule, schedule
from rolecall.bus.settle import Awaited
from rolecall.bus.turn import Records, Verdict, root_of
from rolecall.errors import CallFailed, ConfigError, expect
from rolecall.models.model import Answer, Caller, Message, Model, Request, ToolSpec
from rolecall.models.speech import transcribe
from rolecall.models.vectors import Vectors

T = TypeVar("T")
P = ParamSpec("P")


class Context:
    """What one handling of an envelope may use besides the envelope."""

    def __init__(
        self,
        services: AgentServices,
        delivery: Delivery,
        envelope: Envelope,
        *,
        instance: str,
        records: Records,
        publish: Callable[[int, str], Awaitable[None]],
        lost: Callable[[], None],
        park: Callable[[Awaited, HopUsage | None], Awaitable[tuple[Verdict, int]]],
    ) -> None:
        self.instance = instance
        """The id of the instance that handles, ``<role>:<host>:<pid>:<n>``."""
        self.used: HopUsage | None = None
        """What the models that were asked took so far; None before the first."""
        self.called: Answer | None = None
        """The answer in which the model called tools of an API client: it ends the turn, whatever the handler makes of
        it."""
        self.logprobs = ""
        """The id of the stored log probabilities of the answer, if an API client asked for them."""
        # A Handling makes it. ``publish`` shows a piece of the answer at its position in characters, ``lost`` is called
        # once a step finds that another process owns the entry, ``park`` suspends the turn: see Park in waits.py.
        self._services, self._delivery, self._origin = services, delivery, envelope
        self._records, self._publish, self._lost, self._park = records, publish, lost, park
        self._task = asyncio.current_task()
        self._position, self._ended = 0, False

    # A light handling uses little of what there is: each of these is made when it is first asked for.

    @property
    def roles(self) -> Mapping[str, RoleInfo]:
        """Every role of the deployment, by name."""
        return self._services.roles

    @property
    def models(self) -> Mapping[str, Model]:
        """Every model of the deployment, by name."""
        return self._services.models

    @cached_property
    def memory(self) -> Memory:
        """The conversation's history and preferences."""
        bus, delivery, again = self._services.bus, self._delivery, str(self._origin.meta.get("again", ""))
        limit = bus.settings.assistant_history_limit
        return Memory(bus, delivery.conversation, limit, without=again, extras=self._extras, along=delivery.along)

    @cached_property
    def recorder(self) -> Recorder:
        """The steps of this handling."""
        bus, meter, instance = self._services.bus, self._services.meter, self.instance
        recorder = Recorder(
            bus, self._delivery, identity=self._origin.id, task=self._task,
            records=lambda: Records(instance, bus.settings.redacted), lost=self._lost,
            count=lambda what, kind: meter.count("steps", what, kind),
        )  # fmt: skip
        if self._ended:
            recorder.close()
        return recorder

    @property
    def stepped(self) -> Recorder | None:
        """``recorder``, if the handling asked for a step or one was recorded before."""
        return self.recorder if self._delivery.stepped or "recorder" in self.__dict__ else None

    def close(self) -> None:
        """The handling has ended: tasks that it left behind record nothing."""
        self._ended = True
        if (recorder := self.stepped) is not None:
            recorder.close()

    @property
    def changes(self) -> tuple[dict[str, str], bool]:
        """What the handling changed in ``memory``: preferences, and whether the history is to be cleared."""
        memory: Memory | None = self.__dict__.get("memory")
        return ({}, False) if memory is None else (memory.changes, memory.forgotten)

    @cached_property
    def _extras(self) -> ClientExtras:
        return ClientExtras(self._services.bus, self._delivery.conversation, self._origin.payload)

    @property
    def _caller(self) -> Caller:
        delivery, origin = self._delivery, self._origin
        return Caller(delivery.conversation, delivery.turn, str(origin.meta.get("user", "")), _share(origin))

    @cached_property
    def _attachments(self) -> Attachments:
        return Attachments(Blobs(self._services.bus), self._delivery.conversation)

    @cached_property
    def _scheduled(self) -> Counter[str]:
        return Counter()

    @cached_property
    def _waits(self) -> Waits:
        return Waits(
            self._services.bus, self._delivery, self.recorder, user=self._caller.user, instance=self.instance,
            park=lambda awaited: self._park(awaited, self.used),
        )  # fmt: skip

    @cached_property
    def _calls(self) -> Calls:
        return Calls(self._services.bus, self._delivery, self._origin, self._waits, self._services.roles)

    @cached_property
    def _people(self) -> People:
        return People(self._services.bus, self._delivery, self._origin, self._waits, self.instance)

    @property
    def model(self) -> Model:
        """This role's model: the one the conversation prefers, else the configured ones in fallback order. Raises
        ConfigError for a role without one."""
        model = self._services.model_for(self._delivery.role, self._origin)
        if model is None:
            raise ConfigError(
                "this role has no model: give it models=('smollm2@local',) in config.py, or set GEN_MODEL"
            )
        return model

    def prompt(self, name: str, /, **variables: object) -> str:
        """The text of ``agents/prompts/<name>.md`` with exactly the variables it declares, without surrounding white
        space. Raises ConfigError, which refuses the turn, when no such prompt exists or a variable is missing or not
        declared."""
        return self._services.prompts.render(name, variables)

    async def stream(
        self,
        model: Model,
        history: Sequence[Message],
        text: str,
        *,
        system: str = "",
        images: Sequence[bytes] = (),
        tools: Sequence[Offer] = (),
        **options: Any,
    ) -> Answer:
        """Ask ``model`` for the answer to ``text`` after ``history`` and show it to the user as it comes; return the
        whole answer. ``images`` are whole encoded files. Raises ImagesRefused when the model takes none.

        ``tools`` are typed functions with a docstring, or what ``ctx.tools`` returns: the model may call them before it
        answers, and is told when a call fails. ``options`` are the fields of Request. An answer that breaks off after
        it began is returned as far as it came, with a visible mark and ``finish="interrupted"``; it is not retried.
        Raises ModelError, and ConfigError for something that cannot be a tool.

        What an API client wants of the answer applies here: its sampling, its JSON schema, and its own tools. A call of
        one of those is not run: it ends the turn, as ``calls`` of the answer, and the client runs it.
        """
        request = await self._extras.wanted(request_of(model, history, text, system, options, images))
        theirs, form = await self._extras.tools(), await self._extras.form()
        if form is None or request.schema is not None:
            answer = await self._complete(model, request, self.emit, tools, theirs, self._emit_again)
        else:
            answer = await form.answer(
                request, lambda asked: self._complete(model, asked, discard, tools, theirs), self.log
            )
            await self.emit(answer.text)
        self.logprobs = await self._extras.kept_logprobs(answer)
        answer = msgspec.structs.replace(answer, logprobs=())
        self.called = answer if answer.calls else None
        return answer

    async def ask(
        self,
        model: Model,
        history: Sequence[Message],
        text: str,
        *,
        system: str = "",
        images: Sequence[bytes] = (),
        tools: Sequence[Offer] = (),
        **options: Any,
    ) -> Answer:
        """Like ``stream``, but nothing is shown to the user."""
        request = request_of(model, history, text, system, options, images)
        return await self._complete(model, request, discard, tools, purpose="ask")

    @overload
    async def extract(
        self, kind: type[T], model: Model, history: Sequence[Message], text: str, *, system: str = "", **options: Any
    ) -> T: ...
    @overload
    async def extract(
        self, kind: object, model: Model, history: Sequence[Message], text: str, *, system: str = "", **options: Any
    ) -> Any: ...
    async def extract(
        self, kind: Any, model: Model, history: Sequence[Message], text: str, *, system: str = "", **options: Any
    ) -> Any:
        """Ask ``model`` for data: the answer to ``text`` as a ``kind``, any type that pydantic validates.

        Nothing is shown to the user. An answer that does not match is sent back once. Raises BadStructure, ModelError,
        and ConfigError for a type that has no JSON schema.
        """
        output = StructuredOutput.of(kind)
        request = request_of(model, history, text, f"{system}\n\n{instruction_for(output.schema)}".strip(), options)
        return await run_structured(
            output, request, lambda asked: self._complete(model, asked, discard, purpose="extract"), self.log
        )

    @overload
    async def once(self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **more: P.kwargs) -> T: ...
    @overload
    async def once(self, name: str, function: Callable[P, T], /, *args: P.args, **more: P.kwargs) -> T: ...
    async def once(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What ``function(*args, **kwargs)`` returns, async or not: it is run once, and its result recorded as a step
        ``name``, before this returns. When the handler is run again, it gets the recorded result.

        The result is JSON: text, numbers, lists, dicts, or what the function's return annotation makes of these, such
        as a dataclass. If the process dies between the effect and its record, the function is run again; pass
        ``ctx.step_key`` to a system that can recognise a repeat. What the function raises is not recorded, unless the
        handler catches it and goes on. Raises StepError for a result that is no JSON or too large.
        """
        return await run_once(self.recorder.next("once", name), function, args, kwargs)

    @property
    def step_key(self) -> str:
        """An idempotency key for the next step: the same each time the handler is run, and used by no other step."""
        return self.recorder.step_key

    async def schedule(
        self,
        text: str,
        *,
        at: datetime | timedelta | None = None,
        every: timedelta | None = None,
        cron: str = "",
        when: str = "",
        zone: str = "",
        role: str = "",
    ) -> Schedule:
        """Have a turn of this conversation with the message ``text`` begin by itself: once ``at`` a time or after a
        duration, ``every`` so often (a minute at least), or whenever the ``cron`` line says; or ``when`` says
        one of these as people do, such as "tomorrow at 9". Its answer goes where the answer to this turn goes.

        A naive ``at`` and a cron line are meant in the time zone ``zone``, by default the conversation's preference
        ``timezone``, else TZ. ``role`` answers (default: as the manager decides). In the payload of such a turn
        ``scheduled`` tells ``due`` and ``late_ms``, and how many were ``missed``, which users are told. A schedule is
        stored at once, and once however often this turn is handled. Raises BadSchedule.
        """
        origin, said = self._origin, str(text).strip()
        self._scheduled[said] += 1
        kept = {name: origin.meta[name] for name in ("share", "language") if origin.meta.get(name) is not None}
        return await schedule(
            self._services.bus, origin.conversation, text, at=at, every=every, cron=cron, when=when, zone=zone,
            role=role, roles=self.roles, user=self._caller.user, front=origin.reply_to, meta=kept,
            turn=root_of(self._delivery.turn), idempotency=f"{origin.id}:{self._scheduled[said]}:{said}",
            instance=self.instance,
        )  # fmt: skip

    def call(self, role: str, text: str, *, timeout: float | None = None, **payload: Any) -> RoleCall:
        """A call of another role: ``await`` it for its CallReply, or await several at once with ``gather``.

        The role handles ``text`` and ``payload`` as a turn of its own, on any host, and may answer, call others or send
        it on to other roles. Meanwhile this handler holds no instance: it is run again from its recorded steps when the
        reply is there. Awaiting raises CallFailed when the role gave up, or gave no reply within ``timeout`` seconds.
        Raises UnknownRole for a role that is not configured, and StepError for calls nested deeper than CALL_DEPTH.
        """
        return self._calls.call(role, text, timeout, payload)

    @overload
    async def gather(self, *calls: RoleCall, return_failures: Literal[False] = False) -> list[CallReply]: ...
    @overload
    async def gather(self, *calls: RoleCall, return_failures: bool) -> list[CallReply | CallFailed]: ...
    async def gather(self, *calls: RoleCall, return_failures: bool = False) -> list[Any]:
        """The replies to ``calls``, in order, which run at the same time, at most CALL_LIMIT of them. Raises the first
        CallFailed once all have ended, or returns failures in the place of replies with ``return_failures``."""
        found = await replies(self._waits, calls)
        if not return_failures:
            for one in found:
                if isinstance(one, CallFailed):
                    raise one
        return found

    async def sleep(self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Wait that long, to within a second. Holds no instance, survives restarts, and does not use up the time of the
        turn. At most 366 days."""
        for span in (seconds, minutes, hours, days):
            expect(isinstance(span, int | float), "sleep()", span, "numbers, such as seconds=30 or hours=2")
        await self._waits.sleep(seconds + 60 * minutes + 3_600 * hours + 86_400 * days)

    async def confirm(
        self, question: str, *, timeout: timedelta = timedelta(days=1), default: bool = False, who: Sequence[str] = ()
    ) -> bool:
        """Ask the user to confirm: buttons in Telegram and on the page, y or n in the terminal, an event over HTTP and
        for programs.

        ``default`` counts when nobody has answered within ``timeout``. Only the user of the turn may answer, or ``who``
        (principals such as ``telegram:42``). Holds no instance meanwhile, survives restarts, and does not use up the
        time of the turn; messages of the conversation wait. Raises StepError in a front end that cannot ask.
        """
        return await self._people.confirm(question, timeout, default, who)

    async def choose(
        self,
        question: str,
        options: Sequence[str],
        *,
        timeout: timedelta = timedelta(days=1),
        default: str | None = None,
        who: Sequence[str] = (),
    ) -> str | None:
        """Like ``confirm``, with 1 to 12 ``options``; returns the chosen one, or ``default``."""
        return await self._people.choose(question, options, timeout, default, who)

    async def tools(self, server: str) -> Sequence[Tool]:
        """The tools of ``server``, one of the ``tool_servers`` in config.py. Raises ToolError when it is unavailable,
        ConfigError when no server has this name."""
        if self._services.tools is None:
            raise ConfigError("no tool server is configured: Config(tool_servers={…}) in config.py names them")
        return await self._services.tools(server)

    async def images(self, envelope: Envelope) -> tuple[bytes, ...]:
        """The images that came with ``envelope``, as whole encoded files."""
        return await self._attachments.images(payload_of(envelope))

    async def documents(self, envelope: Envelope) -> tuple[Document, ...]:
        """The documents that came with ``envelope``, as text."""
        return await self._attachments.documents(payload_of(envelope))

    async def question(self, envelope: Envelope, text: str | None = None, *, earlier: bool = True) -> str:
        """The question for a model: ``text``, or that of ``envelope``, preceded by the documents that came with it and
        the message it replies to. With ``earlier``, those of earlier messages come first, up to DOCUMENT_CHARS."""
        payload, characters = payload_of(envelope), self._services.bus.settings.document_chars if earlier else 0
        return await self._attachments.question(envelope.text if text is None else text, payload, characters)

    async def files(self) -> list[str]:
        """The names of the documents that questions of this conversation are asked with, the last one first."""
        return await self._attachments.names()

    async def forget_files(self) -> None:
        """Ask questions of this conversation without the documents so far."""
        await self._attachments.forget()

    async def transcribe(self, envelope: Envelope) -> str:
        """The words in the recordings that came with ``envelope``, transcribed by VOICE_MODEL. Raises ModelError, and
        ConfigError when VOICE_MODEL names no model that can transcribe."""
        settings, voice, payload = self._services.bus.settings, self._services.voice, payload_of(envelope)
        step = self.recorder.next("model", "transcribe")
        if step.found is not None:
            return msgspec.json.decode(step.result(), type=str)

        async def transcribed() -> str:
            sounds = await self._attachments.sounds(payload)
            words = [
                await transcribe(one.data, sound_type(one.data, one.media_type), settings, voice, self._caller)
                for _, one in sounds
            ]
            return "\n".join(filter(None, map(spoken, words, (file for file, _ in sounds))))

        words: str = await step.perform(transcribed, msgspec.json.encode, hurried=False)
        return words

    async def embed(self, texts: Sequence[str], dimensions: int | None = None) -> tuple[tuple[float, ...], ...]:
        """The vectors of ``texts`` by EMBEDDING_MODEL, in their order, shortened to ``dimensions`` by models that can.
        Not recorded as a step. Raises ModelError, and ConfigError when there is no such model."""
        return (await self._embedded(texts, dimensions)).vectors

    async def embed_for_client(self, envelope: Envelope) -> str:
        """Embed the texts that a client of /v1/embeddings sent. Returns the answer that its front end reads: the id of
        the stored vectors."""
        return await self._extras.embed(payload_of(envelope), self._embedded)

    async def _embedded(self, texts: Sequence[str], dimensions: int | None) -> Vectors:
        expect(isinstance(texts, Sequence) and not isinstance(texts, str), "texts", texts, "a list of texts")
        for text in texts:
            expect(isinstance(text, str), "a text to embed", text)
        expect(isinstance(dimensions, int | None), "dimensions", dimensions, "a number of dimensions")
        if self._services.embed is None:
            raise ConfigError("this process has no embeddings")
        return await self._services.embed(texts, dimensions, self._caller)

    async def heard(self, envelope: Envelope) -> str:
        """``transcribe`` by its former name, which applications may still use."""
        return await self.transcribe(envelope)

    async def emit(self, text: str) -> None:
        """Show ``text`` to the user as the next piece of the answer."""
        expect(isinstance(text, str), "the text of emit()", text)
        position, self._position = self._position, self._position + len(text)
        await self._publish(position, text)

    async def _emit_again(self, text: str) -> None:
        """Show what an earlier handling has shown. Followers still see it, unless they were told of a new start."""
        if self._delivery.quiet:
            self._position += len(text)
        else:
            await self.emit(text)

    def log(self, text: str) -> None:
        """Write a NOTE to the conversation's transcript when this handling settles or waits. What comes before a wait
        is not written again when the handler is run again after it; an attempt after a Retry writes its own notes."""
        expect(isinstance(text, str), "the text of log()", text)
        if self.stepped is None or not self.stepped.returning:
            self._records.add("NOTE", text)

    async def stats(self) -> Mapping[str, Any]:
        """The state and usage of the running system, as ``rolecall stats --json`` prints it."""
        return await self._services.stats() if self._services.stats else {}

    async def _complete(
        self,
        model: Model,
        request: Request,
        emit: Emit,
        tools: Sequence[Offer] = (),
        theirs: tuple[ToolSpec, ...] = (),
        again: Emit = discard,
        purpose: str = "stream",
    ) -> Answer:
        if self.used is None:
            self.used = HopUsage(self._services.price)
        completion = ModelCompletion(
            model, self.log, emit, theirs, recorder=self.recorder, purpose=purpose, confirm=self._confirm_tool,
            again=again, replayed=self._services.count_replay, used=self.used,
        )  # fmt: skip
        try:
            request = msgspec.structs.replace(request, caller=self._caller)
            return await completion.run(request, Toolbox(tools, ToolLimits.of(self._services.bus.settings)))
        finally:
            if completion.emitted and completion.seconds:
                self._services.meter.time("model", completion.seconds, self._delivery.role, completion.speaker)

    async def _confirm_tool(self, call: str) -> bool:
        return await self.confirm(f"Run {call}?")


def _share(envelope: Envelope) -> float:
    """The part of the daily budgets that the front end grants this user; 1 unless it says otherwise."""
    share = envelope.meta.get("share")
    return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 1.0
