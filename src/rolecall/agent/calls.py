"""Calls of other roles: a handler asks, and waits for what the role replies."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from rolecall.agent.waits import Wait, Waits
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn
from rolecall.bus.envelope import Envelope
from rolecall.bus.leases import Delivery
from rolecall.errors import FAILURES, CallFailed, StepError, UnknownRole, duration, expect
from rolecall.tracing.traceparent import HEADER, carried

INHERITED = ("user", "share", "language", "asks", "front", HEADER)
"""What the meta of a call has from the turn that made it: on whose behalf and in which language it is, whether its
user can be asked, and the trace it belongs to."""


@dataclass(frozen=True)
class CallReply:
    """What a called role replied: its text, and the payload with all else it put there."""

    role: str
    text: str
    payload: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class RoleCall:
    """A call of another role. It begins when it is awaited, alone or in ``ctx.gather``; then it is a CallReply. Raises
    CallFailed."""

    waits: Waits
    wait: Wait

    @property
    def role(self) -> str:
        """The role that is called."""
        return self.wait.run.name

    def __await__(self) -> Generator[Any, None, CallReply]:
        return self._reply().__await__()

    async def _reply(self) -> CallReply:
        (found,) = await replies(self.waits, [self])
        if isinstance(found, CallFailed):
            raise found
        return found


async def replies(waits: Waits, calls: Sequence[RoleCall]) -> list[CallReply | CallFailed]:
    """What became of ``calls``, in order, once all have ended."""
    for call in calls:
        if not isinstance(call, RoleCall):
            what = f"gather() got a value of type {type(call).__name__}"
            raise TypeError(f"{what}: expected calls, each an argument of its own, such as gather(*calls)")
    results = await waits.results([call.wait for call in calls])
    return [_outcome(call.role, result or b"{}") for call, result in zip(calls, results, strict=True)]


class Calls:
    """Makes the calls of one handling."""

    def __init__(
        self, bus: Bus, delivery: Delivery, envelope: Envelope, waits: Waits, roles: Mapping[str, object]
    ) -> None:  # fmt: skip
        self._bus = bus
        self._delivery = delivery
        self._envelope = envelope
        self._waits = waits
        self._roles = roles

    def call(self, role: str, text: str, timeout: float | None, payload: Mapping[str, Any]) -> RoleCall:
        """See Context.call."""
        depth, limit = self._delivery.turn.count(".") + 1, self._bus.settings.call_depth
        expect(isinstance(role, str), "the role of a call", role)
        if role not in self._roles:
            names = ", ".join(sorted(self._roles))
            raise UnknownRole(f"there is no role {role!r} to call; there are {names}")
        expect(isinstance(text, str), "the text of a call", text)
        if depth > limit:
            self._waits.recorder.broke(
                StepError(f"calls are nested deeper than {limit}, see CALL_DEPTH: {self._delivery.role} calls {role}")
            )
        if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout <= 86_400):
            self._waits.recorder.broke(StepError(f"timeout={timeout!r} is invalid: expected more than 0 s to one day"))
        parent = self._envelope
        inherited = {name: parent.meta[name] for name in INHERITED if name in parent.meta}
        envelope = Envelope(
            conversation=parent.conversation, payload={**payload, "text": text}, role=role, priority=parent.priority,
            meta={"front": parent.reply_to, **inherited, **carried()},
        )  # fmt: skip
        wait = self._waits.wait("call", role, seconds=timeout, envelope=envelope, text=f"a reply of {role}")
        if timeout is not None:
            wait.late = partial(self._give_up, wait, timeout)
        return RoleCall(self._waits, wait)

    async def _give_up(self, wait: Wait, seconds: float) -> None:
        """End a call that has taken too long. Idempotent; a reply that came first stands."""
        turn, reason = self._waits.recorder.journal.calls[wait.key], f"no reply within {duration(seconds)}"
        await cancel_turn(
            self._bus, self._delivery.conversation, turn, instance="bus", kind="error", text=reason, reason=reason
        )


def _outcome(role: str, raw: bytes) -> CallReply | CallFailed:
    payload: dict[str, Any] = msgspec.json.decode(raw)
    failure = payload.get("failure")
    details = failure if isinstance(failure, dict) else {}
    kind, wait, text = details.get("kind"), details.get("wait"), str(payload.get("text", ""))
    if payload.pop("kind", "error") == "final":
        if not isinstance(kind, str) or kind not in FAILURES:
            return CallReply(role, text, payload)
        payload["why"] = text  # a user would read that a budget is used up as the answer
    reason = str(payload.get("why") or payload.get("reason") or "it gave no reason")
    seconds = float(wait) if isinstance(wait, int | float) else 0.0
    return CallFailed(role, reason, kind=kind if isinstance(kind, str) else "", wait=seconds)
