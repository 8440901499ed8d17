"""One instance: a slot of a role, which handles one envelope at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from rolecall.agent.agent import Agent
from rolecall.agent.agent_services import AgentServices
from rolecall.agent.policies import Rules, wrapped
from rolecall.bus.leases import Beginning, Delivery, Reads
from rolecall.bus.settle import Refill
from rolecall.bus.turn import Verdict
from rolecall.worker.handling import Handling


@dataclass(eq=False)
class Instance:
    """One slot of a role. ``occupy`` gives it an envelope and ``handle`` handles it."""

    id: str
    role: str
    agent: Agent
    services: AgentServices
    delivery: Delivery | None = None
    since: float = 0.0
    """When it took ``delivery``, by the monotonic clock."""
    handled: int = 0
    errors: int = 0
    busy_seconds: float = 0.0
    retiring: bool = False
    draining: bool = False
    """Whether its worker drains: its handler may then be cancelled because the process ends."""
    reserved: bool = False
    """Whether a step is on its way that may take an envelope for this instance."""
    following: Delivery | None = None
    """What a settling step took for this instance while it was still busy."""
    supplier: Callable[[Instance, str], Refill | None] | None = None
    """Says what to take along when this instance settles an envelope, which may go on to the named role."""
    reads: dict[str, Reads] = field(default_factory=dict)
    """What the last handler of each role of the process read."""
    suspects: set[Instance] = field(default_factory=set, repr=False)
    """The instances of the process that handle an entry on its last delivery."""
    _handling: Handling | None = field(default=None, repr=False)
    """Of ``delivery``."""

    def __post_init__(self) -> None:
        self.deploy(self.agent, self.services)

    def deploy(self, agent: Agent, services: AgentServices) -> None:
        """Handle the next envelope with ``agent`` and ``services``; the current one ends with the old ones."""
        self.agent, self.services = agent, services
        self.rules = Rules.of(self.role, services)
        self.handler = wrapped(agent.handle, self.rules)

    @property
    def free(self) -> bool:
        """Whether the instance may take an envelope."""
        return self.delivery is None and self.following is None and not self.retiring and not self.reserved

    def occupy(self, delivery: Delivery) -> None:
        """Take ``delivery``; call ``handle`` next."""
        self.delivery, self.since, self._handling = delivery, time.monotonic(), Handling(self, delivery)
        if delivery.count >= self.services.bus.settings.max_deliveries:
            self.suspects.add(self)

    def handle(self) -> Coroutine[Any, Any, None]:
        """Handle the occupying delivery, settle it, and become free again; see Handling.run."""
        assert self._handling is not None
        return self._handling.run()

    def release(self) -> float:
        """Become free again, as ``handle`` ends; returns the seconds since ``occupy``."""
        seconds = time.monotonic() - self.since
        self.services.meter.time("handling", seconds, self.role)
        self.busy_seconds += seconds
        self.handled += 1
        self.delivery = self._handling = None
        self.suspects.discard(self)
        return seconds

    def cancel(self, reason: str) -> None:
        """Cancel the handler: FENCED when another instance owns the entry, LATE when the turn's time is over, BLOCKED
        or HANDED_BACK when the watchdog gave the entry away, DRAIN. Once a settling step is on its way, its verdict
        says what became of the entry."""
        if self._handling is not None:
            self._handling.cancel(reason)

    def begun(self, delivery: Delivery, verdict: Verdict, beginning: Beginning) -> None:
        """What became of the beginning of ``delivery``, which this instance may be handling since it was read."""
        if self._handling is not None and self.delivery is delivery:
            self._handling.begun(verdict, beginning)

    def deaf(self) -> bool:
        """Whether its handler goes on though it was cancelled or should have been."""
        return self._handling is not None and self._handling.deaf()

    async def abandon(self) -> None:
        """End the turn of a handler that does not end, unless another process has it. Raises ServerError."""
        if self._handling is not None:
            await self._handling.abandon()
