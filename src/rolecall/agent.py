"""What one writes: an Agent; and what its handler is given: a Context."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rolecall.delivery import Records
from rolecall.envelope import Envelope
from rolecall.errors import ConfigError, Truncated
from rolecall.memory import Memory
from rolecall.models.model import Answer, Caller, Delta, Done, Message, Model, Request, Spoke, Usage
from rolecall.prompts import Prompts

INTERRUPTED = " … [the model broke off here]"


class Agent:
    """One role of a deployment. Subclass it and write ``handle``; the role is the class's name less ``Agent`` in
    lower case unless ``role`` says otherwise. Each instance of a role is an object of its own."""

    role: ClassVar[str] = "agent"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "role" not in cls.__dict__:
            cls.role = cls.__name__.removesuffix("Agent").lower()

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Take ``envelope`` and return the next one: ``envelope.via(…)``, ``.forward(…)`` or ``.reply(…)``.

        It may be handled again after a crash, so effects outside the envelope and ``ctx`` must bear repeating.
        May raise Retry(after) or Reject(reason). Cancelled when the turn was stopped or taken over.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class RoleInfo:
    """What agents may know of a configured role."""

    name: str
    description: str
    match: str | None
    models: tuple[str, ...]


async def _nowhere(position: int, text: str) -> None:
    """Deltas of a handling that nobody follows."""


@dataclass
class Context:
    """What a handler may use beside its envelope."""

    instance: str
    memory: Memory
    roles: Mapping[str, RoleInfo]
    models: Mapping[str, Model]
    records: Records
    model_name: str | None = None
    chosen: Model | None = None
    publish: Callable[[int, str], Awaitable[None]] = _nowhere
    statistics: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    caller: Caller | None = None
    prompts: Prompts = field(default_factory=Prompts)
    model_seconds: float = 0.0
    position: int = field(default=0)

    @property
    def model(self) -> Model:
        """This role's model: the one the conversation prefers, else the configured ones in fallback order."""
        if self.chosen is None:
            raise ConfigError(
                "this role has no model: give it models=('smollm2@local',) in config.py, or set GEN_MODEL"
            )
        return self.chosen

    def prompt(self, name: str, /, **variables: object) -> str:
        """The text of ``agents/prompts/<name>.md`` with exactly the variables it declares, without white space around
        it. Raises ConfigError, which refuses the turn, when there is none of that name or a variable is missing or
        not declared."""
        return self.prompts.render(name, variables)

    async def stream(
        self, model: Model, history: Sequence[Message], text: str, *, system: str = "", **options: Any
    ) -> Answer:
        """Ask ``model`` for the answer to ``text`` after ``history``, emitting deltas; returns the whole answer.

        ``options`` are those of Request. An answer that breaks off after it began is returned as far as it came,
        with a visible mark and ``finish="interrupted"``: nothing the user saw is repeated. Raises ModelError.
        """
        return await self._converse(model, history, text, system, options, show=True)

    async def ask(
        self, model: Model, history: Sequence[Message], text: str, *, system: str = "", **options: Any
    ) -> Answer:
        """As ``stream``, but the user sees none of it: for questions between agents and models."""
        return await self._converse(model, history, text, system, options, show=False)

    async def emit(self, text: str) -> None:
        """Show the user ``text`` as the next piece of the answer in the making."""
        position, self.position = self.position, self.position + len(text)
        await self.publish(position, text)

    def log(self, text: str) -> None:
        """Write a NOTE to the conversation's transcript when this handling settles."""
        self.records.add("NOTE", text)

    async def stats(self) -> Mapping[str, Any]:
        """Figures of the running system, as ``rolecall stats --json`` prints them."""
        return await self.statistics() if self.statistics else {}

    async def _converse(
        self, model: Model, history: Sequence[Message], text: str, system: str, options: dict[str, Any], show: bool
    ) -> Answer:
        opening = (Message("system", system),) if system else ()
        request = Request(messages=(*opening, *history, Message("user", text)), caller=self.caller, **options)
        began, pieces, usage, finish = time.monotonic(), list[str](), Usage(0, 0), "stop"
        spoke = Spoke(model.name)
        try:
            async for event in model.stream(request):
                if isinstance(event, Delta):
                    pieces.append(event.text)
                    if show:
                        await self.emit(event.text)
                elif isinstance(event, Usage):
                    usage = event
                elif isinstance(event, Done):
                    finish = event.reason
                elif isinstance(event, Spoke):
                    spoke = event
        except Truncated as broken:
            if not pieces:
                raise
            self.log(f"{spoke.model} broke off: {broken}")
            pieces.append(INTERRUPTED)
            finish = "interrupted"
        finally:
            self.model_seconds += time.monotonic() - began
        if spoke.why:
            self.log(f"{spoke.model} answers: {spoke.why}")
        return Answer("".join(pieces), spoke.model, usage.tokens_in, usage.tokens_out, finish, spoke.why)
