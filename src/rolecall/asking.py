"""One question put to a model: rounds of calls and results, until it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from rolecall.errors import Truncated
from rolecall.models.model import Answer, Delta, Done, Message, Model, Request, Spoke, ToolCall, Usage
from rolecall.models.reading import closing
from rolecall.tools import Toolbox

INTERRUPTED = " … [the model broke off here]"
BETWEEN = "\n\n"
"""Between what a model says before its calls and after them."""
Show = Callable[[str], Awaitable[None]]


async def unseen(text: str) -> None:
    """Pieces of an answer that nobody follows."""


@dataclass
class Heard:
    """What came in one round."""

    pieces: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: str = "stop"

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self.pieces)


@dataclass
class Asking:
    """Puts one request to ``model``. ``show`` gets the text piece by piece, ``log`` what is to be noted; ``seconds``
    is how long the model spoke, tools not counted."""

    model: Model
    log: Callable[[str], None]
    show: Show = unseen
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    tokens: Usage = field(default_factory=lambda: Usage(0, 0))
    spoke: Spoke = field(default_factory=lambda: Spoke(""))

    async def answer(self, request: Request, toolbox: Toolbox) -> Answer:
        """The whole answer. The model may call tools for as many rounds as there are; then it is asked a last time
        without. An answer that breaks off after it began ends as far as it came, marked. Raises ModelError."""
        rounds = toolbox.limits.rounds if toolbox.tools else 0
        for _ in range(rounds):
            heard = await self._hear(msgspec.structs.replace(request, tools=toolbox.specs))
            if not heard.calls:
                return self._whole(heard)
            results = await toolbox.answer(heard.calls, self.log)
            asked = Message("assistant", heard.text, calls=tuple(heard.calls))
            request = msgspec.structs.replace(request, messages=(*request.messages, asked, *results), must_call=False)
        if rounds:
            self.log(f"{rounds} rounds of tool calls are used up: asked a last time, without tools")
        return self._whole(await self._hear(msgspec.structs.replace(request, must_call=False)))

    async def _hear(self, request: Request) -> Heard:
        heard, began = Heard(), time.monotonic()
        try:
            await self._listen(request, heard)
        except Truncated as broken:
            if not self.said:
                raise
            self.log(f"{self.speaker} broke off: {broken}")
            self.said.append(INTERRUPTED)
            heard.calls, heard.finish = [], "interrupted"
        finally:
            self.seconds += time.monotonic() - began
        return heard

    async def _listen(self, request: Request, heard: Heard) -> None:
        async with closing(self.model.stream(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    await self._take(event.text, heard)
                elif isinstance(event, ToolCall):
                    heard.calls.append(event)
                elif isinstance(event, Usage):
                    self.tokens = Usage(
                        self.tokens.tokens_in + event.tokens_in, self.tokens.tokens_out + event.tokens_out
                    )
                elif isinstance(event, Done):
                    heard.finish = event.reason
                elif event != self.spoke:
                    self._begins(event)

    async def _take(self, text: str, heard: Heard) -> None:
        shown = text if heard.pieces or not self.said else BETWEEN + text
        heard.pieces.append(text)
        self.said.append(shown)
        await self.show(shown)

    def _begins(self, spoke: Spoke) -> None:
        self.spoke = spoke
        if spoke.why:
            self.log(f"{spoke.model} answers: {spoke.why}")

    def _whole(self, heard: Heard) -> Answer:
        tokens, spoke = self.tokens, self.spoke
        return Answer("".join(self.said), self.speaker, tokens.tokens_in, tokens.tokens_out, heard.finish, spoke.why)

    @property
    def speaker(self) -> str:
        """The model that answers, as far as it is known."""
        return self.spoke.model or self.model.name
