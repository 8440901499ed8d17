"""What an application writes: an Agent."""

from __future__ import annotations

from typing import Any, ClassVar

from rolecall.agent.context import Context
from rolecall.bus.envelope import Envelope


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
