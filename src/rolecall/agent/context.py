"""What a handler may use: a Context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from rolecall.agent.attachments import Attachments, Document, in_context
from rolecall.agent.completion import Asking, Form, Show, extracted, unseen
from rolecall.agent.memory import Memory
from rolecall.agent.prompts import Prompts
from rolecall.agent.tools import Offer, Tool, Toolbox, ToolLimits
from rolecall.bus.envelope import Envelope
from rolecall.bus.turn import Records
from rolecall.errors import ConfigError
from rolecall.models.model import Answer, Caller, Message, Model, Request

T = TypeVar("T")


@dataclass(frozen=True)
class RoleInfo:
    """What agents may know of a configured role."""

    name: str
    description: str
    match: str | None
    models: tuple[str, ...]


async def _nowhere(position: int, text: str) -> None:
    """Deltas of a handling that nobody follows."""


def _unmeasured(model: str, seconds: float) -> None:
    """Where nobody wants to know."""


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
    attachments: Attachments | None = None
    hear: Callable[[bytes, str], Awaitable[str]] | None = None
    prompts: Prompts = field(default_factory=Prompts)
    tool_source: Callable[[str], Awaitable[Sequence[Tool]]] | None = None
    tool_limits: ToolLimits = field(default_factory=ToolLimits)
    model_seconds: float = 0.0
    asked: Callable[[str, float], None] = _unmeasured
    """Told the model and the seconds of each answer."""
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
        """Ask ``model`` for the answer to ``text`` after ``history``, emitting deltas; returns the whole answer.
        ``images`` are whole encoded files that go with the text. Raises ImagesRefused when the model takes none.

        ``tools`` are typed functions with a docstring, or what ``tools`` gives: the model may call them before it
        answers, and a call that fails is told to it. ``options`` are those of Request. An answer that breaks off
        after it began is returned as far as it came, with a visible mark and ``finish="interrupted"``: nothing the
        user saw is repeated. Raises ModelError, and ConfigError for a tool that cannot be one.
        """
        return await self._answer(model, _request(history, text, system, options, images), self.emit, tools)

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
        """As ``stream``, but the user sees none of it: for questions between agents and models."""
        return await self._answer(model, _request(history, text, system, options, images), unseen, tools)

    async def extract(
        self,
        kind: type[T],
        model: Model,
        history: Sequence[Message],
        text: str,
        *,
        system: str = "",
        **options: Any,
    ) -> T:
        """Ask ``model`` for data: the answer to ``text`` as a ``kind``, any type that pydantic checks.

        The user sees none of it. An answer of another form is sent back once. Raises BadStructure, ModelError, and
        ConfigError for a type that has no JSON schema.
        """
        form = Form.of(kind)
        request = _request(history, text, f"{system}\n\n{form.instruction}".strip(), options)
        return await extracted(form, request, lambda asked: self._answer(model, asked, unseen), self.log)

    async def tools(self, server: str) -> Sequence[Tool]:
        """The tools of one of the ``tool_servers`` in config.py. Raises ToolError when it is away, ConfigError when
        there is none of that name."""
        if self.tool_source is None:
            raise ConfigError("no tool server is configured: Config(tool_servers={…}) in config.py names them")
        return await self.tool_source(server)

    async def images(self, envelope: Envelope) -> tuple[bytes, ...]:
        """The images that came with ``envelope``, as whole encoded files."""
        return await self.attachments.images(envelope.payload) if self.attachments else ()

    async def documents(self, envelope: Envelope) -> tuple[Document, ...]:
        """The documents that came with ``envelope``, as text."""
        return await self.attachments.documents(envelope.payload) if self.attachments else ()

    async def question(self, envelope: Envelope, text: str | None = None) -> str:
        """What a model is to be asked: ``text``, or that of ``envelope``, behind the documents that came with it and
        what it replies to."""
        return in_context(envelope.text if text is None else text, await self.documents(envelope), envelope.payload)

    async def heard(self, envelope: Envelope) -> str:
        """What is said in the recordings that came with ``envelope``, written down by VOICE_MODEL. Raises ModelError,
        and ConfigError when no model hears here."""
        if self.attachments is None or self.hear is None:
            return ""
        sounds = await self.attachments.sounds(envelope.payload)
        return "\n".join([await self.hear(sound.data, sound.media_type) for sound in sounds])

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

    async def _answer(self, model: Model, request: Request, show: Show, tools: Sequence[Offer] = ()) -> Answer:
        asking = Asking(model, self.log, show)
        try:
            request = msgspec.structs.replace(request, caller=self.caller)
            return await asking.answer(request, Toolbox(tools, self.tool_limits))
        finally:
            self.model_seconds += asking.seconds
            if asking.said:
                self.asked(asking.speaker, asking.seconds)


def _request(
    history: Sequence[Message], text: str, system: str, options: dict[str, Any], images: Sequence[bytes] = ()
) -> Request:
    opening = (Message("system", system),) if system else ()
    return Request(messages=(*opening, *history, Message("user", text, tuple(images))), **options)
