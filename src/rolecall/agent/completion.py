"""One request to a model: rounds of tool calls and results until it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from rolecall.agent.tools import Toolbox
from rolecall.errors import Truncated
from rolecall.models.model import (
    Answer,
    Delta,
    Done,
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

INTERRUPTED = " … [the model broke off here]"
BETWEEN_ROUNDS = "\n\n"
"""Between what a model says before its tool calls and after them."""
Emit = Callable[[str], Awaitable[None]]


async def discard(text: str) -> None:
    """The ``emit`` of a completion that no user follows."""


@dataclass
class ModelTurn:
    """What one call of the model brought: text, tool calls and how it finished."""

    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: str = "stop"

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class ModelCompletion:
    """Completes one request with ``model``. ``emit`` receives the text piece by piece, ``log`` what belongs into the
    transcript; ``seconds`` is the time the model took, without the tools."""

    model: Model
    log: Callable[[str], None]
    emit: Emit = discard
    theirs: tuple[ToolSpec, ...] = ()
    """Tools that others run: a call of one of them ends the answer."""
    seconds: float = 0.0
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
            turn = await self._call_model(msgspec.structs.replace(request, tools=tools))
            if not turn.calls or self._leaves(turn, request.parallel):
                return self._answer(turn)
            results = await toolbox.answer(turn.calls, self.log)
            called = Message("assistant", turn.text, calls=tuple(turn.calls))
            request = msgspec.structs.replace(request, messages=(*request.messages, called, *results), must_call=False)
        if rounds:
            self.log(f"all {rounds} rounds of tool calls are used up: asking a last time, without tools")
        return self._answer(await self._call_model(msgspec.structs.replace(request, must_call=False)))

    def _leaves(self, turn: ModelTurn, parallel: bool) -> bool:
        """Whether ``turn`` calls tools of others. Only those calls stay then: the model sees no results of the rest."""
        names = {tool.name for tool in self.theirs}
        leaving = [call for call in turn.calls if call.name in names]
        if len(leaving) < len(turn.calls) and leaving:
            self.log("the model called its own tools and those of the client at once; its own are left out")
        turn.calls = (leaving if parallel else leaving[:1]) if leaving else turn.calls
        return bool(leaving)

    async def _call_model(self, request: Request) -> ModelTurn:
        turn, began = ModelTurn(), time.monotonic()
        try:
            await self._receive(request, turn)
        except Truncated as error:
            if not self.emitted:
                raise
            self.log(f"{self.speaker} broke off: {error}")
            self.emitted.append(INTERRUPTED)
            turn.calls, turn.finish = [], "interrupted"
        finally:
            self.seconds += time.monotonic() - began
        return turn

    async def _receive(self, request: Request, turn: ModelTurn) -> None:
        async with closing(self.model.stream(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    await self._add(event.text, turn)
                elif isinstance(event, Retracted):
                    self._retract(turn)
                elif isinstance(event, ToolCall):
                    turn.calls.append(event)
                elif isinstance(event, Usage):
                    self.usage = Usage(self.usage.tokens_in + event.tokens_in, self.usage.tokens_out + event.tokens_out)
                elif isinstance(event, Done):
                    turn.finish = event.reason
                elif event != self.spoke:
                    self._note_speaker(event)

    async def _add(self, text: str, turn: ModelTurn) -> None:
        piece = text if turn.pieces or not self.emitted else BETWEEN_ROUNDS + text
        turn.pieces.append(text)
        self.emitted.append(piece)
        await self.emit(piece)

    def _retract(self, turn: ModelTurn) -> None:
        """Take back what ``turn`` brought so far. Followers see it go when they get the whole answer."""
        self.log(f"{self.speaker} showed what it thinks; that is left out of the answer")
        del self.emitted[len(self.emitted) - len(turn.pieces) :]
        turn.pieces.clear()

    def _note_speaker(self, spoke: Spoke) -> None:
        self.spoke = spoke
        if spoke.why:
            self.log(f"{spoke.model} answers: {spoke.why}")

    def _answer(self, turn: ModelTurn) -> Answer:
        text, usage = "".join(self.emitted), self.usage
        calls = tuple(turn.calls) if self.theirs else ()
        return Answer(text, self.speaker, usage.tokens_in, usage.tokens_out, turn.finish, self.spoke.why, calls)

    @property
    def speaker(self) -> str:
        """The model that answers, as far as it is known."""
        return self.spoke.model or self.model.name
