"""One request to a model: rounds of tool calls and results until it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.agent.recorder import Recorder
from rolecall.agent.tools import Confirm, Toolbox
from rolecall.bus.turn import usage_text
from rolecall.errors import ContextTooLong, Truncated, expect
from rolecall.models.model import (
    Answer,
    Delta,
    Done,
    Logprobs,
    Message,
    Model,
    Request,
    Retracted,
    Spoke,
    ToolCall,
    ToolSpec,
    Usage,
)
from rolecall.models.stream import closing
from rolecall.tracing import conventions
from rolecall.tracing.span import span

INTERRUPTED = " … [the model broke off here]"
ANSWER_SHARE = 0.125
"""The part of a model's context that is left free for its answer when a history is cut."""
MESSAGE_CHARS = 16
IMAGE_CHARS = 4000
BETWEEN_ROUNDS = "\n\n"
"""Between what a model says before its tool calls and after them."""
OPTIONS = frozenset(Request.__struct_fields__) - {"messages", "tools", "caller"}
"""What a handler may say of a request besides its messages and tools."""
Emit = Callable[[str], Awaitable[None]]


async def discard(text: str) -> None:
    """The ``emit`` of a completion that no user follows."""


def _unnoticed(model: str, usage: Usage) -> None:
    """Nobody counts what was replayed."""


def request_of(
    model: Model, history: Iterable[Message], text: str, system: str, options: Mapping[str, Any],
    images: Iterable[bytes] = (),
) -> Request:  # fmt: skip
    """The Request for the answer of ``model`` to ``text`` after ``history``. Raises TypeError for what cannot be asked,
    such as ``options`` that are no fields of Request."""
    expect(hasattr(model, "stream"), "model", model, "a model, such as ctx.model or ctx.models['smollm2@local']")
    expect(isinstance(history, Iterable), "history", history, "messages, such as those of await ctx.memory.history()")
    expect(isinstance(images, Iterable) and not isinstance(images, str | bytes), "images", images, "a list of images")
    opening = (Message("system", system),) if system else ()
    messages = (*opening, *history, Message("user", text, tuple(images)))
    for message in messages:
        expect(isinstance(message, Message), "a message of history", message, "a Message(role, text)")
        expect(isinstance(message.text, str), f"the text of the {message.role} message", message.text)
    for image in messages[-1].images:
        expect(isinstance(image, bytes), "an image", image, "the bytes of an image file")
    if unknown := sorted(options.keys() - OPTIONS):
        raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))}")
    try:
        return msgspec.convert({**options, "messages": messages}, Request)
    except msgspec.ValidationError as error:
        raise TypeError(f"an option of the request is invalid: {error}") from None


@dataclass
class HopUsage:
    """What the models that one handling asked took so far, recorded answers left out; ``str`` is its form in a
    transcript. ``price`` is the cost of tokens of a model."""

    price: Callable[[str, Usage], float]
    models: list[str] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    def add(self, model: str, usage: Usage, seconds: float) -> None:
        """Add a call of ``model``."""
        if model not in self.models:
            self.models.append(model)
        self.tokens_in += usage.tokens_in
        self.tokens_out += usage.tokens_out
        self.cost += self.price(model, usage)
        self.seconds += seconds

    def __bool__(self) -> bool:
        """Whether a model was asked."""
        return bool(self.models)

    def __str__(self) -> str:
        took = usage_text(" + ".join(self.models), self.tokens_in, self.tokens_out, self.cost)
        return f"{took}, model {self.seconds:.3f} s"


@dataclass
class ModelTurn:
    """What one call of the model brought: text, tool calls and how it finished."""

    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: str = "stop"
    logprobs: tuple[dict[str, Any], ...] = ()
    """Not recorded: an answer that is replayed has none."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ModelRound(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ModelTurn as it is recorded, with the tokens it took and the model that spoke."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    usage: Usage = Usage(0, 0)
    spoke: Spoke = Spoke("")
    dropped: int = 0


ROUND = msgspec.json.Decoder(ModelRound)


@dataclass
class ModelCompletion:
    """Completes one request with ``model``. ``emit`` receives the text piece by piece, ``again`` what an earlier
    handling has recorded, ``log`` what belongs into the transcript; ``seconds`` is the time the model took, without the
    tools. With a ``recorder``, each call of the model and of a tool is a step; ``purpose`` names the former."""

    model: Model
    log: Callable[[str], None]
    emit: Emit = discard
    theirs: tuple[ToolSpec, ...] = ()
    """Tools that others run: a call of one of them ends the answer."""
    recorder: Recorder | None = None
    purpose: str = "ask"
    confirm: Confirm | None = None
    """Asks the user about the calls of tools that want it."""
    again: Emit = discard
    replayed: Callable[[str, Usage], None] = _unnoticed
    """Told the model and the tokens of each recorded answer."""
    used: HopUsage | None = None
    """What each call of the model took is added to this."""
    seconds: float = 0.0
    dropped: int = 0
    """How many of the oldest messages the model is asked without, because the history is too long for it."""
    emitted: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    spoke: Spoke = field(default_factory=lambda: Spoke(""))

    async def run(self, request: Request, toolbox: Toolbox) -> Answer:
        """The whole answer. The model may call tools for as many rounds as the toolbox allows, then it is asked a last
        time without them. An answer that breaks off after it began is returned as far as it came, with a mark. Raises
        ModelError."""
        rounds = toolbox.limits.rounds if toolbox.tools or self.theirs else 0
        for _ in range(rounds):
            tools = (*toolbox.specs, *self.theirs)
            turn = await self._round(msgspec.structs.replace(request, tools=tools))
            if not turn.calls or self._leaves(turn, request.parallel):
                return self._answer(turn)
            results = await toolbox.answer(turn.calls, self.log, self.recorder, self.confirm)
            called = Message("assistant", turn.text, calls=tuple(turn.calls))
            request = msgspec.structs.replace(request, messages=(*request.messages, called, *results), must_call=False)
        if rounds:
            self.log(f"all {rounds} rounds of tool calls are used up: asking a last time, without tools")
        return self._answer(await self._round(msgspec.structs.replace(request, must_call=False)))

    def _leaves(self, turn: ModelTurn, parallel: bool) -> bool:
        """Whether ``turn`` calls tools of others. Only those calls stay then: the model sees no results of the rest."""
        names = {tool.name for tool in self.theirs}
        leaving = [call for call in turn.calls if call.name in names]
        if len(leaving) < len(turn.calls) and leaving:
            self.log("the model called its own tools and those of the client at once; its own are left out")
        turn.calls = (leaving if parallel else leaving[:1]) if leaving else turn.calls
        return bool(leaving)

    async def _round(self, request: Request) -> ModelTurn:
        """One call of the model, or what was recorded of it."""
        if self.recorder is None:
            return await self._call_model(request)
        step = self.recorder.next("model", self.purpose)
        if step.found is not None:
            return await self._replay(ROUND.decode(step.result()))
        before = self.usage

        def encode(turn: ModelTurn) -> bytes:
            usage, spoke = self._since(before), Spoke(self.speaker, self.spoke.why)
            return msgspec.json.encode(
                ModelRound(turn.text, tuple(turn.calls), turn.finish, usage, spoke, self.dropped)
            )

        # Unhurried: most handlers end with an answer, and then its record would be written only to be removed.
        turn: ModelTurn = await step.perform(lambda: self._call_model(request), encode, hurried=False)
        return turn

    async def _replay(self, found: ModelRound) -> ModelTurn:
        turn = ModelTurn([], list(found.calls), found.finish)
        if found.text:
            await self._add(found.text, turn, self.again)
        if found.finish == "interrupted":
            self.emitted.append(INTERRUPTED)
        self._use(found.usage)
        self.spoke, self.dropped = found.spoke, found.dropped
        self.replayed(found.spoke.model, found.usage)
        return turn

    async def _call_model(self, request: Request) -> ModelTurn:
        turn, began, before = ModelTurn(), time.monotonic(), self.usage
        asked = conventions.model(self.model.name, request.max_tokens, request.temperature, request.schema is not None)
        with span(f"chat {asked['gen_ai.request.model']}", asked, client=True) as traced:
            try:
                await self._receive_fitting(request, turn)
            except Truncated as error:
                if not self.emitted:
                    raise
                self.log(f"{self.speaker} broke off: {error}")
                self.emitted.append(INTERRUPTED)
                turn.calls, turn.finish = [], "interrupted"
                traced.fail(type(error).__name__, str(error))
            finally:
                seconds, used = time.monotonic() - began, self._since(before)
                self.seconds += seconds
                if self.used is not None:
                    self.used.add(self.speaker, used, seconds)
            traced.set(conventions.answer(self.speaker, used.tokens_in, used.tokens_out, turn.finish))
        return turn

    async def _receive_fitting(self, request: Request, turn: ModelTurn) -> None:
        """Receive the answer to ``request``, as often as it is too long without the oldest part of the history: what is
        too much of it by the provider's count, else the older half."""
        while True:
            try:
                return await self._receive(without_oldest(request, self.dropped), turn)
            except ContextTooLong as error:
                left = _past(request.messages) - self.dropped
                if left <= 0 or turn.pieces:
                    raise
                self.dropped += excess(request, self.dropped, error) or (left + 1) // 2
                self.log(f"the oldest {self.dropped} messages are left out: {error}")

    async def _receive(self, request: Request, turn: ModelTurn) -> None:
        async with closing(self.model.stream(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    await self._add(event.text, turn, self.emit)
                elif isinstance(event, Retracted):
                    self._retract(turn)
                elif isinstance(event, ToolCall):
                    turn.calls.append(event)
                elif isinstance(event, Usage):
                    self._use(event)
                elif isinstance(event, Logprobs):
                    turn.logprobs = event.content
                elif isinstance(event, Done):
                    turn.finish = event.reason
                else:
                    expect(isinstance(event, Spoke), f"an event of {self.model.name}", event, "a Delta, Usage or Done")
                    self._note_speaker(event)

    async def _add(self, text: str, turn: ModelTurn, emit: Emit) -> None:
        piece = text if turn.pieces or not self.emitted else BETWEEN_ROUNDS + text
        turn.pieces.append(text)
        self.emitted.append(piece)
        await emit(piece)

    def _use(self, usage: Usage) -> None:
        self.usage = Usage(self.usage.tokens_in + usage.tokens_in, self.usage.tokens_out + usage.tokens_out)

    def _since(self, before: Usage) -> Usage:
        return Usage(self.usage.tokens_in - before.tokens_in, self.usage.tokens_out - before.tokens_out)

    def _retract(self, turn: ModelTurn) -> None:
        """Take back what ``turn`` brought so far. Followers see it go when they get the whole answer."""
        self.log(f"{self.speaker} sent its thinking, which is left out of the answer")
        del self.emitted[len(self.emitted) - len(turn.pieces) :]
        turn.pieces.clear()

    def _note_speaker(self, spoke: Spoke) -> None:
        if spoke == self.spoke:
            return
        self.spoke = spoke
        if spoke.why:
            self.log(f"{spoke.model} answers: {spoke.why}")

    def _answer(self, turn: ModelTurn) -> Answer:
        text, usage = "".join(self.emitted), self.usage
        calls = tuple(turn.calls) if self.theirs else ()
        return Answer(
            text,
            self.speaker,
            usage.tokens_in,
            usage.tokens_out,
            turn.finish,
            self.spoke.why,
            calls,
            turn.logprobs,
            self.dropped > 0,
        )

    @property
    def speaker(self) -> str:
        """The model that answers, as far as it is known."""
        return self.spoke.model or self.model.name


def without_oldest(request: Request, count: int) -> Request:
    """``request`` without the ``count`` oldest messages of its history; what remains of that begins with a user's."""
    if not count:
        return request
    past = _past(request.messages)
    rest = [message for message in request.messages[:past] if message.role != "system"]
    kept = rest[max(0, count - (past - len(rest))) :]
    while kept and kept[0].role != "user":
        kept.pop(0)
    system = [message for message in request.messages[:past] if message.role == "system"]
    return msgspec.structs.replace(request, messages=(*system, *kept, *request.messages[past:]))


def excess(request: Request, dropped: int, error: ContextTooLong) -> int:
    """How many more messages than the ``dropped`` oldest ones to leave out of ``request`` so that it fits by what
    ``error`` says, with room for an answer; 0 if it does not say. Tokens are estimated by characters, at the rate that
    the provider counted."""
    if not 0 < error.limit < error.tokens:
        return 0
    shown = without_oldest(request, dropped).messages
    rate = error.tokens / sum(map(_size, shown))
    left = error.tokens - error.limit * (1 - ANSWER_SHARE)
    past = [message for message in request.messages[: _past(request.messages)] if message.role != "system"]
    first = max(0, dropped - (_past(request.messages) - len(past)))
    count = 0
    while left > 0 and first + count < len(past):
        left -= _size(past[first + count]) * rate
        count += 1
    return _past(request.messages) - len(past) + first + count - dropped


def _size(message: Message) -> int:
    """The characters of ``message``, with what its author, its images and its calls count for."""
    calls = sum(len(call.arguments) for call in message.calls)
    return len(message.text) + MESSAGE_CHARS + calls + IMAGE_CHARS * len(message.images)


def _past(messages: Sequence[Message]) -> int:
    """How many messages come before the question, which is the last one of a user."""
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=0)
