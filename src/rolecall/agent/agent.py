"""The base class of every agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rolecall.agent.context import Context
from rolecall.bus.commands import Language
from rolecall.bus.envelope import Envelope


class Agent:
    """One role of a deployment. Subclass it and implement ``handle``. The role's name is the class name without
    ``Agent``, in lower case, unless ``role`` is set. Each instance of a role is an object of its own."""

    role: ClassVar[str] = "agent"
    languages: ClassVar[Mapping[str, Language]] = {}
    """The languages that front ends offer for the preference ``lang``, by code, if this agent follows it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "role" not in cls.__dict__:
            cls.role = cls.__name__.removesuffix("Agent").lower()

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Handle ``envelope`` and return the next one: ``envelope.via(…)``, ``.forward(…)`` or ``.reply(…)``.

        The same envelope may be handled again after a crash, so effects outside the envelope and ``ctx`` must be
        idempotent. May raise Retry(after) or Reject(reason). Is cancelled when the turn is stopped or taken over.
        """
        raise NotImplementedError
