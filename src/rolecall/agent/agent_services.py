"""What the handlers of a process share: its bus, models, tools, prompts and meters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rolecall.agent.prompts import Prompts
from rolecall.agent.tools import Tool
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope
from rolecall.models.fallback import preferring
from rolecall.models.gate import Gate, GatedModel
from rolecall.models.model import Caller, Model, Usage
from rolecall.models.vectors import Vectors
from rolecall.tracing.span import UNTRACED, Tracing


@dataclass(frozen=True)
class RoleInfo:
    """What agents may know about a configured role."""

    name: str
    description: str
    match: str | None
    models: tuple[str, ...]


class Meter(Protocol):
    """Counts events and durations of this process, by labels."""

    def count(self, name: str, *labels: str, by: int = 1) -> None: ...

    def time(self, name: str, seconds: float, *labels: str) -> None: ...


class NoMeter:
    """A Meter that measures nothing."""

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """See Meter.count."""

    def time(self, name: str, seconds: float, *labels: str) -> None:
        """See Meter.time."""


@dataclass(frozen=True)
class AgentServices:
    """What the handlers of a process share: made once by the runtime, replaced as a whole when it deploys, and passed
    down to every Context. A new capability is a field here and a method of Context."""

    bus: Bus
    roles: Mapping[str, RoleInfo] = field(default_factory=dict)
    """Every role of the deployment, by name."""
    models: Mapping[str, Model] = field(default_factory=dict)
    """Every model of the deployment, by name."""
    role_models: Mapping[str, Model] = field(default_factory=dict)
    """The model of each role that has one: its configured models in fallback order."""
    prompts: Prompts = field(default_factory=Prompts)
    tools: Callable[[str], Awaitable[Sequence[Tool]]] | None = None
    """The tools of a tool server, by its name."""
    voice: Gate | None = None
    """The gate of the model that transcribes."""
    embed: Callable[[Sequence[str], int | None, Caller], Awaitable[Vectors]] | None = None
    """The vectors of texts, by EMBEDDING_MODEL."""
    stats: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    waits: Callable[[str, str], Awaitable[None]] | None = None
    """Told the model and the conversation when a turn is deferred until that model is back."""
    meter: Meter = field(default_factory=NoMeter)
    tracing: Tracing = UNTRACED
    policies: tuple[Any, ...] = ()
    """Policies of the application and of installed packages; see agent/policies.py."""

    def model_for(self, role: str, envelope: Envelope) -> Model | None:
        """The model of ``role``, after the one that ``envelope`` prefers."""
        model, preferred = self.role_models.get(role), self.models.get(str(envelope.payload.get("model")))
        return preferring(preferred, model) if model and preferred else model

    def price(self, model: str, usage: Usage) -> float:
        """What ``usage`` of ``model`` costs; 0 if its price is not known."""
        asked = self.models.get(model)
        return asked.gate.price(usage) if isinstance(asked, GatedModel) else 0.0

    def count_replay(self, model: str, usage: Usage) -> None:
        """Count the ``usage`` of ``model`` that a recorded answer saved."""
        self.meter.count("replayed_tokens", model, "in", by=usage.tokens_in)
        self.meter.count("replayed_tokens", model, "out", by=usage.tokens_out)
        answered = self.models.get(model)
        if isinstance(answered, GatedModel):
            answered.gate.saved(usage)
